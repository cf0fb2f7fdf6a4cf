"""The OpenAPI document describes every option, parameter, event type and error."""

import re
from typing import Any

import pytest

from service.app import create_app
from service.contract.events import EVENT_CLASSES
from service.problems import MEDIA_TYPE
from service.settings import Settings

Schema = dict[str, Any]
DOCUMENT: Schema = create_app(Settings()).openapi()
SCHEMAS: Schema = DOCUMENT["components"]["schemas"]
OPERATIONS = [(f"{method} {path}", op) for path, methods in DOCUMENT["paths"].items() for method, op in methods.items()]
LIMITS_IN_WORDS = re.compile(r"\b[Aa]t most\b|`cap_` and|, from 0, and")
"""A description that states the bounds which depend on the server or on the video."""


def options() -> list[tuple[str, Schema, Schema]]:
    """Return (name, description and examples, schema) of everything that a client can send."""
    listed = []
    for name, operation in OPERATIONS:
        for part in operation.get("parameters", []):
            listed.append((f"{name} {part['name']}", {**part["schema"], **part}, part["schema"]))
        for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
            for option, schema in body["schema"]["properties"].items():
                listed.append((f"{name} {media_type} {option}", schema, schema))
    return listed


def resolved(schema: Schema) -> Schema:
    return SCHEMAS[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def bounded(schema: Schema) -> bool:
    """Whether a schema limits its values on both sides."""
    choices = [resolved(choice) for choice in schema.get("anyOf", [schema])]
    [choice] = [choice for choice in choices if choice.get("type") != "null"]
    match choice.get("type"):
        case _ if "enum" in choice or choice.get("type") == "boolean":
            return True
        case "string":
            return "maxLength" in choice
        case "object":
            return "maxProperties" in choice
    return bool({"minimum", "exclusiveMinimum"} & choice.keys()) and bool(
        {"maximum", "exclusiveMaximum"} & choice.keys()
    )


@pytest.mark.parametrize(
    ("name", "texts", "schema"), options(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_option_has_a_description_bounds_and_an_example(name: str, texts: Schema, schema: Schema) -> None:
    assert len(texts.get("description", "")) > 10
    assert texts.get("examples") or "example" in texts
    assert bounded(schema) or LIMITS_IN_WORDS.search(texts["description"])


def test_every_event_type_has_a_schema_that_streams_refer_to() -> None:
    types = {kind.model_fields["type"].default for kind in EVENT_CLASSES} | {"gap"}
    for path, method in (("/captions/{job_id}/events", "get"), ("/recaption", "post")):
        content = DOCUMENT["paths"][path][method]["responses"]["200"]["content"]["text/event-stream"]
        events = [resolved(part) for part in content["schema"]["items"]["oneOf"]]
        assert {event["properties"]["event"]["const"] for event in events} == types
        assert all(len(event["description"]) > 10 for event in events)
        assert "event: started" in content["example"]


def references(part: Any) -> list[str]:
    if isinstance(part, dict):
        here = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return here + [name for value in part.values() for name in references(value)]
    return [name for value in part for name in references(value)] if isinstance(part, list) else []


def test_every_reference_leads_to_a_schema() -> None:
    assert {name.rpartition("/")[2] for name in references(DOCUMENT)} <= SCHEMAS.keys()


def test_keyframes_are_described_as_they_are_sent() -> None:
    data = SCHEMAS["KeyframesEvent"]["properties"]["data"]
    assert "image" in resolved(data["properties"]["keyframes"]["items"])["properties"]
    assert SCHEMAS["StartedEvent"]["properties"]["data"]["required"] == ["attempt"]


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_route_has_a_description_and_documents_its_errors(name: str, operation: Schema) -> None:
    assert len(operation["description"]) > 10
    if operation.get("security") == []:
        return
    codes = {
        code: int(status)
        for status, response in operation["responses"].items()
        if MEDIA_TYPE in response.get("content", {})
        for code in response["description"].split(" · ")
    }
    expected = {"invalid_option": 422, "unauthorized": 401, "rate_limited": 429, "queue_unavailable": 503}
    if "{job_id}" in name:
        expected["not_found"] = 404
    if "requestBody" in operation:
        expected |= {"unsupported_media": 415, "storage_full": 507, "idempotency_conflict": 422, "no_worker": 503}
        expected |= {"attempts_exhausted": 500, "engine_failed": 500, "deadline_exceeded": 504}
    assert expected.items() <= codes.items()


def test_fields_of_problems_are_described() -> None:
    assert all(part.get("description") for part in SCHEMAS["Problem"]["properties"].values())
    assert "request_timeout" in DOCUMENT["info"]["description"]
