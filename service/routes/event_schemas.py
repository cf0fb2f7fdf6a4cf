"""OpenAPI description of event streams: one schema for each type of event, generated from the contract's models."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.contract.events import EVENT_CLASSES, EventBase, Keyframes
from service.presentation import KeyframeImage

_REFERENCE = "#/components/schemas/{model}"


class KeyframesAsSent(Keyframes):
    __doc__ = Keyframes.__doc__

    keyframes: list[KeyframeImage]  # type: ignore[assignment]  # the gateway adds the path of each image


class Gap(EventBase):
    """The events `first` to `last` have been deleted. The job contains their texts. This event has no id."""

    first: int
    last: int


_ID = {"type": "integer", "minimum": 1, "description": "Position in the stream."}
_EXAMPLE = """\
retry: 2000

id: 1
event: queued
data: {}

id: 2
event: started
data: {"attempt":1,"model":"Lin-Chen/ShareCaptioner-Video"}

id: 3
event: delta
data: {"of":"caption","text":"A red circle"}

"""


def _name(event_type: str) -> str:
    return f"{event_type.capitalize()}Event"


_MODELS: dict[str, type[BaseModel]] = {
    **{kind.model_fields["type"].default: kind for kind in EVENT_CLASSES},
    "keyframes": KeyframesAsSent,
    "gap": Gap,
}
STREAM: dict[str, Any] = {
    "schema": {
        "type": "array",
        "description": "Server-sent events. The data of each is one line of JSON, which has the schema of its type.",
        "items": {"oneOf": [{"$ref": _REFERENCE.format(model=_name(event_type))} for event_type in _MODELS]},
    },
    "example": _EXAMPLE,
}
"""OpenAPI media type object of a stream."""


def install(app: FastAPI) -> None:
    """Add the schemas to which `STREAM` refers to the OpenAPI document of `app`."""
    build_openapi = app.openapi

    def openapi_with_events() -> dict[str, Any]:
        openapi = build_openapi()
        openapi["components"]["schemas"] = {**_schemas(), **openapi["components"]["schemas"]}
        return openapi

    app.openapi = openapi_with_events  # type: ignore[method-assign]


def _schemas() -> dict[str, Any]:
    inputs = [(model, "validation") for model in _MODELS.values()]
    by_model, definitions = models_json_schema(inputs, ref_template=_REFERENCE)  # type: ignore[arg-type]
    shared = definitions["$defs"]
    events = {}
    for event_type, model in _MODELS.items():
        data = shared.pop(by_model[model, "validation"]["$ref"].rpartition("/")[2])
        events[_name(event_type)] = _event(event_type, data)
    return {**shared, **events}


def _event(event_type: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an event from the schema of its data, in which the contract's models include the type."""
    data["properties"].pop("type", None)
    data["required"] = [name for name in data.get("required", []) if name != "type"]
    number: dict[str, Any] = {} if event_type == "gap" else {"id": _ID}
    return {
        "type": "object",
        "title": _name(event_type),
        "description": data.pop("description"),
        "properties": {**number, "event": {"const": event_type}, "data": data},
        "required": [*number, "event", "data"],
    }
