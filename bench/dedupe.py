"""How fast `sharecap dedupe` chooses, and in how much memory; features are random, no encoder runs.

    python bench/dedupe.py                    three rounds, of --seconds each at most

First round: rows lie about --centres directions, so the pool stops growing. Second round: every row differs from every
other, so all are kept and each is compared with all before it, the worst case. Third round: a pool that --rows rows
have joined already, unjudged, meets a block more. Prints rows a second on the way, and the process's peak memory; each
round has a process of its own.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import time

import torch

from workers.commands.dedupe import BLOCK, Pool

MIB = 1 << 20
THRESHOLD = 0.9
SPREAD = 0.2
"""Cosine of two rows of one centre: about 1 / (1 + SPREAD**2) = 0.96."""


def features(count: int, centres: torch.Tensor | None, width: int) -> torch.Tensor:
    """Return [count, width]."""
    noise = torch.randn(count, width)
    return noise if centres is None else centres[torch.randint(len(centres), (count,))] + SPREAD * noise


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def measure(title: str, joined: int, centres: int, rows: int, options: argparse.Namespace) -> None:
    """Run one round; print a row whenever the number of rows has doubled, and at the end."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pool = Pool(THRESHOLD, device)
    some = torch.nn.functional.normalize(torch.randn(BLOCK, options.width)).to(device)
    while pool.size < joined:
        pool.join(some)
    about = torch.randn(centres, options.width) if centres else None
    before, began, done, busy_s, shown = peak_mib(), time.monotonic(), 0, 0.0, BLOCK
    print(f"\n{title}, on {device}; {before:.0f} MiB before the first row\n")
    print("| rows | kept | seconds | of them choosing | rows/s so far | peak MiB |\n|---:|---:|---:|---:|---:|---:|")
    while done < rows:
        block = features(min(BLOCK, rows - done), about, options.width)
        start = time.monotonic()
        pool.admit(block)
        busy_s += time.monotonic() - start
        done += len(block)
        wall_s = time.monotonic() - began
        last = done == rows or wall_s > options.seconds
        if done >= shown or last:
            shown = 2 * done
            told = f"{wall_s:.1f} | {busy_s:.1f} | {done / busy_s:,.0f} | {peak_mib():,.0f}"
            print(f"| {done:,} | {pool.size:,} | {told} |", flush=True)
        if last:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--round", type=int, choices=[1, 2, 3], help="only this one")
    parser.add_argument("--centres", type=int, default=2000)
    options = parser.parse_args()
    print(f"{options.width} wide, blocks of {BLOCK}, {os.cpu_count()} cores ({platform.machine()})")
    rounds = (
        (f"About {options.centres} centres", 0, options.centres, options.rows),
        ("All differ", 0, 0, options.rows),
        (f"All differ, after {options.rows:,} in the pool", options.rows, 0, BLOCK),
    )
    for round_ in rounds[options.round - 1 : options.round] if options.round else rounds:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(*round_, options))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
