"""`sharecap batch` of a million rows needs as much memory as one of ten thousand. `SOAK=1` runs it.

Half of the rows are in the store when the command starts for the second time.
"""

import os
from pathlib import Path

import pytest

from tests.client.datasets import memory


@pytest.mark.skipif("SOAK" not in os.environ, reason="takes six minutes; SOAK=1 runs it")
def test_a_million_rows(tmp_path: Path) -> None:
    few, many = (memory.peak_mb(rows, tmp_path / str(rows)) for rows in (10_000, 1_000_000))
    print(f"10,000 rows: {few:.0f} MB, 1,000,000 rows: {many:.0f} MB")
    assert many < few + 30
