"""Ends every process that the worker starts together with the worker, however the worker ends.

Linux kills a process when its parent ends if the process has asked for it (PR_SET_PDEATHSIG). vLLM starts its engine by
`fork` or by `spawn`, and neither inherits the request. A forked child makes it in a hook that runs inside `os.fork`; a
spawned child makes it when it imports the worker's main module, which `multiprocessing` does first. The same holds for
their own children. The children that open videos ask for themselves (`service/contract/sandbox/start_child.py`).
"""

import os

from service.contract.sandbox.start_child import end_with_parent

PARENT = "SHARECAP_PARENT_PID"
"""Environment variable through which a process passes its own id to its children."""


def set_up_worker() -> None:
    """End all processes that this one starts from now on by `fork` or `multiprocessing` together with it."""
    os.environ[PARENT] = str(os.getpid())
    os.register_at_fork(after_in_child=_end_with_parent)


def set_up_spawned_child() -> None:
    """Make the same true for a process that `multiprocessing` has spawned, and for its children."""
    _end_with_parent()
    os.register_at_fork(after_in_child=_end_with_parent)


def _end_with_parent() -> None:
    end_with_parent(int(os.environ[PARENT]))
    os.environ[PARENT] = str(os.getpid())
