"""The system call filter: its list for both machines, and what real decoding needs of it."""

import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from service.contract.sandbox import system_calls
from service.contract.sandbox.probe import CHILD, VideoLimits, child_argument, probe
from service.contract.sandbox.system_calls import ALLOW, AUDIT_ARCH, MACHINES, NOT_IMPLEMENTED, NUMBERS, REFUSE
from tests.conftest import MakeClip
from workers.video.decode_child import Spec
from workers.video.frames import CHILD as DECODE_CHILD

PID = 4711
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
THREAD = 0x3D0F00
CALLS = """
    brk clock_gettime clock_nanosleep clone close exit exit_group fcntl fstat futex getdents64 getpid getrandom gettid
    gettimeofday ioctl lseek madvise mmap mprotect mremap munmap nanosleep newfstatat openat prctl pread64 prlimit64
    read restart_syscall rseq rt_sigaction rt_sigprocmask rt_sigreturn sched_getaffinity sched_yield set_robust_list
    sigaltstack sysinfo tgkill write
"""


def decide(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """Run the filter for one call, as the kernel does, and return its verdict."""
    program = list(struct.iter_unpack("HBBI", system_calls.filter_program(machine, PID)))
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("iIQ6Q", number, AUDIT_ARCH[machine] if arch is None else arch, 0, *padded)
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, operand = program[position]
        position += 1
        match code:
            case system_calls.LOAD:
                (accumulator,) = struct.unpack_from("I", data, operand)
            case system_calls.EQUAL:
                position += if_true if accumulator == operand else if_false
            case system_calls.AT_LEAST:
                position += if_true if accumulator >= operand else if_false
            case system_calls.BIT_SET:
                position += if_true if accumulator & operand else if_false
            case system_calls.RETURN:
                return operand


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    machine: str = request.param
    return machine


def number(machine: str, name: str) -> int:
    return NUMBERS[name][MACHINES.index(machine)]


def test_the_list() -> None:
    """A call is added only on purpose: here, in the filter, and after a look at what else it can do."""
    assert set(NUMBERS) == set(CALLS.split())


def test_the_numbers_are_those_of_the_kernel(machine: str) -> None:
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"{header} is missing: kernel headers are not installed")
    definitions = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    defined = {name: int(value) for name, value in definitions}
    defined.setdefault("newfstatat", defined.get("fstatat", -1))  # the name in the generic table
    assert {name: number(machine, name) for name in NUMBERS} == {name: defined[name] for name in NUMBERS}
    assert defined["clone3"] == system_calls.CLONE3


def test_only_listed_numbers_are_allowed(machine: str) -> None:
    checked = system_calls.argument_checks(PID)
    free = {number(machine, name) for name in NUMBERS if name not in checked}
    without_arguments = {number for number in range(600) if decide(machine, number) == ALLOW}
    assert without_arguments - {number(machine, name) for name in checked} == free
    assert decide(machine, system_calls.CLONE3) == NOT_IMPLEMENTED
    assert decide(machine, number(machine, "read"), arch=0x40000003) == REFUSE, "32-bit calls have other numbers"
    assert decide(machine, number(machine, "read") + system_calls.X32) == REFUSE


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        (
            "openat",
            [(3, 0, 0), (3, 0, 0o2000000)],
            [(3, 0, 1), (3, 0, 2), (3, 0, 0o100), (3, 0, 0o1000), (3, 0, 1 << 21)],
        ),
        ("mmap", [(0, 4096, 3)], [(0, 4096, 7), (0, 4096, 4), (0, 4096, 5)]),
        ("mprotect", [(0, 4096, 1)], [(0, 4096, 4), (0, 4096, 5)]),
        ("clone", [(THREAD,)], [(17,), (THREAD | 0x10000000,), (THREAD | 0x40000000,), (0x10000,)]),
        ("fcntl", [(0, 1), (0, 2), (0, 1030)], [(0, 8), (0, 10), (0, 15), (0, 4)]),
        ("ioctl", [(0, 0x5401)], [(0, 0x5412), (0, 0x8913)]),
        ("prctl", [(15,)], [(22,), (4,), (38,), (41,)]),
        ("tgkill", [(PID, PID + 1, 6)], [(PID + 1, PID + 1, 6), (1, 1, 9)]),
        ("prlimit64", [(0, 3, 0)], [(1, 3, 0), (0, 3, 0x1000), (0, 3, 1 << 32)]),
        ("sched_getaffinity", [(0,)], [(1,)]),
    ],
)
def test_arguments(machine: str, name: str, allowed: list[tuple[int, ...]], refused: list[tuple[int, ...]]) -> None:
    assert {decide(machine, number(machine, name), *arguments) for arguments in allowed} == {ALLOW}
    assert {decide(machine, number(machine, name), *arguments) for arguments in refused} == {REFUSE}


def test_every_checked_call_has_a_case() -> None:
    cases = {case[0] for mark in test_arguments.pytestmark for case in mark.args[1]}  # type: ignore[attr-defined]
    assert cases == set(system_calls.argument_checks(PID))


def trace(path: Path, *command: str) -> list[tuple[str, str]]:
    """Run the child under strace; return the calls made after confinement, with their results."""
    subprocess.run(
        ["strace", "-f", "-o", str(path), sys.executable, "-I", "-B", *command],
        env={"OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=120,
    )
    _, confined = re.split(r"seccomp\(SECCOMP_SET_MODE_FILTER.*\n", path.read_text(), maxsplit=1)
    return re.findall(r"^\d+ +(\w+)\(.*?(?:= (.*))?$", confined, re.MULTILINE)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    ("name", "encoder", "codec"),
    [
        ("a.mp4", "h264", "h264"),
        ("a.mov", "hevc", "hevc"),
        ("a.mkv", "h264", "h264"),
        ("a.webm", "libvpx", "vp8"),
        ("b.webm", "libvpx-vp9", "vp9"),
        ("c.webm", "libsvtav1", "av1"),
        ("a.avi", "mpeg4", "mpeg4"),
        ("a.ts", "h264", "h264"),
        ("a.gif", "gif", "gif"),
        ("a.webp", "libwebp_anim", "webp"),
    ],
)
async def test_decoding_is_never_refused_a_call(
    tmp_path: Path, make_clip: MakeClip, name: str, encoder: str, codec: str
) -> None:
    pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
    path = make_clip(tmp_path / name, 1.0, codec=encoder, pix_fmt=pix_fmt, audio=codec == "h264")
    spec = Spec(str(path), (await probe(path)).container, codec, 0.2, 10, 1024, 60)
    calls = trace(tmp_path / "probe", str(CHILD), child_argument(path, VideoLimits()))
    calls += trace(tmp_path / "decode", str(DECODE_CHILD), json.dumps(vars(spec)))
    assert {called for called, _ in calls} <= {*NUMBERS, "clone3"}
    assert [call for call in calls if "EPERM" in call[1]] == []
