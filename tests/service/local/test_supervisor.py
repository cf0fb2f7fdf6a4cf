"""The supervisor starts, restarts and gives up on children, and leaves no process behind however it ends."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from service.local import supervisor as subject
from service.local.supervisor import Child, ChildFailed, Supervisor

PYTHON = sys.executable
LiveProcesses = Callable[[], list[psutil.Process]]
SLEEPS = "import time; time.sleep(600)"
# A child that starts another process in its group, as a worker starts its engine.
FAMILY = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {SLEEPS!r}]); time.sleep(600)"
IGNORES_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); {SLEEPS}"


@pytest.fixture
def marked() -> Iterator[LiveProcesses]:
    """A function that returns the live processes that have this test's mark in their environment."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    os.environ["SUPERVISOR_TEST"] = mark

    def live() -> list[psutil.Process]:
        processes = []
        for process in psutil.process_iter():
            try:
                is_marked = process.pid != os.getpid() and process.environ().get("SUPERVISOR_TEST") == mark
                if is_marked and process.status() != psutil.STATUS_ZOMBIE:
                    processes.append(process)
            except psutil.Error:
                continue
        return processes

    yield live
    del os.environ["SUPERVISOR_TEST"]
    for process in live():
        process.kill()


async def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        await asyncio.sleep(0.05)


def python(name: str, code: str) -> Child:
    return Child(name, [PYTHON, "-c", code])


async def test_children_run_until_the_end_of_the_block(tmp_path: Path, marked: LiveProcesses) -> None:
    async with Supervisor(tmp_path) as supervisor:
        supervisor.start(python("one", FAMILY))
        supervisor.start(python("two", SLEEPS))
        await until(lambda: len(marked()) >= 3)
    assert marked() == []


async def test_output_goes_to_the_log_and_to_echo(tmp_path: Path) -> None:
    lines: list[tuple[str, str]] = []
    async with Supervisor(tmp_path, lambda name, line: lines.append((name, line))) as supervisor:
        supervisor.start(python("talker", f"import sys; print('one'); print('two', file=sys.stderr); {SLEEPS}"))
        await until(lambda: len(lines) == 2)
    assert lines == [("talker", "one"), ("talker", "two")]
    assert (tmp_path / "talker.log").read_text() == "one\ntwo\n"


async def test_env_is_added_to_the_environment(tmp_path: Path) -> None:
    lines: list[str] = []
    async with Supervisor(tmp_path, lambda _, line: lines.append(line)) as supervisor:
        code = f"import os; print(os.environ['WHO'], 'PATH' in os.environ); {SLEEPS}"
        supervisor.start(Child("talker", [PYTHON, "-c", code], {"WHO": "me"}))
        await until(lambda: lines)
    assert lines == ["me True"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_killed_child_is_restarted(tmp_path: Path, marked: LiveProcesses, number: int) -> None:
    async with Supervisor(tmp_path) as supervisor:
        supervisor.start(python("worker", FAMILY))
        await until(lambda: len(marked()) == 2)
        before = {process.pid for process in marked()}
        min(marked(), key=lambda process: process.create_time()).send_signal(number)
        await until(lambda: len(marked()) == 2 and not before & {process.pid for process in marked()})
    assert marked() == []


async def test_a_child_that_dies_five_times_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "FIRST_DELAY_S", 0.01)
    starts = tmp_path / "starts"
    reports: list[str] = []
    code = f"open({str(starts)!r}, 'a').write('x'); print('no such model'); raise SystemExit(3)"
    with pytest.raises(ChildFailed, match=r"worker ended 5 times in a row \(exit status 3\)[\s\S]*no such model"):
        async with Supervisor(tmp_path / "logs", report=reports.append) as supervisor:
            supervisor.start(python("worker", code))
            await supervisor.run(asyncio.sleep(60))
    assert starts.read_text() == "x" * 5
    assert reports == [
        f"worker ended (exit status 3); restarting it in {s} s" for s in ("0.01", "0.02", "0.04", "0.08")
    ]


async def test_a_child_with_unusable_settings_is_not_restarted(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    code = f"open({str(starts)!r}, 'a').write('x'); raise SystemExit({os.EX_CONFIG})"
    with pytest.raises(ChildFailed, match="worker ended at its start"):
        async with Supervisor(tmp_path / "logs") as supervisor:
            supervisor.start(python("worker", code))
            await supervisor.run(asyncio.sleep(60))
    assert starts.read_text() == "x"


async def test_a_missing_program_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="worker cannot be started"):
        async with Supervisor(tmp_path) as supervisor:
            supervisor.start(Child("worker", ["/no/such/program"]))
            await supervisor.run(asyncio.sleep(60))


async def test_being_ready_resets_the_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "FIRST_DELAY_S", 0.01)
    starts = tmp_path / "starts"
    code = f"open({str(starts)!r}, 'a').write('x'); import time; time.sleep(0.2)"
    async with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start(python("worker", code))
        while not starts.exists() or len(starts.read_text()) <= subject.MAX_FAILURES:
            supervisor.mark_ready()
            await supervisor.run(asyncio.sleep(0.02))


async def test_a_child_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marked: LiveProcesses
) -> None:
    monkeypatch.setattr(subject, "STOP_TIMEOUT_S", 0.5)
    lines: list[str] = []
    async with Supervisor(tmp_path, lambda _, line: lines.append(line)) as supervisor:
        supervisor.start(python("stubborn", IGNORES_SIGTERM))
        await until(lambda: lines)
    assert marked() == []


async def test_a_base_child_stops_after_the_others(tmp_path: Path) -> None:
    lines: list[str] = []
    stop = "lambda *_: (time.sleep(0.5), print('stopped'), sys.exit())"
    code = f"import signal, sys, time; signal.signal(signal.SIGTERM, {stop}); print('up'); time.sleep(600)"
    async with Supervisor(tmp_path, lambda name, line: lines.append(f"{name} {line}")) as supervisor:
        supervisor.start(Child("base", [PYTHON, "-c", code], base=True))
        supervisor.start(python("other", code))
        await until(lambda: len(lines) == 2)
    assert lines[2:] == ["other stopped", "base stopped"]


SUPERVISES = f"""
import asyncio, pathlib, sys
from service.local.supervisor import Child, Supervisor

async def main():
    async with Supervisor(pathlib.Path(sys.argv[1])) as supervisor:
        supervisor.start(Child("family", [sys.executable, "-c", {FAMILY!r}]))
        supervisor.start(Child("single", [sys.executable, "-c", {SLEEPS!r}]))
        await supervisor.run(asyncio.Event().wait())

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
async def test_no_process_outlives_the_supervisor(
    tmp_path: Path, marked: LiveProcesses, number: signal.Signals
) -> None:
    process = subprocess.Popen([PYTHON, "-c", SUPERVISES, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        await until(lambda: len(marked()) == 5)  # the supervisor, its guard and three processes
        process.send_signal(number)
        await until(lambda: process.poll() is not None)
        if number != signal.SIGKILL:
            assert [other for other in marked() if other.pid != process.pid] == []
        await until(lambda: marked() == [])
    finally:
        process.kill()
        process.wait()
