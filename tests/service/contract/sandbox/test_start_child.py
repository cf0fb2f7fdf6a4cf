"""A child that opens videos ends with its parent, also if the parent is killed while the child is still importing."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from service.contract.sandbox.probe import CHILD, VideoLimits, child_argument
from service.contract.sandbox.subprocesses import child_arguments

END_WITHIN_S = 2.0
PARENT = """
import subprocess, sys
from pathlib import Path
from service.contract.sandbox.subprocesses import child_arguments
child = subprocess.Popen([sys.executable, *child_arguments(Path(sys.argv[1]), *sys.argv[2:])], env={})
print(child.pid, flush=True)
child.wait()
"""


def kill_parent_of(script: Path, *arguments: str, after_s: float) -> bool:
    """Start `script` as the child of a process and kill that process after `after_s`. Return whether the child ends."""
    command = [sys.executable, "-c", PARENT, str(script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        child = os.pidfd_open(pid)
        try:
            assert not ends_within(child, after_s), "the child waits until it is killed"
            parent.kill()
            if ends_within(child, END_WITHIN_S):
                return True
            signal.pidfd_send_signal(child, signal.SIGKILL)
            return False
        finally:
            os.close(child)


def ends_within(process: int, timeout_s: float) -> bool:
    """Return whether the process with this descriptor ends in this time."""
    return bool(select.select([process], [], [], timeout_s)[0])


def test_a_child_that_is_still_importing_ends_with_its_parent(tmp_path: Path) -> None:
    importing = tmp_path / "child.py"
    importing.write_text("import time; time.sleep(60)")
    assert kill_parent_of(importing, after_s=0) and kill_parent_of(importing, after_s=0.5)


@pytest.mark.parametrize("after_s", [0, 0.02, 0.1, 0.3, 0.6, 2])
def test_the_probe_ends_with_its_parent_at_any_time(tmp_path: Path, after_s: float) -> None:
    """Opening the pipe blocks, so this probe never ends by itself."""
    os.mkfifo(pipe := tmp_path / "video.mp4")
    assert kill_parent_of(CHILD, child_argument(pipe, VideoLimits()), after_s=after_s)


FORKING = """
import asyncio, sys
from pathlib import Path
from service.contract.sandbox.probe import CHILD, LIBRARIES
from service.contract.sandbox.subprocesses import ChildStarter

async def main():
    async with ChildStarter(LIBRARIES) as starter, starter.child(CHILD, sys.argv[1]) as child:
        print("started", flush=True)
        await child.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("after_s", [0, 0.02, 0.1, 0.5, 2])
def test_the_fork_server_and_its_children_end_with_the_parent_at_any_time(tmp_path: Path, after_s: float) -> None:
    os.mkfifo(pipe := tmp_path / "video.mp4")
    command = [sys.executable, "-c", FORKING, child_argument(pipe, VideoLimits())]
    with psutil.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline()
        time.sleep(after_s)
        family = [(process, os.pidfd_open(process.pid)) for process in parent.children(recursive=True)]
        assert family
        parent.kill()
    left = [process for process, descriptor in family if not ends_within(descriptor, END_WITHIN_S)]
    for process, descriptor in family:
        os.close(descriptor)
        if process in left:
            process.kill()
    assert not left


def test_a_child_whose_parent_is_gone_does_not_start(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text("import sys; print(sys.argv, __name__)")
    starter, _, *rest = child_arguments(script, "one")[1:]
    statuses = {}
    for parent_pid in (os.getpid(), 0):
        command = [sys.executable, "-I", starter, str(parent_pid), *rest]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        statuses[child.returncode] = child.stdout
    assert statuses == {0: f"{[str(script), 'one']} __main__\n", -signal.SIGKILL: ""}
