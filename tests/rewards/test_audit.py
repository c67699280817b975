"""Checks before training: ground truths, demonstrations, labelled outputs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from srft.errors import DataError
from srft.rewards.audit import audit, check_answers, check_demonstrations
from srft.rewards.scorer import Scorer
from srft.types import Example


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer("math", workers=2) as made:
        yield made


def _examples() -> list[Example]:
    rows = [
        (("2 + 2 = 4\n#### 4", "it is \\boxed{5}"), "4"),
        (("\\boxed{\\frac{2}{4}}",), "1/2"),
        ((), "3"),
        (("I cannot tell " + "x" * 500,), "9"),
    ]
    return [
        Example(prompt="q", demonstrations=demos, answer=answer, source=f"demos.jsonl:{row}")
        for row, (demos, answer) in enumerate(rows, start=1)
    ]


def test_failed_demonstrations_are_listed_and_dropped_or_kept(scorer: Scorer) -> None:
    examples = _examples()
    report = check_demonstrations(examples, scorer)
    assert (report.passed, report.total) == (2, 4)
    assert [finding.source for finding in report.failed] == ["demos.jsonl:1", "demos.jsonl:4"]
    assert [finding.source for finding in report.unparsable] == ["demos.jsonl:4"]
    assert "no answer can be read" in report.failed[1].reason
    assert len(report.failed[1].text) < 250
    assert [len(scores) for scores in report.scores] == [2, 1, 0, 1]
    assert report.apply(examples, "keep") == examples
    kept = report.apply(examples, "drop")
    assert [e.demonstrations for e in kept] == [
        ("2 + 2 = 4\n#### 4",), ("\\boxed{\\frac{2}{4}}",), (), ()
    ]  # fmt: skip


def test_demonstrations_earn_what_the_same_text_earns_as_a_rollout(scorer: Scorer) -> None:
    examples = _examples()
    report = check_demonstrations(examples, scorer)
    for example, scores in zip(examples, report.scores, strict=True):
        texts = list(example.demonstrations)
        assert scorer.score([example] * len(texts), texts) == list(scores)


def test_ground_truths_that_do_not_verify_are_listed_by_row(scorer: Scorer) -> None:
    examples = [
        Example(prompt="q", answer=answer, source=f"d.jsonl:{row}")
        for row, answer in enumerate(
            ["4", " ", None, "\\frac{1}{2}", "s\n#### 7", "-1./3"], start=1
        )
    ]
    report = check_answers(examples, scorer)
    assert report.checked == 5
    assert [finding.source for finding in report.text_only] == ["d.jsonl:6"]
    found = {finding.source: finding.reason for finding in report.failed}
    assert found == {
        "d.jsonl:2": "math: the ground truth cannot be read",
        "d.jsonl:3": "the row has no answer",
    }


def test_rewards_without_ground_truth_have_nothing_to_check() -> None:
    with Scorer("format") as scorer:
        assert check_answers([Example(prompt="q", answer="1")], scorer).checked == 0


def test_a_choice_among_the_options_verifies_against_itself() -> None:
    columns = {"options": ["Rome", "Paris"]}
    examples = [
        Example(prompt="q", answer=answer, columns=columns, source=answer)
        for answer in ("A", "Paris", "Berlin", "C")
    ]
    with Scorer("choice") as scorer:
        assert [f.source for f in check_answers(examples, scorer).failed] == ["Berlin", "C"]


def test_an_audit_lists_where_verifier_and_labels_disagree(scorer: Scorer) -> None:
    rows = [
        {"completion": r"\boxed{4}", "answer": "4", "label": True},
        {"completion": r"\boxed{4}", "answer": "5", "label": "correct"},
        {"completion": r"\boxed{0.5}", "answer": r"\frac12", "label": 0},
        {"completion": "none", "answer": 7, "label": "wrong", "prompt": "q", "id": 3},
        {"completion": "1", "answer": " ", "label": 1},
    ]
    report = audit(rows, scorer, source="labels.jsonl")
    assert report.rows == 5 and report.agreement == pytest.approx(0.4)
    assert [f.source for f in report.false_negatives] == ["labels.jsonl:2"]
    assert [f.source for f in report.false_positives] == ["labels.jsonl:3"]
    assert [f.source for f in report.unscorable] == ["labels.jsonl:5"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "1", "label": 1}, "f.jsonl:1: no completion;"),
        ({"completion": "1", "answer": "1"}, "f.jsonl:1: no label;"),
        ({"completion": "1", "answer": "1", "label": "maybe"}, "f.jsonl:1: label 'maybe'"),
    ],
)
def test_an_audit_refuses_rows_it_cannot_use(
    row: dict[str, object], message: str, scorer: Scorer
) -> None:
    with pytest.raises(DataError, match=message):
        audit([row], scorer, source="f.jsonl")
