"""What reward functions are given during training, and where what they log comes out."""

from __future__ import annotations

import statistics
from collections import defaultdict

import pytest

from srft.runs.files import read_jsonl
from srft.trainer.api import SRFTTrainer


def lengths(prompts, completions, completion_ids, trainer_state, log_metric, log_extra, **columns):
    """A reward, a metric and a note that can be told from the completion alone."""
    log_metric("mean_length", statistics.fmean(len(ids) for ids in completion_ids))
    log_extra("first", [ids[0] for ids in completion_ids])
    log_extra("object", [object() for _ in completion_ids])
    seen[len(prompts)].append(trainer_state)
    return [len(set(ids)) / 12 for ids in completion_ids]


seen: dict[int, list] = defaultdict(list)
"""The states that came with batches of so many completions."""


@pytest.fixture(autouse=True)
def nothing_seen():
    seen.clear()


@pytest.mark.parametrize("ahead", [False, True])
def test_functions_see_where_training_is_and_what_they_log_stands_in_its_own_step(
    by_servers, rows, tmp_path, ahead
):
    transformers = pytest.importorskip("transformers")
    args = by_servers(
        ahead=int(ahead),
        reward={"function_timeout_s": 60},
        data={"limit": 10},
        evaluation={"every_steps": 3, "at_start": True},
        run={"samples_every": 1, "checkpoint_every": 0},
    )
    SRFTTrainer(args=args, reward_funcs=lengths, eval_dataset=rows[:5]).train()
    states = seen[4 * 3]
    assert all(type(state) is transformers.TrainerState for state in states)
    assert [state.global_step for state in states] == list(range(6))
    assert [state.epoch for state in states] == pytest.approx([0.4 * step for step in range(6)])
    assert {(s.max_steps, s.num_train_epochs, s.is_world_process_zero) for s in states} == {
        (6, 3, True)
    }
    # Evaluation, judged in parts as it comes: before training, in the middle, at the end.
    at = [state.global_step for size, found in seen.items() if size <= 5 for state in found]
    assert set(at) == {0, 3, 6}

    metrics = read_jsonl(tmp_path / "run/metrics.jsonl")
    for row in metrics:
        # Neither evaluation nor the next step's rollouts are mixed in.
        (logged,) = [value for key, value in row.items() if key.endswith("mean_length")]
        assert logged == pytest.approx(row["rollout/length_mean"])
    for record in read_jsonl(tmp_path / "run/samples.jsonl"):
        for response in record["responses"]:
            if response["kind"] == "rollout":
                assert response["extras"]["first"] == response["token_ids"][0]
                assert response["extras"]["object"].startswith("<object object")
            else:
                assert "extras" not in response
