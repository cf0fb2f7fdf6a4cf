"""Children that the fork server starts: how they end, what they inherit, and what they do not."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from service.contract.sandbox import subprocesses
from service.contract.sandbox.probe import LIBRARIES
from service.contract.sandbox.subprocesses import ChildStarter
from workers.video.frames import LIBRARIES as DECODER_LIBRARIES

ENDLESS = "while True: print('x' * 1000)"


@pytest.fixture
async def starter() -> AsyncIterator[ChildStarter]:
    async with ChildStarter(["json"]) as starter:
        yield starter


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """An empty file that a test fills with the script of a child."""
    return tmp_path / "child.py"


def server() -> psutil.Process:
    """Return the running fork server."""
    [process] = [p for p in psutil.Process().children() if str(subprocesses.FORK_SERVER) in p.cmdline()]
    return process


async def test_output_and_exit_status_of_a_child(starter: ChildStarter, script: Path) -> None:
    for code, expected in (
        ("pass", 0),
        ("raise SystemExit", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('x')", 1),
        ("1 / 0", 1),
        ("import os; os.abort()", -signal.SIGABRT),
    ):
        script.write_text(f"import sys; print(sys.argv[1:], __name__, flush=True); {code}")
        async with starter.child(script, "one", "two") as child:
            assert await child.output.read() == b"['one', 'two'] __main__\n"
            assert await child.wait() == child.returncode == expected


async def test_each_child_has_its_own_output_and_status(starter: ChildStarter, script: Path) -> None:
    script.write_text("import sys; print(sys.argv[1]); sys.exit(int(sys.argv[1]))")

    async def result(number: int) -> tuple[bytes, int]:
        async with starter.child(script, str(number)) as child:
            return await child.output.read(), await child.wait()

    results = await asyncio.gather(*(result(number) for number in range(20)))
    assert results == [(b"%d\n" % number, number) for number in range(20)]


async def test_a_child_has_ended_even_if_the_caller_is_cancelled_repeatedly(
    starter: ChildStarter, script: Path
) -> None:
    script.write_text(ENDLESS)
    children, started = [], asyncio.Event()

    async def use() -> None:
        async with starter.child(script) as child:
            children.append(child)
            await child.output.read(1)
            started.set()
            await asyncio.sleep(60)

    using = asyncio.create_task(use())
    await started.wait()
    for _ in range(3):
        using.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await using
    assert children[0].returncode == -signal.SIGKILL
    assert not server().children()


INHERITED = """
import json, os, sys
open_files = sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1]  # without the directory itself
threads, names = len(os.listdir("/proc/self/task")), open("/proc/self/comm").read()
print(json.dumps([open_files, threads, names, dict(os.environ), os.getsid(0) == os.getpid()]), flush=True)
sys.stdin.read()
"""


async def test_a_child_inherits_no_descriptor_thread_or_variable(starter: ChildStarter, script: Path) -> None:
    script.write_text(INHERITED)
    for _ in range(2):
        async with starter.child(script) as other, starter.child(script) as child:
            await other.output.readline()
            files, threads, name, environment, leads_session = json.loads(await child.output.readline())
            assert (files, threads, name, leads_session) == ([0, 1, 2], 1, "child.py\n", True)
            assert not environment.keys() - {"LC_CTYPE", "OPENBLAS_NUM_THREADS"}


def memory_contains(pid: int, secret: bytes) -> bool:
    regions = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for region in regions:
            addresses, rights, *_ = region.split()
            if rights.startswith("rw"):
                start, end = (int(address, 16) for address in addresses.split("-"))
                memory.seek(start)
                if secret in memory.read(end - start):
                    return True
    return False


@pytest.mark.parametrize("modules", [LIBRARIES, DECODER_LIBRARIES], ids=["gateway", "worker"])
async def test_the_server_holds_libraries_and_nothing_of_a_file(modules: tuple[str, ...], script: Path) -> None:
    script.write_text("import av, sys; print(sys.argv[1], flush=True); sys.stdin.read(); sys.stdout.flush()")
    secret = os.urandom(8).hex()
    async with ChildStarter(modules) as starter:
        async with starter.child(script, secret) as child:
            assert (await child.output.read()).decode() == f"{secret}\n"
        process = server()
        assert not memory_contains(process.pid, secret.encode())
        assert memory_contains(process.pid, str(subprocesses.FORK_SERVER).encode()), "the search finds what is there"
        assert (process.num_threads(), process.environ().keys() - {"LC_CTYPE"}) == (1, {"OPENBLAS_NUM_THREADS"})
        while process.children():  # the server closes a child's socket when it has reaped the child
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        descriptors = Path(f"/proc/{process.pid}/fd").iterdir()
        opened = sorted(str(descriptor.readlink()).split(":")[0] for descriptor in descriptors)
        assert opened == ["/dev/null", "/dev/null", "pipe", "pipe", "socket"], "the pipe wakes the server itself"
        assert not process.children()


async def test_a_server_that_died_takes_its_children_with_it_and_is_replaced(
    starter: ChildStarter, script: Path
) -> None:
    script.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    async with starter.child(script) as child:
        process = psutil.Process(int(await child.output.readline()))
        server().kill()
        assert await child.wait() == -signal.SIGKILL
        assert not psutil.wait_procs([process], timeout=5)[1]
    async with starter.child(script) as child:
        assert int(await child.output.readline()) in {other.pid for other in server().children()}


async def test_a_server_that_hangs_is_ended(
    starter: ChildStarter, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocesses, "END_TIMEOUT_S", 0.1)
    script.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    async with starter.child(script) as child:
        process = psutil.Process(int(await child.output.readline()))
        server().suspend()
    assert not psutil.wait_procs([process], timeout=5)[1]


async def test_a_child_that_cannot_be_forked_counts_as_killed(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = script.with_name("failing.py")
    failing.write_text("import os\ndef fork(): raise OSError\nos.fork = fork")
    sandbox = script.with_name("server.py")
    sandbox.write_text(f"""
import runpy, sys
runpy.run_path({str(failing)!r})
sys.argv[0] = {str(subprocesses.FORK_SERVER)!r}
runpy.run_path(sys.argv[0], run_name="__main__")""")
    monkeypatch.setattr(subprocesses, "FORK_SERVER", sandbox)
    script.write_text("pass")
    async with ChildStarter([]) as starter, starter.child(script) as child:
        assert await child.wait() == -signal.SIGKILL
        assert await child.output.read() == b""
