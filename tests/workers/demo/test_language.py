"""Captions of the demo world can be read back, whichever template they use."""

import random

import pytest

from workers.demo import examples, language, scenes
from workers.demo.world import State


@pytest.mark.parametrize("seed", range(40))
def test_the_texts_of_a_scene_are_read_back(seed: int) -> None:
    scene, rng = scenes.make_scene(seed), random.Random(seed)
    first = language.first_frame(rng, scene.states[0], favourite=0)
    assert language.read_thing(first) == (scene.states[0].shape, scene.states[0].colour)
    assert language.read_background(first) == scene.states[0].background
    for kind, before, after in zip(scene.changes, scene.states, scene.states[1:], strict=False):
        text = language.differential(rng, kind, before, after, favourite=0)
        assert language.read_change(text) == kind, text
        assert language.read_thing(text)[0] == (before.shape or after.shape), text


def test_a_still_pair_is_read_back() -> None:
    for shape in (None, "star"):
        state = State(shape, "pink", "grey")
        text = language.differential(random.Random(0), "none", state, state)
        assert language.read_change(text) == "none"


def test_a_summary_names_frames_by_their_number_in_the_prompt() -> None:
    red, blue = State("circle", "red", "white"), State("circle", "blue", "white")
    steps = [("left", red, red), ("none", red, red), ("colour", red, blue)]
    changes = "the red circle moves to the left. In frame {} nothing changes. In frame {} the red circle turns blue."
    assert language.summary(red, steps) == (
        "The video shows a red circle on a white background. In frame 2 " + changes.format(3, 4)
    )
    assert language.summary(None, steps) == "In frame 1 " + changes.format(2, 3)


def test_the_article_fits_the_next_word() -> None:
    assert language.article("orange star") == "an orange star"
    assert language.article("blue star") == "a blue star"


def test_every_role_uses_the_trained_prompt() -> None:
    rng = random.Random(1)
    step = examples.step_to(rng, examples.random_state(rng))
    assert examples.first_frame(rng, step[1])[0] == "This is the first frame of a video, describe it in detail."
    assert examples.differential(rng, *step)[0].startswith("Here are the Video frame ")
    assert examples.summary(rng, 3)[0].startswith("Summarize the following per frame descriptions:\nVideo frame 1 at ")
    assert examples.recaption(rng)[0].startswith("Translate this brief generation prompt into a detailed caption: ")


def test_a_recaption_keeps_every_attribute_of_the_prompt() -> None:
    rng = random.Random(2)
    for _ in range(200):
        prompt, answer = examples.recaption(rng)
        shape, colour = language.read_thing(prompt)
        if answer == language.UNKNOWN:
            assert shape is None
            continue
        assert language.read_thing(answer) == (shape, colour)
        background = language.read_background(prompt)
        assert (background or "plain") in answer
