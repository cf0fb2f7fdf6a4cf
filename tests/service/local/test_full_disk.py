"""`sharecap up` on a disk that is full at its start and later: it waits, says so in one line, and continues.

The gateway, Valkey and the supervisor are real. The worker is a process that only shows a worker's card.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from service.local import supervisor, up
from service.local.supervisor import MAX_FAILURES, Child
from service.local.up import CannotStart, UpSettings, embedded_valkey, free_port, local_service
from tests.service.processes import ROOT
from tests.service.scripted import eventually

DISK = "16m"
SHOWS_CARDS = """
import asyncio, os
from service.contract.store.connection import connect
from service.contract.store.store import Store
from service.contract.store.worker_cards import WorkerCard

async def main():
    async with connect(os.environ["REDIS_URL"], patience_s=60) as redis:
        while True:
            await Store(redis).show_worker(WorkerCard(id="w", model="none", slots=1))
            await asyncio.sleep(0.5)

while True:
    try:
        asyncio.run(main())
    except Exception as error:
        print(error)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The mount point of a small disk of its own."""
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(directory)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system is not permitted")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(disk: Path) -> Path:
    """Fill the disk and return the file that does."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The result of each check of the disk. The pauses between checks and restarts are a tenth of the real ones."""
    results: list[str | None] = []
    check = up.disk_obstacle

    def recorded(directory: Path) -> str | None:
        results.append(check(directory))
        return results[-1]

    monkeypatch.setattr(up, "disk_obstacle", recorded)
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(supervisor, "MAX_DELAY_S", 1.0)
    return results


async def more_checks_than_failures(checks: list[str | None]) -> None:
    """Wait until the disk was found full more often than a child may fail."""

    async def many() -> bool:
        return len([result for result in checks if result]) > MAX_FAILURES

    await eventually(many, 60)


@pytest.fixture
def start(disk: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """`async with start() as http` runs `sharecap up` on the small disk; what it reports goes to `lines`."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MIN_FREE_BYTES", "0")
    monkeypatch.setattr(up, "worker", lambda env, _: Child("worker", [sys.executable, "-c", SHOWS_CARDS], env))

    @asynccontextmanager
    async def starting() -> AsyncIterator[httpx.AsyncClient]:
        settings = UpSettings(disk / "data", free_port())
        async with (
            local_service(settings, report=lines.append) as supervisor,
            httpx.AsyncClient(base_url=settings.url, trust_env=False, timeout=30) as http,
        ):
            yield http
            await supervisor.run(asyncio.sleep(0))  # raises if the supervisor gave up

    return starting


async def accepted(http: httpx.AsyncClient) -> bool:
    answer = await http.post("/recaption", json={"prompt": "a fox"}, headers={"Prefer": "wait=0"})
    assert answer.status_code in (202, 503, 507), answer.text
    return answer.status_code == 202


async def test_a_disk_that_is_full_at_the_start(
    start: Callable[[], object], disk: Path, lines: list[str], checks: list[str | None]
) -> None:
    filler = fill(disk)

    async def run() -> None:
        async with start() as http:  # type: ignore[attr-defined]
            assert await accepted(http)

    running = asyncio.create_task(run())
    await more_checks_than_failures(checks)
    assert not running.done()
    assert [line.split(",")[0] for line in lines] == [
        f"valkey waits: cannot write to {disk}/data/valkey (No space left on device)"
    ]
    filler.unlink()
    await asyncio.wait_for(running, 60)
    assert lines[1:] == ["valkey continues"]


async def test_a_disk_that_becomes_full(
    start: Callable[[], object], disk: Path, lines: list[str], checks: list[str | None]
) -> None:
    async with asyncio.timeout(120), start() as http:  # type: ignore[attr-defined]
        answer = await http.post("/recaption", json={"prompt": "a fox"}, headers={"Prefer": "wait=0"})
        job = answer.json()["id"]
        filler = fill(disk)

        async def valkey_waits() -> bool:
            if not lines:
                await accepted(http)  # writes, until Valkey cannot
            return bool(lines)

        await eventually(valkey_waits, 60)
        await more_checks_than_failures(checks)
        assert len(lines) == 1 and lines[0].startswith("valkey waits: cannot write to"), lines
        assert (await http.get("/healthz")).status_code == 200
        filler.unlink()
        await eventually(lambda: answers(http, job), 30)
        await eventually(lambda: accepted(http), 30)
        assert lines[1:] == ["valkey continues"]


def answers(http: httpx.AsyncClient, job: str) -> Awaitable[bool]:
    async def answers_now() -> bool:
        return (await http.get(f"/captions/{job}")).status_code == 200

    return answers_now()


async def test_keys_on_a_full_disk_report_it(disk: Path) -> None:
    fill(disk)
    with pytest.raises(CannotStart, match=r"cannot write to .* \(No space left on device\), make room"):
        async with embedded_valkey(disk / "data"):
            pass
    assert list((disk / "data" / "valkey").iterdir()) == []
