"""The client's models agree with the service: jobs with its OpenAPI document, events with the contract."""

from typing import Any, get_args

import pytest
from pydantic import BaseModel
from sharecap_client import api, events, models

from service.app import create_app
from service.contract import events as contract
from service.contract.events import FINAL_EVENT_TYPES
from service.presentation import KeyframeImage
from service.settings import Settings

LENIENT = {"kind", "options", "finish_reason"}
"""Fields whose values the client does not check, so that new ones do not break an older client."""

Schema = dict[str, Any]


def shape(schema: Schema, definitions: Schema) -> Any:
    """Return the names and types in a JSON schema, without descriptions, defaults and limits."""
    if reference := schema.get("$ref"):
        return shape(definitions[reference.rpartition("/")[2]], definitions)
    if choices := schema.get("anyOf"):
        return sorted((shape(choice, definitions) for choice in choices), key=repr)
    if properties := schema.get("properties"):
        return {name: None if name in LENIENT else shape(part, definitions) for name, part in properties.items()}
    if items := schema.get("items"):
        return [shape(items, definitions)]
    if values := schema.get("additionalProperties"):
        return {"*": shape(values, definitions)}
    return [schema.get(key) for key in ("type", "format", "const", "enum")]


def model_shape(model: type[BaseModel]) -> Any:
    schema = model.model_json_schema(mode="serialization")
    return shape(schema, schema.get("$defs", {}))


def by_type(event_union: Any) -> dict[str, type[BaseModel]]:
    union, _ = get_args(event_union)
    return {model.model_fields["type"].default: model for model in get_args(union)}


def test_the_job_is_that_of_the_openapi_document() -> None:
    schemas = create_app(Settings()).openapi()["components"]["schemas"]
    assert shape(schemas["Job"], schemas) == model_shape(models.Job)


def test_the_client_knows_every_event_type() -> None:
    assert by_type(events.Event).keys() == by_type(contract.Event).keys()
    assert {name for name, model in by_type(events.Event).items() if model.final} == FINAL_EVENT_TYPES  # type: ignore[attr-defined]


@pytest.mark.parametrize("event_type", by_type(events.Event))
def test_events_have_the_same_fields(event_type: str) -> None:
    expected = model_shape(by_type(contract.Event)[event_type])
    if event_type == "keyframes":
        expected["keyframes"] = [model_shape(KeyframeImage)]  # the gateway adds the path of the image
    assert model_shape(by_type(events.Event)[event_type]) == expected


def test_the_heartbeat_is_the_default_of_the_service() -> None:
    assert Settings.model_fields["heartbeat_s"].default == api.HEARTBEAT_S
