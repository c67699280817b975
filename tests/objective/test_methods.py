"""The table of methods: names, switches, what each reads, schedules, the gate, metrics."""

import math
import warnings
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tests.objective.builders import batch_of, logits_of, run, table_of
from tests.objective.reference import Seq

from srft.errors import ConfigError
from srft.objective.advantage import READS as ADVANTAGE_READS
from srft.objective.loss import active, compute_loss, counts, reduce_metrics
from srft.objective.method import Progress, Term
from srft.objective.methods import METHODS, get_method, switches_read
from srft.objective.schedules import chord_mu, hpt_gate
from srft.objective.switches import Switches
from srft.objective.table import sequence_table, token_index
from srft.types import TrainingSequence


def make(group, demo, reward, length=2, **more):
    logits = [[0.1 * (k + t) for k in range(4)] for t in range(length)]
    return Seq(group, demo, reward, reward > 0.5, [t % 4 for t in range(length)], logits, **more)


SEQS = [make(0, False, 1.0), make(0, False, 0.0, 3), make(0, True, 1.0, 4), make(1, False, 0.0)]


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"unknown method 'grppo'; did you mean 'grpo'"):
        get_method("grppo")
    with pytest.raises(ConfigError, match="known are srft, srft-official"):
        get_method("zzzz")


def test_an_unknown_switch_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"objective\.clip_hihg.*'clip_high'"):
        get_method("grpo", {"clip_hihg": 0.3})


@pytest.mark.parametrize(
    ("name", "overrides", "field"),
    [
        ("srft", {"sft_coefficient": -1}, "sft_coefficient"),
        ("srft", {"entropy_level": "word"}, "entropy_level"),
        ("srft", {"weight_cap": 0}, "weight_cap"),
        ("srft", {"sft_entropy_sign": 2}, "sft_entropy_sign"),
        ("ghpo", {"rescue_shares": [25, 50, 75]}, r"rescue_shares\.0"),
        ("ghpo", {"rescue_shares": [0.5, -0.5]}, r"rescue_shares\.1"),
        ("prefix-rft", {"prefix_beta": [0, 1]}, r"prefix_beta\.0"),
        ("prefix-rft", {"prefix_beta": [1, -1]}, r"prefix_beta\.1"),
    ],
)
def test_a_bad_value_is_refused_by_name(name, overrides, field):
    with pytest.raises(ConfigError, match=rf"objective\.{field} \(method {name}\)"):
        get_method(name, overrides)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("sft", {"clip_low": 0.1}),
        ("sft", {"kl_coefficient": 0.1}),
        ("grpo", {"sft_coefficient": 0.1}),
        ("grpo", {"gate": 0.5}),
        ("srft", {"rollout_term": "literal", "clip_low": 0.1}),
        ("chord", {"weight_rollout": 0.5}),
        ("cispo", {"clip_low": 0.1}),
        # No term reads an advantage while weight_rollout is 0.
        ("opd", {"normalize_std": False}),
        ("gkd", {"demos_in_group": False}),
        ("sdft", {"baseline": "none"}),
        ("sdpo", {"std": "population"}),
        ("asft", {"normalize_std": False}),
    ],
)
def test_a_switch_the_method_does_not_read_is_refused(name, overrides):
    with pytest.raises(ConfigError, match="does not read"):
        get_method(name, overrides)


