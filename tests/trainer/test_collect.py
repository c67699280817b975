"""From prompts to training sequences: what is left out, at which temperature, and in which order."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from benchmarks.lab.tokenizer import build_tokenizer
from tests.toys import lab_model, random_sequences
from transformers import LlamaConfig

from srft.config import parse_config
from srft.errors import ConfigError, RolloutError
from srft.memory.assumptions import assume
from srft.memory.devices import Cluster
from srft.memory.work import measure_work
from srft.model.policy import Policy
from srft.objective.method import Progress
from srft.objective.methods import get_method
from srft.objective.preparation import prepare
from srft.rewards.scorer import Score
from srft.rollout.check import allowed_mismatch
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.rollout_config import RolloutConfig
from srft.runs.files import read_jsonl
from srft.trainer.api import SRFTTrainer
from srft.trainer.collect import Collected, Rollout, _plan, _whole_text, group_metrics
from srft.trainer.fitting import measure_lengths
from srft.trainer.method_checks import check_lengths
from srft.trainer.sample_log import sample_records
from srft.trainer.setup import build_methods
from srft.types import Completion, Example, TokenizedExample, TrainingSequence


def lengths(completion_ids, **columns):
    """Right all of them, and no two alike in a group."""
    return [0.6 + len(set(ids)) / 100 + sum(ids) / 10_000 for ids in completion_ids]


@pytest.mark.parametrize(("method", "temperature"), [("grpo", 0.7), ("grpo", 1.4), ("srft", 0.7)])
def test_the_policy_is_trained_at_the_temperature_it_is_sampled_at(
    recipe, tmp_path, method, temperature
):
    """Rollouts are by the very weights that are trained: each token has one probability."""
    args = recipe(
        method=method, rollout={"temperature": temperature}, train={"steps": 1}, reward={}
    )
    SRFTTrainer(args=args, reward_funcs=lengths).train()
    (row,) = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert row["mismatch/abs/max"] < 1e-4


def apart(by):
    """The embedded engine with log-probabilities that are off by so much."""
    plain = EmbeddedEngine.generate

    def generate(self, *args, **kwargs):
        return [
            [replace(c, logprobs=tuple(p - by for p in c.logprobs)) for c in group]
            for group in plain(self, *args, **kwargs)
        ]

    return generate


@pytest.mark.parametrize(
    ("by", "model", "rollout", "stops"),
    [
        (2e-3, {}, {}, True),
        (5e-4, {}, {}, False),
        (2e-3, {}, {"max_mismatch": 5e-3}, False),
        (0.05, {"autocast": "bfloat16"}, {}, False),
        (0.3, {"autocast": "bfloat16"}, {}, True),
    ],
)
def test_an_engine_that_disagrees_beyond_rounding_stops_the_run(
    recipe, monkeypatch, by, model, rollout, stops
):
    rollout = {"check": False, **rollout}
    args = recipe(model=model, rollout=rollout, train={"steps": 1}, reward={})
    trainer = SRFTTrainer(args=args, reward_funcs=lengths)
    monkeypatch.setattr(EmbeddedEngine, "generate", apart(by))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    if stops:
        with pytest.raises(RolloutError, match=r"step 1: .*not of the same model"):
            trainer.train()
        assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())
    else:
        trainer.train()


@pytest.mark.parametrize(
    ("rollout", "computes", "allowed"),
    [
        ({}, torch.float32, 1e-3),
        ({}, torch.bfloat16, 0.1),
        ({"engine": "vllm"}, torch.float32, 1e-3),
        ({"engine": "vllm", "vllm": {"dtype": "float16"}}, torch.float32, 0.1),
        ({"engine": "vllm", "vllm": {"dtype": "float16"}}, torch.bfloat16, 0.1),
        ({"engine": "vllm-server", "servers": ["http://a"], "ahead": 1}, torch.float32, None),
    ],
)
def test_the_difference_that_is_allowed_follows_the_coarser_precision(rollout, computes, allowed):
    settings = RolloutConfig(**rollout)
    assert allowed_mismatch(settings, (None, torch.float32, computes), "cpu") == allowed


def test_demonstrations_alone_are_learned_at_temperature_one(recipe):
    trainer = SRFTTrainer(args=recipe(method="sft", rollout={"temperature": 0.5}))
    assert trainer.setup.policy_of(trainer.setup.methods[0]).temperature == 1.0
    trainer.close()


@pytest.mark.parametrize(
    ("ids", "text", "whole"),
    [
        ((3, 4, 9), "c d", "a b c d"),  # ended by a stop token
        ((3, 4, 3), "c ", "a b c "),  # by the stop string "d": cut before it
        ((3, 4), "c d", "a b c d"),
        ((9,), "", "a b "),
    ],
)
def test_a_response_behind_a_prefix_ends_where_its_own_text_ends(ids, text, whole):
    words = {1: " a", 2: " b", 3: " c", 4: " d", 9: " end"}
    completion = Completion(ids, (0.0,) * len(ids), text, "stop")
    decode = lambda tokens: "".join(words[i] for i in tokens).lstrip()  # noqa: E731
    assert _whole_text((), completion, decode) == text
    assert _whole_text((1, 2), completion, decode) == whole


def test_step_round_and_group_decide_what_is_sampled(recipe):
    """Attempts to rescue a group sample the same group of the same step again, in another round."""
    trainer = SRFTTrainer(
        args=recipe(method="grpo", rollout={"temperature": 1.0}, reward={}), reward_funcs=lengths
    )

    def sampled(step, round_, group):
        method = trainer.setup.methods[0]
        found = trainer.collector.rows([0], method, Progress(0, 1), step, round_, [group])
        return [r.sequence.response_ids for r in found.rollouts[0]]

    first = sampled(0, 0, 0)
    assert sampled(0, 0, 0) == first
    assert all(sampled(*other) != first for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    trainer.close()


@pytest.mark.parametrize("divisor", [1, 2, 3, 1000])
def test_rollouts_to_which_no_reward_applies_are_left_out_of_their_group(recipe, tmp_path, divisor):
    """Some of a group, all of it, or all of the step."""
    asked, groups = [], []

    def some(prompts, completions, completion_ids, **columns):
        if len(prompts) == 12:  # four prompts, three rollouts each; the others are demonstrations
            asked.append([tuple(ids) for ids in completion_ids])
            return [0.75 if ids[0] % divisor == 0 else None for ids in completion_ids]
        return [1.0] * len(prompts)

    trainer = SRFTTrainer(args=recipe(train={"steps": 3}, reward={}), reward_funcs=some)
    step = trainer.collector.step

    def seen(*args):
        groups.append(step(*args))
        return groups[-1]

    trainer.collector.step = seen
    trainer.train()
    assert len(groups) == len(asked) == 3
    for collected, ids in zip(groups, asked, strict=True):
        kept = [s for s in collected.sequences if not s.is_demo]
        wanted = [found for found in ids if found[0] % divisor == 0]
        assert sorted(s.response_ids for s in kept) == sorted(wanted)
        assert all(math.isfinite(s.reward) for s in collected.sequences)
        assert [len(group) for group in collected.demos] == [1] * 4
    for row in read_jsonl(tmp_path / "run/metrics.jsonl"):
        assert None not in row.values(), "a figure is not finite"
        assert row.get("reward/mean", 0.75) == 0.75
        # All that is left of a group is as it was judged; of an empty group nothing is known.
        assert row.get("groups/all_right", 1.0) == 1.0
        assert row.get("groups/all_wrong", 0.0) == 0.0


def order(args, reward) -> list[str]:
    """Sources of the prompts of every step."""
    trainer = SRFTTrainer(args=args, reward_funcs=reward)
    step, seen = trainer.collector.step, []

    def noted(*arguments):
        collected = step(*arguments)
        seen.extend(example.example.source for example in collected.examples)
        return collected

    trainer.collector.step = noted
    trainer.train()
    return seen


def test_prompts_that_were_drawn_ahead_for_a_stage_that_ended_come_in_the_next(
    by_servers, tmp_path
):
    """A plateau ends a stage when the next step has been begun: its prompts are the next stage's."""
    still = {"method": "grpo", "steps": 8, "plateau": 2}
    stages = [still, {"method": "sft", "steps": 2}]
    found = [
        order(
            by_servers(
                ahead=ahead,
                stages=stages,
                reward={},
                data={"limit": 40},
                train={"learning_rate": 1e-30},
                run={"checkpoint_every": 0, "dir": str(tmp_path / str(ahead))},
            ),
            lambda completions, **_: [0.75] * len(completions),  # a plateau after four steps
        )
        for ahead in (0, 1)
    ]
    assert len(found[0]) == 6 * 4
    assert found[0] == found[1]
    assert len(set(found[0])) == 24, "no prompt is left out or comes twice"


