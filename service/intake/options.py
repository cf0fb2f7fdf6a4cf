"""From what a client wrote to validated options: form fields, JSON bodies and the `Prefer` header.

Form fields are text and are read as such ("8" is a number); JSON has types and is held to them. An unknown,
repeated or unfit option is an error that names it.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from service.contract.errors import InvalidOption, UnsupportedMedia
from service.contract.jobs import OPTIONS_OF, JobKind, Metadata, Options

MAX_JSON_BYTES = 1 << 20
MAX_WAIT_S = 60
SHOWN_ERRORS = 5
SHOWN_CHARS = 64
_METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(Metadata)


def from_form(kind: JobKind, fields: list[tuple[str, str]]) -> tuple[Options, dict[str, str]]:
    """Return options and metadata from form fields; `metadata` is JSON text."""
    values: dict[str, Any] = _unrepeated(fields)
    metadata = values.pop("metadata", "{}")
    return _options(kind, values, strict=False), _metadata(parse_json(metadata, "metadata"))


def from_json(kind: JobKind, values: Mapping[str, Any]) -> tuple[Options, dict[str, str]]:
    """Return options and metadata from a JSON object."""
    options = {name: value for name, value in values.items() if name != "metadata"}
    return _options(kind, options, strict=True), _metadata(values.get("metadata", {}))


async def json_body(request: Request) -> dict[str, Any]:
    """Return the request's JSON object. Raises UnsupportedMedia for another type, InvalidOption for another value."""
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json":
        raise UnsupportedMedia(f"The body is {content_type or 'of no type'}; application/json is taken.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise InvalidOption(f"body: a JSON body has at most {MAX_JSON_BYTES} bytes")
    values = parse_json(bytes(body), "body")
    if not isinstance(values, dict):
        raise InvalidOption("body: a JSON object is needed")
    return values


def parse_json(text: str | bytes, name: str) -> Any:
    """Return the value of a JSON text; an object that repeats a name is an error."""
    try:
        return json.loads(text, object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError):
        raise InvalidOption(f"{name}: this is not JSON") from None


def wait_asked_for(request: Request, default_s: int) -> int:
    """Return for how many seconds the client will wait, by `Prefer: wait=N`; a preference not understood is none."""
    for preference in ",".join(request.headers.getlist("prefer")).split(","):
        name, _, value = preference.split(";")[0].partition("=")
        seconds = value.strip().strip('"')
        if name.strip().lower() == "wait" and seconds.isascii() and seconds.isdigit():
            return min(int(seconds[:9]), MAX_WAIT_S)
    return default_s


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise InvalidOption(f"{_shown(name)}: given more than once")
        values[name] = value
    return values


def _shown(name: str) -> str:
    """Return a client's word as it may stand in an answer: short, and without half characters."""
    return name[:SHOWN_CHARS].encode(errors="replace").decode()


def _options(kind: JobKind, values: dict[str, Any], *, strict: bool) -> Options:
    model = OPTIONS_OF[kind]
    try:
        return model.model_validate(values, strict=strict)
    except ValidationError as error:
        raise InvalidOption(_tell(error, list(model.model_fields))) from None


def _metadata(value: object) -> dict[str, str]:
    try:
        return _METADATA.validate_python(value, strict=True)
    except ValidationError as error:
        raise InvalidOption(_tell(error, [], "metadata")) from None


def _tell(error: ValidationError, known: list[str], prefix: str = "") -> str:
    errors = error.errors(include_url=False, include_input=False)
    return "; ".join(_tell_one(details, known, prefix) for details in errors[:SHOWN_ERRORS])


def _tell_one(details: ErrorDetails, known: list[str], prefix: str) -> str:
    path = ".".join(filter(None, [prefix, *(_shown(str(place)) for place in details["loc"])]))
    if details["type"] == "extra_forbidden":
        near = get_close_matches(path, [*known, "metadata"], 1)
        return f"{path}: no such option" + (f"; is {near[0]} meant?" if near else "")
    message = details["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message
