"""The demo world: seeded scenes, visible changes, real H.264, and drawing without torch."""

import random
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from workers.demo import scenes, world
from workers.demo.world import State


@pytest.mark.parametrize("seed", range(20))
def test_every_change_matches_its_name(seed: int) -> None:
    scene = scenes.make_scene(seed)
    assert len(scene.states) == len(scene.changes) + 1 == len(scene.holds_s)
    for kind, before, after in zip(scene.changes, scene.states, scene.states[1:], strict=False):
        conditions = {
            "left": after.x <= before.x - 0.2,
            "right": after.x >= before.x + 0.2,
            "up": after.y <= before.y - 0.2,
            "down": after.y >= before.y + 0.2,
            "grow": after.radius > 1.2 * before.radius,
            "shrink": after.radius < before.radius / 1.2,
            "colour": after.colour != before.colour,
            "background": after.background != before.background,
            "leave": before.shape is not None and after.shape is None,
            "appear": before.shape is None and after.shape is not None,
        }
        assert conditions[kind], f"{kind}: {before} -> {after}"
        if after.shape:
            assert scenes.inside(after, scene.width, scene.height)


def test_a_seed_always_gives_the_same_scene() -> None:
    assert scenes.make_scene(5) == scenes.make_scene(5)
    assert scenes.make_scene(5) != scenes.make_scene(6)


def test_a_shape_has_its_colour_on_its_background() -> None:
    state = State("square", "green", "navy", x=0.25, y=0.5, radius=0.3)
    frame = scenes.draw(state, 320, 180)
    assert np.abs(frame[90, 80].astype(int) - world.COLOURS["green"]).max() <= scenes.JITTER
    assert np.abs(frame[90, 300].astype(int) - world.BACKGROUNDS["navy"]).max() <= scenes.JITTER


def test_shapes_differ_from_one_another() -> None:
    drawn = [scenes.draw(State(shape, "red", "white", radius=0.35), 192, 192).astype(int) for shape in world.SHAPES]
    for index, one in enumerate(drawn):
        for other in drawn[index + 1 :]:
            assert (np.abs(one - other).max(-1) > 100).mean() > 0.02


def test_a_clip_is_h264_and_shows_each_state_for_its_time(tmp_path: Path) -> None:
    scene = scenes.sample_clip()
    path = tmp_path / "clip.mp4"
    scenes.write_clip(path, scene, fps=10)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(shown) == round(10 * sum(scene.holds_s))
    starts_s = [0.0, *scene.change_times_s()]
    for state, start_s, hold_s in zip(scene.states, starts_s, scene.holds_s, strict=True):
        drawn = scenes.draw(state, scene.width, scene.height, scene.seed).astype(int)
        for time_s in (start_s + 0.1, start_s + hold_s - 0.1):
            assert np.abs(shown[round(10 * time_s)] - drawn).mean() < 4


def test_h264_keeps_the_order_and_look_of_frames() -> None:
    rng = random.Random(3)
    pictures = [scenes.draw(scenes.first_state(rng, 160, 96), 160, 96) for _ in range(7)]
    decoded = scenes.through_h264(pictures, crf=20)
    assert len(decoded) == 7
    for before, after in zip(pictures, decoded, strict=True):
        assert 0 < np.abs(before.astype(int) - after).mean() < 5


def test_drawing_does_not_import_torch() -> None:
    code = "import sys, workers.demo.scenes, workers.demo.language; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
