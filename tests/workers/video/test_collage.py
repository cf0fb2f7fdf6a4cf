"""The geometry of combined images, checked pixel by pixel."""

import numpy as np
from PIL import Image

from workers.video.collage import stack_all, stack_pair

RED, BLUE = (200, 10, 10), (10, 10, 200)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_a_pair_is_stacked_with_fifty_white_pixels_between() -> None:
    stacked = pixels(stack_pair(Image.new("RGB", (60, 40), RED), Image.new("RGB", (60, 40), BLUE)))
    assert stacked.shape == (130, 60, 3)
    assert (stacked[:40] == RED).all()
    assert (stacked[40:90] == 255).all()
    assert (stacked[90:] == BLUE).all()


def test_the_second_frame_is_scaled_to_the_width_of_the_first() -> None:
    stacked = stack_pair(Image.new("RGB", (60, 40), RED), Image.new("RGB", (30, 10), BLUE))
    assert stacked.size == (60, 40 + 50 + 20)


def test_all_frames_are_stacked_in_one_column_with_a_margin() -> None:
    frames = [Image.new("RGB", (480, 100), RED), Image.new("RGB", (440, 80), BLUE), Image.new("RGB", (480, 60), RED)]
    stacked = pixels(stack_all(frames))
    margin = 120  # a quarter of the widest
    assert stacked.shape == (10 + 100 + 20 + 80 + 20 + 60 + 30, margin + 480 + 20, 3)
    assert (stacked[:10] == 255).all()
    assert (stacked[10:110, margin : margin + 480] == RED).all()
    assert (stacked[130:210, margin : margin + 440] == BLUE).all()
    assert (stacked[130:210, margin + 440 :] == 255).all()
    assert (stacked[230:290, margin : margin + 480] == RED).all()
    for line in (119, 219):  # two black rows in the middle of each gap of twenty
        assert (stacked[line : line + 2] == 0).all()
        assert (stacked[line - 9 : line] == 255).all()
        assert (stacked[line + 2 : line + 11] == 255).all()
    assert (stacked[290:] == 255).all(), "there must not be a line below the last frame"
    assert (stacked[:, margin + 480 :][10:110] == 255).all()


def test_each_frame_has_its_label_at_its_middle() -> None:
    frames = [Image.new("RGB", (800, 200), RED)] * 3
    stacked = pixels(stack_all(frames))
    margin, font_px = 200, 40
    for k in range(3):
        top = 10 + k * 220
        label = stacked[top + 100 : top + 100 + 2 * font_px, :margin]
        rows, columns = np.nonzero((label < 128).all(axis=2))
        assert rows.size, "the label is drawn"
        assert 0.4 * font_px < np.ptp(rows) < 1.3 * font_px
        assert columns.max() < margin, "the label stays in the margin"
        assert (stacked[top : top + 95, :margin] == 255).all()
    labels = [stacked[10 + k * 220 + 100 : 10 + k * 220 + 150, :margin] for k in range(3)]
    assert not (labels[0] == labels[1]).all()


def test_the_margin_has_at_least_a_hundred_pixels() -> None:
    assert stack_all([Image.new("RGB", (40, 30), RED)]).size == (100 + 40 + 20, 10 + 30 + 30)
