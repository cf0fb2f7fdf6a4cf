"""Drawing the demo world: seed -> `Scene` -> RGB frames -> an H.264 clip.

A scene shows one coloured shape on a coloured background; it changes step by step. `world.py` defines the vocabulary,
`language.py` describes scenes in words. Needs numpy, Pillow and PyAV, but not torch.

    python -m workers.demo.scenes --seed 7 --out clip.mp4      # writes a clip and prints its reference captions
"""

import argparse
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from workers.demo import language
from workers.demo.world import BACKGROUNDS, CHANGES, COLOURS, SHAPES, Scene, State

Frame = npt.NDArray[np.uint8]  # [height, width, 3], RGB

SIZES = ((320, 180), (384, 216), (426, 240), (640, 360), (320, 240), (256, 256), (384, 160), (180, 320))
SIZE_WEIGHTS = (5, 4, 3, 3, 3, 2, 2, 1)

SMALL_RADIUS = (0.20, 0.26)  # range, as a fraction of the short side
LARGE_RADIUS = (0.32, 0.40)
MARGIN = 0.01
JITTER = 8  # largest deviation of a drawn colour from its named value, per channel; fixed within a scene


def outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Return the corners of an upright triangle, a square or a five-pointed star around a centre, in pixels."""
    if shape == "square":
        side = 0.88 * radius
        return [(x - side, y - side), (x + side, y - side), (x + side, y + side), (x - side, y + side)]
    corners, inner = (3, None) if shape == "triangle" else (5, 0.40)
    size = radius * (1.15 if shape == "triangle" else 1.12)
    centre_y = y + (0.22 * radius if shape == "triangle" else 0.06 * radius)
    points = []
    for k in range(corners if inner is None else 2 * corners):
        angle = 2 * math.pi * k / (corners if inner is None else 2 * corners) - math.pi / 2
        r = size if inner is None or k % 2 == 0 else size * inner
        points.append((x + r * math.cos(angle), centre_y + r * math.sin(angle)))
    return points


def jittered(rng: random.Random, rgb: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(min(255, max(0, channel + rng.randint(-JITTER, JITTER))) for channel in rgb)


def draw(state: State, width: int, height: int, palette_seed: int = 0) -> Frame:
    """Draw one state with four-fold supersampling. Returns RGB `[height, width, 3]`.

    `palette_seed` fixes the small deviation of each named colour, so a clip's colours stay constant.
    """
    rng = random.Random(f"{palette_seed} {state.background}")
    frame = np.empty((height, width, 3), np.uint8)
    frame[:] = jittered(rng, BACKGROUNDS[state.background])
    if state.shape is None:
        return frame
    fill = np.array(jittered(random.Random(f"{palette_seed} {state.colour}"), COLOURS[state.colour]), np.float32)
    radius, x, y = state.radius * min(width, height), state.x * width, state.y * height
    left, top = max(0, int(x - 1.3 * radius)), max(0, int(y - 1.3 * radius))
    right, bottom = min(width, int(x + 1.3 * radius) + 1), min(height, int(y + 1.3 * radius) + 1)
    mask = Image.new("L", (4 * (right - left), 4 * (bottom - top)), 0)
    pen = ImageDraw.Draw(mask)
    x, y, radius = 4 * (x - left), 4 * (y - top), 4 * radius
    if state.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    else:
        pen.polygon(outline(state.shape, x, y, radius), fill=255)
    cover = np.asarray(mask.reduce(4), np.float32)[:, :, None] / 255
    region = frame[top:bottom, left:right]
    frame[top:bottom, left:right] = np.rint(region + cover * (fill - region)).astype(np.uint8)
    return frame


def inside(state: State, width: int, height: int) -> bool:
    """Return whether the whole shape lies within the frame."""
    short = min(width, height)
    reach_x, reach_y = 1.02 * state.radius * short / width, 1.02 * state.radius * short / height
    return all(r + MARGIN <= c <= 1 - r - MARGIN for c, r in ((state.x, reach_x), (state.y, reach_y)))


def place(rng: random.Random, state: State, width: int, height: int) -> State:
    """Return `state` with its shape at a random place inside the frame."""
    while True:
        placed = replace(state, x=rng.random(), y=rng.random())
        if inside(placed, width, height):
            return placed


def first_state(rng: random.Random, width: int, height: int) -> State:
    radius = rng.uniform(*rng.choice((SMALL_RADIUS, LARGE_RADIUS)))
    state = State(rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(BACKGROUNDS)), radius=radius)
    return place(rng, state, width, height)


def resized(rng: random.Random, state: State, kind: str) -> State | None:
    if (state.radius < 0.3) != (kind == "grow"):
        return None
    return replace(state, radius=rng.uniform(*(LARGE_RADIUS if kind == "grow" else SMALL_RADIUS)))


def moved(rng: random.Random, state: State, kind: str) -> State:
    step = rng.uniform(0.22, 0.55) * (-1 if kind in ("left", "up") else 1)
    return replace(state, x=state.x + step) if kind in ("left", "right") else replace(state, y=state.y + step)


def apply_change(rng: random.Random, state: State, kind: str, width: int, height: int) -> State | None:  # noqa: PLR0911 (one case each)
    """Return `state` after a change of this kind, large enough to be visible, or None if it is impossible."""
    if (kind == "appear") == (state.shape is not None) and kind not in ("none", "background"):
        return None
    new: State | None
    if kind == "none":
        return state
    if kind == "background":
        return replace(state, background=rng.choice([b for b in BACKGROUNDS if b != state.background]))
    if kind == "appear":
        return replace(first_state(rng, width, height), background=state.background)
    if kind == "leave":
        return replace(state, shape=None)
    if kind == "colour":
        return replace(state, colour=rng.choice([c for c in COLOURS if c != state.colour]))
    new = resized(rng, state, kind) if kind in ("grow", "shrink") else moved(rng, state, kind)
    return new if new is not None and inside(new, width, height) else None


def next_state(rng: random.Random, state: State, width: int, height: int) -> tuple[str, State]:
    """Return a random possible change and the state after it. All kinds are about equally frequent."""
    while True:
        kind = "appear" if state.shape is None and rng.random() < 0.8 else rng.choice(CHANGES[:-1])
        for _ in range(12):
            new = apply_change(rng, state, kind, width, height)
            if new is not None:
                return kind, new


def make_scene(seed: int, changes: int | None = None, size: tuple[int, int] | None = None) -> Scene:
    """Return the scene of this seed: 3 to 6 changes, or `changes`; each state lasts 2.1 to 4 s."""
    rng = random.Random(f"scene {seed}")
    width, height = size or rng.choices(SIZES, SIZE_WEIGHTS)[0]
    states, kinds = [first_state(rng, width, height)], []
    for _ in range(changes or rng.randint(3, 6)):
        kind, state = next_state(rng, states[-1], width, height)
        kinds.append(kind)
        states.append(state)
    holds_s = tuple(round(rng.uniform(2.1, 4.0), 1) for _ in states)
    return Scene(seed, width, height, tuple(states), tuple(kinds), holds_s)


def sample_clip() -> Scene:
    """Return the scene of `make demo`: a red star through three changes in 8 s."""
    start = State("star", "red", "brown", x=0.25, y=0.5, radius=0.25)
    moved = replace(start, x=0.7)
    turned = replace(moved, colour="cyan")
    states = (start, moved, turned, replace(turned, shape=None))
    return Scene(0, 640, 360, states, ("right", "colour", "leave"), (2.5, 2.0, 2.0, 1.5))


def frames(scene: Scene, fps: int) -> Iterator[Frame]:
    """Yield all frames of the clip. Each change happens between two frames."""
    ends_s = [*scene.change_times_s(), sum(scene.holds_s)]
    yielded = 0
    for state, end_s in zip(scene.states, ends_s, strict=True):
        picture = draw(state, scene.width, scene.height, scene.seed)
        count = round(end_s * fps) - yielded
        yielded += count
        for _ in range(count):
            yield picture


def write_clip(path: Path | BinaryIO, scene: Scene, fps: int = 12, crf: int = 23) -> None:
    """Write the scene as an H.264 MP4."""
    target = str(path) if isinstance(path, Path) else path
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        for picture in frames(scene, fps):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def through_h264(pictures: list[Frame], crf: int) -> list[Frame]:
    """Encode pictures of one size as H.264 in memory and return the decoded pictures."""
    height, width = pictures[0].shape[:2]
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 12), Fraction(12)
    encoder.options = {"preset": "ultrafast", "crf": str(crf), "threads": "1"}
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    packets = []
    for index, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture, "rgb24")
        frame.pts = index
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoded = [frame for packet in packets for frame in decoder.decode(packet)] + decoder.decode(None)
    return [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in decoded]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a clip of the demo world and print its reference captions.")
    parser.add_argument("--seed", type=int, help="seed of the scene (default: the sample clip of `make demo`)")
    parser.add_argument("--out", type=Path, required=True, help="path of the MP4 to write")
    parser.add_argument("--fps", type=int, default=12)
    arguments = parser.parse_args()
    scene = sample_clip() if arguments.seed is None else make_scene(arguments.seed)
    write_clip(arguments.out, scene, arguments.fps)
    for time_s, text in language.reference(scene):
        print(f"{time_s:6.2f} s  {text}")


if __name__ == "__main__":
    main()
