"""Sampling, judging and resuming, with a made-up engine."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

from srft.errors import ConfigError, DataError, RewardError
from srft.evaluation.accuracy_statistics import majority_at_k
from srft.evaluation.evaluate import evaluate, problem_seed
from srft.evaluation.results import problem_id
from srft.rewards.scorer import Scorer
from srft.types import Completion, Example, SamplingParams, TokenizedExample

from .conftest import FakeEngine, FakeScore, FakeScorer, make_problems

PARAMS = SamplingParams(temperature=0.6, max_tokens=10)


def run(problems, n=4, engine=None, scorer=None, **settings):
    engine, scorer = engine or FakeEngine(), scorer or FakeScorer()
    return evaluate(engine, None, problems, scorer, PARAMS, n, 0, **settings)


def test_result_counts_what_the_scorer_said(problems):
    result = run(problems, n=4)
    flags = [s.correct for p in result.problems for s in p.samples]
    assert len(flags) == 80 and result.n == 4
    assert result.accuracy == pytest.approx(sum(flags) / 80)
    cut = [s for p in result.problems for s in p.samples if s.finish_reason == "length"]
    assert cut and result.truncated_share == pytest.approx(len(cut) / 80)
    lengths = [s.tokens for p in result.problems for s in p.samples]
    assert result.mean_tokens == pytest.approx(sum(lengths) / 80)
    assert all(s.answer is None for s in cut)


def test_no_problems_is_an_error():
    with pytest.raises(DataError, match="no problems"):
        run([])


def test_a_part_and_the_whole_and_another_order_share_their_samples(problems):
    whole = {p.id: p for p in run(problems).problems}
    for p in run(problems[:7][::-1]).problems:
        assert p == whole[p.id]


def test_more_samples_begin_with_the_same_ones(problems):
    few, many = run(problems, n=2), run(problems, n=5)
    for p, q in zip(few.problems, many.problems, strict=True):
        assert p.samples == q.samples[:2]


def test_problems_do_not_share_random_streams():
    engine = FakeEngine()
    run(make_problems(50), n=8, engine=engine)
    assert len(set(engine.seeds)) == 400
    assert 0 <= problem_seed(0, "x") < 2**31


def test_repeated_problems_are_drawn_separately(problems):
    result = run([problems[0], problems[0]])
    first, second = result.problems
    assert second.id == first.id + "-2" and first.samples != second.samples


@pytest.mark.parametrize("fail_after", [0, 1, 5, 33, 79])
def test_an_interrupted_run_continues_where_it_stopped(problems, tmp_path, fail_after):
    path = tmp_path / "out" / "samples.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(problems, engine=FakeEngine(fail_after), out_path=path)
    engine, scorer = FakeEngine(), FakeScorer()
    result = run(problems, engine=engine, scorer=scorer, out_path=path)
    assert engine.made == scorer.judged == 80 - fail_after  # nothing lost, nothing done twice
    assert result.problems == run(problems).problems


def test_a_finished_run_is_only_read(problems, tmp_path):
    path = tmp_path / "samples.jsonl"
    first = run(problems, out_path=path)
    content = path.read_bytes()
    engine, scorer = FakeEngine(fail_after=0), FakeScorer()
    again = run(problems, engine=engine, scorer=scorer, out_path=path)
    assert again.problems == first.problems and scorer.judged == 0
    assert path.read_bytes() == content


def test_more_samples_are_added_to_those_there(problems, tmp_path):
    path = tmp_path / "samples.jsonl"
    run(problems, n=2, out_path=path)
    engine = FakeEngine()
    assert run(problems, n=5, engine=engine, out_path=path).problems == run(problems, n=5).problems
    assert engine.made == 60


def test_holes_in_the_file_are_filled(problems, tmp_path):
    path = tmp_path / "samples.jsonl"
    whole = run(problems, n=5, out_path=path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "".join(x for i, x in enumerate(lines[1:]) if i % 3))
    engine = FakeEngine()
    assert run(problems, n=5, engine=engine, out_path=path).problems == whole.problems
    assert engine.made == 34


def test_a_torn_last_line_is_dropped(problems, tmp_path):
    path = tmp_path / "samples.jsonl"
    whole = run(problems, out_path=path)
    path.write_bytes(path.read_bytes()[:-25])
    engine = FakeEngine()
    assert run(problems, engine=engine, out_path=path).problems == whole.problems
    assert engine.made == 1
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_line_separators_inside_texts_do_not_break_the_file(tmp_path):
    class Odd(FakeEngine):
        def _one(self, request, seed, params):
            return replace(super()._one(request, seed, params), text="a\u2028b\x85c\nd")

    path = tmp_path / "samples.jsonl"
    first = run(make_problems(3), engine=Odd(), out_path=path)
    assert run(make_problems(3), engine=Odd(fail_after=0), out_path=path).problems == first.problems


@pytest.mark.parametrize(
    "change", [{"identity": {"model": "b"}}, {"seed": 1}, {"params": SamplingParams(max_tokens=9)}]
)
def test_samples_of_other_settings_are_refused(problems, tmp_path, change):
    path = tmp_path / "samples.jsonl"
    settings = {"params": PARAMS, "n": 2, "seed": 0, "identity": {"model": "a"}, "out_path": path}
    evaluate(FakeEngine(), None, problems, FakeScorer(), **settings)
    with pytest.raises(ConfigError, match=r"other settings \((model|seed|max_tokens)"):
        evaluate(FakeEngine(), None, problems, FakeScorer(), **{**settings, **change})


def test_a_changed_prompt_is_sampled_anew(problems, tmp_path):
    path = tmp_path / "samples.jsonl"
    run(problems, out_path=path)
    engine = FakeEngine()
    run([replace(p, prompt_ids=(9, *p.prompt_ids)) for p in problems], engine=engine, out_path=path)
    assert engine.made == 80


def test_a_foreign_file_is_refused_with_its_line(problems, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"prompt": "hello"}\n')
    with pytest.raises(DataError, match=r"samples\.jsonl:1"):
        run(problems, out_path=path)
    path.unlink()
    run(problems, out_path=path)
    path.write_text(path.read_text() + "nonsense\n")
    with pytest.raises(DataError, match=r"samples\.jsonl:82"):
        run(problems, out_path=path)


def test_a_failing_scorer_ends_the_run_with_its_error_and_keeps_what_was_judged(problems, tmp_path):
    class Failing(FakeScorer):
        def score(self, examples, texts, ids=None, environments=None):
            if self.judged >= 10:
                raise RewardError("verifier broke")
            return super().score(examples, texts)

    path = tmp_path / "samples.jsonl"
    threads = threading.active_count()
    failing = Failing()
    with pytest.raises(RewardError, match="verifier broke"):
        run(problems, n=200, scorer=failing, out_path=path)
    assert threading.active_count() == threads
    engine = FakeEngine()
    run(problems, n=200, engine=engine, out_path=path)
    assert engine.made == 4000 - failing.judged


def test_samples_that_cannot_be_scored_are_wrong_and_counted(problems, tmp_path):
    class Unsure(FakeScorer):
        def score(self, examples, texts, ids=None, environments=None):
            return [FakeScore(float("nan"), {"math": None}, False, {"math": "bad_gold"})] * len(
                texts
            )

    path = tmp_path / "samples.jsonl"
    for _ in range(2):  # the second time from the file
        result = run(problems, scorer=Unsure(), out_path=path)
        assert result.accuracy == 0 and result.unscorable_share == 1
        assert result.statuses() == {"bad_gold": 80}
        assert result.summary()["mean_reward"] is None
    assert "NaN" not in path.read_text()


def test_progress_counts_every_sample_once_and_starts_at_what_is_there(problems, tmp_path):
    path = tmp_path / "samples.jsonl"
    run(problems, n=2, out_path=path)
    calls: list[tuple[int, int]] = []
    run(problems, n=3, out_path=path, progress=lambda done, total: calls.append((done, total)))
    assert calls[0] == (40, 60) and calls[-1] == (60, 60)
    assert calls == sorted(calls)


def test_families_have_their_own_results(problems):
    result = run(problems)
    parts = result.by_family()
    assert list(parts) == ["odd", "even"]
    assert result.accuracy == pytest.approx(sum(p.accuracy for p in parts.values()) / 2)
    assert result.metrics()["accuracy/odd"] == parts["odd"].accuracy


def test_a_part_of_a_set_is_not_complete(problems):
    assert run(problems).complete
    part = run(problems, size=100)
    assert not part.complete and part.summary()["problems_in_set"] == 100


def test_summary_is_plain_json(problems):
    summary = json.loads(json.dumps(run(problems, n=4).summary()))
    assert list(summary["pass_at_k"]) == ["1", "2", "4"]
    assert summary["pass_at_k"]["1"] == pytest.approx(summary["accuracy"])
    assert summary["interval"][0] < summary["accuracy"] < summary["interval"][1]
    assert run(problems, n=1).summary()["sampling_interval"] is None


def test_problem_id_is_of_the_text_and_the_answer():
    chat = ({"role": "user", "content": "q"},)
    ids = {
        problem_id(e)
        for e in (Example("q", (), "1"), Example("q", (), "2"), Example(chat, (), "1"))
    }
    assert len(ids) == 3
    same = Example("q", ("a demonstration",), "1", {"x": 1}, "elsewhere:3")
    assert problem_id(same) == problem_id(Example("q", (), "1"))


def test_right_answers_to_a_problem_with_several_are_one_vote():
    """Two right expressions against one wrong one twice: a tie."""
    rows = {"numbers": [1, 2, 3, 4], "target": 10}
    problem = TokenizedExample(Example("Make 10.", columns=rows), 0, (1, 2), ())
    texts = ["1+2+3+4", "4+3+2+1", "(1+4)*2+3", "(1+4)*2+3"]

    class Says(FakeEngine):
        def _one(self, request, seed, params):
            return Completion((1,), (0.0,), rf"\boxed{{{texts[self.made - 1]}}}", "stop")

    with Scorer("countdown", workers=1) as scorer:
        result = run([problem], n=4, engine=Says(), scorer=scorer)
    (problem,) = result.problems
    votes = [sample.answer for sample in problem.samples]
    assert [sample.correct for sample in problem.samples] == [True, True, False, False]
    assert votes[0] == votes[1] != votes[2] == votes[3]
    assert majority_at_k(votes, [sample.correct for sample in problem.samples], 4) == 0.5


def test_a_changed_list_of_answers_is_judged_anew(tmp_path):
    problem = TokenizedExample(Example("How many?", answer="70"), 0, (1, 2), ())
    several = replace(problem, example=replace(problem.example, other_answers=("seventy",)))
    path = tmp_path / "samples.jsonl"
    with Scorer("exact", workers=1) as scorer:
        for asked, drawn in ((problem, 2), (problem, 0), (several, 2), (several, 0)):
            engine = FakeEngine()
            run([asked], n=2, engine=engine, scorer=scorer, out_path=path)
            assert engine.made == drawn
