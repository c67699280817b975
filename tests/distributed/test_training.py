"""Training on several processes is training on one, up to float32 rounding."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed import work
from tests.distributed.ranks import Crashed, finish, on_ranks, start
from tests.toys import save_lab_model, save_tool_model

from srft.runs.files import read_jsonl

# Names of runs, and what each adds to the recipe. Three prompts a step on two processes: one has two
# prompts and the other one, with demonstrations for some only.
RUNS = {
    "srft": {},
    "grpo": {"method": "grpo"},
    "luffy": {"method": "luffy"},
    "one-prompt": {"train": {"prompts_per_step": 1}},
    "small-micro-batches": {"train": {"tokens_per_micro_batch": 90}},
    "two-optimizer-steps": {"method": "grpo", "train": {"optimizer_steps_per_batch": 2}},
    "batch-entropy": {"objective": {"entropy_level": "batch"}},
    "reference": {"method": "grpo", "objective": {"kl_coefficient": 0.1}},
    "sequence-ratio": {"method": "gspo"},
    "gates": {"method": "hpt"},
    "further-demonstrations": {"train": {"demonstrations_per_step": 4}},
    "refill": {"method": "dapo", "train": {"max_refill_rounds": 2}},
    "interleaved": {"method": "relift", "train": {"interleave_prompts": 2}},
    "gradients": {"train": {"gradient_analysis_every": 1}},
    "copies": {"parallel": {"replicate": 2}},
    "kept-weights": {"parallel": {"reshard_after_forward": False}},
    "activation-checkpointing": {"model": {"gradient_checkpointing": True}},
    "adapters": {"model": {"lora": {"rank": 4}}, "objective": {"kl_coefficient": 0.1}},
    "four-bits": {
        "model": {"lora": {"rank": 4, "quantization": "nf4"}},
        "objective": {"kl_coefficient": 0.1},
    },
    "padded": {"model": {"attention": "padded"}},
    "self-teacher": {"method": "sdft"},
    "self-teacher-whole": {"method": "sdpo", "objective": {"distill_form": "full"}},
    "teacher": {"method": "gkd", "teacher": {"path": "TEACHER"}},
    "frozen-self-teacher": {"method": "rlsd", "teacher": {"frozen": True}},
    "anchored": {"method": "asft"},
    "prefixes": {"method": "prefix-rft"},
    "rescued": {"method": "ghpo"},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_lab_model(tmp_path_factory.mktemp("teacher"), initializer_range=0.2, seed=7)


@pytest.fixture(scope="module")
def recipes(tiny_model, teacher, tmp_path_factory):
    """``recipes(place, **sections)``: every run of RUNS as plain values, under a folder of its own."""

    def build(place: str, **more) -> dict[str, dict]:
        folder = tmp_path_factory.mktemp(place)
        found = {}
        for name, changes in RUNS.items():
            values = {
                "model": {"path": str(tiny_model)},
                "reward": {"failed_demonstrations": "keep"},
                "rollout": {"group_size": 3, "max_tokens": 12},
                "train": {"steps": 3, "prompts_per_step": 3, "learning_rate": 1e-3},
                "evaluation": {"every_steps": 2},
                "run": {"dir": str(folder / name), "live": "never", "samples_every": 2},
            }
            if "teacher" in changes and "path" in changes["teacher"]:
                changes = {**changes, "teacher": {"path": str(teacher)}}
            for section, settings in {**changes, **more}.items():
                old = values.get(section)
                values[section] = {**old, **settings} if isinstance(old, dict) else settings
            found[name] = values
        return found

    return build


@pytest.fixture(scope="module")
def some_demonstrations(rows):
    """The rows with demonstrations of three kinds: none, one, two."""
    found = []
    for i, row in enumerate(rows[:20]):
        row = dict(row)
        demo = row.pop("demonstration")
        row["demonstrations"] = [demo] * (i % 3)
        found.append(row)
    return found


@pytest.fixture(scope="module")
def alone(recipes, some_demonstrations) -> dict[str, Path]:
    """Run directories of one process."""
    plain = recipes("alone", parallel={"replicate": 1})
    on_ranks(work.train_all, 1, list(plain.values()), some_demonstrations, "a_third")
    return {name: Path(values["run"]["dir"]) for name, values in plain.items()}


@pytest.fixture(scope="module")
def together(recipes, some_demonstrations) -> dict[str, Path]:
    """Run directories of two processes, one sharded model."""

    def train() -> dict[str, Path]:
        plain = recipes("together")
        on_ranks(work.train_all, 2, list(plain.values()), some_demonstrations, "a_third")
        return {name: Path(values["run"]["dir"]) for name, values in plain.items()}

    try:
        return train()
    except Crashed as error:
        # Seen once in dozens of suites: a thread of gloo's, in the C library's malloc. Twice is our fault.
        warnings.warn(f"a process crashed, so all are trained once more: {error}", stacklevel=1)
        return train()


def assert_same_figures(one: list[dict], other: list[dict], steps: int = 3) -> None:
    assert len(one) == len(other) == steps
    for ours, theirs in zip(one, other, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if isinstance(value, str):
                assert theirs[key] == value
            else:
                assert theirs[key] == pytest.approx(value, rel=2e-5, abs=2e-5), key


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(alone, together, name):
    one, two = alone[name], together[name]
    assert_same_figures(work.logged(one), work.logged(two))
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (one, two))
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-4, atol=1e-5)
    for log in ("samples.jsonl", "evaluation.jsonl"):
        ours, theirs = read_jsonl(one / log), read_jsonl(two / log)
        assert len(ours) == len(theirs) > 0
    assert [r["correct"] for r in ours] == [r["correct"] for r in theirs]


def test_two_processes_call_tools_as_one_and_answer_after_training(tmp_path):
    model = save_tool_model(tmp_path / "model")
    rows = [{"prompt": [{"role": "user", "content": f"What is {n} + 4?"}]} for n in range(6)]
    found = {}
    for size in (1, 2):
        recipe = {
            "method": "grpo",
            "model": {"path": str(model)},
            "rollout": {
                "group_size": 3, "max_tokens": 100, "stop_token_ids": list(range(170, 340)),
            },
            "environment": {"max_turns": 3},
            "train": {"steps": 2, "prompts_per_step": 3, "learning_rate": 1e-3},
            "evaluation": {"every_steps": 0, "n": 2},
            "run": {"dir": str(tmp_path / f"run{size}"), "live": "never", "samples_every": 1},
        }  # fmt: skip
        folder = tmp_path / f"saved{size}"
        found[size] = on_ranks(work.use_tools_and_go_on, size, recipe, rows, folder)
    (one,), (main, other) = found[1], found[2]
    runs = [tmp_path / "run1", tmp_path / "run2"]
    assert_same_figures(*map(work.logged, runs), steps=2)
    assert work.logged(runs[0])[0]["tools/calls"] > 0
    ours, theirs = (read_jsonl(run / "samples.jsonl") for run in runs)
    assert [[r["token_ids"] for r in row["responses"]] for row in ours] == [
        [r["token_ids"] for r in row["responses"]] for row in theirs
    ]
    assert one["evaluated"] == main["evaluated"] == other["evaluated"]
    assert one["predicted"] == main["predicted"] == other["predicted"]
    assert any("[add]" in rollout["completion"] for rollout in one["predicted"])
    assert one["put"] and main["put"] and other["put"]
    saved = [load_file(tmp_path / f"saved{size}" / "model.safetensors") for size in (1, 2)]
    assert saved[0].keys() == saved[1].keys()
    for name, tensor in saved[0].items():
        torch.testing.assert_close(saved[1][name], tensor, rtol=1e-4, atol=1e-5)


def test_a_run_in_four_bits_passes_from_two_processes_to_one_and_back(recipes, some_demonstrations):
    """Two processes make three steps, one goes on from there, two from its fourth: as one alone."""
    more = {"train": {"steps": 5}, "run": {"checkpoint_every": 1, "keep_checkpoints": 9}}
    whole, passed_on = (recipes(place, **more)["four-bits"] for place in ("whole", "passed-on"))
    one, other = (Path(recipe["run"]["dir"]) for recipe in (whole, passed_on))
    on_ranks(work.train, 1, whole, some_demonstrations)
    on_ranks(work.train, 2, passed_on, some_demonstrations)
    for last, size in ((3, 1), (4, 2)):
        for step in range(last + 1, 6):
            shutil.rmtree(other / "checkpoints" / f"step_{step:06d}")
        shutil.rmtree(other / "model")
        on_ranks(work.train, size, passed_on, some_demonstrations, "a_third", True)
    assert_same_figures(work.logged(one), work.logged(other), steps=5)
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (one, other))
    assert ours.keys() == theirs.keys() and "model.layers.0.mlp.up_proj.weight" in ours
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-4, atol=1e-5)
    (held,) = (other / "checkpoints" / "step_000004" / "weights").iterdir()
    assert all(".lora_" in name for name in load_file(held))


@pytest.mark.parametrize("fault", [work.train_with_infinite_reward, work.train_with_broken_loss])
def test_a_step_that_one_process_cannot_take_is_refused_by_all(recipes, some_demonstrations, fault):
    recipe = recipes("refused")["srft"]
    on_ranks(fault, 2, recipe, some_demonstrations)
    run = Path(recipe["run"]["dir"])
    trained = ["entropy/rollouts" in row for row in work.logged(run)]
    assert trained == [True, False, True]
    (event,) = [e for e in read_jsonl(run / "events.jsonl") if "non-finite" in e["message"]]
    assert event["level"] == "warning" and "step 2" in event["message"]
    assert len(list((run / "refused").iterdir())) == 1


def test_an_error_in_one_process_ends_all_and_is_said_by_that_one(recipes, some_demonstrations):
    recipe = recipes("failing")["srft"]
    outcomes = finish(start(work.train_with_failing_reward, 2, recipe, some_demonstrations))
    assert outcomes[1].error.startswith("RewardError") and "no such book" in outcomes[1].error
    assert outcomes[0].error.startswith("PeerError: rank 1 has failed; its output says why")


def test_what_callbacks_ask_for_after_logging_and_evaluation_all_processes_do(
    recipes, some_demonstrations
):
    """Callbacks of the main process are heard; the second one would wait for what it never comes to."""
    run = {"checkpoint_every": 0, "export": False}
    recipe = recipes("wishes", method="sft", evaluation={"every_steps": 0}, run=run)["srft"]
    one, other = on_ranks(work.train_with_wishes, 2, recipe, some_demonstrations)
    assert one == other
    assert one[0] == [1, 3] and one[1] == ["step_000001", "step_000003"] and one[2] > 1


def test_weights_are_gathered_in_bfloat16_and_kept_in_float32(recipes, some_demonstrations, alone):
    recipe = recipes("halves", parallel={"gather_dtype": "bfloat16"})["srft"]
    on_ranks(work.train, 2, recipe, some_demonstrations)
    run = Path(recipe["run"]["dir"])
    ours, theirs = work.logged(alone["srft"])[0], work.logged(run)[0]
    assert ours["loss"] != theirs["loss"] == pytest.approx(ours["loss"], rel=0.05)
    for part in ("weights", "optimizer"):
        for file in (run / "checkpoints" / "step_000003" / part).iterdir():
            tensors = {k: v for k, v in load_file(file).items() if not k.startswith("random")}
            assert tensors and {t.dtype for t in tensors.values()} == {torch.float32}
