"""`sharecap eval` on captions of the demo world. The judge reads captions back with the demo world's own grammar.

The references are the ground truth of drawn scenes. The judge understands what a sentence says, not only its words.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sharecap_client.datasets.store import Store

from tests.client.conftest import Sharecap
from tests.client.datasets.conftest import row
from tests.client.datasets.demo_judge import events, meaning, relation
from tests.client.datasets.judge_server import Figures, JudgeServer, evaluate, serving
from workers.demo import language
from workers.demo.scenes import make_scene

TIMED = list[tuple[float, str]]


def distinct(texts: TIMED) -> bool:
    """Return whether all changes have different meanings, so that leaving one out must be noticed."""
    said = [meaning(text) for _, text in texts[1:]]
    return len(set(said)) == len(said) and None not in said


SCENES = [truth for seed in range(40) if distinct(truth := language.reference(make_scene(seed)))][:6]


@pytest.fixture(scope="module")
def judge() -> Iterator[JudgeServer]:
    with serving(JudgeServer(events, relation)) as server:
        yield server


@dataclass
class Evaluation:
    """Evaluates captions, one list of timed texts per scene, against the ground truth of the scenes."""

    sharecap: Sharecap
    folder: Path
    judge: JudgeServer

    def __call__(self, captions: list[TIMED]) -> Figures:
        references = self.folder / "references.jsonl"
        references.write_text("".join(json.dumps(self._values(n, truth)) + "\n" for n, truth in enumerate(SCENES)))
        store = Store.create(self.folder / "run")
        rows = []
        for number, texts in enumerate(captions):
            values = self._values(number, texts)
            values["differentials"] = [{"keyframe": n, **one} for n, one in enumerate(values["differentials"])]
            rows.append(row(self.folder / "clips", values.pop("id"), **values))
        store.append(rows)
        return evaluate(self.sharecap, store.directory, references, self.judge)

    def _values(self, number: int, texts: TIMED) -> Figures:
        timed = [{"time_s": time_s, "text": text} for time_s, text in texts]
        caption = " ".join(text for _, text in texts)
        return {"id": f"{number}", "caption": caption, "differentials": timed, "duration_s": texts[-1][0] + 2.0}


@pytest.fixture
def evaluation(sharecap: Sharecap, tmp_path: Path, judge: JudgeServer) -> Evaluation:
    return Evaluation(sharecap, tmp_path, judge)


def with_first(texts: TIMED) -> list[TIMED]:
    """Return all captions, with other texts for the first scene."""
    return [texts, *SCENES[1:]]


def test_the_ground_truth_itself(evaluation: Evaluation) -> None:
    figures = evaluation(SCENES)
    assert figures["compared"] == len(SCENES) == 6
    for name in ("cider", "rouge_l", "temporal_f1", "recall", "precision", "f1"):
        assert figures[name] == pytest.approx(1), name
    assert figures["contradiction_rate"] == 0


def test_other_words_for_the_same_events_cost_nothing_with_the_judge(evaluation: Evaluation) -> None:
    chance = random.Random(1)
    captions = []
    for seed in range(40):
        scene = make_scene(seed)
        truth = language.reference(scene)
        if truth in SCENES:
            steps = zip(scene.changes, scene.states, scene.states[1:], strict=False)
            reworded = [language.differential(chance, *step, favourite=0.0) for step in steps]
            captions.append(
                [truth[0], *((time_s, text) for (time_s, _), text in zip(truth[1:], reworded, strict=True))]
            )
    figures = evaluation(captions)
    assert (figures["recall"], figures["precision"], figures["contradiction_rate"]) == (1, 1, 0)
    assert figures["rouge_l"] < 1 and figures["cider"] < 1


def test_a_dropped_event_costs_recall(evaluation: Evaluation) -> None:
    figures = evaluation(with_first([*SCENES[0][:2], *SCENES[0][3:]]))
    changes = len(SCENES[0]) - 1
    assert figures["recall"] == pytest.approx(1 - 1 / changes / len(SCENES)) and figures["precision"] == 1
    assert figures["temporal_f1"] < 1 and figures["cider"] < 1


def test_an_invented_event_costs_precision(evaluation: Evaluation) -> None:
    figures = evaluation(
        with_first([*SCENES[0], (SCENES[0][-1][0] + 1, "A pink star appears on the grey background.")])
    )
    changes = len(SCENES[0])
    assert figures["precision"] == pytest.approx(1 - 1 / changes / len(SCENES)) and figures["recall"] == 1
    assert figures["temporal_f1"] < 1 and figures["cider"] < 1


def test_the_opposite_change_is_a_contradiction(evaluation: Evaluation) -> None:
    number, at, text = next(
        (number, at, text)
        for number, truth in enumerate(SCENES)
        for at, (_, text) in enumerate(truth)
        if "to the left" in text
    )
    captions = list(SCENES)
    captions[number] = [*SCENES[number]]
    captions[number][at] = (SCENES[number][at][0], text.replace("left", "right"))
    figures = evaluation(captions)
    assert figures["contradiction_rate"] == pytest.approx(1 / sum(len(truth) - 1 for truth in SCENES))
    assert figures["recall"] < 1 and figures["precision"] < 1


def test_an_event_that_is_moved_in_time_costs_temporal_f1_only(evaluation: Evaluation) -> None:
    time_s, text = SCENES[0][1]
    figures = evaluation(with_first([SCENES[0][0], (time_s + 1.0, text), *SCENES[0][2:]]))
    assert figures["temporal_f1"] < 1 and figures["f1"] == figures["rouge_l"] == 1
