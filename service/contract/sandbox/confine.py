"""Confines a child process that reads an untrusted file: it may compute, read that one file and write to its pipe.

The children run without a search path, so they load this file by its path (`runpy`), after they have imported what they
need. `confine` limits memory, CPU time and open files. It forbids writing files, opening sockets, starting programs,
and creating or signalling processes (a system call filter, seccomp), and opening any other file except Python's own
libraries, which import each other late (Landlock, on Linux 5.13 and later). The child dies with the thread that
started it.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys

GIB = 1 << 30
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
# The numbers of these system calls are the same on every architecture.
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
ALL_RIGHTS_OF_ABI_1 = (1 << 13) - 1
READ_FILE, READ_DIR = 1 << 2, 1 << 3
LIBRARIES = {sys.prefix, sys.base_prefix}
RULE_PATH_BENEATH = 1

CLONE, CLONE3, CLONE_THREAD = {"x86_64": 56, "aarch64": 220}, 435, 0x10000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
DENIED_ON_ALL = (425, 434, 438, 424)  # io_uring_setup, pidfd_open, pidfd_getfd, pidfd_send_signal
"""System calls that have the same number on every architecture."""
DENIED = {
    # socket, connect, bind, listen, sendto, sendmsg, socketpair, fork, vfork, execve, execveat, kill, tkill, ptrace,
    # process_vm_readv, process_vm_writev, unshare, setns, mount, bpf, keyctl, setsid, shmget
    "x86_64": (41, 42, 49, 50, 44, 46, 53, 57, 58, 59, 322, 62, 200, 101, 310, 311, 272, 308, 165, 321, 250, 112, 29),
    "aarch64": (198, 203, 200, 201, 206, 211, 199, 221, 281, 129, 130, 117, 270, 271, 97, 268, 40, 280, 219, 157, 194),
}

# Classic BPF: load a word of struct seccomp_data; jump if equal, if greater or equal, if a bit is set; return.
LOAD, EQUAL, AT_LEAST, BIT_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
ALLOW, REFUSE, NOT_IMPLEMENTED = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
X32 = 0x40000000
"""Calls of the x32 ABI have numbers from here on; all of them are refused."""
CPU_GRACE_S = 5
"""Time between the soft limit, whose SIGXCPU tells the cause, and the hard limit, at which the kernel kills."""


def confine(path: str, cpu_s: int, max_open_files: int) -> None:
    """Give up all other rights of this process for good. Besides libraries, only the file `path` can be opened then."""
    for limit, value in (
        (resource.RLIMIT_AS, 2 * GIB),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, max_open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        grace = CPU_GRACE_S if limit == resource.RLIMIT_CPU else 0
        resource.setrlimit(limit, (value, value + grace))
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _allow_one_file(libc, path)
    _filter_system_calls(libc, platform.machine())


def _allow_one_file(libc: ctypes.CDLL, path: str) -> None:
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, struct.pack("Q", ALL_RIGHTS_OF_ABI_1), ctypes.c_size_t(8), 0)
    if ruleset < 0:  # no Landlock in this kernel: only FFmpeg's protocol whitelist protects other files
        return
    for allowed, rights in ((path, READ_FILE), *((prefix, READ_FILE | READ_DIR) for prefix in LIBRARIES)):
        file = os.open(allowed, os.O_PATH | os.O_CLOEXEC)
        _check(libc.syscall(LANDLOCK_ADD_RULE, ruleset, RULE_PATH_BENEATH, struct.pack("=Qi", rights, file), 0))
        os.close(file)
    _check(libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _filter_system_calls(libc: ctypes.CDLL, machine: str) -> None:
    if machine not in ARCH:
        return
    program = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, ARCH[machine]),
        (RETURN, 0, 0, REFUSE),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, REFUSE),
    ]
    for number in (*DENIED[machine], *DENIED_ON_ALL):
        program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    program += [
        (EQUAL, 0, 1, CLONE3),  # the C library falls back to clone, whose flags the filter can read
        (RETURN, 0, 0, NOT_IMPLEMENTED),
        (EQUAL, 0, 3, CLONE[machine]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (BIT_SET, 1, 0, CLONE_THREAD),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    table = struct.pack("HP", len(program), ctypes.addressof(code))
    _check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, table, 0, 0))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
