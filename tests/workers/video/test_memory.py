"""Available memory, read from files like those of the kernel."""

from pathlib import Path

import pytest

from workers.video import memory
from workers.video.memory import available_bytes

GIB = 1 << 30


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB available, and no cgroups yet."""
    (tmp_path / "meminfo").write_text("MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\nHugePages_Total:  0\n")
    for name, file in {"MEMINFO": "meminfo", "OWN_CGROUPS": "own", "CGROUPS": "cgroup"}.items():
        monkeypatch.setattr(memory, name, tmp_path / file)
    return tmp_path


def write(kernel: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = kernel / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def test_without_cgroups(kernel: Path) -> None:
    assert available_bytes() == 8 * GIB


def test_version_2_counts_the_tightest_cgroup_upwards(kernel: Path) -> None:
    (kernel / "own").write_text("0::/pod/worker\n")
    write(kernel, {"pod/worker/memory.max": "max", "pod/worker/memory.current": GIB})
    assert available_bytes() == 8 * GIB
    write(kernel, {"pod/memory.max": 4 * GIB, "pod/memory.current": 3 * GIB})
    assert available_bytes() == GIB
    write(kernel, {"pod/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 7"})
    assert available_bytes() == 2 * GIB, "cached file data can be dropped"


def test_version_2_in_a_container_that_sees_only_its_own_cgroup(kernel: Path) -> None:
    (kernel / "own").write_text("0::/\n")
    write(kernel, {"memory.max": 3 * GIB, "memory.current": GIB})
    assert available_bytes() == 2 * GIB


def test_version_1(kernel: Path) -> None:
    (kernel / "own").write_text("5:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n")
    write(kernel, {"memory/memory.limit_in_bytes": 9223372036854771712, "memory/memory.usage_in_bytes": GIB})
    assert available_bytes() == 8 * GIB
    own = "memory/docker/abc/memory"
    write(
        kernel, {f"{own}.limit_in_bytes": 2 * GIB, f"{own}.usage_in_bytes": GIB, f"{own}.stat": "total_inactive_file 9"}
    )
    assert available_bytes() == GIB + 9


def test_this_machine() -> None:
    assert 1 << 20 < available_bytes() < 1 << 50
