"""Receives a multipart upload: parses the form, limits its size and passes the video to the storage.

The storage hashes the video and discards it after an error (`service/contract/storage`). The client's file name is kept
as a label only and never used as a path.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.access.rate_limits import ByteBudget
from service.contract.errors import InvalidOption
from service.contract.storage.interface import WRITE_BYTES, IncomingVideo, Storage, too_large

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE_FIELD = "file"
MAX_FIELDS = 64
MAX_FIELD_BYTES = 65_536
FORM_BYTES = 1 << 20
"""Allowed size of everything in the body other than the file."""


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
    _is_other_file: bool = False

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
            self._is_other_file = b"filename" in parameters
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
            raise self._not_a_text(f"longer than {MAX_FIELD_BYTES} bytes")

    def _end(self) -> None:
        if self._name != FILE_FIELD:
            try:
                self.fields.append((self._name, self._text.decode()))
            except UnicodeDecodeError:
                raise self._not_a_text("not valid UTF-8") from None

    def _not_a_text(self, reason: str) -> InvalidOption:
        """Return the error for a field that is not a text, most likely because it is the video under another name."""
        if self._is_other_file:
            reason = (
                f"unknown file; send the video in the form field `{FILE_FIELD}`, for example -F {FILE_FIELD}=@clip.mp4"
            )
        return InvalidOption(f"{self._name[:64]}: {reason}")

    def _finish(self) -> None:
        self.complete = True


def plain_name(name: str) -> str | None:
    """Return a client's file name without directories and control characters, or None if nothing remains."""
    name = re.sub(r"[\x00-\x1f\x7f]", "", re.split(r"[/\\]", name)[-1]).strip()
    return name[:255] or None


class Upload:
    """An upload in progress: the video and the form that it arrives in."""

    def __init__(self, video: IncomingVideo, storage: Storage, max_upload_bytes: int, budget: ByteBudget) -> None:
        self.video = video
        self.form = Form()
        self._storage = storage
        self._budget = budget
        self._received = 0
        self._max_upload_bytes = max_upload_bytes

    async def receive(self, request: Request) -> None:
        """Read the whole body. Raises a RequestError if it is invalid, ClientDisconnect if the client disconnects."""
        try:
            await self._check_length(request)
            parser = MultipartParser(_boundary(request), self.form.callbacks())
            async for chunk in request.stream():
                self._received += len(chunk)
                self._check_body_size(self._received)
                parser.write(chunk)
                if len(self.form.pending) >= WRITE_BYTES:
                    await self._write_pending()
            await self._write_pending()
            if not self.form.complete:
                raise InvalidOption("body: the multipart body is incomplete")
            await self.video.sync()
        except FormParserError:
            raise InvalidOption("body: not valid multipart/form-data") from None
        finally:
            await self._budget.refund(self._received)
        if not self.form.has_file:
            raise InvalidOption("file: the form field `file` with the video is missing")

    async def _check_length(self, request: Request) -> None:
        length = request.headers.get("content-length", "")
        body_bytes = int(length) if length.isascii() and length.isdigit() else 0
        self._check_body_size(body_bytes)
        self._storage.check_free_space(body_bytes)
        await self._budget.reserve(body_bytes)

    def _check_body_size(self, body_bytes: int) -> None:
        if body_bytes > self._max_upload_bytes + FORM_BYTES:
            raise too_large(self._max_upload_bytes)

    async def _write_pending(self) -> None:
        await self._budget.reserve(self._received)
        data, self.form.pending = self.form.pending, bytearray()
        await self.video.write(data)


def _boundary(request: Request) -> bytes:
    _, parameters = parse_options_header(request.headers["content-type"])
    if not parameters.get(b"boundary"):
        raise InvalidOption("body: the content type has no multipart boundary")
    return parameters[b"boundary"]


@asynccontextmanager
async def upload(
    request: Request, storage: Storage, max_upload_bytes: int, budget: ByteBudget
) -> AsyncIterator[Upload]:
    """Receive the request's file. It is discarded on exit unless its `video` was committed."""
    async with storage.receive(max_upload_bytes) as video:
        incoming = Upload(video, storage, max_upload_bytes, budget)
        await incoming.receive(request)
        yield incoming
