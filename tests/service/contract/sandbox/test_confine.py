"""Confinement: a confined child, forked as in the service, tries everything that a compromised decoder would try."""

import asyncio
import ctypes
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from service.contract.sandbox.probe import CHILD
from service.contract.sandbox.subprocesses import ChildStarter
from workers.video.frames import LIBRARIES

CONFINE = CHILD.with_name("confine.py")
LIBC = ctypes.CDLL(None)
CONFINED = """
import sys
sys.stderr = sys.stdout
import ctypes, errno, os, platform, runpy, signal, socket, subprocess, sys, threading
CLIP, CANARY, OTHER = sys.argv[1], sys.argv[2], int(sys.argv[3])
BUFFER = ctypes.create_string_buffer(4096)
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
runpy.run_path({confine!r})["confine"](CLIP, 10, 16)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
"""


async def confined(directory: Path, script: str, *arguments: object) -> str:
    """Run `script` in a confined child and return what it prints."""
    file = directory / "child.py"
    file.write_text(CONFINED.format(confine=str(CONFINE)) + script)
    async with ChildStarter(LIBRARIES) as starter, starter.child(file, *map(str, arguments)) as child:
        async with asyncio.timeout(60):
            output = (await child.output.read()).decode()
            assert await child.wait() == 0, output
            return output


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file of the same user that the child must not read or change."""
    path = tmp_path / "canary"
    path.write_text("secret")
    return path


@pytest.fixture
def other_process():
    """A process of the same user that the child must not touch."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


async def test_a_confined_child_reads_its_file_and_starts_threads_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, clip: Path, canary: Path, other_process: "subprocess.Popen[bytes]"
) -> None:
    script = """
def attempt(name, action):
    try:
        action()
    except (OSError, MemoryError, RuntimeError):
        return
    print(name)

attempt("video", lambda: open(CLIP, "rb").read(10))
thread = threading.Thread(target=lambda: None)
attempt("thread", lambda: (thread.start(), thread.join()))
attempt("canary", lambda: open(CANARY).read())
attempt("list", lambda: os.listdir("/"))
attempt("write", lambda: open(CANARY + ".new", "w").write("x"))
attempt("overwrite", lambda: open(CLIP, "r+b").write(b"x"))
attempt("socket", socket.socket)
attempt("pair", socket.socketpair)
attempt("fork", os.fork)
attempt("program", lambda: subprocess.run(["/bin/true"]))
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
attempt("kill", lambda: os.kill(OTHER, 0))
attempt("memory", lambda: bytearray(3 << 30))
attempt("files", lambda: [os.dup(0) for _ in range(20)])
"""
    directory = tmp_path_factory.mktemp("script")
    assert (await confined(directory, script, clip, canary, other_process.pid)).split() == ["video", "thread"]


