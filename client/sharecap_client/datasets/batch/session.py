"""Opens or creates the store of a run, checks that the request fits it, captions, and returns the exit status."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharecap_client.api import AsyncClient
from sharecap_client.cli.connection import Service
from sharecap_client.cli.errors import CommandFailed
from sharecap_client.datasets.batch.inputs import STDIN, Inputs, Item, common_root, is_url, url_bases
from sharecap_client.datasets.batch.progress import Progress, progress_for
from sharecap_client.datasets.batch.run import Run
from sharecap_client.datasets.batch.selection import Failed, Selection, failed_items
from sharecap_client.datasets.batch.status import status_of
from sharecap_client.datasets.batch.tables import Columns
from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.manifest import Manifest, canonical
from sharecap_client.datasets.store import Store
from sharecap_client.models import JobStatus

EXIT_SOME_FAILED = 3


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    inputs: list[str]
    out: Path
    options: dict[str, Any]
    retry_failed: bool
    only_failed: bool
    redo: bool
    video_column: str
    id_column: str | None
    root: Path | None
    concurrency: int
    as_json: bool

    @property
    def failed(self) -> Failed:
        if self.only_failed:
            return Failed.ONLY
        return Failed.RETRY if self.retry_failed else Failed.KEEP


def print_status(directory: Path, *, as_json: bool) -> None:
    """Print what a store contains."""
    status = status_of(Store.open(directory))
    print(status.as_json() if as_json else status.as_text())


async def run_batch(service: Service, request: Request) -> int:
    """Caption. Returns 0 if no row of the store failed, else 3."""
    inputs = absolute(request.inputs)
    if not inputs and Manifest.load(request.out) is None:
        raise CommandFailed("name the videos to caption: sharecap batch INPUT… --out DIR")
    async with AsyncClient(service.url, service.api_key, retries=0) as client:
        await _check(client)  # before the directory is created
        try:
            store = await asyncio.to_thread(_open, request, inputs)
            with store.locked():
                items = _prepare(store, request, inputs)
                with progress_for(as_json=request.as_json) as progress:
                    return await _caption(client, store, request, items, progress)
        except OSError as error:
            raise CommandFailed(f"cannot write to {request.out}: {error.strerror or error}") from error


async def _caption(
    client: AsyncClient, store: Store, request: Request, items: Iterable[Item], progress: Progress
) -> int:
    with await asyncio.to_thread(store.index) as index:
        selection = Selection(index, store.manifest.caption_options, request.failed)
        run = Run(client, store, selection, progress, request.concurrency)
        count = not isinstance(items, Inputs) or items.repeatable
        with _explain(request.out, progress):
            await run.caption(items, count=count)
    return EXIT_SOME_FAILED if await asyncio.to_thread(_some_failed, store) else 0


@contextmanager
def _explain(out: Path, progress: Progress) -> Iterator[None]:
    try:
        yield
    except asyncio.CancelledError:
        progress.note(f"interrupted; `sharecap batch --out {out}` continues")
        raise


async def _check(client: AsyncClient) -> None:
    """Raise SharecapError if the service cannot be reached or refuses the key: the URL or the key is probably wrong."""
    async for _ in client.jobs():
        break


def _open(request: Request, inputs: list[str]) -> Store:
    manifest = Manifest.load(request.out)
    return Store(request.out, manifest) if manifest else Store.create(request.out, request.options, inputs)


def _prepare(store: Store, request: Request, inputs: list[str]) -> Iterable[Item]:
    """Update the manifest and return the videos to look at. Raises StoreError if the request does not fit the store."""
    manifest, empty = store.manifest, not store.parts.numbers()
    set_options(manifest, request.options, redo=request.redo, out=str(store.directory), empty=empty)
    set_inputs(manifest, inputs, empty=empty)
    if request.only_failed:
        store.save()
        return FailedItems(store)
    if STDIN in manifest.inputs and not inputs:
        raise CommandFailed("the paths came from standard input: give them again, or use --only-failed")
    manifest.root = str(choose_root(manifest, request.root))
    manifest.columns = (request.video_column, request.id_column) if inputs else manifest.columns
    store.save()
    video_column, id_column = manifest.columns
    return Inputs(manifest.inputs, Path(manifest.root), Columns(video_column, id_column))


def set_options(manifest: Manifest, options: dict[str, Any], *, redo: bool, out: str, empty: bool) -> None:
    """Set the options of the run in `out`. Flags that are not given keep their value, except with `redo`.

    Raises StoreError if the run has captions that were made with others.
    """
    options = options if redo else {**manifest.options, **options}
    if canonical(options) != manifest.caption_options and not redo and not empty:
        raise StoreError(
            f"{out} was captioned with the options {manifest.caption_options}: other options change the "
            "captions. Choose another directory, or --redo to caption everything again"
        )
    manifest.options = options


def set_inputs(manifest: Manifest, inputs: list[str], *, empty: bool) -> None:
    """Set the inputs of a run, if any are given. Raises StoreError if ids of its rows would then mean other videos."""
    before, after = url_bases(manifest.inputs), url_bases(inputs)
    if not empty and before and after and before != after and 1 in (len(before), len(after)):
        raise StoreError(
            f"the ids of this run are made for {', '.join(before)}, not for {', '.join(after)}: choose another --out"
        )
    manifest.inputs = inputs or manifest.inputs


def choose_root(manifest: Manifest, named: Path | None) -> Path:
    """Return the directory that ids are relative to: that of the first run, unless it was moved or is named anew."""
    if named is not None:
        return named.resolve()
    root = common_root(manifest.inputs)
    known = Path(manifest.root) if manifest.root else root
    if root == known or root.is_relative_to(known):
        return known
    if known.exists():
        raise StoreError(
            f"the ids of this run are relative to {known}, which does not contain all inputs: name the directory that "
            "ids are relative to with --root, or choose another --out"
        )
    return root


def absolute(names: list[str]) -> list[str]:
    """Return inputs as they are stored in the manifest: paths are absolute."""
    return [name if name == STDIN or is_url(name) else str(Path(name).absolute()) for name in names]


def _some_failed(store: Store) -> bool:
    with store.index() as index:
        return any(state != JobStatus.COMPLETED for state in index.counts())


class FailedItems:
    """The videos of a store that failed, as an input."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __iter__(self) -> Iterator[Item]:
        return failed_items(self._store)
