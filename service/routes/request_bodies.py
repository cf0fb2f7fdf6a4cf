"""OpenAPI descriptions of the bodies that routes parse themselves, generated from the option models."""

from typing import Any

from pydantic import TypeAdapter

from service.contract.jobs import MAX_URL_CHARS, ClipOptions, Decoding, Metadata, RecaptionOptions, VideoOptions
from service.intake.idempotency import MAX_CHARS
from service.intake.options import MAX_WAIT_S

_METADATA = {
    **TypeAdapter(Metadata).json_schema(),
    "description": "Pairs of strings that are returned with the job. In a form, the field contains a JSON object.",
    "examples": [{"camera": "front"}],
}
_FILE = {
    "type": "string",
    "format": "binary",
    "description": "The video. At most the server's `MAX_UPLOAD_BYTES` (4 GiB by default).",
    "examples": ["clip.mp4"],
}
_URL = {
    "type": "string",
    "format": "uri",
    "maxLength": MAX_URL_CHARS,
    "description": "Public http(s) URL of the video, which a worker downloads.",
    "examples": ["https://files.example/clip.mp4"],
}
_STREAM = {
    "type": "boolean",
    "default": False,
    "description": "Answer with the job's event stream, as `Accept: text/event-stream` does.",
    "examples": [True],
}
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": 1000},
    "example": "wait=30",
    "description": f"Wait up to N seconds (at most {MAX_WAIT_S}) for the job to end",
}
_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_CHARS, "pattern": "^[ -~]+$"},
    "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
    "description": (
        "Makes it safe to repeat a request. A request with the same key, sent after the first one or while it is still "
        "running, returns the job of the first request, with the header `Idempotency-Replayed: true`. A different "
        "request with the same key fails with `idempotency_conflict`. Keys are separate for each API key; a key is "
        "stored for 24 hours and at least as long as its job"
    ),
}


def _schema(model: type[Decoding], required: list[str], **more: Any) -> dict[str, Any]:
    schema = model.model_json_schema()
    properties = {**more, **schema["properties"], "metadata": _METADATA}
    names = [*required, *schema.get("required", [])]
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _body(**by_type: dict[str, Any]) -> dict[str, Any]:
    types = {"form": "multipart/form-data", "json": "application/json"}
    content = {types[name]: {"schema": schema} for name, schema in by_type.items()}
    return {"requestBody": {"required": True, "content": content}, "parameters": [_PREFER, _IDEMPOTENCY]}


VIDEO = _body(
    form=_schema(VideoOptions, ["file"], file=_FILE),
    json=_schema(VideoOptions, ["url"], url=_URL),
)
CLIP = _body(json=_schema(ClipOptions, []))
RECAPTION = _body(json=_schema(RecaptionOptions, [], stream=_STREAM))
