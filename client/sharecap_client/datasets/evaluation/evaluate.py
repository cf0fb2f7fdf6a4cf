"""All figures of `sharecap eval`, with and without a judge."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import httpx
from rich.table import Table

from sharecap_client.datasets.evaluation.events import event_figures
from sharecap_client.datasets.evaluation.judge import Judge, base_url
from sharecap_client.datasets.evaluation.overlap import cider, repetition, rouge_l
from sharecap_client.datasets.evaluation.references import Pair
from sharecap_client.datasets.evaluation.temporal import temporal_f1


def text_figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the averages of the figures that need no judge."""
    captions, references = [pair.caption for pair in pairs], [pair.reference.caption for pair in pairs]
    timed = [temporal_f1(pair.intervals, pair.reference_intervals) for pair in pairs if pair.reference_intervals]
    return {
        "cider": _mean(cider(captions, references) or []),
        "rouge_l": _mean([rouge_l(*texts) for texts in zip(captions, references, strict=True)]),
        "temporal_f1": _mean([figure for figure in timed if figure is not None]),
        "repetition": _mean([repetition(caption) for caption in captions]),
        "reference_repetition": _mean([repetition(reference) for reference in references]),
    }


async def judged_figures(
    pairs: Sequence[Pair], url: str, model: str, cache: Path, *, repeats: int = 1, api_key: str | None = None
) -> dict[str, Any]:
    """Return the figures of a judge. Raises StoreError if it does not answer."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(headers=headers) as http:
        judge = Judge(base_url(url), model, cache, http)
        return await event_figures(pairs, judge, repeats)


def table(report: dict[str, Any]) -> Table:
    """Return the figures as a table. Its title names the judge."""
    judge = report.get("events", {}).get("judge")
    made = Table("figure", "value", box=None, show_header=False, title=f"judge: {judge}" if judge else None)
    for name, value in _lines(report):
        made.add_row(name, value)
    return made


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    events = {f"event {name}": value for name, value in report.get("events", {}).items() if name != "judge"}
    figures = {**report["texts"], **events}
    counts = [("clips compared", str(report["compared"])), ("references without caption", str(report["missing"]))]
    return [*counts, *((name.replace("_", " "), _figure(value)) for name, value in figures.items())]


def _figure(value: float | None) -> str:
    return "unknown" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None
