"""What a turn costs in the worker beside the engine: time at its end, and CPU time for each delta.

    python bench/turn_cost.py
    python bench/turn_cost.py --turns 32

A stub engine (`stub_engine.py`) generates one word for each turn in every step; the turns' deltas are stored in a
Valkey server as `sharecap up` starts it. Prints the time of a turn beside that of the engine alone, one turn after
another, and the CPU time for each delta with several concurrent turns.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the modules of this folder

from bench.stub_engine import StubCaptioner
from service.contract.jobs import JobKind, RecaptionOptions, Record, new_job_id
from service.contract.store.connection import connect
from service.contract.store.store import RetryingStore
from service.local.up import embedded_valkey
from workers.models.engine import Turn
from workers.publisher import Publisher
from workers.roles.turn_runner import DeltaTarget, TurnRunner
from workers.shares import EngineShares

STEP_S, SHORT_WORDS = 0.01, 21
TURN = Turn("describe")


@dataclass(frozen=True)
class Costs:
    """`turn_ms` and `engine_ms`: a turn, and the same answer of the engine alone. CPU time is given for one delta."""

    turn_ms: float
    engine_ms: float
    deltas: int
    worker_cpu_ms: float
    valkey_cpu_ms: float


class Runs:
    """Creates leased jobs, each with the runner of its turns."""

    def __init__(self, store: RetryingStore, captioner: StubCaptioner) -> None:
        self._store = store
        self._captioner = captioner
        self.job_ids: list[str] = []

    async def runner(self) -> TurnRunner:
        options = RecaptionOptions(prompt="a fox")
        record = Record(id=new_job_id(), kind=JobKind.RECAPTION, options=options, created_at=datetime.now(UTC))
        await self._store.create(record)
        lease = await self._store.claim(record.id)
        assert lease is not None
        self.job_ids.append(record.id)
        permit = EngineShares().permit(record)
        return TurnRunner(self._captioner, Publisher(self._store, lease, 1), record.id, permit, 0.0)


async def sequential_ms(captioner: StubCaptioner, runs: Runs, turns: int) -> tuple[float, float]:
    """Return the mean time of a turn, and of the same answer of the engine alone."""
    start = time.monotonic()
    for number in range(turns):
        async for _ in captioner.generate(TURN, str(number)):
            pass
    middle = time.monotonic()
    runner = await runs.runner()
    for _ in range(turns):
        await runner.run(TURN, DeltaTarget())
    return 1000 * (time.monotonic() - middle) / turns, 1000 * (middle - start) / turns


async def measure(data_dir: Path, turns: int, words: int) -> Costs:
    async with embedded_valkey(data_dir) as url, connect(url) as redis:
        store = RetryingStore(redis)
        short = StubCaptioner(STEP_S, SHORT_WORDS)
        turn_ms, engine_ms = await sequential_ms(short, Runs(store, short), turns)
        runs = Runs(store, StubCaptioner(2 * STEP_S, words))
        runners = [await runs.runner() for _ in range(turns)]
        before, cpu_s = await store.redis.info("cpu"), time.process_time()
        await asyncio.gather(*(runner.run(TURN, DeltaTarget()) for runner in runners))
        cpu_s, after = time.process_time() - cpu_s, await store.redis.info("cpu")
        deltas = sum([await store.newest(job_id) - 1 for job_id in runs.job_ids])
    valkey_s = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))
    return Costs(turn_ms, engine_ms, deltas, 1000 * cpu_s / deltas, 1000 * valkey_s / deltas)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=10, help="turns after one another, and concurrent ones")
    parser.add_argument("--words", type=int, default=120, help="words of an answer of the concurrent turns")
    parser.add_argument("--smoke", action="store_true", help="the smallest size: shows only that the benchmark works")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.smoke:
        options.turns, options.words = 2, 10
    with tempfile.TemporaryDirectory(prefix="sharecap-bench-") as name:
        costs = asyncio.run(measure(Path(name), options.turns, options.words))
    print(f"| figure | {options.turns} turns |\n|---|---:|")
    for figure, value in asdict(costs).items():
        print(f"| {figure} | {value:.3f} |")
    if options.json:
        options.json.write_text(json.dumps(asdict(costs), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
