"""A judge that reads captions back with the grammar of the demo world, and the ground truth of drawn clips."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from workers.demo import language
from workers.demo.world import Scene

OPPOSITES = {"left": "right", "right": "left", "up": "down", "down": "up", "grow": "shrink", "shrink": "grow"}


@dataclass(frozen=True)
class Meaning:
    """What a sentence of the demo world says: the kind of change, what changes, and the colour that it ends with."""

    kind: str
    thing: tuple[str | None, str | None]
    ends_with: str | None


def meaning(sentence: str) -> Meaning | None:
    """Return what a sentence says, or None if it describes no change."""
    kind = language.read_change(sentence)
    if kind in (None, "none"):
        return None
    colours = re.findall(rf"\b({'|'.join(language.COLOURS)})\b", sentence.lower())
    end = {
        "background": language.read_background(sentence.split(" behind ", maxsplit=1)[0]),
        "colour": (colours or [None])[-1],
    }
    return Meaning(str(kind), language.read_thing(sentence), end.get(str(kind)))


def events(text: str) -> list[str]:
    """Return the sentences that describe a change, without the number of the frame."""
    sentences = (sentence.strip() for sentence in re.findall(r"[^.]+\.", text))
    return [re.sub(r"^In frame \d+ ", "", sentence) for sentence in sentences if meaning(sentence)]


def relation(text: str, event: str) -> str:
    """Say whether the text contains the event, or the opposite change of the same thing, or neither."""
    wanted, said = meaning(event), [meaning(sentence) for sentence in events(text)]
    if wanted in said:
        return "entailment"
    opposite = Meaning(OPPOSITES.get(wanted.kind, ""), wanted.thing, wanted.ends_with) if wanted else None
    return "contradiction" if opposite in said else "neutral"


def write_references(path: Path, scenes: dict[str, Scene]) -> None:
    """Write what happens in each scene as the reference file of `sharecap eval`. `scenes` are named by the row's id."""
    with path.open("w") as file:
        for name, scene in scenes.items():
            steps = list(zip(scene.changes, scene.states, scene.states[1:], strict=False))
            timed = [{"time_s": time_s, "text": text} for time_s, text in language.reference(scene)]
            caption = language.summary(scene.states[0], steps)
            values = {"id": name, "caption": caption, "differentials": timed, "duration_s": sum(scene.holds_s)}
            file.write(json.dumps(values) + "\n")