@pytest.mark.parametrize(
    ("name", "overrides", "why"),
    [
        ("grpo", {"kl_estimator": "k1"}, "kl_coefficient is 0"),
        ("luffy", {"clip_high": 0.3}, "clip is false"),
        ("srft", {"demo_shaping": 0.3}, "demo_ratio is not shaped"),
        ("srft-no-sft", {"sft_coefficient": 1.0}, "demo_sft has weight 0"),
        ("grpo", {"entropy_target": 1.0}, "entropy_coefficient is 0"),
        ("grpo", {"demos_in_group": False}, "demonstrations are in no group"),
        ("grpo", {"entropy_coefficient": 0.1, "entropy_tokens": "all"}, "no token of a demonstr"),
        (
            "grpo",
            {"baseline": "none", "std": "population"},
            "std has no .* no advantage is divided",
        ),
        ("grpo", {"baseline": "none", "advantage_epsilon": 0.1}, "epsilon has no .* is divided"),
        ("grpo", {"importance_floor": 0.5}, "importance_cap is null"),
        ("srft", {"literal_means": "separate"}, "rollout_term is not literal"),
        (
            "srft",
            {"rollout_term": "literal", "literal_means": "separate", "shared_count": True},
            "literal_means has no .* shared_count",
        ),
        (
            "srft",
            {"rollout_term": "literal", "weight_demo_rl": 0, "std": "population"},
            "std has no .* demo_rl has weight 0",
        ),
        (
            "srft",
            {"rollout_term": "literal", "kl_coefficient": 0.1, "ratio_level": "sequence"},
            "nothing reads the ratio",
        ),
        ("chord-phi", {"mu_start": 0.5}, "mu_start has no .* mu_decay are 0"),
        ("chord-phi", {"mu_decay": 0.5}, "mu_decay has no .* are equal"),
        ("chord", {"mu_decay": 0.0, "mu_start": 0.7}, "mu_start has no .* mu_decay are 0"),
        ("uft", {"hint_steps": 0, "hint_start": 0.5}, "hint_steps is 0"),
        ("opd", {"distill_beta": 0.5}, "distill_form is sampled"),
        ("opd", {"distill_top_k": 5}, "distill_form is sampled"),
        ("rlsd", {"rlsd_mix": 0, "rlsd_clip": 0.5}, "rlsd_mix is 0"),
    ],
)
def test_a_switch_without_effect_is_warned_of(name, overrides, why):
    with pytest.warns(UserWarning, match=why):
        get_method(name, overrides)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("srft", {"rollout_term": "literal", "literal_means": "separate"}),
        ("chord", {"mu_decay": 0.0, "mu_warmup": 0.5, "mu_start": 0.7}),
        ("chord", {"mu_decay": 0.0}),
        ("ghpo", {"entropy_coefficient": 0.1, "entropy_tokens": "all"}),  # given prefixes
        ("asft", {"distill_beta": 0.5}),
        ("opd", {"weight_rollout": 1.0, "normalize_std": False}),
        ("opd", {"distill_form": "full", "distill_beta": 0.5, "distill_top_k": 5}),
        ("grpo", {"kl_coefficient": 0.1, "kl_estimator": "k3-ratio", "ratio_level": "sequence"}),
    ],
)
def test_a_switch_with_an_effect_is_taken_without_a_word(name, overrides):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_method(name, overrides)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_s_own_switches_written_out_give_the_same_method(name):
    method = get_method(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = get_method(name, method.switches.model_dump(exclude={"constant_length"}))
    assert again.switches == method.switches


def test_a_switches_object_overrides_only_what_was_set():
    method = get_method("dapo", Switches(clip_low=0.1))
    assert (method.switches.clip_low, method.switches.clip_high) == (0.1, 0.28)


def test_constant_length_is_the_longest_response_unless_set():
    assert get_method("dr-grpo", longest_response=77).switches.constant_length == 77
    method = get_method("dr-grpo", {"constant_length": 5}, longest_response=77)
    assert method.switches.constant_length == 5


class Recorder:
    """Stands in for switches and notes which are read."""

    def __init__(self, switches):
        self._switches, self.read = switches, set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self._switches, name)


VARIANTS = [
    *((name, {}) for name in METHODS),
    ("srft", {"rollout_term": "literal"}),
    ("srft", {"rollout_term": "literal", "literal_means": "separate"}),
    ("srft", {"kl_coefficient": 0.1, "entropy_coefficient": 0.1, "importance_cap": 2.0}),
]


@pytest.mark.parametrize(("name", "overrides"), VARIANTS)
def test_terms_declare_the_switches_they_read(name, overrides):
    method = get_method(name, overrides)
    seqs = [make(*_key(q), reference=[-1.0] * len(q.targets), sampler=[-1.0] * len(q.targets))
            for q in SEQS]  # fmt: skip
    table = table_of(seqs, method)
    batch = batch_of(seqs, table, logits_of(seqs), method=method)
    for term in method.terms:
        recorder = Recorder(method.switches)
        term.mask(batch.index, recorder)
        term.active(table, recorder)
        term.loss(batch, recorder)
        if term.observe:
            term.observe(batch, recorder)
        assert recorder.read <= set(term.reads), term.name
        moved = replace(table, advantage_S=table.advantage_S + 1)
        other = replace(batch, index=replace(batch.index, sequences=moved))
        if not torch.equal(term.loss(batch, method.switches), term.loss(other, method.switches)):
            assert set(ADVANTAGE_READS) <= set(term.reads), term.name
    recorder = Recorder(method.switches)
    if any("baseline" in term.reads for term in method.terms):
        method.advantage(table, recorder)
    if method.token_advantage:
        method.token_advantage(batch, recorder)
    assert recorder.read <= switches_read(name, method.switches)


