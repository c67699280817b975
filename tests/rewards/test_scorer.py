"""Scores of whole batches: functions with TRL's signature, weights, errors, sessions."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from srft.errors import ConfigError, RewardError
from srft.rewards.reward_config import RewardConfig
from srft.rewards.scorer import Scorer
from srft.types import Example

PLAIN = [Example(prompt=f"q{i}", answer=str(i), source=f"data.jsonl:{i}") for i in range(1, 5)]
CHAT = [
    Example(
        prompt=({"role": "user", "content": f"q{i}"},),
        answer=str(i),
        columns={"solution": f"${i}$", "level": i},
        source=f"data.jsonl:{i}",
    )
    for i in range(1, 5)
]
TEXTS = [rf"so \boxed{{{i}}}" for i in range(1, 5)]
IDS = [[1] * 8] * 4


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer("math", workers=2) as made:
        yield made


def _rewards(scorer: Scorer, examples: list[Example] = PLAIN, **kwargs: Any) -> list[float]:
    with scorer:
        return [score.reward for score in scorer.score(examples, TEXTS, **kwargs)]


def test_one_score_for_each_completion_in_order(scorer: Scorer) -> None:
    texts = [TEXTS[0], r"\boxed{7}", "no idea", TEXTS[3]]
    scores = scorer.score(PLAIN, texts)
    assert [score.reward for score in scores] == [1.0, 0.0, 0.0, 1.0]
    assert [score.correct for score in scores] == [True, False, False, True]
    assert [score.status["math"] for score in scores] == ["ok", "ok", "no_answer", "ok"]
    assert scorer.score([], []) == []


def test_a_session_scores_while_completions_arrive_from_another_thread(scorer: Scorer) -> None:
    scorer.score(PLAIN[:1], TEXTS[:1])
    session = scorer.session()

    def generate() -> None:
        for i, text in enumerate(TEXTS):
            session.add(("group", i), PLAIN[i], text, IDS[i])

    thread = threading.Thread(target=generate)
    thread.start()
    thread.join()
    time.sleep(0.5)
    # All done before anybody asked for the results.
    assert all(f.done() for row in session._verdicts.values() for f in row.values())
    results = session.results()
    assert list(results) == [("group", i) for i in range(4)]
    assert all(score.correct for score in results.values())


def test_a_key_added_twice_or_a_row_without_answer_is_refused(scorer: Scorer) -> None:
    session = scorer.session()
    session.add(0, PLAIN[0], TEXTS[0])
    with pytest.raises(RewardError, match=r"data\.jsonl:1: completion 0 was added twice"):
        session.add(0, PLAIN[0], TEXTS[0])
    with pytest.raises(RewardError, match=r"data\.jsonl:9: the row has no answer"):
        session.add(1, Example(prompt="q", source="data.jsonl:9"), "text")
    assert list(session.results()) == [0]


def test_a_ground_truth_that_cannot_be_read_makes_the_sample_unscorable(scorer: Scorer) -> None:
    [score] = scorer.score([Example(prompt="q", answer=" ")], [r"\boxed{1}"])
    assert score.parts == {"math": None} and score.status == {"math": "bad_gold"}
    assert math.isnan(score.reward) and not score.correct and not score.scorable


def test_weights_sum_the_parts_that_apply() -> None:
    def none_for_even(prompts: list[str], **kwargs: Any) -> list[float | None]:
        return [None if int(p[1:]) % 2 == 0 else -1.0 for p in prompts]

    with Scorer(["exact", none_for_even], weights=[1.0, 0.25]) as scorer:
        scores = scorer.score(PLAIN, TEXTS)
    assert [s.reward for s in scores] == [0.75, 1.0, 0.75, 1.0]
    assert scores[1].parts == {"exact": 1.0, "none_for_even": None}
    assert scorer.stats()["none_for_even"] == {"scored": 2, "not_applicable": 2}


def test_the_threshold_is_exceeded_not_reached() -> None:
    def half(completions: list[str], **kwargs: Any) -> list[float]:
        return [0.5, 0.51, 0.0, 1.0]

    with Scorer(half) as scorer:
        assert [s.correct for s in scorer.score(PLAIN, TEXTS)] == [False, True, False, True]
    with Scorer(half, correct_threshold=0.6) as scorer:
        assert [s.correct for s in scorer.score(PLAIN, TEXTS)] == [False, False, False, True]


def test_functions_receive_what_trl_gives_them() -> None:
    seen: dict[str, Any] = {}

    def spy(prompts: Any, completions: Any, completion_ids: Any, level: Any, **rest: Any) -> Any:
        seen.update(locals())
        rest["log_metric"]("mean_level", sum(level) / len(level))
        rest["log_extra"]("note", ["a"] * len(prompts))
        return [0.0] * len(prompts)

    with Scorer(spy) as scorer:
        scorer.trainer_state = "the state"
        session = scorer.session()
        for i in range(4):
            session.add(i, CHAT[i], TEXTS[i], IDS[i])
        assert [score.extras for score in session.results().values()] == [{"note": "a"}] * 4
        assert session.metrics == {"mean_level": [2.5]}
    assert seen["prompts"][0] == [{"role": "user", "content": "q1"}]
    assert seen["completions"][0] == [{"role": "assistant", "content": TEXTS[0]}]
    assert seen["completion_ids"] == IDS and seen["level"] == [1, 2, 3, 4]
    assert seen["rest"]["trainer_state"] == "the state"
    assert seen["rest"]["solution"] == ["$1$", "$2$", "$3$", "$4$"]

    def short(completions: list[str]) -> list[float]:
        return [float(len(text)) for text in completions]

    assert _rewards(Scorer(short)) == [12.0] * 4


def test_outside_training_functions_get_a_trainer_state_of_trls_own_kind() -> None:
    transformers = pytest.importorskip("transformers")

    def reads(completions: list[str], trainer_state: Any, **kwargs: Any) -> list[float]:
        assert isinstance(trainer_state, transformers.TrainerState)
        return [float(trainer_state.global_step)] * len(completions)

    assert _rewards(Scorer(reads)) == [0.0] * 4


def test_what_functions_log_is_held_by_the_batch_and_by_nothing_else() -> None:
    """A scorer lives as long as a run: what it kept would grow with the run."""

    class Note:
        pass

    notes: list[weakref.ref[Note]] = []

    def logs(completions: list[str], log_extra: Any, log_metric: Any, **kwargs: Any) -> list[float]:
        found = [Note() for _ in completions]
        notes.extend(weakref.ref(note) for note in found)
        log_metric("calls", 1)
        log_extra("note", found)
        return [0.0] * len(completions)

    with Scorer(logs) as scorer:
        for _ in range(2):
            session = scorer.session()
            session.add(0, PLAIN[0], TEXTS[0])
            assert isinstance(session.results()[0].extras["note"], Note)
            assert session.metrics == {"calls": [1.0]}
        del session
        gc.collect()
        assert len(notes) == 2 and not any(note() for note in notes)


def test_notes_that_do_not_belong_one_to_each_completion_are_refused() -> None:
    def logs(completions: list[str], log_extra: Any, **kwargs: Any) -> list[float]:
        log_extra("short", completions[1:])
        return [0.0] * len(completions)

    with (
        Scorer(logs) as scorer,
        pytest.raises(RewardError, match=r"log_extra\('short'\).*3 values for 4 completions"),
    ):
        scorer.score(PLAIN, TEXTS)


def test_async_functions_of_every_form_run_at_once() -> None:
    barrier = 2
    arrived: list[str] = []

    async def meet(name: str) -> None:
        arrived.append(name)
        for _ in range(200):
            if len(arrived) >= barrier:
                return
            await asyncio.sleep(0.01)
        raise TimeoutError("the other one never came")

    async def first(completions: list[str], **kwargs: Any) -> list[float]:
        await meet("first")
        return [1.0] * len(completions)

    class Second:
        async def __call__(self, completions: list[str], scale: float, **kwargs: Any) -> Any:
            await meet("second")
            return [scale] * len(completions)

    scorer = Scorer([first, functools.partial(Second(), scale=2.0)])
    assert scorer.labels == ("first", "Second")
    assert _rewards(scorer) == [3.0] * 4

    async def inside_a_running_loop() -> list[float]:
        arrived.clear()
        arrived.append("other")
        return _rewards(Scorer(first))

    assert asyncio.run(inside_a_running_loop()) == [1.0] * 4


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            [1.0] * 3,
            r"bad returned 3 rewards for 4 completions .from data\.jsonl:1 to data.jsonl:4",
        ),
        ([1.0] * 5, "bad returned 5 rewards for 4 completions"),
        ([1.0, "1", 0.0, 0.0], r"bad returned '1' for data\.jsonl:2"),
        ([1.0, 0.0, float("nan"), 0.0], r"bad returned nan for data\.jsonl:3"),
        ([1.0, 0.0, 0.0, float("inf")], r"bad returned inf for data\.jsonl:4"),
        ([1.0, 0.0, 0.0, [1.0]], r"bad returned \[1\.0\] for data\.jsonl:4"),
        ([1.0, 0.0, 0.0, 1j], r"bad returned 1j for data\.jsonl:4"),
        (None, "bad returned None: expected a list of 4"),
        (1.0, r"bad returned 1\.0: expected a list of 4"),
        ("1111", "bad returned '1111': expected a list of 4"),
        ({"a": 1}, "expected a list of 4"),
    ],
)
def test_what_is_not_a_reward_is_an_error_that_names_function_and_row(
    returned: Any, message: str
) -> None:
    def bad(completions: list[str], **kwargs: Any) -> Any:
        return returned

    async def bad_async(completions: list[str], **kwargs: Any) -> Any:
        return returned

    for function, name in ((bad, "bad"), (bad_async, "bad_async")):
        with Scorer(function) as scorer, pytest.raises(RewardError) as caught:
            scorer.score(PLAIN, TEXTS)
        caught.match(message.replace("bad", name))
    assert len(str(caught.value)) < 500


def test_an_exception_is_reported_with_the_sample_that_caused_it() -> None:
    def divides(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
        return [1 / (int(a) - 3) for a in answer]

    async def divides_async(completions: list[str], answer: list[str], **kwargs: Any) -> Any:
        return divides(completions, answer)

    for function in (divides, divides_async):
        with Scorer(function) as scorer, pytest.raises(RewardError) as caught:
            scorer.score(PLAIN, [text + "x" * 10_000 for text in TEXTS])
        caught.match(rf"{function.__name__} raised ZeroDivisionError")
        caught.match(r"\(from data\.jsonl:3\)")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert len(str(caught.value)) < 500


def test_a_missing_column_is_named_with_the_columns_there_are() -> None:
    def wants(completions: list[str], solution: list[str], **kwargs: Any) -> list[float]:
        return [0.0] * len(completions)

    with (
        Scorer(wants) as scorer,
        pytest.raises(
            RewardError, match=r"wants needs solution; data\.jsonl:1 has the columns answer"
        ),
    ):
        scorer.score(PLAIN, TEXTS)


def test_scalars_of_torch_and_numpy_are_numbers() -> None:
    import numpy as np
    import torch

    def tensors(completions: list[str], **kwargs: Any) -> Any:
        return torch.tensor([0.5, 1.0, 0.0, 0.25])

    def arrays(completions: list[str], **kwargs: Any) -> Any:
        return np.array([1, 0, 1, 0])

    assert _rewards(Scorer([tensors, arrays])) == [1.5, 1.0, 1.0, 0.25]


def test_functions_load_from_a_file_and_from_a_module(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def short(completions, **kwargs):\n    return [float(len(c) < 13) for c in completions]\n"
        "def make(limit):\n    return lambda completions, **k: [float(limit)] * len(completions)\n"
        "value = 3\n"
    )
    file = tmp_path / "mine.py"
    assert _rewards(Scorer(f"{file}:short")) == [1.0] * 4
    config = RewardConfig.model_validate(
        [{"function": f"{file}:make", "arguments": {"limit": 2}, "weight": 0.5}, "math"]
    )
    assert _rewards(Scorer(config)) == [2.0] * 4
    for wrong, message in [
        (f"{tmp_path}/none.py:short", "there is no file"),
        (f"{file}:long", "has no 'long'"),
        (f"{file}:value", "is not callable"),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Scorer(wrong)
    with pytest.raises(ConfigError, match="did you mean 'math'"):
        Scorer("mathh")
    with pytest.raises(ConfigError, match="neither the name of a reward nor a function"):
        Scorer([3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="2 weights for 1 rewards"):
        Scorer("math", weights=[1, 2])


def test_trl_reward_functions_work_unchanged() -> None:
    rewards = pytest.importorskip("trl.rewards")
    functions = [
        rewards.accuracy_reward,
        rewards.think_format_reward,
        rewards.get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=4),
        rewards.reasoning_accuracy_reward,
        rewards.get_repetition_penalty_reward(ngram_size=2),
        rewards.get_cosine_scaled_reward(max_len=16),
    ]
    texts = [r"<think>hm</think> \boxed{1}", r"\boxed{2}", r"\boxed{9}", "none"]
    with Scorer(functions) as scorer:
        scores = scorer.score(CHAT, texts, IDS)
        assert all(score.extras["gold_parsed"] for score in scores)
    parts = [list(score.parts.values()) for score in scores]
    assert [p[0] for p in parts] == [1.0, 1.0, 0.0, 0.0]
    assert [p[1] for p in parts] == [1.0, 0.0, 0.0, 0.0]
    assert [p[2] for p in parts] == [-0.5] * 4
    assert [p[3] for p in parts] == [1.0, 0.0, 0.0, 0.0]
    assert [p[4] for p in parts] == pytest.approx([-6 / 7] * 4)
    assert parts[0][5] == pytest.approx(0.75)

    def in_a_thread() -> None:
        with Scorer(rewards.accuracy_reward) as other:
            results.extend(s.reward for s in other.score(CHAT, TEXTS, IDS))

    results: list[float] = []
    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert results == [1.0] * 4


def test_a_reward_that_needs_token_ids_says_so_where_there_are_none() -> None:
    rewards = pytest.importorskip("trl.rewards")
    overlong = rewards.get_soft_overlong_punishment(10, 4)
    with Scorer(overlong) as scorer, pytest.raises(RewardError, match="no token ids are available"):
        scorer.score(CHAT, TEXTS)


def test_statistics_count_what_happened(hostile: Path) -> None:
    texts = [TEXTS[0], r"\boxed{9^{9^{9^{9}}}}", "nothing", r"\boxed{5}"]
    with Scorer("math", workers=2, timeout_s=1.0) as scorer:
        scores = scorer.score(PLAIN, texts)
        assert [s.reward for s in scores] == [1.0, 0.0, 0.0, 0.0]
        counts = scorer.stats()
    assert counts["math"] == {"scored": 4, "ok": 2, "timeout": 1, "no_answer": 1}
    assert counts["pool"]["timeout"] == 1


def test_a_closed_scorer_starts_other_workers() -> None:
    scorer = Scorer("math", workers=1)
    scorer.close()
    try:
        assert [score.reward for score in scorer.score(PLAIN, TEXTS)] == [1.0] * 4
    finally:
        scorer.close()
