"""Statistics of captions, computed in one pass. Memory grows with the number of different words only."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.quality.words import CLASSES, OTHER, Tagger, words
from sharecap_client.datasets.rows import Row
from sharecap_client.models import JobStatus

SECONDS_PER_BIN = 5
WORDS_PER_BIN = 25
MAX_BINS = 24


@dataclass
class Values:
    """How often each whole number occurs."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, value: float) -> None:
        self.counts[round(value)] += 1

    @property
    def number(self) -> int:
        return self.counts.total()

    @property
    def mean(self) -> float | None:
        return sum(value * count for value, count in self.counts.items()) / self.number if self.number else None

    def quantile(self, share: float) -> int | None:
        """Return the smallest value that at least this share of all values does not exceed."""
        below = 0
        for value in sorted(self.counts):
            below += self.counts[value]
            if below >= share * self.number:
                return value
        return None

    def histogram(self, width: int) -> dict[str, int]:
        """Return how many values lie in each bin of this width, from 0. The last bin has no upper bound."""
        last = min(max(self.counts, default=0) // width, MAX_BINS - 1)
        bins = [0] * (last + 1)
        for value, count in self.counts.items():
            bins[min(value // width, last)] += count
        return {f"{number * width}": count for number, count in enumerate(bins)}

    def report(self, width: int) -> dict[str, Any]:
        quantiles = {"min": self.quantile(0), "median": self.quantile(0.5), "max": self.quantile(1)}
        return {"number": self.number, "mean": self.mean, **quantiles, "histogram": self.histogram(width)}


@dataclass
class Summary:
    """Statistics of the rows that were added."""

    states: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    excluded: int = 0
    words: Values = field(default_factory=Values)
    differentials: Values = field(default_factory=Values)
    duration_s: Values = field(default_factory=Values)
    classes: Counter[str] = field(default_factory=Counter)
    vocabulary: set[str] = field(default_factory=set)

    def add(self, row: Row, classes: Callable[[str], Mapping[str, int]]) -> None:
        """Add a row. Captions that were excluded or have no words are only counted."""
        self.states[row.state.value] += 1
        if row.state is not JobStatus.COMPLETED:
            self.failures[row.error.code if row.error else row.state.value] += 1
        elif row.usable and words(row.text or ""):
            self._add_caption(row, classes)
        else:
            self.excluded += 1

    def _add_caption(self, row: Row, classes: Callable[[str], Mapping[str, int]]) -> None:
        text = row.text or ""
        tokens = words(text)
        self.words.add(len(tokens))
        self.vocabulary.update(tokens)
        self.classes.update(classes(text))
        self.differentials.add(len(row.differentials))
        if row.duration_s is not None:
            self.duration_s.add(row.duration_s)

    def report(self) -> dict[str, Any]:
        """Return all figures, as `--json` prints them. Shares are percentages of all words."""
        total = self.classes.total()
        shares = {name: 100 * self.classes[name] / total if total else None for name in (*CLASSES, OTHER)}
        return {
            "rows": self.states.total(),
            "states": dict(self.states),
            "failures": dict(self.failures.most_common()),
            "excluded": self.excluded,
            "captions": self.words.number,
            "words_per_caption": self.words.report(WORDS_PER_BIN),
            "distinct_words": len(self.vocabulary),
            "word_classes_percent": shares,
            "differentials_per_clip": self.differentials.report(1),
            "clip_seconds": self.duration_s.report(SECONDS_PER_BIN),
        }


def summarize(rows: Iterable[Row]) -> Summary:
    """Return the statistics of all rows."""
    summary, tagger = Summary(), Tagger()
    for row in rows:
        summary.add(row, tagger.classes)
    return summary


def rows_of_file(path: Path, field_name: str) -> Iterator[Row]:
    """Yield a row for each line of a JSON lines file, with the caption in this field. Raises StoreError."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    caption = str(json.loads(line)[field_name])
                except (ValueError, KeyError, TypeError) as error:
                    raise StoreError(f"{path} line {number} has no caption {field_name!r}: {error!r}") from None
                yield Row(id=str(number), video="", state=JobStatus.COMPLETED, caption=caption)
