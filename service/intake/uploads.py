"""Receives a multipart upload: parses the form, limits its size, hashes the video and writes it to storage.

The file gets its final name, the job's id, only once it is complete and durably stored. After an error it is removed;
files that a killed process leaves behind are removed by `service/upkeep/retention.py`. The client's file name is kept
as a label only and never used as a path.
"""

import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from anyio import to_thread
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.access.rate_limits import ByteBudget
from service.contract.errors import InvalidOption, SharecapError, VideoTooLarge
from service.contract.storage.local import PART, check_room, storing, sync_names, upload_path
from service.settings import Settings

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE_FIELD = "file"
MAX_FIELDS = 64
MAX_FIELD_BYTES = 65_536
FORM_BYTES = 1 << 20
"""Allowed size of everything in the body other than the file."""
WRITE_BYTES = 1 << 20


def prepare(data_dir: Path) -> None:
    """Create the data directory."""
    upload_path(data_dir, "").resolve().mkdir(parents=True, exist_ok=True)


@dataclass
class Form:
    """Collects what the multipart parser has read: the complete fields, and bytes of the file not yet written."""

    fields: list[tuple[str, str]] = field(default_factory=list)
    filename: str | None = None
    has_file: bool = False
    complete: bool = False
    pending: bytearray = field(default_factory=bytearray)
    _header: bytes = b""
    _value: bytes = b""
    _disposition: bytes = b""
    _name: str = ""
    _text: bytearray = field(default_factory=bytearray)

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._disposition, self._text = b"", bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        self._name = parameters.get(b"name", b"").decode(errors="replace")
        if self._name != FILE_FIELD:
            if len(self.fields) == MAX_FIELDS:
                raise InvalidOption(f"body: at most {MAX_FIELDS} form fields are allowed")
            return
        if self.has_file:
            raise InvalidOption("file: given more than once")
        self.has_file = True
        self.filename = plain_name(parameters.get(b"filename", b"").decode(errors="replace"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE_FIELD:
            self.pending += memoryview(data)[start:end]
            return
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise InvalidOption(f"{self._name[:64]}: longer than {MAX_FIELD_BYTES} bytes")

    def _end(self) -> None:
        if self._name != FILE_FIELD:
            try:
                self.fields.append((self._name, self._text.decode()))
            except UnicodeDecodeError:
                raise InvalidOption(f"{self._name[:64]}: not valid UTF-8") from None

    def _finish(self) -> None:
        self.complete = True


def plain_name(name: str) -> str | None:
    """Return a client's file name without directories and control characters, or None if nothing remains."""
    name = re.sub(r"[\x00-\x1f\x7f]", "", re.split(r"[/\\]", name)[-1]).strip()
    return name[:255] or None


class Upload:
    """An upload in progress: the file and the form that it arrives in."""

    def __init__(self, settings: Settings, budget: ByteBudget) -> None:
        self.path = upload_path(settings.data_dir, secrets.token_hex(16) + PART)
        self.form = Form()
        self.bytes = 0
        self.kept = False
        self._settings = settings
        self._budget = budget
        self._sha256 = hashlib.sha256()
        self._received = 0
        self._max_body_bytes = settings.max_upload_bytes + FORM_BYTES

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    async def receive(self, request: Request) -> None:
        """Read the whole body. Raises a RequestError if it is invalid, ClientDisconnect if the client disconnects."""
        try:
            await self._check_length(request)
            parser = MultipartParser(_boundary(request), self.form.callbacks())
            with storing(), self.path.open("xb") as file:
                async for chunk in request.stream():
                    self._count(len(chunk))
                    parser.write(chunk)
                    if len(self.form.pending) >= WRITE_BYTES:
                        await self._budget.reserve(self._received)
                        await to_thread.run_sync(self._write, file)
                await self._budget.reserve(self._received)
                await to_thread.run_sync(self._write, file)
                if not self.form.complete:
                    raise InvalidOption("body: the multipart body is incomplete")
                await to_thread.run_sync(os.fsync, file.fileno())
        except FormParserError:
            raise InvalidOption("body: not valid multipart/form-data") from None
        finally:
            await self._budget.refund(self._received)
        if not self.form.has_file:
            raise InvalidOption("file: the form field `file` with the video is missing")

    async def keep(self, job_id: str) -> None:
        """Durably rename the file to the job's id. From then on the file belongs to the job, not to this request."""
        with storing():
            await to_thread.run_sync(self._rename, upload_path(self._settings.data_dir, job_id))
        self.kept = True

    def discard(self) -> None:
        """Remove the file, whether or not it was renamed."""
        self.path.unlink(missing_ok=True)

    async def _check_length(self, request: Request) -> None:
        length = request.headers.get("content-length", "")
        body_bytes = int(length) if length.isascii() and length.isdigit() else 0
        if body_bytes > self._max_body_bytes:
            raise self._too_large()
        self._check_room(body_bytes)
        await self._budget.reserve(body_bytes)

    def _check_room(self, more_bytes: int) -> None:
        check_room(self._settings.data_dir, self._settings.min_free_bytes, more_bytes)

    def _count(self, more_bytes: int) -> None:
        self._received += more_bytes
        if self._received > self._max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> SharecapError:
        return VideoTooLarge(f"The file is larger than the limit of {self._settings.max_upload_bytes} bytes.")

    def _write(self, file: BinaryIO) -> None:
        data = bytes(self.form.pending)
        self.form.pending.clear()
        self.bytes += len(data)
        if self.bytes > self._settings.max_upload_bytes:
            raise self._too_large()
        self._check_room(len(data))
        self._sha256.update(data)
        file.write(data)
        file.flush()

    def _rename(self, target: Path) -> None:
        self.path = self.path.rename(target)
        sync_names(target.parent)


def _boundary(request: Request) -> bytes:
    _, parameters = parse_options_header(request.headers["content-type"])
    if not parameters.get(b"boundary"):
        raise InvalidOption("body: the content type has no multipart boundary")
    return parameters[b"boundary"]


@asynccontextmanager
async def upload(request: Request, settings: Settings, budget: ByteBudget) -> AsyncIterator[Upload]:
    """Receive the request's file. The file is removed on exit unless `Upload.keep` was called."""
    incoming = Upload(settings, budget)
    try:
        await incoming.receive(request)
        yield incoming
    finally:
        if not incoming.kept:
            incoming.discard()