def _key(seq):
    return seq.group, seq.demo, seq.reward, len(seq.targets)


def test_every_switch_is_read_by_some_method():
    read = set()
    for name, overrides in VARIANTS:
        read |= switches_read(name, get_method(name, overrides).switches)
    assert read == set(Switches.model_fields)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_terms_have_distinct_names_and_interleaved_methods_exist(name):
    method = get_method(name)
    assert len({term.name for term in method.terms}) == len(method.terms)
    assert method.interleave is None or method.interleave in METHODS


# Advantages.


def test_groups_are_told_apart_wherever_their_rows_are():
    seqs = [make(7, False, 1.0), make(-3, False, 0.0), make(7, False, 0.0), make(-3, False, 1.0)]
    table = table_of(seqs, get_method("dr-grpo"))
    assert table.advantage_S.tolist() == [0.5, -0.5, -0.5, 0.5]


def test_rewards_that_cannot_be_averaged_exactly_still_give_exactly_zero():
    table = sequence_table([TrainingSequence((0,), (1,), 0, False, 0.1, False)] * 3)
    # (0.1 + 0.1 + 0.1) / 3 is 0.10000000000000002.
    table = replace(table, reward_S=torch.full((3,), 0.1, dtype=torch.float64))
    method = get_method("grpo")
    assert method.advantage(table, method.switches).tolist() == [0.0, 0.0, 0.0]


def test_demonstrations_outside_the_group_are_compared_with_its_rollouts():
    method = get_method("sft+rl", {"advantage_epsilon": 0.0})
    seqs = [make(0, False, 1.0), make(0, False, 0.0), make(0, True, 1.0)]
    assert table_of(seqs, method).advantage_S.tolist() == pytest.approx(
        [0.5**0.5, -(0.5**0.5), 0.5**0.5]
    )
    # All rollouts wrong: there is no spread to divide by.
    seqs = [make(0, False, 0.0), make(0, False, 0.0), make(0, True, 1.0)]
    assert table_of(seqs, method).advantage_S.tolist() == [0.0, 0.0, 1.0]
    # No rollout at all: nothing to compare with.
    assert table_of([make(0, True, 1.0)], method).advantage_S.tolist() == [0.0]


MIXING = [name for name, entry in METHODS.items() if entry.rollouts and entry.demonstrations]


@pytest.mark.parametrize("baseline", ["group", "leave-one-out", "none"])
@pytest.mark.parametrize("name", MIXING)
def test_a_sequence_to_which_no_reward_applies_is_in_no_group_and_has_no_advantage(name, baseline):
    read = {"weight_rollout": 1.0} if name == "gkd" else {}
    method = get_method(name, {"baseline": baseline, **read})
    others = [make(0, False, 1.0), make(0, False, 0.0), make(1, False, 1.0), make(1, False, 0.0),
              make(1, True, 1.0)]  # fmt: skip
    expected = table_of(others, method).advantage_S.tolist()
    unknown = [make(0, True, math.nan), make(7, True, math.nan)]  # in a group, and by itself
    assert table_of([*others, *unknown], method).advantage_S.tolist() == [*expected, 0.0, 0.0]


# Selection, prefixes, schedules.


def test_hpt_keeps_demonstrations_where_rollouts_fail_and_rollouts_elsewhere():
    seqs = [
        make(0, False, 0.0), make(0, False, 0.0), make(0, True, 1.0),  # unsolved
        make(1, False, 1.0), make(1, False, 0.0), make(1, True, 1.0),  # half solved
        make(2, False, 0.0),  # unsolved, no demonstration
        make(3, True, 1.0),  # no rollouts
    ]  # fmt: skip
    method = get_method("hpt")
    keep = method.select(table_of(seqs, method), method.switches).tolist()
    assert keep == [False, False, True, True, True, False, True, True]
    half = hpt_gate(table_of(seqs, method), get_method("hpt", {"gate": 0.5}).switches).tolist()
    assert half == [False, False, True, False, False, True, True, True]


@pytest.mark.parametrize(("gate", "rollouts", "right"), [(0.84, 75, 63), (0.57, 100, 57)])
def test_hpt_s_gate_holds_at_its_very_share(gate, rollouts, right):
    def kept(right):
        seqs = [make(0, False, float(n < right), 1) for n in range(rollouts)]
        method = get_method("hpt", {"gate": gate})
        table = table_of([*seqs, make(0, True, 1.0)], method)
        return method.select(table, method.switches).tolist()

    assert kept(right) == [False] * rollouts + [True]
    assert kept(right + 1) == [True] * rollouts + [False]


