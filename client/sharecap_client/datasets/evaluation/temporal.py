"""How well timed texts match: in the right order, at the right time, with the right words.

This follows SODA (Fujita et al., 2020): texts are matched in order so that the sum of overlap in time times similarity
of text is largest. The similarity is ROUGE-L instead of METEOR, which needs Java.
"""

from collections.abc import Sequence

from sharecap_client.datasets.evaluation.overlap import rouge_l
from sharecap_client.datasets.evaluation.references import Interval


def temporal_f1(own: Sequence[Interval], other: Sequence[Interval]) -> float | None:
    """Return the F score of the best matching, from 0 to 1, or None if neither side has timed texts."""
    if not own and not other:
        return None
    best = best_matching([[overlap(one, two) * rouge_l(one.text, two.text) for two in other] for one in own])
    precision, recall = best / max(1, len(own)), best / max(1, len(other))
    return 2 * precision * recall / (precision + recall) if best else 0.0


def overlap(one: Interval, two: Interval) -> float:
    """Return the intersection of two intervals divided by their union."""
    common = min(one.end_s, two.end_s) - max(one.start_s, two.start_s)
    union = max(one.end_s, two.end_s) - min(one.start_s, two.start_s)
    return max(0.0, common) / union if union > 0 else 0.0


def best_matching(scores: Sequence[Sequence[float]]) -> float:
    """Return the largest sum of scores of pairs (row, column) in which both numbers increase."""
    columns = len(scores[0]) if scores else 0
    best = [0.0] * (columns + 1)
    for row in scores:
        above = best[:]
        for column, score in enumerate(row, 1):
            best[column] = max(above[column], best[column - 1], above[column - 1] + score)
    return best[-1]
