"""Speed and memory of the selection in `sharecap dedupe`. The features are random and no encoder runs.

    python bench/dedupe.py                    three rounds of at most --seconds each

Round 1: the rows are near --centres directions, so the pool of kept rows stops growing. Round 2, the worst case: every
row differs from every other row, so all are kept and each is compared with all before it. Round 3: one more block is
added to a pool that already holds --rows rows. Prints rows per second and the peak memory of the process as it goes.
Each round runs in its own process.
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
"""Noise around a centre. The cosine of two rows of one centre is about 1 / (1 + SPREAD**2) = 0.96."""


def features(count: int, centres: torch.Tensor | None, width: int) -> torch.Tensor:
    """Return random features near the given centres, or anywhere if `centres` is None: [count, width]."""
    noise = torch.randn(count, width)
    return noise if centres is None else centres[torch.randint(len(centres), (count,))] + SPREAD * noise


def peak_mib() -> float:
    """Return the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def measure(title: str, initial: int, centres: int, rows: int, options: argparse.Namespace) -> None:
    """Run one round on `initial` rows already in the pool. Prints a line whenever the row count has doubled."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pool = Pool(THRESHOLD, device)
    filler = torch.nn.functional.normalize(torch.randn(BLOCK, options.width)).to(device)
    while pool.size < initial:
        pool.add(filler)
    directions = torch.randn(centres, options.width) if centres else None
    before_mib, began, done, busy_s, next_line = peak_mib(), time.monotonic(), 0, 0.0, BLOCK
    print(f"\n{title}, on {device}; {before_mib:.0f} MiB before the first row\n")
    print("| rows | kept | seconds | selecting s | rows/s so far | peak MiB |\n|---:|---:|---:|---:|---:|---:|")
    while done < rows:
        block = features(min(BLOCK, rows - done), directions, options.width)
        start = time.monotonic()
        pool.admit(block)
        busy_s += time.monotonic() - start
        done += len(block)
        wall_s = time.monotonic() - began
        last = done == rows or wall_s > options.seconds
        if done >= next_line or last:
            next_line = 2 * done
            figures = f"{wall_s:.1f} | {busy_s:.1f} | {done / busy_s:,.0f} | {peak_mib():,.0f}"
            print(f"| {done:,} | {pool.size:,} | {figures} |", flush=True)
        if last:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows in each round")
    parser.add_argument("--width", type=int, default=768, help="dimensions of a feature")
    parser.add_argument("--seconds", type=float, default=120.0, help="time limit of a round")
    parser.add_argument("--round", type=int, choices=[1, 2, 3], help="run only this round")
    parser.add_argument("--centres", type=int, default=2000, help="number of directions in round 1")
    options = parser.parse_args()
    print(f"{options.width} wide, blocks of {BLOCK}, {os.cpu_count()} cores ({platform.machine()})")
    rounds = (
        (f"About {options.centres} centres", 0, options.centres, options.rows),
        ("All differ", 0, 0, options.rows),
        (f"All differ, after {options.rows:,} in the pool", options.rows, 0, BLOCK),
    )
    selected = [rounds[options.round - 1]] if options.round else rounds
    for round_ in selected:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(*round_, options))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