# -- samples ---------------------------------------------------------------------------------------


def test_samples_of_several_packs_have_the_losses_of_one_pack(recipe):
    """Weights that read the whole batch's entropy read that of all packs, not of each."""
    policy = Policy(lab_model("qwen3"), build_tokenizer())
    sequences = [
        replace(s, group=0) for s in random_sequences((5, 4), (5, 9), (5, 3), (5, 7), seed=3)
    ][::-1]  # shorter ones first: a pack has the longest first
    rollouts = [s for s in sequences if not s.is_demo]
    prompt = rollouts[0].prompt_ids
    example = TokenizedExample(Example(prompt="p"), 0, prompt, ())
    collected = Collected(
        [0],
        [example],
        [
            [
                Rollout(replace(s, prompt_ids=prompt), "text", Score(s.reward, {}, True))
                for s in rollouts
            ]
        ],
        [[replace(s, prompt_ids=prompt) for s in sequences if s.is_demo]],
    )
    method = get_method("srft", {"entropy_level": "batch"})

    def losses(budget):
        config = recipe(run={"samples_prompts": 1}, train={"tokens_per_micro_batch": budget})
        setup = SimpleNamespace(
            config=config, policy_of=lambda _: policy, teacher_of=lambda _: None
        )
        (record,) = sample_records(setup, method, collected, Progress(0, 1))
        return [response["loss"] for response in record["responses"]]

    assert [len(loss) for loss in losses(1000)] == [7, 9, 3, 4]
    for one, cut in zip(losses(1000), losses(12), strict=True):
        assert one == pytest.approx(cut, abs=2e-5)
    assert max(abs(value) for loss in losses(1000) for value in loss) > 1e-3


