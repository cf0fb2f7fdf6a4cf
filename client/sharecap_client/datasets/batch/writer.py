"""Collects finished rows and appends them to the store, with the run's edits, a part every few seconds.

Rows that were not yet written when the process was killed are not lost: their jobs exist, and sending a video again
with the same `Idempotency-Key` finds its job.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from sharecap_client.datasets.edit import with_edits
from sharecap_client.datasets.rows import Row
from sharecap_client.datasets.store import Store

MAX_ROWS = 512
MAX_AGE_S = 5.0
CHECK_S = 0.5


class RowWriter:
    """Writes rows to `store`, one batch at a time: rows do not pile up while parts are merged. Close it at the end."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[str, Row] = {}
        self._since = 0.0
        self._writing = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "writer")  # always the same one: memory is kept for each thread

    async def add(self, row: Row) -> None:
        """Take a row. It is written with others, at the latest after `MAX_AGE_S`."""
        if not self._rows:
            self._since = time.monotonic()
        self._rows[row.id] = row
        if len(self._rows) >= MAX_ROWS:
            await self._flush_in_thread()

    async def keep_writing(self) -> None:
        """Write rows that have waited long enough, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            if self._rows and time.monotonic() - self._since > MAX_AGE_S:
                await self._flush_in_thread()

    async def _flush_in_thread(self) -> None:
        async with self._writing:
            rows, self._rows = self._rows, {}
            writing = self._thread.submit(self._write, list(rows.values()))
            await asyncio.shield(asyncio.wrap_future(writing))  # an interruption does not cancel it

    def close(self) -> None:
        """Write all rows, after those that are being written."""
        self._thread.shutdown()
        rows, self._rows = self._rows, {}
        self._write(list(rows.values()))

    def _write(self, rows: list[Row]) -> None:
        if rows:
            edits = self._store.manifest.edits
            self._store.append([with_edits(row, edits) for row in rows])
            self._store.merge_small()
