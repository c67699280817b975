"""Our sampling parameters and completions in vLLM's terms, for its engine and its servers alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from srft.data.end_tokens import end_token_ids
from srft.errors import RolloutError
from srft.rollout.requests import check_finite, computes_in_float32
from srft.rollout.response_end import StopRule
from srft.rollout.rollout_config import VLLMConfig
from srft.types import Completion, RolloutRequest, SamplingParams

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""


def sampling_fields(
    request: RolloutRequest, sample: int, params: SamplingParams, model: Any, tokenizer: Any
) -> dict[str, Any]:
    """Fields of vLLM's ``SamplingParams`` for completion number ``sample`` of a request.

    One request a completion, each with its own seed, so that it ends on its own and can be tried
    again elsewhere. Which tokens end a response is said by us alone. Text is decoded by us, so vLLM
    decodes only where it has to look for stop strings.
    """
    stops = [text for text in params.stop if text]
    generation = getattr(model, "generation_config", None)
    ends = {*end_token_ids(tokenizer, generation), *params.stop_token_ids}
    return {
        "n": 1,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "seed": request.seed + sample,
        "max_tokens": request.most_tokens(params),
        "stop": stops,
        "stop_token_ids": sorted(ends),
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": bool(stops),
        "skip_special_tokens": False,  # a stop string may be one
    }


def completion_of(
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    finish_reason: str | None,
    stop_reason: int | str | None,
    stop: StopRule,
    where: tuple[int, int],
) -> Completion:
    """What vLLM answered as a ``Completion``; ``where`` is (request, sample), for errors.

    Raises:
        RolloutError: log-probabilities that are not finite, or an answer that did not end by
            itself.
    """
    request, sample = where
    if finish_reason not in ("stop", "length"):
        raise RolloutError(
            f"rollout {sample} of request {request}: vLLM ended it with the reason {finish_reason!r}"
        )
    stopped = finish_reason == "stop"
    by_token = stopped and not isinstance(stop_reason, str)
    completion = Completion(
        tuple(token_ids),
        tuple(logprobs),
        stop.text(list(token_ids), by_token),
        "stop" if stopped else "length",
    )
    assert len(completion.logprobs) == len(completion.token_ids)
    check_finite(completion, request, sample)
    return completion


def engine_dtype(config: VLLMConfig, device: str) -> torch.dtype:
    """The precision of vLLM's weights on a device of this type ("cpu", "cuda")."""
    if config.dtype == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    found = getattr(torch, config.dtype)
    assert isinstance(found, torch.dtype)
    return found


def is_exact(model: Any, config: VLLMConfig, device: str) -> bool:
    """Whether trainer and vLLM both compute in float32 (on GPUs neither promises to)."""
    return (
        device == "cpu"
        and computes_in_float32(model)
        and engine_dtype(config, device) == torch.float32
    )


def engine_arguments(
    config: VLLMConfig, device: str, window: int | None, rows: int, rank: int | None = None
) -> dict[str, Any]:
    """vLLM's engine arguments for this config; ``window``: longest sequence in tokens, None where
    unknown; ``rows``: most sequences side by side; ``rank`` of adapters that it is to apply itself."""
    length = config.max_model_len or window
    arguments: dict[str, Any] = {
        "dtype": str(engine_dtype(config, device)).removeprefix("torch."),
        "tensor_parallel_size": config.tensor_parallel_size,
        "max_num_seqs": rows,
        "enforce_eager": device == "cpu" if config.enforce_eager is None else config.enforce_eager,
        "max_num_batched_tokens": max(config.max_batched_tokens or 8192, length or 0),
        # Log-probabilities of the distribution that was sampled from, as Completion promises.
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": 1,
        # Names and defaults are ours alone: no temperature from the model's folder.
        "generation_config": "vllm",
    }
    if length is not None:
        arguments["max_model_len"] = length
    if device == "cpu":
        # vLLM's CPU build cannot sample with a seed after a prompt that was cut into chunks.
        arguments["enable_chunked_prefill"] = False
    cache = config.kv_cache_gb or (1.0 if device == "cpu" else None)
    if cache is None:
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
    else:
        arguments["kv_cache_memory_bytes"] = int(cache * 2**30)
    if rank is not None and (room := next((r for r in _RANKS if r >= rank), None)):
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}
    return {**arguments, **config.options}
