"""The values that the web page repeats are equal to the service's own."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sharecap_client.datasets.batch.inputs import VIDEO_SUFFIXES

import service
from service.app import create_app
from service.contract.events import FINAL_EVENT_TYPES
from service.contract.jobs import JOB_ID_PATTERN, JobStatus, RecaptionOptions, VideoOptions
from service.settings import Settings
from service.streaming import sse
from tests.media.clips import CONTAINERS_AND_CODECS

WEB = Path(service.__file__).parent / "web"
CONFIGURABLE = {"max_keyframes"}
"""Options whose maximum is a setting of the service, so that the page cannot know it."""


def constant(name: str) -> str:
    """Return the expression that contract.js assigns to a constant."""
    match = re.search(rf"^export const {name} = (.*?);", (WEB / "contract.js").read_text(), re.MULTILINE)
    assert match, name
    return match[1]


class Inputs(HTMLParser):
    """The attributes of all inputs and text areas of the page, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: dict[str, dict[str, str]] = {}
        self.feed((WEB / "index.html").read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in ("input", "textarea") and "name" in values:
            self.attributes[values["name"]] = values


def schema_of(model: type[VideoOptions | RecaptionOptions], name: str) -> dict[str, Any]:
    """Return the JSON schema of an option; of an optional one, the schema of its value."""
    schema: dict[str, Any] = model.model_json_schema()["properties"][name]
    return {**schema, **schema.get("anyOf", [{}])[0]}


def test_final_statuses() -> None:
    final = set(re.findall(r'"(\w+)"', constant("FINAL_STATUSES")))
    assert final == FINAL_EVENT_TYPES == {status.value for status in JobStatus if status.ended}


def test_job_id_pattern() -> None:
    assert constant("JOB_ID") == f"/^{JOB_ID_PATTERN}$/"


def test_stream_timing() -> None:
    assert float(constant("HEARTBEAT_MS")) == 1000 * Settings.model_fields["heartbeat_s"].default
    assert f"retry: {constant('RETRY_MS')}\n\n".encode() == sse.RETRY


def test_endings_of_videos() -> None:
    """The page and `sharecap batch` select the same files of a folder. The page also offers WebP, if it is animated."""
    array = (WEB / "contract.js").read_text().partition("export const VIDEO_SUFFIXES = [")[2].partition("]")[0]
    suffixes = set(re.findall(r'"([^"]+)"', array))
    assert suffixes == VIDEO_SUFFIXES | {".webp"}
    assert {Path(clip.name).suffix for clip in CONTAINERS_AND_CODECS} <= suffixes | {".png"}  # few are animated


def test_page_sizes() -> None:
    parameters = create_app(Settings()).openapi()["paths"]["/captions"]["get"]["parameters"]
    [schema] = [parameter["schema"] for parameter in parameters if parameter["name"] == "limit"]
    assert (int(constant("PAGE_SIZE")), int(constant("MAX_PAGE_SIZE"))) == (schema["default"], schema["maximum"])


def test_limits_of_number_inputs() -> None:
    numbers = {name: values for name, values in Inputs().attributes.items() if values.get("type") == "number"}
    assert len(numbers) >= 9
    for name, values in numbers.items():
        schema = schema_of(VideoOptions, name)
        minimum = schema.get("minimum", schema.get("exclusiveMinimum"))
        assert float(values["min"]) == minimum, name
        maximum = schema.get("maximum", schema.get("exclusiveMaximum"))
        if "max" in values:
            assert float(values["max"]) == maximum, name
        else:
            assert name in CONFIGURABLE or maximum is None or maximum > 2**53, name


def test_defaults_in_placeholders() -> None:
    for name, values in Inputs().attributes.items():
        if re.fullmatch(r"[\d.]+", values.get("placeholder", "")):
            assert float(values["placeholder"]) == VideoOptions.model_fields[name].default, name


def test_prompt_length() -> None:
    assert int(Inputs().attributes["prompt"]["maxlength"]) == schema_of(RecaptionOptions, "prompt")["maxLength"]
