"""benchmarks.lab.symbolic: which of reasoning-gym's word problems the verdict's third world is made of."""

import pytest

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")

from benchmarks.lab import symbolic
from benchmarks.lab.symbolic import by_template, split

from srft.data.reading import load_examples


def test_every_second_of_the_shortest_templates_is_trained_on(monkeypatch):
    monkeypatch.setattr(symbolic, "TEMPLATES", 4)
    monkeypatch.setattr(symbolic, "TRAIN", 2)
    monkeypatch.setattr(symbolic, "HELD_OUT", 1)
    monkeypatch.setattr(symbolic, "OTHER", 1)
    templates = [
        [{"question": f"{name}{k}", "answer": f"#### {k}"} for k in range(4)] for name in "abcdefg"
    ]
    asked = {name: [row["question"] for row in rows] for name, rows in split(templates).items()}
    assert asked == {
        "train": ["a0", "a1", "c0", "c1"],
        "held-out": ["a2", "c2"],
        "other": ["b0", "d0"],
    }
    templates[2] = templates[2][:2]
    with pytest.raises(ValueError, match="a template has 2 problems, and 3 are needed"):
        split(templates)


def test_templates_are_known_by_their_solutions_and_questions_come_once():
    templates = by_template(seed=1, count=400)
    lengths = [sum(len(row["answer"]) for row in rows) / len(rows) for rows in templates]
    assert lengths == sorted(lengths) and len(templates) > 50
    questions = [row["question"] for rows in templates for row in rows]
    assert len(set(questions)) == len(questions) > 350
    # The shortest: one and the same story with other numbers.
    assert all("how many" in row["question"].casefold() for row in templates[0])


def test_the_files(tmp_path, capsys, monkeypatch):
    """240, 304 and 80 problems, none in two files, each solution ending in its own answer."""
    monkeypatch.setattr("sys.argv", ["symbolic", str(tmp_path)])
    symbolic.main()
    printed = capsys.readouterr().out
    questions = set()
    for name, count in {"train": 240, "held-out": 304, "other": 80}.items():
        examples = load_examples(str(tmp_path / f"{name}.jsonl"))
        assert len(examples) == count and f"{name}.jsonl: {count} problems" in printed
        questions |= {example.prompt for example in examples}
        for example in examples:
            (solution,) = example.demonstrations
            assert solution.split("#### ")[1] == example.answer
    assert len(questions) == 624
