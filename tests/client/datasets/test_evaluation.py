"""`sharecap eval`: 1.0 for the references themselves, less for a dropped, invented or moved event, and the judge.

The judge is a rule: an event is a sentence. A description entails a sentence that it contains, and contradicts a
sentence about the same thing (its first two words after the article) if it says something else about it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sharecap_client.datasets.evaluation import judge as judges
from sharecap_client.datasets.evaluation.overlap import cider, repetition, rouge_l
from sharecap_client.datasets.evaluation.references import Interval
from sharecap_client.datasets.evaluation.temporal import best_matching, overlap, temporal_f1
from sharecap_client.datasets.store import Store

from tests.client.conftest import Sharecap
from tests.client.datasets.conftest import row
from tests.client.datasets.judge_server import JudgeServer, evaluate, serving

CLIPS = {
    "a": ["The red star moves right.", "The red star turns cyan.", "The cyan star leaves."],
    "b": ["A blue circle grows slowly.", "The blue circle blinks.", "Snow falls on the ground."],
    "c": ["Two green squares appear.", "One square turns around.", "Both squares leave together."],
}


def reference(name: str, texts: list[str]) -> dict[str, Any]:
    timed = [{"time_s": 2.0 * number, "text": text} for number, text in enumerate(texts)]
    return {"id": name, "caption": " ".join(texts), "differentials": timed, "duration_s": 6.0}


@pytest.fixture
def references(tmp_path: Path) -> Path:
    path = tmp_path / "references.jsonl"
    path.write_text("".join(json.dumps(reference(name, texts)) + "\n" for name, texts in CLIPS.items()))
    return path


def run_with(tmp_path: Path, **changes: dict[str, Any]) -> Path:
    """Make a run whose captions are the references, except for the changes."""
    store = Store.create(tmp_path / "run")
    rows = []
    for name, texts in CLIPS.items():
        values = {**reference(name, texts), **changes.get(name, {})}
        values["differentials"] = [{"keyframe": n, **one} for n, one in enumerate(values["differentials"])]
        rows.append(row(tmp_path, name, **values))
    store.append(rows)
    return store.directory


def sentences(text: str) -> list[str]:
    return re.findall(r"[^.]+\.", text)


def relation(text: str, event: str) -> str:
    if event in text:
        return "entailment"
    return "contradiction" if " ".join(event.split()[1:3]) in text else "neutral"


@pytest.fixture
def rule_judge() -> Iterator[JudgeServer]:
    with serving(JudgeServer(sentences, relation)) as judge:
        yield judge


ONE = ("cider", "rouge_l", "temporal_f1", "recall", "precision", "f1")


def test_the_references_themselves(
    sharecap: Sharecap, tmp_path: Path, references: Path, rule_judge: JudgeServer
) -> None:
    figures = evaluate(sharecap, run_with(tmp_path), references, rule_judge)
    assert {name: figures[name] for name in ONE} == dict.fromkeys(ONE, pytest.approx(1))
    assert (figures["compared"], figures["missing"]) == (3, 0)
    assert (figures["repetition"], figures["contradiction_rate"], figures["judge"]) == (
        *(0, 0),
        f"rule at {rule_judge.url}/v1",
    )


def test_a_clip_without_events_is_perfect_if_nothing_is_missing_or_invented(
    sharecap: Sharecap, tmp_path: Path, references: Path, rule_judge: JudgeServer
) -> None:
    still, run = reference("a", ["A red star"]), run_with(tmp_path, a=reference("a", ["A red star"]))
    references.write_text(json.dumps(still) + "\n" + json.dumps(reference("b", CLIPS["b"])) + "\n")
    figures = evaluate(sharecap, run, references, rule_judge)
    assert (figures["recall"], figures["precision"], figures["f1"]) == (1, 1, 1)


def test_a_dropped_event_costs_recall(
    sharecap: Sharecap, tmp_path: Path, references: Path, rule_judge: JudgeServer
) -> None:
    dropped = reference("a", CLIPS["a"][:2])
    figures = evaluate(sharecap, run_with(tmp_path, a=dropped), references, rule_judge)
    assert figures["recall"] == pytest.approx((2 / 3 + 2) / 3) and figures["precision"] == 1
    assert figures["cider"] < 1 and figures["rouge_l"] < 1 and figures["temporal_f1"] < 1


def test_an_invented_event_costs_precision(
    sharecap: Sharecap, tmp_path: Path, references: Path, rule_judge: JudgeServer
) -> None:
    invented = reference("a", [*CLIPS["a"], "A dog barks twice."])
    figures = evaluate(sharecap, run_with(tmp_path, a=invented), references, rule_judge)
    assert figures["precision"] == pytest.approx((3 / 4 + 2) / 3) and figures["recall"] == 1
    assert figures["f1"] < 1 and figures["cider"] < 1 and figures["temporal_f1"] < 1
    assert figures["contradiction_rate"] == 0


def test_a_wrong_event_is_a_contradiction(
    sharecap: Sharecap, tmp_path: Path, references: Path, rule_judge: JudgeServer
) -> None:
    wrong = reference("b", [CLIPS["b"][0], "The blue circle shrinks.", CLIPS["b"][2]])
    figures = evaluate(sharecap, run_with(tmp_path, b=wrong), references, rule_judge)
    assert figures["contradiction_rate"] == pytest.approx(1 / 9)


def test_an_event_that_is_moved_in_time_costs_temporal_f1_only(
    sharecap: Sharecap, tmp_path: Path, references: Path, rule_judge: JudgeServer
) -> None:
    moved = reference("a", CLIPS["a"])
    moved["differentials"][1]["time_s"] = 3.5
    figures = evaluate(sharecap, run_with(tmp_path, a=moved), references, rule_judge)
    assert figures["temporal_f1"] < 1 and figures["f1"] == figures["rouge_l"] == 1


def test_answers_are_cached_and_repeats_are_compared(
    sharecap: Sharecap, tmp_path: Path, references: Path, rule_judge: JudgeServer
) -> None:
    run = run_with(tmp_path)
    evaluate(sharecap, run, references, rule_judge)
    asked = len(rule_judge.bodies)
    assert {body["temperature"] for body in rule_judge.bodies} == {0}
    assert all(body["response_format"]["type"] == "json_schema" for body in rule_judge.bodies)
    assert evaluate(sharecap, run, references, rule_judge)["f1"] == 1 and len(rule_judge.bodies) == asked

    def second_differs(body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        wrong = body["seed"] == 1 and "red star" in body["messages"][0]["content"]
        return {"relations": ["neutral", *answer["relations"][1:]]} if wrong else answer

    rule_judge.change = second_differs
    figures = evaluate(sharecap, run, references, rule_judge, "--repeats", 2)
    assert figures["agreement"] == pytest.approx(16 / 18) and figures["f1_max"] == 1 and figures["f1_min"] < 1
    assert figures["f1"] == pytest.approx((1 + figures["f1_min"]) / 2)


def test_given_events_are_not_extracted(
    sharecap: Sharecap, tmp_path: Path, references: Path, rule_judge: JudgeServer
) -> None:
    given_events = [{**reference(name, texts), "events": texts[:1]} for name, texts in CLIPS.items()]
    references.write_text("\n".join(map(json.dumps, given_events)))
    run = run_with(tmp_path, a=reference("a", CLIPS["a"][1:]))
    assert evaluate(sharecap, run, references, rule_judge)["recall"] == pytest.approx(2 / 3)


def test_an_overloaded_judge_is_asked_again_and_a_bad_one_is_named(
    sharecap: Sharecap, tmp_path: Path, references: Path, rule_judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "BACKOFF_S", 0.001)
    run = run_with(tmp_path)
    rule_judge.statuses = [503, 429]
    assert evaluate(sharecap, run, references, rule_judge)["f1"] == 1
    rule_judge.change = lambda body, answer: {"other": 1}
    arguments = ("eval", run, "--reference", references, "--judge-url", rule_judge.url, "--judge-model")
    assert "does not fit the schema" in sharecap(*arguments, "second").err
    rule_judge.statuses = [401] * 50  # requests of the command before may still arrive
    assert "answered 401" in sharecap(*arguments, "third").err


def test_the_table_and_errors(sharecap: Sharecap, tmp_path: Path, references: Path) -> None:
    run = run_with(tmp_path, c={"state": "failed", "caption": None})
    result = sharecap("eval", run, "--reference", references)
    assert re.search(r"references without caption +1", result.out)
    assert "rouge l" in result.out and "1.000" in result.out and "event" not in result.out
    assert "is a file, not the directory of a run" in sharecap("eval", references, "--reference", references).err
    assert "belong together" in sharecap("eval", run, "--reference", references, "--judge-url", "x").err
    assert "error: none.jsonl: No such file" in sharecap("eval", run, "--reference", "none.jsonl").err
    references.write_text('{"id": "z", "caption": "x"}\n')
    assert "has a reference" in sharecap("eval", run, "--reference", references).err
    references.write_text('{"id": "z"}\n')
    assert "line 1 is not a reference" in sharecap("eval", run, "--reference", references).err


PYCOCOEVALCAP = [
    ("a red star moves to the right", "the red star moves right", 0.3654942037192216, 0.6873239436619719),
    (
        "a blue circle grows and grows and blinks",
        "a blue circle grows slowly and then it blinks",
        *(0.3426289486182933, 0.6984732824427481),
    ),
    ("nothing in common", "two green squares appear on a dark background", 0.0, 0.0),
    ("two squares leave the frame", "two squares leave the frame", 1.0, 1.0),
]
"""Caption, reference, and what pycocoevalcap 1.2 computes for these four pairs: CIDEr / 10 and ROUGE-L."""


def test_cider_and_rouge_are_those_of_pycocoevalcap() -> None:
    captions, references, ciders, rouges = zip(*PYCOCOEVALCAP, strict=True)
    assert cider(captions, references) == pytest.approx(ciders)
    assert [rouge_l(*texts) for texts in zip(captions, references, strict=True)] == pytest.approx(rouges)
    assert cider(captions[:1], references[:1]) is None
    assert (rouge_l("", ""), rouge_l("", "a")) == (1, 0)


@given(st.lists(st.sampled_from(["a", "b", "c", "d"])), st.lists(st.sampled_from(["a", "b", "c", "d"])))
def test_figures_stay_between_0_and_1(own: list[str], other: list[str]) -> None:
    caption, text = " ".join(own), " ".join(other)
    figures = [rouge_l(caption, text), repetition(caption), *(cider([caption, "e"], [text, "f"]) or [])]
    assert all(0 <= figure <= 1.0000001 for figure in figures)


def test_repetition() -> None:
    assert repetition("a b c") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)


def test_the_best_matching_keeps_the_order() -> None:
    assert best_matching([[0, 1], [1, 0]]) == 1
    assert best_matching([[1, 0.5], [0.5, 1]]) == 2
    assert best_matching([]) == 0


def test_intervals() -> None:
    one, two = Interval(0, 4, "x"), Interval(2, 6, "x")
    assert overlap(one, two) == pytest.approx(1 / 3) and overlap(one, Interval(5, 6, "x")) == 0
    assert temporal_f1([one], [one]) == 1 and temporal_f1([], [one]) == 0 and temporal_f1([], []) is None
