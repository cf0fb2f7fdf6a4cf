"""Events of captions, compared by a judge as in AutoDQ, the metric of DREAM-1K (Wang et al., 2024, "Tarsier").

From each caption the judge extracts at most ten events. Recall is the share of the reference's events that the caption
entails, precision the share of the caption's events that the reference entails. Both are averaged over the clips. F1 is
computed from the averages.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from sharecap_client.datasets.evaluation.judge import Judge
from sharecap_client.datasets.evaluation.references import Pair

MAX_EVENTS = 10
MAX_EVENT_WORDS = 10
MAX_EVENT_CHARS = 120
"""Bounds the answer of a judge that does not stop, where the server enforces the schema."""
ENTAILMENT, NEUTRAL, CONTRADICTION = "entailment", "neutral", "contradiction"

EVENT = {"type": "string", "maxLength": MAX_EVENT_CHARS}
EVENTS_SCHEMA = {
    "type": "object",
    "properties": {"events": {"type": "array", "items": EVENT, "maxItems": MAX_EVENTS}},
    "required": ["events"],
    "additionalProperties": False,
}
EXTRACT = """Below is the description of a video. List the events in it, in order.

- At most {events} events, each a short sentence of at most {words} words.
- An event is an action, a movement or a change. Leave out appearance, background, mood and opinions.
- Split sentences that describe several actions. Name who or what acts in every event.

Description:
{text}

Answer with JSON: {{"events": ["…"]}}"""
RELATE = """Below are the description of a video and a list of events. How does the description relate to each event?

- "{entailment}": the description says that it happens, possibly in other words;
- "{contradiction}": the description says something that cannot be true at the same time;
- "{neutral}": the description says neither.

Description:
{text}

Events:
{events}

Answer with JSON that has one value per event, in order: {{"relations": ["…"]}}"""


@dataclass(frozen=True)
class Judgement:
    """Relations of one repeat: of the reference's events to the caption, and of the caption's to the reference."""

    recalled: Sequence[str]
    precise: Sequence[str]


async def event_figures(pairs: Sequence[Pair], judge: Judge, repeats: int) -> dict[str, Any]:
    """Return recall, precision, F1, contradiction rate and, if there are repeats, agreement. Raises StoreError."""
    judged = await asyncio.gather(*(_judge(pair, judge, repeats) for pair in pairs))
    per_repeat = [_figures([judgements[number] for judgements in judged]) for number in range(repeats)]
    figures: dict[str, Any] = {name: mean(one[name] for one in per_repeat) for name in per_repeat[0]}
    f1 = [one["f1"] for one in per_repeat]
    spread = {"agreement": agreement(judged), "f1_min": min(f1), "f1_max": max(f1)} if repeats > 1 else {}
    return {"judge": judge.name, "repeats": repeats, **figures, **spread}


def agreement(judged: Sequence[Sequence[Judgement]]) -> float:
    """Return the share of all questions to which every repeat gave the same answer."""
    answers = [
        set(relations)
        for judgements in judged
        for relations in (
            *zip(*(one.recalled for one in judgements), strict=True),
            *zip(*(one.precise for one in judgements), strict=True),
        )
    ]
    return mean(len(one) == 1 for one in answers) if answers else 1.0


async def _judge(pair: Pair, judge: Judge, repeats: int) -> list[Judgement]:
    """Return one judgement per repeat. All repeats judge the same events, so that they can be compared."""
    expected = pair.reference.events
    if expected is None:
        expected = await _extract(pair.reference.caption, judge)
    own = await _extract(pair.caption, judge)
    return [
        Judgement(
            await _relate(pair.caption, expected, judge, repeat),
            await _relate(pair.reference.caption, own, judge, repeat),
        )
        for repeat in range(repeats)
    ]


async def _extract(caption: str, judge: Judge) -> list[str]:
    prompt = EXTRACT.format(events=MAX_EVENTS, words=MAX_EVENT_WORDS, text=caption)
    answer = await judge.ask(prompt, EVENTS_SCHEMA)
    return [str(event) for event in answer["events"]][:MAX_EVENTS]


async def _relate(text: str, events: Sequence[str], judge: Judge, repeat: int) -> list[str]:
    """Return one relation per event. What a judge does not answer counts as neutral."""
    if not events:
        return []
    listed = "\n".join(f"{number}. {event}" for number, event in enumerate(events, 1))
    names = {"entailment": ENTAILMENT, "neutral": NEUTRAL, "contradiction": CONTRADICTION}
    answer = await judge.ask(RELATE.format(text=text, events=listed, **names), _relations_schema(len(events)), repeat)
    relations = [str(relation) for relation in answer["relations"]][: len(events)]
    return relations + [NEUTRAL] * (len(events) - len(relations))


def _relations_schema(count: int) -> dict[str, Any]:
    items = {"type": "string", "enum": [ENTAILMENT, NEUTRAL, CONTRADICTION]}
    relations = {"type": "array", "items": items, "minItems": count, "maxItems": count}
    properties = {"relations": relations}
    return {"type": "object", "properties": properties, "required": ["relations"], "additionalProperties": False}


def _figures(judgements: Sequence[Judgement]) -> dict[str, float]:
    """As in AutoDQ, the share of a clip without events is 1: nothing is missing, and nothing is invented."""
    recall = mean(_share(one.recalled, ENTAILMENT) if one.recalled else 1.0 for one in judgements)
    precision = mean(_share(one.precise, ENTAILMENT) if one.precise else 1.0 for one in judgements)
    own = [relation for one in judgements for relation in one.precise]
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"recall": recall, "precision": precision, "f1": f1, "contradiction_rate": _share(own, CONTRADICTION)}


def _share(relations: Sequence[str], relation: str) -> float:
    return mean(one == relation for one in relations) if relations else 0.0
