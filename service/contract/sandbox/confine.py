"""Confines a child process that reads an untrusted file: it may compute, read that one file and write to its pipe.

The children run without a search path, so they load this file by its path (`runpy`), after they have imported what they
need. `confine` applies four layers, each of which holds if another one has a gap:

    limits         memory, CPU time, file size, open files; the kernel kills this process first if memory runs out
    namespaces     user, network, IPC and host name of its own, with no capability (if the kernel permits it)
    Landlock       opens only the file and Python's libraries, which import each other late (`landlock.py`; Linux 5.13)
    system calls   only those that decoding needs (`system_calls.py`); required

The child still ends with its parent (`start_child.py`).
"""

import ctypes
import os
import platform
import resource
import runpy
import struct
import sys
from collections.abc import Callable
from pathlib import Path

SANDBOX = Path(__file__).resolve().parent
MAX_MEMORY_BYTES = 2 << 30
CPU_GRACE_S = 5
"""Time between the soft limit, whose SIGXCPU tells the cause, and the hard limit, at which the kernel kills."""
LIBRARIES = {sys.prefix, sys.base_prefix}

PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWUSER, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNET = 0x10000000, 0x04000000, 0x08000000, 0x40000000
CAPABILITY_VERSION_3 = 0x20080522
SECCOMP = {"x86_64": 317, "aarch64": 277}
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1


def confine(path: str, cpu_s: int, max_open_files: int) -> dict[str, int | bool]:
    """Give up all other rights of this process for good. Besides libraries, only the file `path` can be opened then.

    Returns which optional layers are in force: `landlock_abi` (0: none) and `namespaces`. Raises OSError if a required
    layer is missing.
    """
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 (namespaces and Landlock cover only one thread)
        raise RuntimeError("a child process must be confined before it starts threads")
    libc = ctypes.CDLL(None, use_errno=True)
    parent_pid = os.getppid()
    end_with_parent = runpy.run_path(str(SANDBOX / "start_child.py"))["end_with_parent"]
    landlock = runpy.run_path(str(SANDBOX / "landlock.py"))
    filter_program = runpy.run_path(str(SANDBOX / "system_calls.py"))["filter_program"]
    Path("/proc/self/oom_score_adj").write_text("1000")
    _limit_resources(cpu_s, max_open_files)
    namespaces = libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) == 0
    _drop_capabilities(libc)
    end_with_parent(parent_pid)  # Linux has forgotten the request of `start_child.py`
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    landlock_abi = landlock["abi"](libc)
    if landlock_abi:
        landlock["allow_reading"](libc, landlock_abi, path, LIBRARIES)
    _filter_system_calls(libc, filter_program)
    return {"landlock_abi": landlock_abi, "namespaces": namespaces}


def _limit_resources(cpu_s: int, max_open_files: int) -> None:
    for limit, value in (
        (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, max_open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        grace = CPU_GRACE_S if limit == resource.RLIMIT_CPU else 0
        resource.setrlimit(limit, (value, value + grace))


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Drop those of the new user namespace, and root's if there is none."""
    _check(libc.capset(struct.pack("Ii", CAPABILITY_VERSION_3, 0), bytes(24)))


def _filter_system_calls(libc: ctypes.CDLL, filter_program: Callable[[str, int], bytes]) -> None:
    machine = platform.machine()
    if machine not in SECCOMP:
        raise OSError(f"no list of system calls for {machine}")
    program = filter_program(machine, os.getpid())
    code = ctypes.create_string_buffer(program)
    table = struct.pack("HP", len(program) // 8, ctypes.addressof(code))
    _check(libc.syscall(SECCOMP[machine], SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, table))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
