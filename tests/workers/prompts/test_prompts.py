"""Both dialects through all roles of the worker: what is asked, and which pictures are shown."""

from pathlib import Path

import pytest

from service.contract.jobs import JobStatus
from tests.fake_captioner import FakeCaptioner
from tests.workers.clips import number_of, numbered, write
from tests.workers.conftest import Bench
from workers.prompts import Dialect
from workers.prompts import trained_texts as prompts
from workers.prompts.choice import chosen_dialect
from workers.prompts.hierarchical import Hierarchical
from workers.prompts.trained import Trained
from workers.video.collage import PAIR_GAP_PX

PARTS = ["# Character\n", "\n# Skills\n", "\n# Constraints\n", "\n# Input\n"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Six seconds at ten frames a second, each frame with its number."""
    return write(tmp_path / "clip.mp4", [numbered(k) for k in range(60)], fps=10)


@pytest.mark.parametrize(
    ("asked_for", "family", "dialect"),
    [
        ("automatic", True, Trained),
        ("automatic", False, Hierarchical),
        ("xcomposer2", False, Trained),
        ("hierarchical", True, Hierarchical),
    ],
)
def test_prompt_dialect_goes_before_the_architecture(asked_for: str, family: bool, dialect: type[Dialect]) -> None:
    assert isinstance(chosen_dialect(asked_for, family=family, pictures=1), dialect)


async def test_the_hierarchical_dialect_shows_two_pictures(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner(["It begins.", "Then.", "And then.", "At last.", "All of it."])
    captioner.dialect = Hierarchical(2)
    captioner.takes_hd_num = False
    job = await bench.run(bench.runner(captioner), await bench.video(clip, keyframes="interval"))
    assert job.status is JobStatus.COMPLETED, job.error
    first, second, third, _, whole = captioner.turns
    assert [number_of(image) for image in first.images] == [0]
    assert [[number_of(image) for image in turn.images] for turn in (second, third)] == [[0, 20], [20, 40]]
    assert "Frame 1 at 2.00 s: the first picture.\nFrame 2 at 4.00 s: the second picture." in third.prompt
    assert third.prompt.endswith("What happened before: Then.")
    assert whole.images == ()
    assert whole.prompt.endswith("Note 3 at 4.00 s: And then.\nNote 4 at 5.90 s: At last.\n")
    for turn in captioner.turns:
        assert turn.hd_num is None
        places = [turn.prompt.find(part) for part in PARTS]
        assert places == sorted(places) and places[0] == 0


async def test_a_model_of_one_picture_is_shown_the_pair_stacked(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner()
    captioner.dialect = Hierarchical(1)
    await bench.run(bench.runner(captioner), await bench.video(clip, keyframes="interval"))
    pair = captioner.turns[1]
    assert pair.image is not None and pair.image.size == (160, 2 * 120 + PAIR_GAP_PX)
    assert "Frame 0 at 0.00 s: the upper half of the picture.\nFrame 1 at 2.00 s: the lower half" in pair.prompt


async def test_the_other_roles_of_the_hierarchical_dialect(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner()
    captioner.dialect = Hierarchical(2)
    runner = bench.runner(captioner)
    await bench.run(runner, await bench.video(clip, keyframes="interval", mode="fast"))
    await bench.run(runner, await bench.recaption("a red star"))
    tall, short = captioner.turns
    assert tall.image is not None and tall.image.height > 4 * 120
    assert tall.prompt.endswith("Frame 2 at 4.00 s: beside <IMAGE 2>.\nFrame 3 at 5.90 s: beside <IMAGE 3>.")
    assert short.prompt.endswith("# Input\nPrompt: a red star")
    assert "No guessing" in tall.prompt and "No guessing" not in short.prompt


async def test_crops_are_refused_where_there_are_none(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner()
    captioner.takes_hd_num = False
    job = await bench.run(bench.runner(captioner), await bench.video(clip, hd_num=4))
    assert job.error is not None and job.error.code == "invalid_option"
    assert "hd_num" in job.error.detail
    assert captioner.turns == []


@pytest.mark.parametrize("dialect", [Trained(), Hierarchical(2)])
def test_a_summary_is_made_of_its_lines(dialect: Dialect) -> None:
    notes = [(0.0, "One."), (2.5, "Two.")]
    lines = "".join(dialect.description(k, *note) for k, note in enumerate(notes, start=1))
    assert dialect.summary(notes) == dialect.summary([]) + lines
    assert "2.50" in lines


def test_the_trained_dialect_is_the_protocol_constants() -> None:
    trained = Trained()
    assert trained.first_frame(7, 9.0) == prompts.FIRST_FRAME
    assert trained.fast([0.0, 1.0]) == prompts.FAST
    assert trained.recaption("x") == prompts.recaption("x")
    assert trained.differential(0, 0.0, 2.0, "y") == prompts.differential(0, 0.0, 2.0, "y")
