"""How much memory the machine, or the container that limits this process, has left."""

from collections.abc import Iterator
from pathlib import Path

KIB = 1024
MEMINFO = Path("/proc/meminfo")
OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a number near 2^63."""


def available_bytes() -> int:
    """Return the memory that a new process can use: the least of what the machine and each cgroup have left."""
    return min([_available_on_machine(), *_left_in_cgroups()])


def _available_on_machine() -> int:
    fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * KIB


def _left_in_cgroups() -> Iterator[int]:
    """Yield what is left in this process's cgroup and in those above it, in version 1 and 2, if they have limits."""
    if not OWN_CGROUPS.exists():
        return
    for line in OWN_CGROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            yield from _left_upwards(CGROUPS / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")
        elif not controllers:
            yield from _left_upwards(CGROUPS, path, "memory.max", "memory.current")


def _left_upwards(root: Path, path: str, limit_name: str, usage_name: str) -> Iterator[int]:
    own = root / path.lstrip("/")
    for cgroup in (own, *own.parents):
        limit_file, usage_file = cgroup / limit_name, cgroup / usage_name
        if limit_file.exists() and usage_file.exists():  # a container sees only its own part of the tree
            limit = limit_file.read_text().strip()
            if limit != "max" and int(limit) < UNLIMITED:
                yield int(limit) - int(usage_file.read_text()) + _reclaimable(cgroup / "memory.stat")
        if cgroup == root:
            return


def _reclaimable(stat: Path) -> int:
    """Return the cached file data that the kernel drops first. It counts as used in a cgroup."""
    fields = dict(line.split() for line in stat.read_text().splitlines()) if stat.exists() else {}
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
