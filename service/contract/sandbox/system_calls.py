"""The system calls that a confined child may make, as a seccomp filter. Every other call fails with EPERM.

The list comes from traces of both children over all accepted containers and codecs
(`tests/service/contract/sandbox/test_system_calls.py`), plus what the C library may use in their place. For some calls
the filter also checks arguments: files are opened for reading only, no memory becomes executable, `clone` only starts
threads, and no call names another process.

`confine.py` loads this file by its path. It is written for glibc; on another C library the start-up check fails.
"""

import errno
import struct

MACHINES = ("x86_64", "aarch64")
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32 = 0x40000000
"""Calls of the x32 ABI have numbers from here on. All of them are refused."""

NUMBERS = {  # x86-64, aarch64
    # the open file, the pipe and libraries
    "read": (0, 63),
    "write": (1, 64),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "close": (3, 57),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "getdents64": (217, 61),
    "openat": (257, 56),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    # memory
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "brk": (12, 214),
    # threads
    "futex": (202, 98),
    "clone": (56, 220),
    "rseq": (334, 293),
    "set_robust_list": (273, 99),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "prctl": (157, 167),
    "exit": (60, 93),
    # signals to this process, and its end
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "tgkill": (234, 131),
    "exit_group": (231, 94),
    # facts about this process and machine
    "getpid": (39, 172),
    "gettid": (186, 178),
    "prlimit64": (302, 261),
    "sysinfo": (99, 179),
    "getrandom": (318, 278),
    # clocks, on machines that cannot read them without a call
    "clock_gettime": (228, 113),
    "gettimeofday": (96, 169),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
}
CLONE3 = 435
"""Refused as not implemented: the C library then calls `clone`, whose flags the filter can read."""

# Argument checks: (offset of a 32-bit word, kind, values). The word equals one of the values, or has none of the bits.
ONE_OF, NO_BIT_OF = "one of", "no bit of"
Check = tuple[int, str, tuple[int, ...]]
NUMBER, ARCHITECTURE = 0, 4
ARGUMENT = tuple(range(16, 64, 8))
"""Offsets in struct seccomp_data, here of each argument's low word. Flags and process ids have no high word."""
NEW_LIMIT = ARGUMENT[2]
WRONLY_RDWR_CREAT_TRUNC, PATH_TMPFILE = 0o1103, 0o30000000
PROT_EXEC = 4
THREAD_FLAGS = 0x3D0F00
"""What glibc passes to `clone` for a thread: VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS and the TID pointers."""
TCGETS, FIOCLEX = 0x5401, 0x5451
F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC = 0, 1, 2, 3, 1030
PR_SET_NAME = 15

# Classic BPF: load a word of struct seccomp_data; jump if equal, if greater or equal, if a bit is set; return.
LOAD, EQUAL, AT_LEAST, BIT_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, NOT_IMPLEMENTED = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def argument_checks(pid: int) -> dict[str, tuple[Check, ...]]:
    """Return the checks of each call that has any, for the process `pid`."""
    return {
        "openat": ((ARGUMENT[2], NO_BIT_OF, (WRONLY_RDWR_CREAT_TRUNC | PATH_TMPFILE,)),),
        "fcntl": ((ARGUMENT[1], ONE_OF, (F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC)),),
        "ioctl": ((ARGUMENT[1], ONE_OF, (TCGETS, FIOCLEX)),),
        "mmap": ((ARGUMENT[2], NO_BIT_OF, (PROT_EXEC,)),),
        "mprotect": ((ARGUMENT[2], NO_BIT_OF, (PROT_EXEC,)),),
        "clone": ((ARGUMENT[0], ONE_OF, (THREAD_FLAGS,)),),
        "sched_getaffinity": ((ARGUMENT[0], ONE_OF, (0,)),),
        "prctl": ((ARGUMENT[0], ONE_OF, (PR_SET_NAME,)),),
        "tgkill": ((ARGUMENT[0], ONE_OF, (pid,)),),
        "prlimit64": ((ARGUMENT[0], ONE_OF, (0,)), (NEW_LIMIT, ONE_OF, (0,)), (NEW_LIMIT + 4, ONE_OF, (0,))),
    }


def filter_program(machine: str, pid: int) -> bytes:
    """Return the filter for `machine`, one of MACHINES, as an array of struct sock_filter."""
    checks, column = argument_checks(pid), MACHINES.index(machine)
    program: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, REFUSE),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, REFUSE),
        (EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, NOT_IMPLEMENTED),
    ]
    for name, numbers in NUMBERS.items():
        block = [instruction for check in checks.get(name, ()) for instruction in _check(check)]
        program += [(EQUAL, 0, len(block) + 1, numbers[column]), *block, (RETURN, 0, 0, ALLOW)]
    program.append((RETURN, 0, 0, REFUSE))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _check(check: Check) -> list[Instruction]:
    offset, kind, values = check
    load = (LOAD, 0, 0, offset)
    if kind == NO_BIT_OF:
        return [load, (BIT_SET, 0, 1, values[0]), (RETURN, 0, 0, REFUSE)]
    jumps = [(EQUAL, len(values) - k, 0, value) for k, value in enumerate(values)]
    return [load, *jumps, (RETURN, 0, 0, REFUSE)]
