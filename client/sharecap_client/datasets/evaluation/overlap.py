"""Similarity of texts by common words: CIDEr-D and ROUGE-L, by the formulas of pycocoevalcap, and repetition.

Words are separated by `quality.words`, not by the Penn Treebank tokenizer, which needs Java. So figures of tables that
were made with that tokenizer differ a little.
"""

import math
from collections import Counter
from collections.abc import Sequence

from sharecap_client.datasets.quality.words import words

MAX_N = 4
LENGTH_SIGMA = 6.0
RECALL_WEIGHT = 1.2
"""The beta of ROUGE-L's F score."""
REPEATED_N = 4

Grams = tuple[Counter[tuple[str, ...]], ...]
"""The n-grams of a text with their numbers, for n from 1 to MAX_N."""


def rouge_l(caption: str, reference: str) -> float:
    """Return the F score of the longest common subsequence of words, from 0 to 1."""
    own, other = words(caption), words(reference)
    if not own or not other:
        return float(own == other)
    common = _common_subsequence(own, other)
    precision, recall, weight = common / len(own), common / len(other), RECALL_WEIGHT**2
    return (1 + weight) * precision * recall / (recall + weight * precision) if common else 0.0


def cider(captions: Sequence[str], references: Sequence[str]) -> list[float] | None:
    """Return the CIDEr-D of each caption, from 0 to 1: pycocoevalcap's figure divided by ten.

    N-grams are weighted by how few references contain them, so there must be several: None if there is one only.
    """
    if len(references) < 2:
        return None
    others = [_grams(words(reference)) for reference in references]
    frequency = Counter(gram for grams in others for counts in grams for gram in counts)
    weights = {gram: math.log(len(others)) - math.log(count) for gram, count in frequency.items()}
    unseen = math.log(len(others))
    return [
        _cider(_grams(words(caption)), other, weights, unseen) for caption, other in zip(captions, others, strict=True)
    ]


def repetition(text: str) -> float:
    """Return the share of sequences of four words that repeat an earlier one in the same text."""
    counts = _counts(words(text), REPEATED_N)
    return 1 - len(counts) / counts.total() if counts else 0.0


def _common_subsequence(own: Sequence[str], other: Sequence[str]) -> int:
    lengths = [0] * (len(other) + 1)
    for word in own:
        before = 0
        for index, candidate in enumerate(other, 1):
            above = lengths[index]
            lengths[index] = before + 1 if word == candidate else max(above, lengths[index - 1])
            before = above
    return lengths[-1]


def _cider(own: Grams, other: Grams, weights: dict[tuple[str, ...], float], unseen: float) -> float:
    difference = own[1].total() - other[1].total()  # pycocoevalcap compares the numbers of bigrams
    penalty = math.exp(-(difference**2) / (2 * LENGTH_SIGMA**2))
    return penalty * sum(_cosine(*counts, weights, unseen) for counts in zip(own, other, strict=True)) / MAX_N


def _cosine(
    own: Counter[tuple[str, ...]], other: Counter[tuple[str, ...]], weights: dict[tuple[str, ...], float], unseen: float
) -> float:
    """Return the cosine of weighted n-grams, in which a caption's n-gram counts at most as often as the reference's."""
    weighted = {gram: count * weights.get(gram, unseen) for gram, count in own.items()}
    expected = {gram: count * weights[gram] for gram, count in other.items()}
    norm = math.hypot(*weighted.values()) * math.hypot(*expected.values())
    product = sum(min(value, expected.get(gram, 0.0)) * expected.get(gram, 0.0) for gram, value in weighted.items())
    return product / norm if norm else 0.0


def _grams(tokens: Sequence[str]) -> Grams:
    return tuple(_counts(tokens, n) for n in range(1, MAX_N + 1))


def _counts(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))