def test_a_term_without_weight_is_not_in_the_shared_count():
    seqs = [make(0, False, 1.0), make(0, False, 0.0), make(0, False, 0.0), make(0, True, 1.0)]
    for weight, rollouts in ((1.0, 400), (0.0, 300)):
        overrides = {"weight_demo_rl": weight, "constant_length": 100}
        method = get_method("luffy", overrides)
        found = counts(method, token_index(table_of(seqs, method)))
        assert found["rollout"] == rollouts


def test_chord_mu_rises_falls_and_stays():
    switches = get_method("chord", {"mu_warmup": 0.1, "mu_decay": 0.5}).switches
    mu = [chord_mu(Progress(step, 100), switches) for step in (0, 5, 10, 35, 60, 99)]
    assert mu == pytest.approx([0.0, 0.45, 0.9, (0.9 + 0.05) / 2, 0.05, 0.05])


def test_uft_hints_are_binomial_in_length_and_end():
    method = get_method("uft")
    early, middle, late = Progress(0, 100), Progress(30, 100), Progress(61, 100)
    uniforms = [(i + 0.5) / 4000 for i in range(4000)]
    share = [sum(method.prefix(50, 0, p, u) for u in uniforms) / 4000 / 50
             for p in (early, middle, late)]  # fmt: skip
    assert share == pytest.approx([0.95, 0.5, 0.0], abs=0.01)
    assert {method.prefix(50, 0, middle, u) for u in uniforms} == {0, 10, 20, 30, 40, 50}
    assert method.prefix(3, 0, early, 0.999) == 3
    assert method.prefix(0, 0, early, 0.5) == 0


def test_prefix_rft_gives_a_shrinking_prefix_to_the_first_rollout_only():
    method = get_method("prefix-rft", {"prefix_high": None})
    lengths = [method.prefix(100, 0, Progress(step, 100), 0.5) for step in (0, 50, 99)]
    assert lengths == [95, 50, 5]
    assert [method.prefix(100, i, Progress(0, 100), 0.5) for i in (1, 7)] == [0, 0]


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 5.0)])
def test_prefix_rft_draws_the_share_between_schedule_and_upper_bound(a, b):
    method = get_method("prefix-rft", {"prefix_high": 0.9, "prefix_beta": (a, b)})
    uniforms = [(i + 0.5) / 4000 for i in range(4000)]
    lengths = np.array([method.prefix(1000, 0, Progress(50, 100), u) for u in uniforms]) / 1000
    drawn = stats.beta(a, b, loc=0.5, scale=0.4)
    assert lengths.min() >= 0.5 and lengths.max() <= 0.9
    assert stats.kstest(lengths, drawn.cdf).statistic < 0.01


def test_second_rounds_give_more_and_more_of_a_demonstration_and_end():
    rescue = get_method("ghpo").rescue
    assert [rescue(40, attempt, Progress(0, 1)) for attempt in range(4)] == [10, 20, 30, None]
    assert get_method("grpo").rescue is None


def test_batch_level_entropy_asks_for_a_pass_beforehand():
    assert not get_method("srft").needs_old
    assert get_method("srft", {"entropy_level": "batch"}).needs_old
    assert not get_method("grpo").needs_reference
    assert get_method("grpo", {"kl_coefficient": 0.1}).needs_reference


# Activity and numbers that must not spread.


def test_sequences_no_term_can_move_are_inactive():
    method = get_method("grpo")
    table = table_of(SEQS, method)
    assert active(method, table).tolist() == [True, True, False, False]
    with_kl = get_method("grpo", {"kl_coefficient": 0.1})
    assert active(with_kl, table_of(SEQS, with_kl)).tolist() == [True, True, False, True]
    # CHORD at mu = 1 trains demonstrations only.
    chord = get_method("chord", {"mu_start": 1.0})
    assert active(chord, table_of(SEQS, chord), Progress(0, 10)).tolist() == [
        False, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(METHODS))
def test_impossible_tokens_of_one_term_do_not_poison_another(name):
    """A demonstration the old policy found impossible must not turn rollouts' gradients into NaN."""
    seqs = [replace(q, old=[-1.5] * len(q.targets), reference=[-1.5] * len(q.targets))
            for q in SEQS]  # fmt: skip
    seqs[2].old = [-1e6] * 4
    seqs[2].reference = [-1e6] * 4
    loss, gradient, _ = run(get_method(name), seqs)
    assert math.isfinite(loss) and torch.isfinite(gradient).all()


