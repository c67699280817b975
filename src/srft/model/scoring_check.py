"""Proving at start-up that our scores are those of the model's own forward pass."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from srft.data.packing import PackedBatch, pack
from srft.errors import ModelError
from srft.model.fast import uncompiled
from srft.model.loading import autocast_dtype
from srft.model.output_head import (
    attention_configs,
    output_head,
    trained_beyond_head,
    unwrap,
)
from srft.model.packed_attention import use_padded_attention
from srft.model.policy import Policy
from srft.types import TrainingSequence

logger = logging.getLogger(__name__)

# (prompt, response) lengths of the self-check: a single token's prompt, a single token's response,
# two of one length, and enough tokens for a wrong mask to show.
_CHECK_LENGTHS = ((1, 6), (9, 1), (5, 12), (7, 10), (3, 40))

_CHECK_WINDOW = 4
_FILL = 0.1
_FEW = 6
_WINDOWS = (
    *("sliding_window", "attention_chunk_size", "sliding_window_size", "local_attention"),
    *("attention_window_size", "window_size"),
)  # fmt: skip


@contextmanager
def telling(model: nn.Module) -> Iterator[None]:
    """``model`` with windows and chunks of ``_CHECK_WINDOW`` tokens where it has some, so that a few
    tokens show what happens beyond them, and different numbers in trained parameters that are one
    number throughout (biases and adapters of zeros, norms of ones), so that what is wrong about them
    shows before they are trained; these in float32 alone, because the rounding of half precision can be
    nats there."""
    rounds = torch.is_autocast_enabled(next(model.parameters()).device.type)
    parameters = () if rounds else model.parameters()
    constant = [(p, float(p.detach().flatten()[0])) for p in parameters if _is_constant(p)]
    before: list[tuple[Any, str, int]] = []
    for holder in (*attention_configs(model), *model.modules()):
        for name in _WINDOWS:
            size = vars(holder).get(name)
            if isinstance(size, int) and size > _CHECK_WINDOW:
                before.append((holder, name, size))
                setattr(holder, name, _CHECK_WINDOW)
    try:
        for p, number in constant:
            p.data.copy_(number + torch.linspace(-_FILL, _FILL, p.numel()).view_as(p))
        yield
    finally:
        for p, number in constant:
            p.data.fill_(number)
        for holder, name, size in before:
            setattr(holder, name, size)


def _is_constant(p: nn.Parameter) -> bool:
    if isinstance(p, DTensor) or not p.requires_grad or p.dtype != torch.float32 or not p.numel():
        return False
    flat = p.flatten()
    return bool(flat[0] == flat[-1]) and bool((flat == flat[0]).all())


def check_scoring(policy: Policy) -> float:
    """Compare ``Policy.score`` with the log-softmax of the model's own logits; the largest difference.

    A few short random sequences, longer than its windows are made meanwhile, are scored together in
    one pack and one by one through the whole model. Run once at start-up: it protects against models
    whose forward pass does something this package does not know of. Where packed rows do not agree and
    the recipe leaves the choice, the model is given padded ones, with a warning.

    Raises ModelError, naming the model type and the difference, where log-probabilities or
    entropies do not agree to rounding.
    """
    with _named_failure(policy):
        _check_head(policy)
    try:
        return _difference(policy)
    except ModelError as error:
        if not policy.shares_prompts or policy.config.attention != "auto":
            raise
        logger.warning("model.attention=padded is used, without shared prompts: %s", error)
    use_padded_attention(policy.model)
    if policy.reference is not None:
        frozen: Any
        with policy.reference() as frozen:
            use_padded_attention(frozen)
    return _difference(policy)


@contextmanager
def _named_failure(policy: Policy) -> Iterator[None]:
    """A configuration that does not fit the weights fails in any line of the model's own code."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        hint = ", or set model.attention=padded" if policy.shares_prompts else ""
        raise ModelError(
            f"the forward pass of model type {unwrap(policy.model).config.model_type!r} fails on "
            f"tokens alone: {type(error).__name__}: {error}. Check its config.json{hint}"
        ) from error


def _check_head(policy: Policy) -> None:
    """Raise ModelError where the model's own logits depend on parameters to be trained that scoring does
    not reach. As they begin (a scale of one, say), they may not show in any log-probability."""
    base = unwrap(policy.model)
    beyond = dict.fromkeys(trained_beyond_head(base))
    if not beyond:
        return
    parameters = [p for name, p in base.named_parameters() if name in beyond]
    with torch.enable_grad():
        logits = _own_logits(policy, torch.tensor([[1, 2, 3]], device=base.device))
        grads = torch.autograd.grad(logits.float().sum(), parameters, allow_unused=True)
    used = [name for name, grad in zip(beyond, grads, strict=True) if grad is not None]
    if used:
        raise ModelError(
            f"model type {base.config.model_type!r} cannot be trained with this package: what follows its "
            f"last layer is more than one linear layer, {', '.join(used[:3])} are part of it too"
        )


def _difference(policy: Policy) -> float:
    """In float32 as well where the policy has such weights and computes in bfloat16."""
    lora = policy.config.lora
    twice = autocast_dtype(policy.config, policy.device) and not (lora and lora.quantization)
    if twice:
        _compared(_exact(policy))
    return _compared(policy, causal=not twice)