FUNCTIONS = {
    "kill": "OTHER, 0",
    "sigqueue": "OTHER, 0, None",
    "sched_setaffinity": "OTHER, 8, b'\\1' + bytes(7)",
    "sched_setscheduler": "OTHER, 0, bytes(4)",
    "setpriority": "0, OTHER, 10",
    "prlimit": "OTHER, 7, None, BUFFER",
    "ptrace": "16, OTHER, None, None",
    "process_vm_readv": "OTHER, BUFFER, 1, BUFFER, 1, 0",
    "process_vm_writev": "OTHER, BUFFER, 1, BUFFER, 1, 0",
    "truncate": "CANARY.encode(), 0",
    "chmod": "CANARY.encode(), 0o777",
    "fchmodat": "-100, CANARY.encode(), 0o777, 0",
    "chown": "CANARY.encode(), 1, 1",
    "utimensat": "-100, CANARY.encode(), None, 0",
    "setxattr": "CANARY.encode(), b'user.a', b'x', 1, 0",
    "rename": "CANARY.encode(), CANARY.encode() + b'2'",
    "unlink": "CANARY.encode()",
    "link": "CANARY.encode(), CANARY.encode() + b'3'",
    "symlink": "b'/', CANARY.encode() + b'4'",
    "mkdir": "CANARY.encode() + b'5', 0o700",
    "mknod": "CANARY.encode() + b'6', 0o10600, 0",
    "open": "CANARY.encode(), 0",
    "creat": "CANARY.encode() + b'7', 0o600",
    "chdir": "b'/tmp'",
    "chroot": "b'/'",
    "mount": "b'none', b'/mnt', b'tmpfs', 0, None",
    "umount2": "b'/proc', 2",
    "unshare": "0x20000",
    "setns": "0, 0",
    "memfd_create": "b'x', 0",
    "inotify_init1": "0",
    "eventfd": "0, 0",
    "epoll_create1": "0",
    "pipe": "BUFFER",
    "msgget": "0, 0o1600",
    "semget": "0, 1, 0o1600",
    "shmget": "0, 4096, 0o1600",
    "socket": "1, 1, 0",
    "socketpair": "1, 1, 0, BUFFER",
    "vmsplice": "1, BUFFER, 0, 0",
    "personality": "0",
    "setuid": "1",
    "setsid": "",
    "setpgid": "0, 0",
    "sethostname": "b'x', 1",
    "acct": "None",
    "reboot": "0",
    "fork": "",
    "execve": "b'/bin/true', None, None",
    "iopl": "3",
    "prctl": "38, 1, 0, 0, 0",
}
"""Functions of the C library that a compromised decoder may call, and arguments that are otherwise valid."""
MEMORY = {
    "executable memory": "LIBC.mmap(None, 4096, 7, 0x22, -1, 0)",
    "memory made executable": "LIBC.mprotect(ctypes.c_void_p(LIBC.mmap(None, 4096, 3, 0x22, -1, 0)), 4096, 5)",
    "a mapped library": "LIBC.mmap(None, 4096, 5, 2, os.open(sys.executable, os.O_RDONLY), 0)",
    "a signal on input": "LIBC.fcntl(0, 8, OTHER)",
    "input to a terminal": "LIBC.ioctl(0, 0x5412, b'x')",
    "a path descriptor": "LIBC.openat(-100, CANARY.encode(), 0o10000000)",
}
SYSTEM_CALLS = {  # x86-64, aarch64, arguments
    "tgkill": (234, 131, "OTHER, OTHER, 0"),
    "tkill": (200, 130, "OTHER, 0"),
    "rt_sigqueueinfo": (129, 138, "OTHER, 0, BUFFER"),
    "rt_tgsigqueueinfo": (297, 240, "OTHER, OTHER, 0, BUFFER"),
    "prlimit64": (302, 261, "OTHER, 7, None, BUFFER"),
    "prlimit64 on itself": (302, 261, "0, 7, BUFFER, None"),
    "userfaultfd": (323, 282, "1"),
    "add_key": (248, 217, "b'user', b'a', b'x', 1, -4"),
    "request_key": (249, 218, "b'user', b'a', None, -4"),
    "keyctl": (250, 219, "0, -4, 0"),
    "bpf": (321, 280, "0, BUFFER, 48"),
    "perf_event_open": (298, 241, "BUFFER, 0, -1, -1, 0"),
    "seccomp": (317, 277, "2, 0, BUFFER"),
    "kcmp": (312, 272, "OTHER, OTHER, 0, 0, 0"),
    "pivot_root": (155, 41, "b'/', b'/'"),
    "clone of a process": (56, 220, "17, None, None, None, None"),
    "clone3": (435, 435, "BUFFER, 88"),
    "init_module": (175, 105, "BUFFER, 0, b''"),
    "io_setup": (206, 0, "1, BUFFER"),
    "io_uring_setup": (425, 425, "1, BUFFER"),
    "pidfd_send_signal": (424, 424, "0, 0, None, 0"),
    "open_tree": (428, 428, "-100, b'/', 0"),
    "move_mount": (429, 429, "-100, b'/', -100, b'/', 0"),
    "fsopen": (430, 430, "b'tmpfs', 0"),
    "pidfd_open": (434, 434, "OTHER, 0"),
    "openat2": (437, 437, "-100, CANARY.encode(), BUFFER, 24"),
    "pidfd_getfd": (438, 438, "0, 0, 0"),
    "process_madvise": (440, 440, "0, BUFFER, 1, 0, 0"),
    "mount_setattr": (442, 442, "-100, b'/', 0, BUFFER, 32"),
    "landlock_create_ruleset": (444, 444, "None, 0, 1"),
    "memfd_secret": (447, 447, "0"),
    "fchmodat2": (452, 452, "-100, CANARY.encode(), 0o777, 0"),
}
CALLS = [
    *((name, f"LIBC.{name}({arguments})") for name, arguments in FUNCTIONS.items() if hasattr(LIBC, name)),
    *MEMORY.items(),
    *(
        (name, f"LIBC.syscall({numbers[platform.machine() == 'aarch64']}, {arguments})")
        for name, (*numbers, arguments) in SYSTEM_CALLS.items()
    ),
]


async def test_every_escape_is_refused(
    tmp_path_factory: pytest.TempPathFactory, clip: Path, canary: Path, other_process: "subprocess.Popen[bytes]"
) -> None:
    script = f"""
REFUSED = {{errno.EPERM, errno.EACCES, errno.ENOSYS}}
for name, code in {CALLS!r}:
    ctypes.set_errno(0)
    result = eval(code)
    if result not in (-1, 2**64 - 1) or ctypes.get_errno() not in REFUSED:
        print(name, result, ctypes.get_errno())
"""
    before = canary.stat()
    assert await confined(tmp_path_factory.mktemp("script"), script, clip, canary, other_process.pid) == ""
    assert (canary.stat(), canary.read_text(), other_process.poll()) == (before, "secret", None)
    assert sorted(canary.parent.iterdir()) == sorted([canary, clip])


def test_optional_layers_are_in_force_or_reported(clip: Path) -> None:
    code = f"""
import json, os, runpy
before = [os.stat(f"/proc/self/ns/{{name}}").st_ino for name in ("user", "net", "ipc", "uts")]
layers = runpy.run_path({str(CONFINE)!r})["confine"]({str(clip)!r}, 10, 16)
after = [os.stat(f"/proc/self/ns/{{name}}").st_ino for name in ("user", "net", "ipc", "uts")]
print(json.dumps([layers, before, after]))
"""
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, env={}, check=True)
    layers, before, after = json.loads(result.stdout)
    assert all(old != new for old, new in zip(before, after, strict=True)) == layers["namespaces"]
