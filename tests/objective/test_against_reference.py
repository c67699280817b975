"""The package against the slow reference: losses, gradients, advantages, cuts, on random batches."""

import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.objective.builders import batch_of, index_of, run, table_of
from tests.objective.reference import Objective, Seq, advantages, entropy_of

from srft.objective.loss import active, compute_loss, counts
from srft.objective.method import Progress
from srft.objective.methods import METHODS, get_method, switches_read
from srft.objective.switches import Switches
from srft.objective.table import token_index

V = 5
PROPERTY = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

# Values to set switches to. Those a method does not read, it refuses; they are left out.
OVERRIDES = {
    "average": ["token", "sequence", "constant"],
    "sft_average": [None, "token", "sequence", "constant"],
    "constant_length": [1, 7, 64],
    "entropy_level": ["sequence", "batch"],
    "sft_entropy_sign": [-1, 0, 1],
    "rl_entropy_sign": [0, 1, -1],
    "weight_cap": [None, 0.3],
    "rollout_term": ["surrogate", "literal"],
    "literal_score": ["logprob", "probability", "ratio", "log-ratio"],
    "literal_means": ["joint", "separate"],
    "ratio_level": ["token", "sequence"],
    "clip": [False, True],
    "clip_low": [0.1, 0.2, 1.0],
    "clip_high": [0.1, 0.28],
    "ratio_cap": [None, 1.5],
    "importance_cap": [None, 1.1, 2.0],
    "mask_truncated": [False, True],
    "demo_ratio": ["probability", "shaped", "mixture", "one"],
    "baseline": ["group", "leave-one-out", "none"],
    "normalize_std": [False, True],
    "std": ["sample", "population"],
    "advantage_epsilon": [0.0, 1e-6, 1e-4],
    "demos_in_group": [False, True],
    "kl_coefficient": [0.0, 0.05],
    "kl_estimator": ["k1", "k2", "k3", "k3-ratio"],
    "entropy_coefficient": [0.0, 0.01],
    "entropy_tokens": ["rollouts", "all"],
    "entropy_target": [None, 0.7],
    "weight_sft": [0.0, 1.0, 2.0],
    "weight_demo_rl": [0.0, 1.0],
    "weight_rollout": [0.0, 1.0],
    "mu_warmup": [0.0, 0.3],
    "prefix_entropy_share": [0.2, 0.5, 1.0],
    "prefix_entropy_scope": ["sequence", "batch"],
    "importance_level": ["sequence", "geometric"],
    "importance_mode": ["mask"],
    "importance_floor": [0.5],
    "shared_count": [True, False],
    "demo_focus": [0.0, 0.5, 1.0],
    "weight_distill": [0.0, 0.5, 1.0],
    "weight_distill_demo": [0.0, 0.3],
    "distill_form": ["sampled", "full"],
    "distill_beta": [0.0, 0.3, 0.5, 1.0],
    "distill_top_k": [None, 1, 3, 5],
    "distill_clip": [None, 0.4],
    "rlsd_mix": [0.0, 0.5, 1.0],
    "rlsd_clip": [0.2, 2.0],
}


@st.composite
def sequences(draw, prefixes=False):
    """Some prompts, each with 0 to 4 rollouts and 0 to 2 demonstrations; at least one sequence."""
    result = []
    # Structure is hypothesis's to shrink; the numbers come from one seed, which is quicker.
    rng = random.Random(draw(st.integers(0, 2**32)))
    pattern = draw(st.sampled_from(["mixed", "all right", "all wrong", "graded"]))
    for group in range(draw(st.integers(1, 3))):
        for demo, most in ((False, 4), (True, 2)):
            for _ in range(draw(st.integers(0, most))):
                result.append(_sequence(draw, rng, group, demo, pattern, prefixes))
    if not result:
        result.append(_sequence(draw, rng, 0, draw(st.booleans()), pattern, prefixes))
    rng.shuffle(result)
    return result


def _sequence(draw, rng, group, demo, pattern, prefixes):
    length = draw(st.integers(1, 5))
    if pattern == "mixed":
        reward = 1.0 if demo else float(rng.randint(0, 1))
    elif pattern == "graded":
        reward = rng.randint(-8, 8) / 8
    else:
        reward = float(pattern == "all right")
    logits = [[rng.uniform(-3, 3) for _ in range(V)] for _ in range(length)]
    targets = [rng.randrange(V) for _ in range(length)]
    lp = [z[y] - math.log(sum(map(math.exp, z))) for z, y in zip(logits, targets, strict=True)]

    def moved(values):
        return [x + rng.uniform(-1, 1) for x in values]

    old = moved(lp)
    return Seq(
        group=group,
        demo=demo,
        reward=reward,
        correct=reward > 0.5,
        targets=targets,
        logits=logits,
        truncated=not demo and rng.random() < 0.4,
        prefix=rng.randint(0, length) if prefixes and not demo else 0,
        old=old,
        old_entropy=[abs(h) for h in moved(map(entropy_of, logits))],
        reference=moved(lp),
        sampler=moved(old),
        teacher=[[rng.uniform(-3, 3) for _ in range(V)] for _ in range(length)]
        if rng.random() < 0.7
        else [],
        masked=[rng.random() < 0.3 for _ in range(length)] if rng.random() < 0.3 else [],
    )


@st.composite
def cases(draw, name=""):
    """(method, sequences, progress, batch entropy); any method where none is named."""
    name = name or draw(st.sampled_from(sorted(METHODS)))
    method = draw(methods(name))
    seqs = draw(sequences(prefixes=name in ("uft", "prefix-rft")))
    if draw(st.integers(0, 2)) == 0:  # one optimizer step: the old policy is the current one
        for seq in seqs:
            seq.old = []
    total = draw(st.integers(1, 20))
    entropy = draw(st.sampled_from([None, 0.5, 2.0]))
    progress = Progress(draw(st.integers(0, total - 1)), total, entropy)
    return method, seqs, progress, draw(st.sampled_from([(0.4, 1.1), (1.3, 0.2)]))


