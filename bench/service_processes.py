"""CPU time of the service's processes, read from /proc by `psutil`. The benchmark that asks must be their ancestor.

Time of children that have ended is counted for the parent that waited for them: decoders for the worker, probes for
the gateway.
"""

import time
from dataclasses import asdict, dataclass

import psutil

TITLES = {
    "valkey": ("valkey-server",),
    "gateway": ("-m service",),
    "worker": ("workers.main", "stub_engine.py", "rq:"),
}
"""What the command line of each process of the service contains. RQ changes the worker's."""


@dataclass(frozen=True)
class CpuTimes:
    """CPU seconds by process. `*_children_s`: probes and decoders, which end with their file."""

    gateway_s: float = 0.0
    gateway_children_s: float = 0.0
    worker_s: float = 0.0
    worker_children_s: float = 0.0
    valkey_s: float = 0.0
    engine_s: float = 0.0
    client_s: float = 0.0
    """The benchmark itself, which uploads the clips and follows the events."""

    @property
    def outside_engine_s(self) -> float:
        """CPU seconds of the service without the engine."""
        return sum(asdict(self).values()) - self.engine_s - self.client_s

    def __sub__(self, before: "CpuTimes") -> "CpuTimes":
        old = asdict(before)
        return CpuTimes(**{name: value - old[name] for name, value in asdict(self).items()})


def cpu_times(ancestor: int) -> CpuTimes:
    """Return the CPU time so far of the gateway, the workers and Valkey among the descendants of a process.

    `ancestor` is this process, which is the client.
    """
    totals = dict.fromkeys(asdict(CpuTimes()), 0.0)
    totals["client_s"] = time.process_time()
    for child in psutil.Process(ancestor).children():
        name = _service_process(child)
        if name is None:
            continue
        times = child.cpu_times()
        totals[f"{name}_s"] += times.user + times.system
        if name == "valkey":
            continue
        totals[f"{name}_children_s"] += times.children_user + times.children_system
        for grandchild in child.children(recursive=True):
            kind = "engine_s" if is_engine(grandchild) else f"{name}_children_s"
            totals[kind] += _cpu_s(grandchild)
    return CpuTimes(**totals)


def engine_cpu_s(ancestor: int) -> float:
    """Return the CPU time so far of the engine's processes below a process."""
    return sum(_cpu_s(child) for child in psutil.Process(ancestor).children(recursive=True) if is_engine(child))


def is_engine(process: psutil.Process) -> bool:
    """Return whether this is a process of vLLM's engine, under its title or as spawned by `multiprocessing`."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "VLLM::" in command or "multiprocessing.spawn" in command


def _service_process(process: psutil.Process) -> str | None:
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return None
    return next((name for name, marks in TITLES.items() if any(mark in command for mark in marks)), None)


def _cpu_s(process: psutil.Process) -> float:
    """Return the CPU time of a process and of its children that have ended; 0 if it has ended itself."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def thread_cpu_s(process_id: int, thread_id: int) -> float:
    """Return the CPU time so far of one thread."""
    thread = next(thread for thread in psutil.Process(process_id).threads() if thread.id == thread_id)
    return float(thread.user_time + thread.system_time)
