"""The client agrees with the service: jobs, options and errors with its OpenAPI document, events with the contract."""

from typing import Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter
from sharecap_client import errors, events, models, options, streams

from service.app import create_app
from service.contract import events as contract
from service.contract.errors import SharecapError
from service.contract.events import FINAL_EVENT_TYPES
from service.presentation import KeyframeImage
from service.problems import MEDIA_TYPE
from service.settings import Settings

LENIENT = {"kind", "options", "finish_reason"}
"""Fields whose values the client does not check, so that new ones do not break an older client."""

Schema = dict[str, Any]


@pytest.fixture(scope="module")
def openapi() -> Schema:
    return create_app(Settings()).openapi()


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


@pytest.mark.parametrize("model", [models.Job, models.JobPage, models.ClipPage], ids=lambda model: model.__name__)
def test_models_are_those_of_the_openapi_document(openapi: Schema, model: type[BaseModel]) -> None:
    schemas = openapi["components"]["schemas"]
    assert shape(schemas[model.__name__], schemas) == model_shape(model)


@pytest.mark.parametrize(
    ("path", "given", "others"),
    [
        ("/captions", options.VideoOptions, {"url"}),
        ("/captions/{job_id}/clips", options.JobOptions, {"start_s", "end_s"}),
        ("/recaption", options.JobOptions, {"prompt", "stream"}),
    ],
)
def test_options_are_those_of_the_openapi_document(openapi: Schema, path: str, given: type, others: set[str]) -> None:
    body = openapi["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    expected = {name: option_shape(part) for name, part in body["properties"].items() if name not in others}
    known = TypeAdapter(given).json_schema()["properties"]
    assert {name: option_shape(part) for name, part in known.items()} == expected


def option_shape(schema: Schema) -> Any:
    """Return the type of an option. The client leaves an option out instead of sending None."""
    choices = [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]
    [choice] = choices
    if "additionalProperties" in choice:
        return choice["type"], choice["additionalProperties"]["type"]
    return choice["type"], choice.get("enum")


def test_there_is_an_error_class_for_each_code(openapi: Schema) -> None:
    assert set(errors.ERRORS_BY_CODE) == codes_of(SharecapError)
    documented = {
        code
        for path in openapi["paths"].values()
        for operation in path.values()
        for response in operation["responses"].values()
        if MEDIA_TYPE in response.get("content", {})
        for code in response["description"].split(" · ")
    }
    assert documented and documented <= set(errors.ERRORS_BY_CODE)
    assert errors.error_class("from_a_newer_service") is errors.ApiError


def codes_of(kind: type[SharecapError]) -> set[str]:
    return {kind.code, *(code for child in kind.__subclasses__() for code in codes_of(child))}


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
    assert Settings.model_fields["heartbeat_s"].default == streams.HEARTBEAT_S
