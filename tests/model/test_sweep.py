"""A few of the sweep's types, one for each way of running; `python -m tests.model.sweep` runs all."""

from __future__ import annotations

import pytest
from tests.model.sweep import page
from tests.model.sweep.checks import NATS, VOCABULARY, _saved, _trainer, examine, trained_gap
from tests.model.sweep.tiny import architectures, tiny_model
from tests.model.sweep.variants import VARIANTS

# Type, rows, sampler: windows beside full attention, sinks and experts, latent attention, linear attention,
# state space, ALiBi, chunks of attention, a table of positions.
SOME = {
    "gemma3_text": ("packed", "embedded"),
    "gpt_oss": ("packed", "generate"),
    "deepseek_v3": ("packed", "generate"),
    "qwen3_next": ("padded", "generate"),
    "mamba2": ("padded", "generate"),
    "falcon, ALiBi": ("padded", "generate"),
    "llama4_text": ("padded", "generate"),
    "gpt2": ("packed", "embedded"),
}


@pytest.mark.parametrize("kind", SOME)
def test_scores_samples_and_gradients_are_the_models_own(kind, tmp_path):
    report = examine(kind, tmp_path, quick=True)
    assert (report.outcome, report.failures) == ("exact", {}), report.reason
    assert (report.rows, report.sampler) == SOME[kind]


def test_weights_that_rwkv_divides_to_sample_are_exported_as_they_were_trained(tmp_path):
    base = _saved(tiny_model("rwkv", VOCABULARY, rescale_every=1), tmp_path / "base")
    assert trained_gap(_trainer(base, tmp_path / "run")) < NATS


def test_what_is_wrong_about_biases_shows_while_they_are_still_zero(tmp_path):
    """Padding gets into Mamba's state through them, so prompts of different lengths are to run apart."""
    model = tiny_model("falcon_mamba", VOCABULARY, use_bias=True)
    zero = [n for n, p in model.named_parameters() if not p.any()]
    assert zero
    trainer = _trainer(_saved(model, tmp_path / "base"), tmp_path / "run")
    assert not trainer.setup.engine.pads
    assert [n for n, p in trainer.model.named_parameters() if not p.any()] == zero


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bert", "cannot be trained with this package"),
        ("xlnet", "not a causal language model"),
        ("blip-2", "fails on tokens alone"),
        ("pi0", "generates no text"),
        ("pp_formulanet", "embeds no tokens"),
    ],
)
def test_what_is_no_causal_language_model_is_refused_with_the_reason(kind, reason, tmp_path):
    report = examine(kind, tmp_path, quick=True)
    assert report.outcome == "refused" and reason in report.reason


def test_every_type_of_the_installed_transformers_is_on_the_page_and_none_fails():
    listed = page.listed()
    assert {*architectures(), *VARIANTS} <= listed.keys(), "run `python -m tests.model.sweep`"
    failed = {kind for kind, found in listed.items() if not found or "failed" in found}
    assert not failed
