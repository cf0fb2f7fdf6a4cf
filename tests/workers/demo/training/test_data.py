"""Training pictures: they show what their labels say, cut as by the plugin."""

import random

import numpy as np
import torch
from PIL import Image

from workers.demo import examples, scenes, world
from workers.demo.training import data
from workers.xcomposer2.hd_tiling import plan_tiling
from workers.xcomposer2.image import crops


def test_a_stored_crop_equals_the_plugins_crops() -> None:
    image = Image.fromarray(scenes.draw(examples.random_state(random.Random(0)), 320, 180))
    expected = crops(image, plan_tiling(320, 180, 1, data.CROP_PX))
    stored = data.normalised(torch.from_numpy(data.crop_of(image)[None].copy()))
    torch.testing.assert_close(expected, stored.expand(2, -1, -1, -1), atol=1e-5, rtol=1e-5)


def test_pictures_match_their_encoded_states() -> None:
    scene = scenes.make_scene(11)
    for crop, _, rows in data.all_pictures(scene, random.Random(0)):
        for row in np.array(rows, np.float32):
            state = data.decode_state(row)
            if state.shape:
                centre = crop[int(state.y * data.CROP_PX), int(state.x * data.CROP_PX)].astype(int)
                assert np.abs(centre - world.COLOURS[state.colour]).max() < 40


def test_sampled_pairs_show_the_changes_between_samples_of_the_clip() -> None:
    scene = scenes.make_scene(12, changes=3, size=(320, 180))
    pairs = data.sampled_pairs(scene, random.Random(0))
    kinds = [world.CHANGES[kind] for _, kind, _ in pairs]
    assert [kind for kind in kinds if kind != "none"] == list(scene.changes)
    assert "none" in kinds
    for _, kind, (before, after) in pairs:
        if world.CHANGES[kind] == "none":
            assert before[:3] == after[:3]
