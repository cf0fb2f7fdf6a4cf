"""Starts the script of a child process: `python -I start_child.py PARENT_PID SCRIPT ARGUMENTS`.

It ties the child to its parent before SCRIPT imports anything: the imports take about half a second, in which the
parent may be killed. Like the scripts, it runs without a search path, so it imports nothing from this package.
"""

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int) -> None:
    """Make Linux kill this process when the thread that started it ends. Ends it now if the parent is already gone.

    Linux forgets this request in a forked child, and when the process changes its capabilities or its user namespace.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")
