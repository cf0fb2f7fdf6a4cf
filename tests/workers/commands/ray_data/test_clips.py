"""Clips become rows: completed, failed, given up. A scripted model, no Ray."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from sharecap_client.datasets.rows import Row
from sharecap_client.models import JobStatus

from service.contract.errors import DecoderDied, EngineFailed
from service.contract.jobs import JobState, VideoOptions
from service.contract.sandbox.subprocesses import ChildStarter
from tests.fake_captioner import FakeCaptioner, FakeEncoder
from tests.workers.clips import numbered, write
from workers.attempt import Attempt
from workers.commands.ray_data import clips
from workers.commands.ray_data.clips import MAX_DEATHS, Clip, ClipCaptioner, Slots
from workers.commands.ray_data.deaths import Deaths
from workers.models.engine import Turn
from workers.publisher import MemorySink
from workers.standalone import run_job, standalone_context
from workers.video.frames import LIBRARIES

OPTIONS = VideoOptions(keyframes="interval")
STORED = '{"keyframes": "interval"}'


class ProcessEnded(BaseException):
    """Raised where a captioner ends its process."""


class LocalDeaths:
    """`Deaths` without Ray. `end_process` ends the process: nothing is counted until `new_process`."""

    def __init__(self) -> None:
        self.deaths, self.ended = Deaths(), False

    def new_process(self) -> None:
        self.ended = False

    def end_process(self) -> NoReturn:
        self.ended = True
        raise ProcessEnded

    async def count(self, clip_id: str) -> int:
        return self.deaths.count(clip_id)

    async def begin(self, clip_id: str) -> None:
        if self.ended:
            raise ProcessEnded
        self.deaths.begin(clip_id)

    async def end(self, clip_id: str) -> None:
        self.deaths.end(clip_id)


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    path = write(tmp_path / "clip.mp4", [numbered(k) for k in range(30)], fps=10)
    return Clip("clip.mp4", str(path), attempt=1)


Make = Callable[..., ClipCaptioner]


@pytest.fixture(scope="module")
def starter() -> Iterator[ChildStarter]:
    """The process from which children that open videos are forked."""
    starter = ChildStarter(LIBRARIES)
    starter.start()
    yield starter
    starter.close()


@pytest.fixture
def make(tmp_path: Path, starter: ChildStarter) -> Make:
    def making(model: FakeCaptioner, deaths: LocalDeaths | None = None, slots: int = 2) -> ClipCaptioner:
        context = replace(standalone_context(tmp_path / "data", model, FakeEncoder()), starter=starter)
        deaths = deaths or LocalDeaths()
        deaths.new_process()
        return ClipCaptioner(context, OPTIONS, STORED, slots=slots, deaths=deaths, end_process=deaths.end_process)

    return making


async def test_a_row_has_everything_that_the_service_reports(make: Make, clip: Clip, tmp_path: Path) -> None:
    row = await make(FakeCaptioner()).row(clip)
    assert (row.id, row.video, row.state) == (clip.id, clip.video, JobStatus.COMPLETED)
    assert (row.caption, row.keyframe_times_s) == ("answer 4", [0, 2, 2.9])
    assert [d.text for d in row.differentials] == ["answer 1", "answer 2", "answer 3"]
    assert (row.width, row.height, row.fps, row.frames, row.duration_s) == (160, 120, 10, 30, 3.0)
    assert (row.options, row.attempt, row.finish_reason, row.error) == (STORED, 1, "stop", None)
    assert row.usage and row.finished_at and row.job
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()], "nothing is left of a finished clip"


async def test_a_clip_that_fails_is_a_row_with_its_reason(make: Make, clip: Clip, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video" * 100)
    names = [str(text), str(tmp_path / "missing.mp4"), clip.video]
    rows = await make(FakeCaptioner([ValueError("a bug")])).rows([Clip(name, name, attempt=2) for name in names])
    errors = [row.error.code if row.error else None for row in rows]
    assert errors == ["not_a_video", "unreadable_file", "engine_failed"]
    assert [row.attempt for row in rows] == [2, 2, 2]


async def test_slots_limit_how_many_clips_run_and_can_all_be_taken() -> None:
    slots, running, most = Slots(2), set[str](), dict[str, int]()

    async def run(name: str, alone: bool) -> None:
        async with slots.take(alone=alone):
            running.add(name)
            for _ in range(5):
                most[name] = max(most.get(name, 0), len(running))
                await asyncio.sleep(0)
            running.remove(name)

    async with asyncio.timeout(10):
        await asyncio.gather(*(run(name, name.isupper()) for name in "abAcBde"))
    assert most.pop("A") == most.pop("B") == 1
    assert max(most.values()) == 2


async def test_the_decoder_may_die_twice(make: Make, clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    died: list[int] = []

    async def run(attempt: Attempt, sink: MemorySink) -> JobState:
        if len(died) < deaths:
            died.append(attempt.number)
            raise DecoderDied("The decoder died.")
        return await run_job(attempt, sink)

    monkeypatch.setattr(clips, "run_job", run)
    for deaths, state in ((2, JobStatus.COMPLETED), (3, JobStatus.FAILED)):
        died.clear()
        row = await make(FakeCaptioner()).row(clip)
        assert (row.state, len(died)) == (state, deaths)


async def rows_of_process(captioner: ClipCaptioner, clips: Sequence[Clip]) -> list[Row]:
    """Return the rows that a process finishes before it ends. Ray repeats the other clips."""
    tasks = [asyncio.create_task(captioner.row(clip)) for clip in clips]
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in pending:
        task.cancel()
    results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    return [result for result in results if isinstance(result, Row)]


async def test_a_clip_that_kills_the_engine_is_given_up(make: Make, clip: Clip, tmp_path: Path) -> None:
    """Its first deaths interrupt another clip too, which is completed."""
    black = write(tmp_path / "black.mp4", [np.zeros((120, 160, 3), np.uint8)] * 30, fps=10)
    todo, deaths = [clip, Clip("black.mp4", str(black), attempt=1)], LocalDeaths()
    done: dict[str, Row] = {}
    processes = 0
    while todo:
        model = FakeCaptioner(delay_s=0.01)
        model.answers = [dies_of_black(model)] * 50
        done |= {row.id: row for row in await rows_of_process(make(model, deaths, slots=3), todo)}
        todo = [clip for clip in todo if clip.id not in done]
        processes += 1
    error = done.pop("black.mp4").error
    assert error and (error.code, error.retryable) == ("attempts_exhausted", True)
    assert {row.state for row in done.values()} == {JobStatus.COMPLETED} and len(done) == 1
    assert processes == MAX_DEATHS + 1


def dies_of_black(model: FakeCaptioner) -> Callable[[Turn], str]:
    def answer(turn: Turn) -> str:
        if any(np.asarray(image).mean() < 5 for image in turn.images):
            model.alive = False
            raise EngineFailed("The engine died.")
        return "an answer"

    return answer
