"""Both prompt styles in all roles of the worker: the prompts, and the images shown with them."""

from pathlib import Path

import pytest

from service.contract.jobs import JobStatus
from tests.fake_captioner import FakeCaptioner
from tests.workers.clips import number_of, numbered, write
from tests.workers.conftest import Bench
from workers.prompts.choice import PromptSetting, StyleName, choose_prompts
from workers.prompts.hierarchical import HierarchicalPrompts
from workers.prompts.style import PromptStyle
from workers.prompts.trained import TrainedPrompts
from workers.video.collage import PAIR_GAP_PX

PARTS = ["# Character\n", "\n# Skills\n", "\n# Constraints\n", "\n# Input\n"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Six seconds at ten frames a second, each frame with its number."""
    return write(tmp_path / "clip.mp4", [numbered(k) for k in range(60)], fps=10)


@pytest.mark.parametrize(
    ("setting", "family_default", "style"),
    [
        ("automatic", "xcomposer2", TrainedPrompts),
        ("automatic", "hierarchical", HierarchicalPrompts),
        ("xcomposer2", "hierarchical", TrainedPrompts),
        ("hierarchical", "xcomposer2", HierarchicalPrompts),
    ],
)
def test_the_setting_overrides_the_default_of_the_model_family(
    setting: PromptSetting, family_default: StyleName, style: type[PromptStyle]
) -> None:
    assert isinstance(choose_prompts(setting, family_default, images_per_turn=1), style)


async def test_hierarchical_prompts_show_two_images(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner(["It begins.", "Then.", "And then.", "At last.", "All of it."])
    captioner.prompts = HierarchicalPrompts(2)
    captioner.takes_hd_num = False
    job = await bench.run(bench.runner(captioner), await bench.video(clip, keyframes="interval"))
    assert job.status is JobStatus.COMPLETED, job.error
    first, second, third, _, summary = captioner.turns
    assert [number_of(image) for image in first.images] == [0]
    assert [[number_of(image) for image in turn.images] for turn in (second, third)] == [[0, 20], [20, 40]]
    assert "Frame 1 at 2.00 s: the first picture.\nFrame 2 at 4.00 s: the second picture." in third.prompt
    assert third.prompt.endswith("What happened before: Then.")
    assert summary.images == ()
    assert summary.prompt.endswith("Note 3 at 4.00 s: And then.\nNote 4 at 5.90 s: At last.\n")
    for turn in captioner.turns:
        assert turn.hd_num is None
        positions = [turn.prompt.find(part) for part in PARTS]
        assert positions == sorted(positions) and positions[0] == 0


async def test_a_pair_is_stacked_for_a_model_that_takes_one_image(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner()
    captioner.prompts = HierarchicalPrompts(1)
    await bench.run(bench.runner(captioner), await bench.video(clip, keyframes="interval"))
    pair = captioner.turns[1]
    assert pair.image is not None and pair.image.size == (160, 2 * 120 + PAIR_GAP_PX)
    assert "Frame 0 at 0.00 s: the upper half of the picture.\nFrame 1 at 2.00 s: the lower half" in pair.prompt


async def test_hierarchical_prompts_of_the_fast_and_recaption_roles(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner()
    captioner.prompts = HierarchicalPrompts(2)
    runner = bench.runner(captioner)
    await bench.run(runner, await bench.video(clip, keyframes="interval", mode="fast"))
    await bench.run(runner, await bench.recaption("a red star"))
    tall, short = captioner.turns
    assert tall.image is not None and tall.image.height > 4 * 120
    assert tall.prompt.endswith("Frame 2 at 4.00 s: beside <IMAGE 2>.\nFrame 3 at 5.90 s: beside <IMAGE 3>.")
    assert short.prompt.endswith("# Input\nPrompt: a red star")
    assert "No guessing" in tall.prompt and "No guessing" not in short.prompt


async def test_hd_num_is_rejected_for_a_model_without_crops(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner()
    captioner.takes_hd_num = False
    job = await bench.run(bench.runner(captioner), await bench.video(clip, hd_num=4))
    assert job.error is not None and job.error.code == "invalid_option"
    assert "hd_num" in job.error.detail
    assert captioner.turns == []


@pytest.mark.parametrize("style", [TrainedPrompts(), HierarchicalPrompts(2)])
def test_a_summary_consists_of_its_description_lines(style: PromptStyle) -> None:
    notes = [(0.0, "One."), (2.5, "Two.")]
    lines = "".join(style.description(k, *note) for k, note in enumerate(notes, start=1))
    assert style.summary(notes) == style.summary([]) + lines
    assert "2.50" in lines


def test_the_trained_prompts_are_byte_identical_to_the_training_texts() -> None:
    trained = TrainedPrompts()
    assert trained.first_frame(7, 9.0) == "This is the first frame of a video, describe it in detail."
    assert trained.fast([0.0, 1.0]) == "Here are a few key frames of a video, discribe this video in detail."
    assert trained.recaption("x") == "Translate this brief generation prompt into a detailed caption: x"
    assert trained.differential(0, 0.0, 2.0, "y") == (
        "Here are the Video frame 0 at 0.00 Second(s) and Video frame 1 at 2.00 Second(s) of a video, "
        "describe what happend between them. What happend before is: y"
    )
    assert trained.summary([(1.5, "z")]) == (
        "Summarize the following per frame descriptions:\nVideo frame 1 at 1.50 Second(s) description: z\n"
    )
