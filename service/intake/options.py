"""Parses what a client sent into validated options: form fields, JSON bodies and the `Prefer` header.

Form fields are text and are converted ("8" is accepted as a number); JSON values must have the right type. An option
that is unknown, repeated or out of range is an error that names the option.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from service.contract.errors import InvalidOption, UnsupportedMedia
from service.contract.jobs import JobOptions, Metadata

MAX_JSON_BYTES = 1 << 20
MAX_WAIT_S = 60
DEFAULT_WAIT_S = 60
"""How long requests for clips and recaptions wait by default; their jobs usually end quickly."""
MAX_SHOWN_ERRORS = 5
MAX_SHOWN_CHARS = 64
_METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(Metadata)

OptionsT = TypeVar("OptionsT", bound=JobOptions)


def from_form(model: type[OptionsT], fields: list[tuple[str, str]]) -> tuple[OptionsT, dict[str, str]]:
    """Return options and metadata from form fields. The field `metadata` is JSON text. Raises InvalidOption."""
    values: dict[str, Any] = _unique(fields)
    metadata = values.pop("metadata", "{}")
    return _validate(model, values, strict=False), _metadata(parse_json(metadata, "metadata"))


def from_json(model: type[OptionsT], values: Mapping[str, Any]) -> tuple[OptionsT, dict[str, str]]:
    """Return options and metadata from a JSON object. Raises InvalidOption."""
    options = {name: value for name, value in values.items() if name != "metadata"}
    return _validate(model, options, strict=True), _metadata(values.get("metadata", {}))


async def json_body(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body. Raises UnsupportedMedia for another content type, otherwise InvalidOption."""
    content_type = media_type(request)
    if content_type != "application/json":
        raise UnsupportedMedia(f"The content type is {content_type or 'missing'}; it must be application/json.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise InvalidOption(f"body: a JSON body is limited to {MAX_JSON_BYTES} bytes")
    values = parse_json(bytes(body), "body")
    if not isinstance(values, dict):
        raise InvalidOption("body: must be a JSON object")
    return values


def media_type(request: Request) -> str:
    """Return the media type of the body in lower case, without parameters; "" if the request does not state it."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def parse_json(text: str | bytes, name: str) -> Any:
    """Return the value of a JSON text. Raises InvalidOption, also if an object repeats a name."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise InvalidOption(f"{name}: not valid JSON") from None


def requested_wait_s(request: Request, default_s: int) -> int:
    """Return how long the client is willing to wait according to `Prefer: wait=N`. Invalid preferences are ignored."""
    for preference in ",".join(request.headers.getlist("prefer")).split(","):
        name, _, value = preference.split(";")[0].partition("=")
        seconds = value.strip().strip('"')
        if name.strip().lower() == "wait" and seconds.isascii() and seconds.isdigit():
            return min(int(seconds[:9]), MAX_WAIT_S)
    return default_s


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise InvalidOption(f"{_printable(name)}: given more than once")
        values[name] = value
    return values


def _printable(name: str) -> str:
    """Return a client's text in a form that is safe in a response: shortened, and without lone surrogates."""
    return name[:MAX_SHOWN_CHARS].encode(errors="replace").decode()


def _validate(model: type[OptionsT], values: dict[str, Any], *, strict: bool) -> OptionsT:
    try:
        return model.model_validate(values, strict=strict)
    except ValidationError as error:
        raise InvalidOption(_describe(error, [*model.model_fields, "metadata"])) from None


def _metadata(value: object) -> dict[str, str]:
    try:
        return _METADATA.validate_python(value, strict=True)
    except ValidationError as error:
        raise InvalidOption(_describe(error, [], "metadata")) from None


def _describe(error: ValidationError, known: list[str], prefix: str = "") -> str:
    errors = error.errors(include_url=False, include_input=False)
    return "; ".join(_describe_one(details, known, prefix) for details in errors[:MAX_SHOWN_ERRORS])


def _describe_one(details: ErrorDetails, known: list[str], prefix: str) -> str:
    path = ".".join(filter(None, [prefix, *(_printable(str(part)) for part in details["loc"])]))
    if details["type"] == "extra_forbidden":
        similar = get_close_matches(path, known, 1)
        return f"{path}: unknown option" + (f"; did you mean {similar[0]}?" if similar else "")
    message = details["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message
