"""benchmarks.lab.easy_gsm8k: which problems of GSM8K the verdict's third world is made of."""

import json

from benchmarks.lab import easy_gsm8k
from benchmarks.lab.easy_gsm8k import calculations, short, split

from srft.data.reading import load_examples


def problem(question: str, *sums: str, answer: str = "1") -> dict[str, str]:
    lines = [f"It is <<{s}>>{s.split('=')[1]}." for s in sums]
    return {"question": question, "answer": "\n".join([*lines, f"#### {answer}"])}


def test_short_problems_keep_their_order_and_lose_the_annotations():
    problems = [
        problem("Two?", "1+1=2", "2+0=2", answer="2"),
        problem("None?", answer="7"),
        problem("one?", "1+0=1"),
        problem("One?  ", "1+0=1"),  # the same question in other letters and spaces
        problem("Three?", "1+0=1", "2+0=2", "3+0=3"),
        problem("Long " * 40 + "?", "1+0=1"),
    ]
    found = short(problems, range(1, 3), longest=100)
    assert found == [
        {"question": "Two?", "answer": "It is 2.\nIt is 2.\n#### 2"},
        {"question": "one?", "answer": "It is 1.\n#### 1"},
    ]
    assert [calculations(row["answer"]) for row in problems] == [2, 0, 1, 1, 3, 1]
    assert short(problems, range(1, 3), 100, taken=[{"question": "ONE?"}]) == found[:1]


def test_no_question_is_both_trained_and_asked(monkeypatch):
    monkeypatch.setattr(easy_gsm8k, "TRAIN", 2)
    monkeypatch.setattr(easy_gsm8k, "HELD_OUT", 3)
    test = [problem("a?", "1+0=1"), problem("c?", "1+0=1", "2+0=2", "3+0=3")]
    train = [problem(f"{name}?", "1+0=1") for name in "Abdefgh"]
    parts = split(train, test)
    asked = {name: [row["question"] for row in rows] for name, rows in parts.items()}
    assert asked == {"train": ["b?", "d?"], "held-out": ["a?", "e?", "f?"], "three": ["c?"]}


def test_a_line_separator_within_a_question_does_not_end_the_row(tmp_path):
    rows = [problem("First,\u2028then?", "1+0=1"), problem("b?", "1+0=1")]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    assert easy_gsm8k._read(path) == rows


def test_the_real_files(real_data, tmp_path, capsys, monkeypatch):
    """300, 400 and 100 problems of GSM8K, none in two files, each solution ending in its own answer."""
    monkeypatch.setattr("sys.argv", ["easy_gsm8k", str(real_data / "gsm8k"), str(tmp_path)])
    easy_gsm8k.main()
    printed = capsys.readouterr().out
    questions = set()
    for name, count in {"train": 300, "held-out": 400, "three": 100}.items():
        examples = load_examples(str(tmp_path / f"{name}.jsonl"))
        assert len(examples) == count and f"{name}.jsonl: {count} problems" in printed
        questions |= {example.prompt for example in examples}
        for example in examples:
            (solution,) = example.demonstrations
            said = solution.split("#### ")[1].replace(",", "")
            assert "<<" not in solution and said == example.answer
    assert len(questions) == 800
