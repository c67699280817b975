"""Checks before training: ground truths, demonstrations, labelled outputs."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from srft.errors import DataError
from srft.rewards.audit import (
    AnswerReport,
    audit,
    check_answers,
    check_demonstrations,
    other_spelling,
)
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
            ["4", " ", None, "\\frac{1}{2}", "s\n#### 7", "E_{1},E_{2}"], start=1
        )
    ]
    report = check_answers(examples, scorer)
    assert report.checked == 6
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
        {"completion": "1", "answer": "$", "label": 1},
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
        ({"completion": "1", "answer": " ", "label": 1}, "f.jsonl:1: `answer` is empty"),
        (
            {"completion": "1", "answer": {"x": 1}, "label": 1},
            "f.jsonl:1: `answer` is of type dict",
        ),
    ],
)
def test_an_audit_refuses_rows_it_cannot_use(
    row: dict[str, object], message: str, scorer: Scorer
) -> None:
    with pytest.raises(DataError, match=message):
        audit([row], scorer, source="f.jsonl")


def test_an_audit_treats_answers_as_training_does() -> None:
    """Lists, numbers and places among options: the same examples from both readers."""
    from srft.data.reading import as_examples
    from srft.rewards.audit import _example

    answers = [
        ["70"],
        ["70", "seventy"],
        np.array(["a", "b"]),
        1e-05,
        1e16,
        3.0,
        7,
        Decimal("2.50"),
        "x",
        [1, 2.5],
    ]
    rows = [{"prompt": "q", "answer": answer} for answer in answers]
    rows += [{"prompt": "q", "answer": 2, "choices": ["1", "2", "3", "4"]}]
    for number, (row, example) in enumerate(zip(rows, as_examples(rows), strict=True), start=1):
        mine = _example({**row, "completion": "c", "label": 1}, f"f:{number}")
        assert (mine.answer, mine.other_answers) == (example.answer, example.other_answers)
        assert mine.columns == example.columns


@pytest.mark.parametrize("name", ["math", "exact", "numeric"])
def test_any_of_several_answers_is_right(name: str) -> None:
    rows = [
        {"completion": rf"\boxed{{{said}}}", "answer": ["70", 1e-05, "8.5"], "label": right}
        for said, right in [("70", 1), (r"10^{-5}", 1), ("8.5", 1), ("71", 0), ("70, 8.5", 0)]
    ]
    with Scorer(name, workers=1) as scorer:
        assert audit(rows, scorer).agreement == 1.0
        assert check_answers([_example_of(rows[0])], scorer).checked == 3


@pytest.mark.parametrize(
    ("name", "answers", "right", "columns"),
    [
        ("numeric", ("70", "seventy"), "70", {}),
        ("choice", ("B", "neither of them"), "B", {"options": ["a", "b"]}),
        ("math", ("70", ""), "70", {}),
    ],
)
def test_an_answer_that_cannot_be_read_hides_no_wrong_completion(
    name: str, answers: tuple[str, str], right: str, columns: dict[str, Any]
) -> None:
    """... in whatever order the answers stand."""
    with Scorer(name, workers=1) as scorer:
        for first, other in (answers, answers[::-1]):
            example = Example("q", answer=first, columns=columns, other_answers=(other,))
            texts = [rf"\boxed{{{right}}}", r"\boxed{71}", r"\boxed{C}", "no idea"]
            rewards = [score.reward for score in scorer.score([example] * 4, texts)]
            assert rewards == [1.0, 0.0, 0.0, 0.0]


def _example_of(row: dict[str, Any]) -> Example:
    first, *others = (str(answer) for answer in row["answer"])
    return Example("q", answer=first, other_answers=tuple(others))


def test_functions_get_all_answers_of_a_row() -> None:
    def counts(completions: list[str], answer: list[Any], **kwargs: Any) -> list[float]:
        return [float(len(each) if isinstance(each, list) else 0) for each in answer]

    examples = [Example("q", answer="1"), Example("q", answer="1", other_answers=("2", "3"))]
    with Scorer(counts) as scorer:
        assert [s.reward for s in scorer.score(examples, ["a", "b"])] == [0.0, 3.0]


@pytest.mark.parametrize(
    ("verifier", "answer", "columns", "spelled"),
    [
        ("math", "4.5e33", {}, r"4.5 \times 10^{33}"),
        ("numeric", "1e-05", {}, r"1 \times 10^{-5}"),
        ("math", r"3 \times 10^8", {}, "300000000"),
        ("math", "0.15", {}, r"1.5 \times 10^{-1}"),
        ("math", "15625", {}, r"1.5625 \times 10^{4}"),
        ("exact", "70", {}, "70.0"),
        ("math", r"\frac{1}{2}", {}, r"\dfrac{1}{2}"),
        ("math", r"\left( 3, 4 \right)", {}, "(3,4)"),
        ("math", "east", {}, r"\text{east}"),
        ("math", "3^{-2}", {}, None),
        ("choice", "B", {}, "(B)"),
        ("choice", "B", {"options": ["x", "y"]}, "y"),
        ("choice", "1", {"options": ["x", "y"]}, "y"),
        ("reasoning-gym", "B", {}, None),
    ],
)
def test_the_second_spelling_is_one_that_a_model_may_write(
    verifier: str, answer: str, columns: dict[str, Any], spelled: str | None
) -> None:
    assert other_spelling(Example("q", answer=answer, columns=columns), verifier) == spelled


def test_a_ground_truth_that_verifies_in_its_own_spelling_alone_is_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when E notation was read as Euler's number: only the very spelling was right."""
    monkeypatch.setattr("srft.rewards.answers.as_number", lambda text: None)
    examples = [Example("q", answer=a, source=f"d:{a}") for a in ("4.5e33", "7", "Paris")]
    with Scorer("exact") as scorer:
        report = check_answers(examples, scorer)
    assert report.failed == () and [f.source for f in report.text_only] == ["d:4.5e33", "d:7"]
    assert "in another spelling it is not recognised" in report.text_only[0].reason


def test_index_ground_truths_verify_against_themselves() -> None:
    columns = {"choices": ["1", "2", "3", "4"]}
    examples = [
        Example("q", answer=str(i), columns={**columns, "answer_index": i}) for i in range(4)
    ]
    with Scorer("choice") as scorer:
        assert check_answers(examples, scorer) == AnswerReport(4, ())
