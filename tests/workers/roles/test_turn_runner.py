"""How many turns of a job the engine gets at once, and which of them go first."""

import asyncio
from datetime import UTC, datetime

import pytest

from service.contract.jobs import (
    ClipOptions,
    Decoding,
    JobKind,
    Options,
    RecaptionOptions,
    Record,
    VideoOptions,
    new_job_id,
)
from tests.fake_captioner import FakeCaptioner
from workers.models.engine import Turn
from workers.publisher import MemorySink
from workers.roles.turn_runner import LONG_PATIENCE_S, MAX_BEAM_SEARCHES, TurnRunner, patience_s
from workers.shares import EngineShares


def record(kind: JobKind, options: Options) -> Record:
    return Record(id=new_job_id(), kind=kind, options=options, created_at=datetime.now(UTC))


def runner(captioner: FakeCaptioner, job: Record) -> TurnRunner:
    return TurnRunner(captioner, MemorySink(), job.id, EngineShares().permit(job), patience_s(job))


@pytest.mark.parametrize(("num_beams", "most"), [(1, 6), (2, MAX_BEAM_SEARCHES), (8, MAX_BEAM_SEARCHES)])
async def test_beam_searches_of_one_job_are_bounded(num_beams: int, most: int) -> None:
    captioner = FakeCaptioner(delay_s=0.02)
    job = record(JobKind.VIDEO, VideoOptions(num_beams=num_beams, parallel=True))
    runs = runner(captioner, job)
    turn = Turn("describe it", decoding=Decoding(num_beams=num_beams))
    await asyncio.gather(*(runs.run(turn, None) for _ in range(6)))
    assert captioner.most_running == most


@pytest.mark.parametrize(
    ("kind", "options", "patience"),
    [
        (JobKind.RECAPTION, RecaptionOptions(prompt="a cat"), 0.0),
        (JobKind.CLIP, ClipOptions(start_s=0, end_s=1), 0.0),
        (JobKind.RECAPTION, RecaptionOptions(prompt="a cat", num_beams=2), LONG_PATIENCE_S),
        (JobKind.VIDEO, VideoOptions(), LONG_PATIENCE_S),
    ],
)
async def test_turns_of_videos_and_beam_searches_are_patient(kind: JobKind, options: Options, patience: float) -> None:
    captioner = FakeCaptioner()
    await runner(captioner, record(kind, options)).run(Turn("describe it"), None)
    assert [turn.patience_s for turn in captioner.turns] == [patience]
