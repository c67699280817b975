"""The same problem before and after training."""

from __future__ import annotations

import json

from tests.report.conftest import write_jsonl

from srft.report.before_after import before_after
from srft.report.page import script_json
from srft.report.report_page import write_report
from srft.runs.files import read_jsonl
from srft.runs.reading import read_run


def evaluation(step, name="eval", **answers):
    """answers: problem -> what was said."""
    samples = [
        {"asked": asked, "answer": "7", "text": text, "reward": 1.0, "correct": True, "tokens": 3}
        for asked, text in answers.items()
    ]
    return {"step": step, "name": name, "accuracy": 0.5, "samples": samples}


def test_an_evaluation_keeps_answers_to_the_same_problems_each_time(real_run):
    rows = read_jsonl(real_run("srft") / "evaluation.jsonl")
    asked = [[sample["asked"] for sample in row["samples"]] for row in rows]
    assert len(asked) > 1 and len(asked[0]) == len(set(asked[0])) == 4, "run.samples_prompts"
    assert all(problems == asked[0] for problems in asked)
    (problem, *_) = before_after([read_run(real_run("srft"))])
    assert [a["step"] for a in problem["at"]] == [rows[0]["step"], rows[-1]["step"]]
    assert problem["at"][0]["text"] == rows[0]["samples"][0]["text"]


def test_the_first_and_the_last_answer_of_each_run_and_set(make_run):
    runs = [make_run("a"), make_run("b")]
    rows = [
        evaluation(0, p="before", q="q0"),
        evaluation(0, "harder", p="another set"),
        evaluation(4, p="between"),
        evaluation(8, p="after", new="once"),
        evaluation(8, "harder", p="another set, later"),
    ]
    for run in runs:
        write_jsonl(run / "evaluation.jsonl", rows)
    found = {(p["set"], p["asked"]): p for p in before_after([read_run(run) for run in runs])}
    assert found.keys() == {("eval", "p"), ("harder", "p")}, "q and new were answered once"
    said = [(a["run"], a["step"], a["text"]) for a in found["eval", "p"]["at"]]
    assert said == [(0, 0, "before"), (0, 8, "after"), (1, 0, "before"), (1, 8, "after")]


def test_long_answers_of_many_runs_leave_the_page_below_its_limit(make_run):
    """They were never thinned: eight runs made a page of 12.9 MB."""
    text = {f"p{i}": "x<é" * 6_000 for i in range(40)}
    short = {**text, "p0": "short"}
    runs = [make_run(f"r{i}", steps=2, groups=1) for i in range(3)]
    for run in runs:
        write_jsonl(run / "evaluation.jsonl", [evaluation(0, **short), evaluation(2, **text)])
    found = before_after([read_run(run) for run in runs])
    assert 2_500_000 < len(script_json(found)) < 3_100_000
    lengths = {len(a["text"]) for p in found for a in p["at"]}
    assert found[0]["at"][0]["text"] == "short" and min(lengths - {5}) > 1_000
    assert write_report(runs).stat().st_size < 10_000_000


def test_prompts_of_training_that_came_again_stand_in_for_evaluations(make_run):
    run = make_run(groups=3)
    (run / "evaluation.jsonl").unlink()
    groups = read_jsonl(run / "samples.jsonl")
    again = json.loads(json.dumps(groups[1])) | {"step": 50}
    write_jsonl(run / "samples.jsonl", [*groups, again])
    (problem,) = before_after([read_run(run)])
    assert problem["set"] == "training" and problem["asked"] == groups[1]["asked"]
    assert [a["step"] for a in problem["at"]] == [groups[1]["step"], 50]
    rollout = next(r for r in groups[1]["responses"] if r["kind"] == "rollout")
    assert problem["at"][0]["text"] == rollout["text"]
    assert problem["at"][0]["tokens"] == len(rollout["tokens"])


def test_what_no_run_of_ours_writes_is_shown_as_far_as_it_goes(make_run):
    run = make_run(groups=0)
    odd = {
        "asked": None,
        "prompt": 5,
        "text": None,
        "reward": "much",
        "tokens": "3",
        "correct": None,
    }
    rows = [{"step": s, "accuracy": 0.1, "samples": [odd, "no sample", None]} for s in (0, 8)]
    write_jsonl(run / "evaluation.jsonl", [*rows, {"step": 9, "accuracy": 0.1, "samples": 4}])
    (problem,) = before_after([read_run(run)])
    last = problem["at"][1]
    nothing = {"text": "", "correct": None, "reward": None, "truncated": False, "tokens": None}
    assert {name: last[name] for name in nothing} == nothing and last["step"] == 8
