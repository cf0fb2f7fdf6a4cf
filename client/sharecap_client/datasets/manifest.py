"""The manifest of a run, `run.json`: what was captioned, with which options, and how captions were edited since."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from pydantic import BaseModel, Field, ValidationError

from sharecap_client.datasets.errors import StoreError

NAME = "run.json"
FORMAT = 1
NOT_ABOUT_CAPTIONS = frozenset({"deadline_s", "webhook_url", "metadata"})
"""Options that change how a job runs, but not what its captions say."""


class Manifest(BaseModel):
    """`options` are those of the jobs, `inputs` what the command was given, `edits` are in the order applied.

    `root` is the directory that ids are relative to. `columns` of a table contain the video and the id.
    """

    format: int = FORMAT
    run: str = Field(default_factory=lambda: uuid4().hex)
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    options: dict[str, Any] = {}
    inputs: list[str] = []
    root: str | None = None
    columns: tuple[str, str | None] = ("video", None)
    edits: list[dict[str, Any]] = []

    @classmethod
    def load(cls, directory: Path) -> Self | None:
        """Return the manifest of this directory, or None if it has none. Raises StoreError."""
        try:
            return cls.parse((directory / NAME).read_bytes(), str(directory))
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise StoreError(f"{directory} is a file, not the directory of a run") from None
        except OSError as error:
            raise StoreError(f"{directory / NAME} cannot be read: {error}") from error

    @classmethod
    def parse(cls, content: bytes, directory: str) -> Self:
        """Return the manifest in the file of a directory with this content. Raises StoreError."""
        try:
            manifest = cls.model_validate_json(content)
        except ValidationError as error:
            raise StoreError(f"{directory}/{NAME} cannot be read: {error}") from error
        if manifest.format > FORMAT:
            raise StoreError(f"{directory} was written by a newer version of sharecap: update this one")
        return manifest

    def save(self, directory: Path) -> None:
        """Write the manifest. Another process sees the old one or the new one."""
        replace(directory / NAME, self.content())

    def content(self) -> bytes:
        """Return the content of the file."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @property
    def caption_options(self) -> str:
        """The options that decide what the captions say, as JSON with sorted names."""
        return canonical(self.options)


def canonical(options: dict[str, Any]) -> str:
    """Return, as JSON with sorted names, the options that decide what the captions say."""
    return json.dumps({name: options[name] for name in sorted(options) if name not in NOT_ABOUT_CAPTIONS})


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it has the old or the new content, also after a loss of power."""
    part = path.with_name(f".{path.name}.tmp")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names of new files in this directory durable. Some systems cannot do that and do not need it."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