def group(number, *rewards):
    """Rollouts of three tokens each."""
    logprobs = (-1.0, -1.0, -1.0)
    sequences = [
        TrainingSequence((1,), (2, 3, 4), number, False, r, r > 0, False, 0, logprobs)
        for r in rewards
    ]
    return [Rollout(s, "", Score(s.reward, {}, s.correct)) for s in sequences]


def test_what_a_refill_drops_counts_among_what_was_sampled():
    example = TokenizedExample(Example(prompt="a"), 0, (1,), ())
    found = Collected([0, 1], [example] * 2, [group(0, 0.0, 0.0), group(1, 0.0, 1.0)], [[], []])
    found.sampled_groups = 2
    kept = Collected()
    kept.take(found, only_mixed=True)
    assert kept.rows == [1] and len(kept.sequences) == 2, "what is trained on"
    figures = group_metrics(kept)
    assert figures["rollout/tokens"] == 12 and figures["groups/sampled"] == 2
    assert figures["reward/accuracy"] == figures["reward/mean"] == 0.25
    assert figures["groups/all_wrong"] == figures["groups/equal_reward"] == 0.5
    nothing = Collected(rollouts=[[]], demos=[[]], sampled_groups=1)
    assert group_metrics(nothing) == {"groups/sampled": 1, "rollout/tokens": 0}
    assert group_metrics(Collected(rollouts=[[]], demos=[[]])) == {}, "demonstrations alone"


@pytest.mark.parametrize("name", ["uft", "prefix-rft", "ghpo"])
def test_what_begins_with_a_demonstration_is_as_long_as_the_engine_and_the_checks_are_told(name):
    config = parse_config({"method": name, "rollout": {"max_tokens": 256, "group_size": 2}})
    methods = build_methods(config)
    (method,) = methods
    example = TokenizedExample(Example(prompt="q"), 0, tuple(range(50)), (tuple(range(960)),))
    lengths = measure_lengths(config, methods, [example], [])
    attempts = [None] if method.rescue is None else [0, 1, 2]
    asked = [
        len(request.prompt_ids) + 256
        for attempt in attempts
        for request, _ in _plan(example, method, Progress(0, 10), 2, 1, attempt)
    ]
    assert 256 + 50 < max(asked) <= lengths.asked
    room = SimpleNamespace(config=LlamaConfig(max_position_embeddings=max(asked) - 1))
    with pytest.raises(ConfigError, match=r"demonstration.* and rollout\.max_tokens=256 exceed"):
        check_lengths(config, methods, room, [example])
    layout, assumed = SimpleNamespace(world=1), assume(Cluster("cpu", 8.0, 1, 1))
    work = measure_work(config, methods, layout, assumed, None, lengths)
    assert work.longest >= 50 + 960 and work.asked == lengths.asked


def test_samples_show_the_advantages_and_losses_that_are_trained_on(recipe):
    """A demonstration alone is compared with all rollouts; what a gate leaves out has no loss."""
    policy = Policy(lab_model("qwen3"), build_tokenizer())
    example = TokenizedExample(Example(prompt="p"), 0, (5, 6), ())

    def one(group, demo, reward):
        return TrainingSequence((5, 6), (7, 8), group, demo, reward, reward > 0.5)

    groups = [[one(0, False, 1.0), one(0, False, 0.0)], []]
    collected = Collected(
        [0, 1],
        [example] * 2,
        [[Rollout(s, "text", Score(s.reward, {}, s.correct)) for s in g] for g in groups],
        [[one(0, True, 1.0)], [one(1, True, 1.0)]],
    )
    setup = SimpleNamespace(
        config=recipe(run={"samples_prompts": 2}),
        policy_of=lambda _: policy,
        teacher_of=lambda _: None,
    )

    def shown(name):
        records = sample_records(setup, get_method(name), collected, Progress(0, 1))
        return [response for record in records for response in record["responses"]]

    table, _ = prepare(get_method("srft"), collected.sequences)
    advantages = [response["advantage"] for response in shown("srft")]
    assert advantages == pytest.approx(table.advantage_S.tolist(), abs=1e-5)
    assert advantages[-1] > 0
    _, kept = prepare(get_method("hpt"), collected.sequences)
    assert kept == [0, 1, 3]
    losses = [response["loss"] for response in shown("hpt")]
    assert [loss == [None, None] for loss in losses] == [False, False, True, False]