def _exact(policy: Policy) -> Policy:
    return replace(policy, config=policy.config.model_copy(update={"autocast": "float32"}))


def _compared(policy: Policy, causal: bool = True) -> float:
    model, base = policy.model, unwrap(policy.model)
    sequences = _random_sequences(min(len(policy.tokenizer), output_head(model).weight.shape[0]))
    (packed,) = pack(sequences, None, 10_000, base.device, share_prompts=policy.shares_prompts)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), ExitStack() as stack, _named_failure(policy):
            with policy.compute():
                stack.enter_context(telling(base))
            if causal:  # in float32 whatever the policy computes in, so once is enough
                _check_causal(policy, sequences, base.device)
            worst, size = _worst_difference(policy, sequences, packed)
    finally:
        model.train(was_training)
    tolerance = _tolerance(policy, size)
    if not worst <= tolerance:
        kind = base.config.model_type
        raise ModelError(
            f"scores of model type {kind!r} differ from its own logits by {worst:.2e} nats "
            f"(allowed: {tolerance:.0e}): its forward pass does something that packed scoring does "
            "not honour. "
            + (
                "Set model.attention=padded"
                if policy.shares_prompts
                else "It cannot be trained with this package: what follows its last layer is more than "
                "one linear layer, or it attends to later tokens or to padding"
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


def _tolerance(policy: Policy, size: float) -> float:
    """Rounding of half precision moves single log-probabilities by tenths of a nat, and it grows with them:
    ``size`` is their usual one (``_size``)."""
    half = (torch.bfloat16, torch.float16)
    usual = 0.5 if any(dtype in half for dtype in policy.computes_in()) else 5e-4
    return usual * max(1.0, size / 25)


def _size(logprobs: Tensor) -> float:
    """The median size of log-probabilities, in nats; below 25 for most models. Not the largest: a class may
    set the logits of some tokens to the least number there is."""
    return float(logprobs.abs().nan_to_num(0.0).median())


def _own_logits(policy: Policy, input_ids: Tensor) -> Tensor:
    with policy.compute(), uncompiled(policy.model):
        logits: Tensor = policy.model(input_ids=input_ids, use_cache=False).logits
    return logits


def _check_causal(policy: Policy, sequences: Sequence[TrainingSequence], device: Any) -> None:
    """Raise ModelError where the model's own logits at a token depend on later ones: of the longest
    sequence, and of few enough tokens to lie within a window that is not known here."""
    longest = max(sequences, key=lambda s: len(s.prompt_ids) + len(s.response_ids))
    tokens = (*longest.prompt_ids, *longest.response_ids)
    for length in (len(tokens), _FEW):
        _check_causal_at(policy, torch.tensor([tokens[:length]], device=device))


def _check_causal_at(policy: Policy, input_ids: Tensor) -> None:
    half = input_ids.shape[1] // 2
    # Whether a model looks ahead does not depend on its rounding, which moves improbable tokens by nats.
    exact = _exact(policy)
    whole, again, part = (
        _own_logits(exact, ids)[0, :half].float().log_softmax(dim=-1)
        for ids in (input_ids, input_ids, input_ids[:, :half])
    )
    kind = unwrap(policy.model).config.model_type
    tolerance = _tolerance(exact, _size(whole))
    noise = float((whole - again).abs().max())
    if noise > tolerance:
        raise ModelError(
            f"logits of model type {kind!r} for the same tokens differ by {noise:.2g} nats from one pass to "
            "the next in evaluation mode: it draws random numbers, so it has no log-probabilities to train on"
        )
    gap_LV = (whole - part).abs()
    in_half = exact.model.dtype in (torch.bfloat16, torch.float16)
    gap = float((gap_LV.mean(dim=-1) if in_half else gap_LV).max())
    if not gap <= tolerance:
        raise ModelError(
            f"model type {kind!r} is not a causal language model as it is configured: its logits at a token "
            f"change by {gap:.2g} nats with the tokens after it. Models that are encoders cannot be trained "
            "with this package; some become decoders by is_decoder=true or causal=true in their config.json"
        )


def _worst_difference(
    policy: Policy, sequences: Sequence[TrainingSequence], packed: PackedBatch
) -> tuple[float, float]:
    """Of our scores from the model's own, in nats, and the size of its log-probabilities."""
    scores = policy.score(packed)
    device = packed.input_ids_N.device
    logprobs, entropies = [], []
    for row in packed.rows:
        prompt, response = sequences[row].prompt_ids, sequences[row].response_ids
        input_ids = torch.tensor([[*prompt, *response]], device=device)
        logits = _own_logits(policy, input_ids)
        logp = logits[0, len(prompt) - 1 : -1].float().log_softmax(dim=-1)
        target = torch.tensor(response, device=device)
        logprobs.append(logp.gather(1, target[:, None])[:, 0])
        entropies.append(-(logp.exp() * logp).sum(dim=-1))
    ours = torch.cat([scores.logprob_T, scores.entropy_T])
    worst = float((ours - torch.cat([*logprobs, *entropies])).abs().max())
    return worst, _size(torch.cat(logprobs))
