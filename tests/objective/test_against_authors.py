"""The authors' own loss functions as oracles, called where a copy of their files is at hand.

``SRFT_PEERS_DIR`` names a folder with LUFFY/mix_core_alg.py and HPT/mix_core_alg.py (``verl/mix_src`` of
ElliottYan/LUFFY and TsinghuaC3I/Unify-Post-Training) and RL-PLUS/rlplus_core_alg.py (``verl/recipe`` of
YihongDong/RL-PLUS). Nothing of them is in this repository; without the folder the tests are skipped.

Their sums over a constant length are not divided by the number of sequences, ours are, so losses are
compared times that number.
"""

import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from srft.objective.loss import compute_loss, counts
from srft.objective.method import Progress
from srft.objective.methods import get_method
from srft.objective.table import sequence_table, token_index
from srft.types import TokenBatch, TrainingSequence

LENGTHS, LONGEST = [5, 1, 3, 4, 2, 5], 6
DEMO = [False, False, True, False, True, False]
RIGHT = [True, False, True, False, True, True]


def authors(path):
    folder = os.environ.get("SRFT_PEERS_DIR")
    if not folder or not (Path(folder) / path).is_file():
        pytest.skip(f"SRFT_PEERS_DIR does not name a folder with {path}")
    functional = ModuleType("verl.utils.torch_functional")
    functional.masked_mean = lambda x, mask: (x * mask).sum() / mask.sum()
    utils, verl = ModuleType("verl.utils"), ModuleType("verl")
    utils.torch_functional, verl.utils = functional, utils
    modules = {"verl": verl, "verl.utils": utils, "verl.utils.torch_functional": functional}
    saved = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        spec = importlib.util.spec_from_file_location("authors_loss", Path(folder) / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for name, module_before in saved.items():
            if module_before is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module_before
    return module


def data():
    generator = torch.Generator().manual_seed(1)
    shape = (len(LENGTHS), LONGEST)
    logprob = -torch.randn(shape, generator=generator, dtype=torch.float64).abs()
    old = logprob + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    advantage = torch.tensor([1.2, -0.7, 0.6, -0.4, 0.9, -1.1], dtype=torch.float64)
    mask = torch.arange(LONGEST)[None] < torch.tensor(LENGTHS)[:, None]
    prefix = torch.tensor(DEMO)[:, None].expand(shape) & mask
    return logprob, old, advantage, mask, prefix


def theirs(function, **settings):
    """(loss, gradient at every token)."""
    logprob, old, advantage, mask, prefix = data()
    logprob = logprob.requires_grad_()
    found = function(
        old_log_prob=old, log_prob=logprob,
        advantages=advantage[:, None].expand_as(logprob) * mask, eos_mask=mask.double(),
        cliprange=0.2, clip_upper_bound=1.0, prefix_mask=prefix,
        loss_remove_token_mean=True, **settings,
    )  # fmt: skip
    found["pg_loss"].backward()
    return found["pg_loss"].item(), logprob.grad[mask]


def ours(name, **switches):
    logprob, old, advantage, mask, _ = data()
    sequences = [
        TrainingSequence((0,), (1,) * n, 0, is_demo=demo, reward=float(right), correct=right)
        for n, demo, right in zip(LENGTHS, DEMO, RIGHT, strict=True)
    ]
    method = get_method(name, switches, longest_response=LONGEST)
    index = token_index(replace(sequence_table(sequences), advantage_S=advantage))
    lp_T = logprob[mask].requires_grad_()
    entropy_T = torch.zeros_like(lp_T).detach()
    batch = TokenBatch(index, lp_T, entropy_T, entropy_T, old[mask], entropy_T)
    method = replace(method, terms=tuple(t for t in method.terms if t.source == "rl"))
    loss, _ = compute_loss(method, batch, counts(method, index), Progress(0, 1))
    (loss * len(LENGTHS)).backward()
    return loss.item() * len(LENGTHS), lp_T.grad


def check(expected, found):
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("clip", [False, True])
def test_luffy_is_the_authors_function(clip):
    module = authors("LUFFY/mix_core_alg.py")
    expected = theirs(
        module.compute_token_on_off_policy_loss, off_cliprange=None,
        off_policy_reshape="p_div_p_0.1", loss_remove_clip=not clip,
    )  # fmt: skip
    check(expected, ours("luffy", clip=clip, entropy_coefficient=0.0))


def test_rl_plus_is_the_authors_function():
    module = authors("RL-PLUS/rlplus_core_alg.py")
    expected = theirs(
        module.compute_token_on_off_policy_loss, off_policy_strategy="RL-PLUS",
        loss_remove_clip=True,
    )  # fmt: skip
    check(expected, ours("rl-plus", entropy_coefficient=0.0))


@pytest.mark.parametrize("kind", ["logprob", "probability", "ratio", "log-ratio"])
def test_the_hpt_repository_s_srft_is_the_authors_function(kind):
    module = authors("HPT/mix_core_alg.py")
    expected = theirs(
        module.compute_token_on_off_policy_srft_loss, off_cliprange=None, loss_remove_clip=True,
        srft_type={"probability": "exp", "ratio": "classic_rl", "log-ratio": "minus_old"}.get(kind),
        on_coef=torch.full((len(LENGTHS),), 0.1, dtype=torch.float64),  # 0.1 exp(H) at H = 0
        correct_answer_mask=torch.tensor(RIGHT),
    )  # fmt: skip
    found = ours("srft-hpt", literal_score=kind, shared_count=True, entropy_coefficient=0.0)
    check(expected, found)
