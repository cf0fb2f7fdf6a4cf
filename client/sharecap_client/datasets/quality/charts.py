"""Statistics as a table for the terminal and as a PNG."""

from pathlib import Path
from typing import Any

from rich.table import Table

SIZE_INCHES = (11, 7)


def table(report: dict[str, Any]) -> Table:
    """Return the figures as a table of two columns."""
    made = Table("figure", "value", box=None, show_header=False)
    for name, value in _lines(report):
        made.add_row(name, value)
    return made


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw histograms and the word classes as a PNG. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  (takes a second, and only --png needs it)
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[tuple[str, dict[str, Any]]] = [
        ("words per caption", report["words_per_caption"]["histogram"]),
        ("word classes, % of all words", report["word_classes_percent"]),
        ("differential captions per clip", report["differentials_per_clip"]["histogram"]),
        ("length of clips, s", report["clip_seconds"]["histogram"]),
    ]
    for axes, (title, values) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        axes.bar(list(values), [value or 0 for value in values.values()], color="#3b6ea5")
        axes.set_title(title)
        axes.tick_params(axis="x", labelrotation=60)
    figure.savefig(path, format="png", dpi=110)


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    failures = ", ".join(f"{count} × {code}" for code, count in report["failures"].items())
    classes = report["word_classes_percent"].items()
    return [
        ("clips", str(report["rows"])),
        ("captions", str(report["captions"])),
        ("failed", failures or "0"),
        ("excluded or empty", str(report["excluded"])),
        ("words per caption", _spread(report["words_per_caption"])),
        ("distinct words", str(report["distinct_words"])),
        *((f"{name}s, %" if name != "other" else "other words, %", _figure(share)) for name, share in classes),
        ("differential captions per clip", _spread(report["differentials_per_clip"])),
        ("length of clips, s", _spread(report["clip_seconds"])),
    ]


def _spread(values: dict[str, Any]) -> str:
    if not values["number"]:
        return "unknown"
    return f"{_figure(values['mean'])} (median {values['median']}, from {values['min']} to {values['max']})"


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"
