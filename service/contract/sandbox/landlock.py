"""Landlock: which files a confined child may open. `confine.py` loads this file by its path.

The ruleset handles every right that the kernel's Landlock ABI knows (up to ABI 6, the last with new rights that we
use). A handled right is refused unless a rule grants it, and only reading files is granted: no writing, truncating,
creating, linking or removing, no device ioctl, no TCP, and no signal or abstract socket that leaves the process.
"""

import ctypes
import os
import struct
from collections.abc import Iterable

# The numbers of these system calls are the same on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
GET_ABI = 1
RULE_PATH_BENEATH = 1
READ_FILE, READ_DIR = 1 << 2, 1 << 3
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""How many rights on files an ABI has: 13, then also linking between directories, truncation, and device ioctls."""
TCP_SINCE, SCOPES_SINCE = 4, 6
BIND_AND_CONNECT_TCP = 0b11
ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


def abi(libc: ctypes.CDLL) -> int:
    """Return the kernel's Landlock ABI; 0 if the kernel has no Landlock, or has it disabled."""
    return max(0, int(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), GET_ABI)))


def handled_rights(abi: int) -> tuple[int, int, int]:
    """Return all rights of `abi` as bits: on files, on TCP ports, and scopes."""
    files = max(count for since, count in FILE_RIGHTS.items() if since <= abi)
    tcp = BIND_AND_CONNECT_TCP if abi >= TCP_SINCE else 0
    return (1 << files) - 1, tcp, ABSTRACT_SOCKETS_AND_SIGNALS if abi >= SCOPES_SINCE else 0


def allow_reading(libc: ctypes.CDLL, abi: int, file: str, directories: Iterable[str]) -> None:
    """Let this thread open nothing but `file` and what lies below `directories`, for reading. Raises OSError."""
    attributes = struct.pack("QQQ", *handled_rights(abi))  # an older kernel accepts the longer struct: the rest is zero
    ruleset = _checked(libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    for path, rights in ((file, READ_FILE), *((directory, READ_FILE | READ_DIR) for directory in directories)):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights, descriptor)
        _checked(libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0))
        os.close(descriptor)
    _checked(libc.syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
