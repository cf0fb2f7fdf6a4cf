"""The figures of `engine_share.py` from given measurements, and its two sides without an engine."""

import json
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from bench import engine_alone, engine_share
from bench.engine_share import AT_MOST, TARGETS, Engines, Pair, Side, engine_table, figures, measure_pair, target_table
from bench.service_processes import CpuTimes
from service.contract.jobs import VideoOptions
from tests.fake_captioner import FakeCaptioner
from workers.standalone import caption_file, standalone_context

CPU = CpuTimes(gateway_s=1.0, worker_s=2.0, worker_children_s=3.0, engine_s=12.0, client_s=5.0)


def made_up_pair(wall_s: float) -> Pair:
    """The service takes `wall_s` for 1,000 tokens; the engine alone 5 s and 10 s of CPU time."""
    alone = Side(tokens=1000, wall_s=5.0, engine_cpu_s=10.0)
    spinning = Side(tokens=1000, wall_s=4.0, engine_cpu_s=16.0)
    return Pair(Side(1000, wall_s, CPU.engine_s), alone, spinning, CPU, clips=10)


class FakeEngine:
    """Records its requests and answers in one second."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    async def run(self, videos: list[Path], jobs: list[dict[str, Any]], *, at_once: int) -> Side:
        self.requests.append({"videos": videos, "jobs": jobs, "at_once": at_once})
        return Side(tokens=7, wall_s=1.0, engine_cpu_s=1.0)


def test_figures_are_medians_relative_to_the_engine_with_the_same_environment() -> None:
    many = [made_up_pair(wall_s) for wall_s in (10.0, 8.0, 50.0)]
    one = [made_up_pair(wall_s) for wall_s in (6.25, 5.0, 20.0)]
    measured = figures(many, one)
    assert measured.keys() == TARGETS.keys() == {"many", "one", "cpu_s_per_clip", "engine_cpu_ratio"}
    expected = {"many": 0.5, "one": 0.8, "cpu_s_per_clip": 0.6, "engine_cpu_ratio": 1.2}
    assert measured == pytest.approx(expected)


def test_the_tables_have_a_row_for_each_pair_and_say_which_targets_are_reached() -> None:
    many, one = [made_up_pair(10.0), made_up_pair(8.0)], [made_up_pair(6.25)]
    rows = engine_table(many, one).splitlines()
    assert [row for row in rows if row.startswith("| many |")] == [
        "| many | 10 | 100 | 200 | 250 | 0.50 | 12.0 | 10.0 | 16.0 |",
        "| many | 10 | 125 | 200 | 250 | 0.62 | 12.0 | 10.0 | 16.0 |",
    ]
    assert "| one | 10 | 160 | 200 | 250 | 0.80 | 12.0 | 10.0 | 16.0 |" in rows
    assert "| worker children | 0.300 |" in rows
    assert {"cpu_s_per_clip", "engine_cpu_ratio"} <= AT_MOST
    targets = target_table({"many": 0.7, "one": 0.8, "cpu_s_per_clip": 0.3, "engine_cpu_ratio": 1.2}, TARGETS)
    assert [row.split(" | ")[-1] for row in targets.splitlines()[2:]] == [
        "reached |",
        "not reached |",
        "reached |",
        "not reached |",
    ]


@pytest.mark.parametrize(("at_once", "in_flight"), [(1, 1), (3, 6)])
async def test_a_pair_runs_the_same_jobs_on_each_engine(
    at_once: int, in_flight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several at once, twice as many jobs are open as the engine runs."""
    asked: list[int] = []
    jobs = [{"usage": {"completion_tokens": tokens}} for tokens in (30, 12)]

    async def caption_all(http: httpx.AsyncClient, videos: list[Path], open_jobs: int) -> list[dict[str, Any]]:
        asked.append(open_jobs)
        return jobs

    monkeypatch.setattr(engine_share, "caption_all", caption_all)
    engines = FakeEngine(), FakeEngine()
    videos = [Path("a.mp4"), Path("b.mp4")]
    async with httpx.AsyncClient() as http:
        pair = await measure_pair(http, cast(Engines, engines), videos, at_once)
    assert asked == [in_flight]
    assert (pair.service.tokens, pair.clips, pair.engine.tokens, pair.spinning.tokens) == (42, 2, 7, 7)
    for engine in engines:
        assert engine.requests == [{"videos": videos, "jobs": jobs, "at_once": at_once}]


async def test_the_engine_alone_gets_the_turns_of_the_finished_job(clip: Path, tmp_path: Path) -> None:
    service, alone = FakeCaptioner(), FakeCaptioner()
    options: dict[str, Any] = {"interval_s": 2.0}
    context = standalone_context(tmp_path / "service", service, engine_alone.NoEncoder())
    job = (await caption_file(clip, context, VideoOptions(keyframes="interval", **options))).model_dump()
    answers = [[*(d["text"] for d in job["differentials"]), job["caption"]]]
    request = {"videos": [str(clip)], "options": options, "answers": answers, "at_once": 1}
    result = json.loads(json.dumps(await engine_alone.answer(alone, request, tmp_path / "alone", "name")))
    assert [turn.prompt for turn in alone.turns] == [turn.prompt for turn in service.turns]
    assert [len(turn.images) for turn in alone.turns] == [len(turn.images) for turn in service.turns]
    assert Side(**result).tokens == sum(len(answer.split(" ")) for answer in answers[0])
