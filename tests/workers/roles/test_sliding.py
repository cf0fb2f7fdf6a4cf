"""Parallel sliding mode: shots are captioned as independent concurrent chains, each keyframe exactly once."""

import asyncio
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from service.contract.events import Differential, Keyframes, Started
from service.contract.jobs import JobState, JobStatus
from tests.fake_captioner import FakeCaptioner
from tests.workers.clips import write
from tests.workers.conftest import Bench
from workers.models.engine import Turn
from workers.prompts.trained import TRAINED_PROMPTS as prompts

OPTIONS = {"interval_s": 0.5, "similarity_threshold": 0.99, "parallel": True}
SHOTS, STEPS = 4, 3


def shot(number: int, step: int) -> np.ndarray:
    """Return a frame that differs slightly from the other steps of its shot and strongly from other shots."""
    frame = np.full((120, 160, 3), 30, np.uint8)
    rows, columns = divmod(number, 2)
    frame[60 * rows : 60 * rows + 60, 80 * columns : 80 * columns + 80] = 250
    frame[40:80, 40:80] = 60 + 70 * step
    return frame


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Four shots of 1.5 s at ten frames per second, each with a change every half second."""
    frames = [shot(k // 15, k % 15 // 5) for k in range(SHOTS * 15)]
    return write(tmp_path / "shots.mp4", frames, fps=10)


def captioned(job: JobState) -> list[int]:
    return [differential.keyframe for differential in job.differentials]


def shots_of(job: JobState) -> list[list[int]]:
    """Return the keyframes of each shot."""
    return [[k.index for k in group] for _, group in groupby(job.keyframes, key=lambda k: k.shot)]


def echo(turn: Turn) -> str:
    """Answer "first" to a first-frame prompt, and "after ..." with the previous caption to a differential prompt."""
    return "first" if turn.prompt == prompts.FIRST_FRAME else f"after {turn.prompt.rpartition('before is: ')[2]}"


async def test_each_shot_starts_with_a_description_of_its_first_frame(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner([echo] * 100, delay_s=0.05)
    job_id = await bench.video(clip, **OPTIONS)
    job = await bench.run(bench.runner(captioner), job_id)
    assert job.status is JobStatus.COMPLETED, job.error
    shots = shots_of(job)
    assert len(shots) == SHOTS
    assert [k.time_s for k in job.keyframes if k.index in {shot[0] for shot in shots}] == [0, 1.5, 3.0, 4.5]
    assert captioned(job) == list(range(len(job.keyframes))), "sorted, whatever order they finished in"
    for chain in shots:
        texts = [job.differentials[index].text for index in chain]
        assert texts == ["after " * place + "first" for place in range(len(chain))]
    assert [len(chain) for chain in shots] == [STEPS] * (SHOTS - 1) + [STEPS + 1], "the last sample is a keyframe too"
    summary = prompts.summary([(d.time_s, d.text) for d in job.differentials])
    assert captioner.turns[-1].prompt == summary, "the summary lists the shots in order"
    assert captioner.most_running >= 3, "shots are captioned concurrently"
    published = [event.keyframe for event in await bench.events(job_id) if isinstance(event, Differential)]
    assert sorted(published) == captioned(job)
    for chain in shots:
        assert [keyframe for keyframe in published if keyframe in chain] == chain, "a chain is captioned in order"


async def test_without_parallel_the_video_is_one_chain(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner(delay_s=0.01)
    job = await bench.run(bench.runner(captioner), await bench.video(clip, **{**OPTIONS, "parallel": False}))
    assert {k.shot for k in job.keyframes} == {0}
    assert captioner.most_running == 1
    assert sum(turn.prompt == prompts.FIRST_FRAME for turn in captioner.turns) == 1


@pytest.mark.parametrize(
    ("options", "shots"),
    [({"keyframes": "interval"}, SHOTS), ({"cut_threshold": -1}, 1), ({"cut_threshold": 0.99}, SHOTS * STEPS)],
)
async def test_where_shots_begin(bench: Bench, clip: Path, options: dict[str, object], shots: int) -> None:
    job = await bench.run(bench.runner(FakeCaptioner()), await bench.video(clip, **{**OPTIONS, **options}))
    assert job.status is JobStatus.COMPLETED, job.error
    assert len(shots_of(job)) == shots


async def test_the_setting_chains_limits_concurrency(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner(delay_s=0.01)
    job = await bench.run(bench.runner(captioner, chains=2), await bench.video(clip, **OPTIONS))
    assert captioned(job) == list(range(len(job.keyframes)))
    assert captioner.most_running == 2


async def test_the_next_attempt_captions_only_missing_keyframes(bench: Bench, clip: Path) -> None:
    """The first worker stops when some shots have more captions than others; no keyframe is captioned twice."""

    def uneven(turn: Turn) -> str:
        return "word " * (60 if len(slow.turns) % 2 else 1)

    slow, quick = FakeCaptioner([uneven] * 100, delay_s=0.02), FakeCaptioner()
    first, second = bench.runner(slow), bench.runner(quick)
    job_id = await bench.video(clip, **OPTIONS)
    await asyncio.to_thread(first.run_job, job_id)
    half = await bench.until(job_id, lambda job: len(job.differentials) >= 4)
    await first.stop(0)
    half = await bench.until(job_id, lambda job: True)
    assert not slow.running
    job = await bench.run(second, job_id)
    assert job.status is JobStatus.COMPLETED, job.error
    assert job.attempts == 2
    assert captioned(job) == list(range(len(job.keyframes)))
    earlier = {d.keyframe: d.text for d in half.differentials}
    assert {d.keyframe: d.text for d in job.differentials if d.keyframe in earlier} == earlier
    assert len(quick.turns) == len(job.keyframes) - len(earlier) + 1, "the missing keyframes and the summary"
    events = await bench.events(job_id)
    published = [event.keyframe for event in events if isinstance(event, Differential)]
    assert len(published) == len(set(published))
    assert [event.attempt for event in events if isinstance(event, Started)] == [1, 2]
    assert sum(event.complete for event in events if isinstance(event, Keyframes)) == 1


async def test_a_failing_chain_fails_the_job_and_stops_the_others(bench: Bench, clip: Path) -> None:
    answers: Sequence[object] = ["word " * 500, RuntimeError("broken"), "word " * 500, "word " * 500]
    captioner = FakeCaptioner(answers, delay_s=0.02)  # type: ignore[arg-type]
    job = await bench.run(bench.runner(captioner), await bench.video(clip, **OPTIONS))
    assert job.error is not None and job.error.code == "engine_failed"
    assert not captioner.running
