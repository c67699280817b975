"""TRL's GRPOTrainer as an oracle: its own loss code, on log-probabilities we hand to it.

``GRPOTrainer._compute_loss`` is called unbound on a stub that carries the settings it reads; the
model is replaced by given log-probabilities, so that gradients can be compared at every token.
Compared: grpo, bnpo, dr_grpo, dapo and cispo, token- and sequence-level ratios (GSPO), the
asymmetric and the two-sided clip, the KL term with and without TRL's correction, truncated importance
sampling, the entropy bonus and its coefficient. Not compared: TRL's advantages (they are computed inside
the method that also samples; the formula is checked in test_against_reference.py), truncated completions
(there too) and anything about demonstrations, which TRL does not have.
"""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from srft.objective.loss import compute_loss, counts
from srft.objective.method import Progress
from srft.objective.methods import get_method
from srft.objective.table import sequence_table, token_index
from srft.types import TokenBatch, TrainingSequence

grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed")

LENGTHS = [5, 1, 3, 4, 2, 5]
LONGEST = 5


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def noise(scale):
        return scale * torch.randn(len(LENGTHS), LONGEST, generator=generator, dtype=torch.float64)

    logprob = -noise(1).abs()
    old = logprob + noise(0.4)
    return SimpleNamespace(
        logprob=logprob,
        old=old,
        reference=logprob + noise(0.5),
        sampler=old + noise(0.3),
        entropy=noise(1).abs(),
        advantage=torch.tensor([1.2, -0.7, 0.0, -0.4, 0.9, -1.1], dtype=torch.float64),
        mask=torch.arange(LONGEST)[None] < torch.tensor(LENGTHS)[:, None],
    )


def trl_loss(d, *, loss_type, level="token", low=0.2, high=0.2, delta=None, beta=0.0, cap=None,
             bonus=0.0, corrected=False):  # fmt: skip
    """(loss, gradient of every log-probability, gradient of every entropy) of TRL."""
    logprob = d.logprob.clone().requires_grad_()
    entropy = d.entropy.clone().requires_grad_()
    accelerator = SimpleNamespace(
        num_processes=1,
        sync_gradients=True,
        gather=lambda x: x.reshape(-1),
        reduce=lambda x, reduction: x,
    )
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprob, entropy, None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        loss_type=loss_type,
        epsilon_low=low,
        epsilon_high=high,
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=corrected, steps_per_generation=1),
        use_vllm=cap is not None,
        vllm_importance_sampling_correction=cap is not None,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        accelerator=accelerator,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=bonus > 0,
        use_adaptive_entropy=False,
        entropy_coef=bonus,
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(len(LENGTHS), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(LENGTHS), 1, dtype=torch.int64),
        "completion_ids": torch.zeros(len(LENGTHS), LONGEST, dtype=torch.int64),
        "completion_mask": d.mask.long(),
        "advantages": d.advantage,
        "old_per_token_logps": d.old,
        "ref_per_token_logps": d.reference,
        "num_items_in_batch": d.mask.sum(),
    }
    if cap is not None:
        inputs["importance_sampling_ratio"] = torch.exp(d.old - d.sampler).clamp(max=cap)
    loss = grpo_trainer.GRPOTrainer._compute_loss(stub, None, inputs)
    loss.backward()
    entropy_gradient = torch.zeros_like(entropy) if entropy.grad is None else entropy.grad
    return loss.item(), logprob.grad, entropy_gradient


def our_loss(d, name, overrides):
    sequences = [TrainingSequence((0,), (1,) * n, 0, False, 0.0, False) for n in LENGTHS]
    index = token_index(replace(sequence_table(sequences), advantage_S=d.advantage))
    logprob = d.logprob.clone().requires_grad_()
    entropy = d.entropy.clone().requires_grad_()
    batch = TokenBatch(
        index=index,
        logprob_T=logprob[d.mask],
        entropy_T=entropy[d.mask].detach(),
        entropy_grad_T=entropy[d.mask],
        old_logprob_T=d.old[d.mask],
        old_entropy_T=d.entropy[d.mask],
        reference_logprob_T=d.reference[d.mask],
        sampler_logprob_T=d.sampler[d.mask],
    )
    method = get_method(name, overrides, longest_response=LONGEST)
    loss, _ = compute_loss(method, batch, counts(method, index), Progress(0, 1))
    loss.backward()
    entropy_gradient = torch.zeros_like(entropy) if entropy.grad is None else entropy.grad
    return loss.item(), logprob.grad, entropy_gradient


CASES = {
    "grpo": ({"loss_type": "grpo"}, "grpo", {}),
    "bnpo": ({"loss_type": "bnpo"}, "grpo", {"average": "token"}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, "dr-grpo", {}),
    "dapo": ({"loss_type": "dapo", "high": 0.28}, "dapo", {}),
    # TRL's epsilon_high is the cap itself in CISPO, ours is the distance from 1.
    "cispo": ({"loss_type": "cispo", "high": 1.3}, "cispo", {"clip_high": 0.3}),
    "gspo": (
        {"loss_type": "grpo", "level": "sequence", "low": 0.05, "high": 0.1},
        "gspo", {"clip_low": 0.05, "clip_high": 0.1},
    ),
    "gspo, token mean": (
        {"loss_type": "dapo", "level": "sequence"},
        "gspo", {"clip_low": 0.2, "clip_high": 0.2, "average": "token"},
    ),
    "two-sided clip": ({"loss_type": "grpo", "delta": 1.4}, "grpo", {"ratio_cap": 1.4}),
    "kl": ({"loss_type": "dapo", "beta": 0.1, "high": 0.28}, "dapo", {"kl_coefficient": 0.1}),
    "kl, sequence mean": ({"loss_type": "grpo", "beta": 0.1}, "grpo", {"kl_coefficient": 0.1}),
    "kl, corrected": (
        {"loss_type": "grpo", "beta": 0.1, "corrected": True},
        "grpo", {"kl_coefficient": 0.1, "kl_estimator": "k3-ratio"},
    ),
    "kl, corrected by the sequence's ratio": (
        {"loss_type": "dapo", "beta": 0.1, "corrected": True, "level": "sequence"},
        "gspo", {"clip_low": 0.2, "clip_high": 0.2, "average": "token", "kl_coefficient": 0.1,
                 "kl_estimator": "k3-ratio"},
    ),
    "importance sampling": ({"loss_type": "grpo", "cap": 1.2}, "grpo", {"importance_cap": 1.2}),
    "entropy bonus": (
        {"loss_type": "dr_grpo", "bonus": 0.02}, "dr-grpo", {"entropy_coefficient": 0.02},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradients_equal_trl_s(case, seed):
    trl_settings, name, overrides = CASES[case]
    d = data(seed)
    expected = trl_loss(d, **trl_settings)
    found = our_loss(d, name, overrides)
    assert found[0] == pytest.approx(expected[0], abs=1e-9)
    torch.testing.assert_close(found[1], expected[1] * d.mask, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found[2], expected[2] * d.mask, rtol=1e-7, atol=1e-9)
    assert expected[1].abs().sum() > 0