def test_shaped_ratio_of_a_vanishing_probability_has_a_finite_gradient():
    seqs = [make(0, False, 0.0, 1), make(0, True, 1.0, 1)]
    seqs[1].logits = [[-800.0, 0.0, 0.0, 0.0]]
    loss, gradient, _ = run(get_method("luffy"), seqs)
    assert math.isfinite(loss) and torch.isfinite(gradient).all()


# Metrics.


def test_metrics_of_micro_batches_add_up_to_those_of_the_whole():
    method = get_method("srft-official")
    seqs = [replace(q, sampler=[-1.0] * len(q.targets)) for q in SEQS]
    _, _, whole = run(method, seqs)
    _, _, parts = run(method, seqs, cuts=[[0, 2], [], [1], [3]])
    assert all(part.keys() == whole[0].keys() for part in parts)
    expected = reduce_metrics(whole)
    assert reduce_metrics(parts) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert expected["tokens/demos"] == 4 and expected["tokens/rollouts"] == 7
    assert expected["loss"] == pytest.approx(
        sum(value for key, value in expected.items() if key.startswith("loss/"))
    )
    assert {"weight/sft", "weight/sft/max", "weight/sft/min", "weight/rl", "entropy/demos",
            "entropy/rollouts", "logprob/demos", "clip/low", "clip/high", "ratio/rollouts",
            "kl_old", "mismatch/abs"} <= set(expected)  # fmt: skip


def test_a_mean_over_nothing_is_left_out_of_the_metrics():
    _, _, metrics = run(get_method("srft"), [make(0, True, 1.0)])
    finished = reduce_metrics(metrics)
    assert "weight/rl" not in finished and "entropy/rollouts/max" not in finished
    assert all(math.isfinite(value) for value in finished.values())


def test_weight_metrics_are_the_weights():
    seqs = [make(0, False, 1.0), make(0, False, 0.0), make(0, True, 1.0)]
    for seq in seqs:
        seq.logits = [[0.0] * 4] * 2
    finished = reduce_metrics(run(get_method("srft"), seqs)[2])
    assert finished["weight/sft"] == pytest.approx(0.5 / 4)
    assert finished["weight/rl"] == pytest.approx(0.1 * 4)


# A method of one's own.


def test_a_term_and_a_method_can_be_added_without_touching_the_package():
    squared = Term(
        "squared",
        "sft",
        mask=lambda index, s: index.sequences.is_demo_S[index.sequence_T],
        loss=lambda batch, s: batch.logprob_T**2,
        active=lambda table, s: table.is_demo_S,
    )
    method = replace(get_method("sft"), name="squared", terms=(squared,))
    seqs = [make(0, True, 1.0, 2)]
    table = table_of(seqs, method)
    batch = batch_of(seqs, table, logits_of(seqs).requires_grad_())
    loss, _ = compute_loss(method, batch, counts(method, token_index(table)), Progress(0, 1))
    assert loss.item() == pytest.approx((batch.logprob_T**2).mean().item())


# The documentation.

DOCS = Path(__file__).parents[2] / "docs" / "objective.md"


def test_the_documented_example_of_a_new_method_runs():
    text = DOCS.read_text(encoding="utf-8").split("## How to add a method")[1]
    code = text.split("```python\n")[1].split("```")[0]
    before = set(METHODS)
    try:
        exec(compile(code, str(DOCS), "exec"), {})
        assert set(METHODS) - before == {"raft"}
    finally:
        for name in set(METHODS) - before:
            del METHODS[name]


def test_the_documented_table_holds_every_method():
    rows = [line.split("|")[1].strip() for line in DOCS.read_text(encoding="utf-8").splitlines()
            if line.startswith("| `")]  # fmt: skip
    assert {f"`{name}`" for name in METHODS} <= set(rows)


# A GPU, where there is one.


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_gpu_gives_the_cpu_s_loss_and_gradient(name):
    method = get_method(name)
    seqs = [replace(q, reference=[-1.0] * len(q.targets)) for q in SEQS]
    table = table_of(seqs, method)
    total = counts(method, token_index(table))
    results = []
    for device in ("cpu", "cuda"):
        logits = logits_of(seqs).to(device).requires_grad_()
        moved = replace(table, **{f.name: getattr(table, f.name).to(device) for f in fields(table)})
        batch = batch_of(seqs, moved, logits)
        loss, metrics = compute_loss(method, batch, total, Progress(0, 10))
        loss.backward()
        assert all(math.isfinite(x) for x in reduce_metrics([metrics]).values())
        results.append((loss.detach().cpu(), logits.grad.cpu()))
    torch.testing.assert_close(results[0], results[1])
