"""What the OpenAPI document says of bodies that the routes read themselves, made from the option models."""

from typing import Any

from service.contract.jobs import ClipOptions, Decoding, RecaptionOptions, VideoOptions
from service.intake.idempotency import MOST_CHARS

_METADATA = {
    "type": "object",
    "additionalProperties": {"type": "string", "maxLength": 512},
    "maxProperties": 16,
    "description": "Up to 16 string pairs, echoed back",
}
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "example": "wait=30",
    "description": "Wait up to N seconds (at most 60) for the job to end",
}
_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": MOST_CHARS, "pattern": "^[ -~]+$"},
    "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
    "description": (
        "Send the same request again with the same key, also while the first is under way, and it finds the job that "
        "the first made: the answer has `Idempotency-Replayed: true`. With another request the key is an "
        "`idempotency_conflict`. A key is the API key's own, and lives for 24 hours and at least as long as its job"
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
    form=_schema(VideoOptions, ["file"], file={"type": "string", "format": "binary", "description": "The video"}),
    json=_schema(VideoOptions, ["url"], url={"type": "string", "format": "uri"}),
)
CLIP = _body(json=_schema(ClipOptions, []))
RECAPTION = _body(
    json=_schema(
        RecaptionOptions,
        [],
        stream={"type": "boolean", "default": False, "description": "Answer with the job's events"},
    )
)
