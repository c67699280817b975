"""Log-probability and entropy of the response tokens of packed sequences under a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import PreTrainedTokenizerBase

from srft.data.packing import PackedBatch, pack
from srft.errors import ModelError
from srft.model.fast import uncompiled
from srft.model.head import fused_logprob_entropy
from srft.model.output_head import body, output_head, unwrap
from srft.model.packed_attention import packed_layout, packs
from srft.types import TrainingSequence


@dataclass(frozen=True)
class TokenScores:
    """logprob_T and entropy_T (nats, float32): of each response token, and of the distribution it
    was predicted from. Both carry gradient outside ``no_grad``."""

    logprob_T: Tensor
    entropy_T: Tensor


def score(
    model: nn.Module,
    packed: PackedBatch,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    chunk_vocab: int | None = None,
) -> TokenScores:
    """Score the response tokens of ``packed``, which lies on the model's device.

    The body runs once over the N packed tokens (or over a right-padded batch, where the model does
    not pack); the output head sees the T hidden states that predict response tokens, and logits
    never exist as a whole. Works with tied and untied heads, under adapters, with gradient
    checkpointing, sharded by FSDP2 and under ``no_grad``. ``temperature`` divides the logits. The
    chunk sizes are those of :func:`srft.model.head.fused_logprob_entropy`.
    """
    run: Callable[..., tuple[Tensor, Tensor]] = partial(_score, model)
    if isinstance(model, FSDPModule):
        run = _through_fsdp(model)
    return TokenScores(
        *run(
            packed,
            temperature=temperature,
            chunk_tokens=chunk_tokens,
            chunk_vocab=chunk_vocab,
        )
    )


def _score(model: nn.Module, packed: PackedBatch, **options: Any) -> tuple[Tensor, Tensor]:
    hidden = _hidden_packed if packs(unwrap(model)) else _hidden_padded
    head = output_head(model)
    return fused_logprob_entropy(
        hidden(model, packed),
        head.weight,
        packed.target_T,
        bias_V=head.bias,
        softcap=head.softcap,
        logit_scale=head.logit_scale,
        kernels=head.kernels,
        **options,
    )


def _through_fsdp(model: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """``_score`` as a method that FSDP treats like ``forward``: the body and the head are used
    apart here, and the root gathers the weights outside its layers only around such a method."""
    if not hasattr(model, "srft_score"):
        model.srft_score = MethodType(_score, model)
        register_fsdp_forward_method(model, "srft_score")
    return model.srft_score


def _hidden_packed(model: nn.Module, packed: PackedBatch) -> Tensor:
    output = body(model)(
        input_ids=packed.input_ids_N[None],
        attention_mask=packed_layout(packed.cu_seqlens, packed.expand_P).mask(),
        position_ids=packed.position_ids_N[None],
        use_cache=False,
    )
    return output.last_hidden_state[0].index_select(0, packed.predict_T)


def _hidden_padded(model: nn.Module, packed: PackedBatch) -> Tensor:
    assert packed.expand_P is None, "prompts are shared in packed rows only"
    device = packed.input_ids_N.device
    starts = packed.cu_seqlens[:-1].long()
    lengths = packed.cu_seqlens.diff().long()
    row_N = torch.arange(len(starts), device=device).repeat_interleave(lengths)
    place_N = row_N * packed.max_length + packed.position_ids_N
    shape = (len(starts), packed.max_length)
    input_ids = torch.zeros(shape, dtype=torch.int64, device=device)
    input_ids.view(-1)[place_N] = packed.input_ids_N
    attention_mask = torch.zeros(shape, dtype=torch.int64, device=device)
    attention_mask.view(-1)[place_N] = 1
    output = body(model)(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return output.last_hidden_state.flatten(0, 1).index_select(0, place_N[packed.predict_T])


# (prompt, response) lengths of the self-check: a single token's prompt, a single token's response,
# two of one length, and enough tokens for a wrong mask to show.
_CHECK_LENGTHS = ((1, 6), (9, 1), (5, 12), (7, 10), (3, 40))


def check_scoring(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> float:
    """Compare ``score`` with the log-softmax of the model's own logits; the largest difference.

    A few short random sequences are scored together in one pack and one by one through the whole
    model. Run once at start-up, under the same autocast as training: it protects against models
    whose forward pass does something this package does not know of.

    Raises ModelError, naming the model type and the difference, where log-probabilities or
    entropies do not agree to rounding.
    """
    base = unwrap(model)
    sequences = _random_sequences(min(len(tokenizer), output_head(model).weight.shape[0]))
    (packed,) = pack(sequences, None, 10_000, base.device, share_prompts=packs(base))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            worst = _worst_difference(model, sequences, packed)
    except Exception as error:
        # A configuration that does not fit the weights fails in any line of the model's own code.
        raise ModelError(
            f"the forward pass of model type {base.config.model_type!r} fails: "
            f"{type(error).__name__}: {error}. Check its config.json, or set model.attention=padded"
        ) from error
    finally:
        model.train(was_training)
    tolerance = _tolerance(base)
    if not worst <= tolerance:
        kind = base.config.model_type
        raise ModelError(
            f"scores of model type {kind!r} differ from its own logits by {worst:.2e} nats "
            f"(allowed: {tolerance:.0e}): its forward pass does something that packed scoring does "
            "not honour. "
            + (
                "Set model.attention=padded"
                if packs(base)
                else "This model cannot be trained with this package"
            )
        )
    return worst


def _random_sequences(vocabulary: int) -> list[TrainingSequence]:
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (count,), generator=draw).tolist())

    pairs = [(tokens(p), tokens(r)) for p, r in _CHECK_LENGTHS]
    pairs.append((pairs[0][0], tokens(3)))  # a group of two, which may share its prompt
    return [
        TrainingSequence(prompt, response, group=0, is_demo=False, reward=0.0, correct=False)
        for prompt, response in pairs
    ]


def _tolerance(model: Any) -> float:
    """Rounding of half precision moves single log-probabilities by tenths of a nat."""
    dtype = getattr(model, "srft_gather_dtype", None) or model.dtype
    half = dtype in (torch.bfloat16, torch.float16)
    return 0.5 if half or torch.is_autocast_enabled(model.device.type) else 5e-4


def _worst_difference(
    model: nn.Module, sequences: Sequence[TrainingSequence], packed: PackedBatch
) -> float:
    scores = score(model, packed)
    device = packed.input_ids_N.device
    logprobs, entropies = [], []
    for row in packed.rows:
        prompt, response = sequences[row].prompt_ids, sequences[row].response_ids
        input_ids = torch.tensor([[*prompt, *response]], device=device)
        with uncompiled(model):
            logits = model(input_ids=input_ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        logp = logits.float().log_softmax(dim=-1)
        target = torch.tensor(response, device=device)
        logprobs.append(logp.gather(1, target[:, None])[:, 0])
        entropies.append(-(logp.exp() * logp).sum(dim=-1))
    difference_T = torch.cat(
        [
            scores.logprob_T - torch.cat(logprobs),
            scores.entropy_T - torch.cat(entropies),
        ]
    )
    return float(difference_T.abs().max())