@st.composite
def methods(draw, name):
    """The method with about half of its switches set at random."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    defaults, chosen = METHODS[name].defaults, {}
    for key in ("rollout_term", *OVERRIDES):  # it decides which others are read
        read = switches_read(name, Switches(**{**defaults, **chosen}))
        if key in read and rng.random() < 0.5:
            chosen[key] = rng.choice(OVERRIDES[key])
    read = switches_read(name, Switches(**{**defaults, **chosen}))
    kept = {key: value for key, value in chosen.items() if key in read}
    return get_method(name, kept, longest_response=16)


def objective(case):
    method, seqs, progress, batch_entropy = case
    return Objective(
        method.name,
        method.switches.model_dump(),
        seqs,
        progress.step,
        progress.total,
        progress.entropy,
        batch_entropy,
    )


def flatten(gradient):
    return torch.tensor([z for rows in gradient for z in rows], dtype=torch.float64)


pytestmark = pytest.mark.filterwarnings("ignore:.*has no effect")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_counts_loss_and_gradient_at_every_logit_equal_the_reference(name):
    """Of each method as many as its switches need; drawn among all methods, some would hardly be seen."""
    examples = 60 if name in ("srft", "prefix-rft") else 20
    settings(PROPERTY, max_examples=examples)(given(cases(name))(compare))()


def compare(case):
    method, seqs, progress, batch_entropy = case
    slow = objective(case)
    found = counts(method, index_of(seqs, table_of(seqs, method)))
    assert list(found.values()) == [slow.count(term) for term in slow.terms()]
    expected_loss, expected_gradient = slow.run()
    loss, gradient, _ = run(method, seqs, progress, batch_entropy=batch_entropy)
    assert loss == pytest.approx(expected_loss, rel=1e-9, abs=1e-10)
    torch.testing.assert_close(gradient, flatten(expected_gradient), rtol=1e-8, atol=1e-10)


@settings(PROPERTY, max_examples=60)
@given(cases(), st.sampled_from([1, 2, 7]), st.randoms(use_true_random=False))
def test_cutting_into_micro_batches_changes_nothing(case, parts, random):
    method, seqs, progress, batch_entropy = case
    whole_loss, whole, _ = run(method, seqs, progress, batch_entropy=batch_entropy)
    cuts = [[] for _ in range(parts)]
    for i in range(len(seqs)):
        random.choice(cuts).append(i)
    loss, gradient, _ = run(method, seqs, progress, cuts, batch_entropy)
    assert loss == pytest.approx(whole_loss, rel=1e-11, abs=1e-12)
    torch.testing.assert_close(gradient, whole, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_leaving_out_inactive_sequences_changes_nothing(name):
    settings(PROPERTY, max_examples=20)(given(cases(name))(compare_without_inactive))()


def compare_without_inactive(case):
    method, seqs, progress, batch_entropy = case
    everything = run(method, seqs, progress, batch_entropy=batch_entropy)
    fewer = run(method, seqs, progress, batch_entropy=batch_entropy, drop_inactive=True)
    torch.testing.assert_close(fewer[1], everything[1], rtol=1e-11, atol=1e-14)


@settings(PROPERTY, max_examples=80)
@given(sequences(), methods("srft"))
def test_advantages_equal_the_reference_and_are_exactly_zero_in_constant_groups(seqs, method):
    table = table_of(seqs, method)
    expected = advantages(seqs, method.switches.model_dump())
    assert table.advantage_S.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    if method.switches.baseline == "none":
        return
    for group in {q.group for q in seqs if not q.demo}:
        members = [
            i
            for i, q in enumerate(seqs)
            if q.group == group and (method.switches.demos_in_group or not q.demo)
        ]
        if len({seqs[i].reward for i in members}) == 1:
            assert all(table.advantage_S[i].item() == 0.0 for i in members)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_demonstrations_and_rollouts_in_separate_micro_batches(name):
    generator = torch.Generator().manual_seed(0)

    def seq(group, demo, reward, length):
        logits = torch.randn(length, V, generator=generator, dtype=torch.float64).tolist()
        reference = [-1.0] * length
        return Seq(group, demo, reward, reward > 0.5, [1] * length, logits, reference=reference)

    seqs = [seq(0, False, 1, 3), seq(0, False, 0, 2), seq(0, True, 1, 4), seq(1, False, 0, 2)]
    method = get_method(name)
    demos, rollouts = [2], [0, 1, 3]
    _, whole, _ = run(method, seqs)
    _, apart, _ = run(method, seqs, cuts=[demos, [], rollouts])
    torch.testing.assert_close(apart, whole, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_micro_batch_of_nothing_is_an_exact_zero_with_a_gradient_path(name):
    method = get_method(name)
    seqs = [Seq(0, False, 1.0, True, [1], [[0.0] * V], reference=[-1.0])]
    logits = torch.zeros(0, V, dtype=torch.float64, requires_grad=True)
    table = table_of([], method)
    batch = batch_of([], table, logits, method=method)
    if method.needs_reference:
        batch = replace(batch, reference_logprob_T=torch.zeros(0, dtype=torch.float64))
    total = counts(method, token_index(table_of(seqs, method)))
    loss, _ = compute_loss(method, batch, total, Progress(0, 10))
    loss.backward()
    assert loss.item() == 0.0 and logits.grad is not None
    assert active(method, table).shape == (0,)
