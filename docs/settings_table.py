"""Writes the tables of `docs/settings.md` from the settings classes: `python docs/settings_table.py`.

The description of a setting is its docstring, its default and its limits are those of its field.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from service.contract.settings import SharedSettings
from service.settings import Settings as GatewaySettings
from workers.settings import Settings as WorkerSettings

PAGE = Path(__file__).with_name("settings.md")
TABLES: tuple[tuple[str, str, type[BaseSettings], type[BaseSettings]], ...] = (
    ("Gateway and workers", "Give all processes of a service the same values.", SharedSettings, BaseSettings),
    ("Gateway", "", GatewaySettings, SharedSettings),
    ("Worker", "", WorkerSettings, SharedSettings),
)
DEFAULTS = {
    "codecs": "all",
    "decoders": "cores + 1",
    "formats": "all",
    "model": "the demo model",
}
"""Defaults that depend on the machine or are too long for a table."""


def updated(page: str) -> str:
    """Return the page with new tables between its two comments."""
    before, start, rest = page.partition(" -->\n")
    _, end, after = rest.partition("\n<!-- end of the tables -->\n")
    return before + start + "".join(part for table in TABLES for part in _section(*table)) + end + after


def _section(title: str, text: str, settings: type[BaseSettings], base: type[BaseSettings]) -> Iterator[str]:
    yield f"\n## {title}\n\n" + (f"{text}\n\n" if text else "")
    yield "| setting | default | values | |\n|---|---|---|---|\n"
    for name, field in settings.model_fields.items():
        if name not in base.model_fields:
            cells = [f"`{name.upper()}`", _default(name, field), _values(field), _description(field)]
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _default(name: str, field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if name in DEFAULTS:
        return DEFAULTS[name]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if value < 1e5 else str(int(value))
    return "" if value in (None, frozenset(), (), {}) else f"`{value}`" if isinstance(value, str | Path) else str(value)


def _values(field: FieldInfo) -> str:
    """Return the limits of a number, or the words that are accepted."""
    limits = re.findall(r"\b(ge|gt|le|lt)=([-\d.]+)", f"{field.metadata} {field.annotation}")
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    words = re.findall(r"'([\w-]+)'", str(field.annotation)) if "Literal" in str(field.annotation) else []
    return ", ".join([f"{signs[sign]} {value}" for sign, value in limits] + [f"`{word}`" for word in words])


def _description(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
