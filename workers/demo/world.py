"""The vocabulary of the demo world: its shapes, colours and changes, and the types `State` and `Scene`.

`scenes.py` draws scenes, `language.py` describes them.
"""

from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (215, 30, 35),
    "green": (35, 165, 60),
    "blue": (35, 80, 225),
    "yellow": (250, 220, 30),
    "orange": (250, 135, 15),
    "purple": (135, 40, 175),
    "pink": (250, 140, 190),
    "cyan": (40, 210, 225),
}
BACKGROUNDS = {
    "white": (248, 248, 248),
    "black": (12, 12, 12),
    "grey": (128, 128, 128),
    "brown": (105, 65, 35),
    "navy": (20, 25, 85),
}
CHANGES = ("left", "right", "up", "down", "grow", "shrink", "colour", "leave", "appear", "background", "none")
HELD_OUT_SEED = 1_000_000_000  # training never uses seeds from here on


@dataclass(frozen=True)
class State:
    """What a clip shows between two changes.

    `x` and `y` are the centre as fractions of width and height; `radius` is a fraction of the short side.
    """

    shape: str | None
    colour: str
    background: str
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.25


@dataclass(frozen=True)
class Scene:
    """A clip's content. `changes[i]` leads from `states[i]` to `states[i + 1]`, which lasts `holds_s[i + 1]`."""

    seed: int
    width: int
    height: int
    states: tuple[State, ...]
    changes: tuple[str, ...]
    holds_s: tuple[float, ...]

    def change_times_s(self) -> list[float]:
        """Return the time at which each state after the first begins."""
        return [round(sum(self.holds_s[: i + 1]), 1) for i in range(len(self.changes))]
