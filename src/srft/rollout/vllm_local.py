"""vLLM in this process, beside the model that is being trained.

It is built from the model's config with placeholder weights, and gets the trainer's through memory
before the first token. On a GPU it sleeps between two calls of ``generate``: weights and cache are
given back to the allocator, and the weights sent anew when it wakes.
"""

from __future__ import annotations

import copy
import gc
import logging
import os
import random
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase

from srft.errors import ConfigError, RolloutError
from srft.model.adapters import adapter_rank, adapter_weights
from srft.model.output_head import unwrap
from srft.model.positions import context_length
from srft.rollout.requests import check_requests
from srft.rollout.response_end import StopRule, StopRules
from srft.rollout.rollout_config import RolloutConfig
from srft.rollout.serve import WORKER_EXTENSION
from srft.rollout.vllm_weights import MemoryFile, named_weights
from srft.rollout.vllm_wire import (
    completion_of,
    engine_arguments,
    engine_dtype,
    is_exact,
    sampling_fields,
)
from srft.types import Completion, RolloutRequest, SamplingParams

logger = logging.getLogger(__name__)


class VLLMEngine:
    """``RolloutEngine`` by vLLM's offline engine, stepped here so that completions come one by one.

    longest: longest sequence that will be asked for, in tokens; None: the model's window.

    Raises:
        ConfigError: vLLM is not installed, or is to span GPUs that other processes train on.
        RolloutError: it cannot be started for this model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        config: RolloutConfig,
        longest: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.stop_rules = StopRules(tokenizer)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.sleeps = self.device == "cuda" and config.vllm.sleep
        self.asleep, self.fresh = False, False
        self.folder = tempfile.TemporaryDirectory(prefix="srft-vllm-")
        self.dtype = engine_dtype(config.vllm, self.device)
        # Without workers of their own, vLLM's weights are in this process and tensors are handed
        # over as they are; workers read a file in memory, and so does whoever reads adapters.
        self.file: MemoryFile | None = None
        self.adapter: Any = None  # vLLM's LoRARequest for the newest adapters
        self.applies_adapters = False
        if config.vllm.tensor_parallel_size > 1:
            if _several_processes():
                raise ConfigError(
                    "rollout.vllm.tensor_parallel_size: under torchrun each process runs its own vLLM on its "
                    "own GPU; leave it at 1, or set rollout.engine=vllm-server, where one server "
                    "may span several GPUs"
                )
            self.file = MemoryFile(config.server.shared_memory)
        self.llm = self._start(longest)
        self.applies_adapters = self.llm.llm_engine.vllm_config.lora_config is not None
        if self.applies_adapters and self.file is None:
            self.file = MemoryFile(config.server.shared_memory)
        self.update_weights()

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_completion: Callable[[int, int, Completion], None] | None = None,
    ) -> list[list[Completion]]:
        """See ``RolloutEngine.generate``."""
        check_requests(self.model, requests, params)
        if not any(request.n for request in requests):
            return [[] for _ in requests]
        self._wake()
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        stop = self.stop_rules.get(self.model, params, vocabulary, torch.device("cpu"))
        results: list[list[Any]] = [[None] * request.n for request in requests]
        with closing(self._outputs(requests, params)) as outputs, torch.random.fork_rng():
            for output in outputs:
                r, i = map(int, output.request_id.split("/"))
                results[r][i] = completion = _completion(output.outputs[0], stop, (r, i))
                if on_completion is not None:
                    on_completion(r, i, completion)
        self._sleep()
        return results

    def _outputs(
        self, requests: Sequence[RolloutRequest], params: SamplingParams
    ) -> Generator[Any, None, None]:
        """vLLM's output of each completion as it finishes; whatever is left when the caller stops
        early is given up, so that the next call starts with nothing in hand."""
        from vllm import SamplingParams as VLLMSamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self.llm.llm_engine
        open_ids: set[str] = set()
        try:
            for r, request in enumerate(requests):
                for i in range(request.n):
                    fields = sampling_fields(request, i, params, self.model, self.tokenizer)
                    sampling = VLLMSamplingParams(
                        **fields, output_kind=RequestOutputKind.FINAL_ONLY
                    )
                    prompt = {"prompt_token_ids": list(request.prompt_ids)}
                    engine.add_request(f"{r}/{i}", prompt, sampling, lora_request=self.adapter)
                    open_ids.add(f"{r}/{i}")
            while open_ids:
                for output in engine.step():
                    if output.finished:
                        open_ids.discard(output.request_id)
                        yield output
        finally:
            if open_ids:
                engine.abort_request(list(open_ids))

    @property
    def exact(self) -> bool:
        """Whether rounding is that of float32."""
        return is_exact(self.model, self.config.vllm, self.device)

    def parts(self) -> list[tuple[str, Any]]:
        """What the start-up check samples from (``check.check_weights``)."""
        return [("vLLM in this process", self.generate)]

    def update_weights(self) -> None:
        """Hands the trainer's present weights over, without going through a disk: adapters alone where
        vLLM applies them, once it has their base."""
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        if not self.applies_adapters:
            self._load(named_weights(self.model, self.dtype))
        elif self.adapter is None:
            self._load(named_weights(self.model, self.dtype, adapted=False))
        if self.applies_adapters:
            self._load_adapters()
        # Keys and values of prompts were computed with the old weights.
        self.llm.reset_prefix_cache()
        self.fresh = True

    def _load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        if self.config.vllm.tensor_parallel_size == 1:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        else:
            assert self.file is not None
            self.llm.collective_rpc("srft_load", args=(str(self.file.write(dict(weights))),))

    def _load_adapters(self) -> None:
        """Under a number of their own each time: vLLM would read them anew at every step if it were told
        that the same ones have changed."""
        from vllm.lora.request import LoRARequest

        assert self.file is not None
        path = self.file.write_adapter(self.model, dict(adapter_weights(self.model)))
        number = 1 if self.adapter is None else self.adapter.lora_int_id + 1
        self.adapter = LoRARequest(f"srft-{number}", number, str(path))
        self.llm.llm_engine.add_lora(self.adapter)

    def _wake(self) -> None:
        if not self.asleep:
            return
        if not self.fresh:
            self.update_weights()
        self.llm.wake_up(tags=["kv_cache"])
        self.asleep = False

    def _sleep(self) -> None:
        """Level 2 gives the weights up as well: the trainer has them. Level 1 keeps the base of adapters in
        the host's memory."""
        if self.sleeps:
            self.llm.sleep(level=1 if self.applies_adapters else 2)
            self.asleep, self.fresh = True, False

    def close(self) -> None:
        """Stop vLLM and give its memory back."""
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = None
            gc.collect()
        self.folder.cleanup()
        if self.file is not None:
            self.file.close()

    def _start(self, longest: int | None) -> Any:
        """The engine with placeholder weights: config and tokenizer as the trainer has them now,
        whatever was changed since they were loaded."""
        os.environ.update(_ENVIRONMENT)
        try:
            from vllm import LLM
        except ImportError as error:
            raise ConfigError(
                f"rollout.engine is vllm, but vLLM cannot be imported here ({error}); install it "
                "(docs/rollouts.md), or set rollout.engine=embedded"
            ) from error
        base = unwrap(self.model)
        shape = copy.deepcopy(base.config)
        if hasattr(shape, "quantization_config"):  # merged weights come whole, not in four bits
            del shape.quantization_config
        # Unset in a model that was never saved. FSDP2 derives a class of its own from each that it cuts.
        plain = next(kind for kind in type(base).__mro__ if not issubclass(kind, FSDPModule))
        shape.architectures = [plain.__name__]
        shape.save_pretrained(self.folder.name)
        self.tokenizer.save_pretrained(self.folder.name)
        window = context_length(base.config)
        if longest is not None and window is not None:
            longest = min(longest, window)
        rank = adapter_rank(self.model)
        arguments = engine_arguments(
            self.config.vllm, self.device, longest or window, self.config.rows, rank
        )
        if self.file is not None:
            arguments["worker_extension_cls"] = WORKER_EXTENSION
        if _several_processes():
            arguments["distributed_executor_backend"] = "external_launcher"
        arguments.setdefault("load_format", "dummy")
        start = partial(
            LLM, model=self.folder.name, enable_sleep_mode=self.sleeps, disable_log_stats=True
        )
        try:
            with _process_kept():
                return _with_adapters_if_it_can(start, arguments)
        # vLLM raises errors of many kinds from deep inside; each means that it does not start.
        except Exception as error:
            raise RolloutError(
                f"vLLM does not start for {plain.__name__}: {type(error).__name__}: {error}. "
                "Its settings are rollout.vllm; rollout.engine=embedded does not need it"
            ) from error


def _with_adapters_if_it_can(start: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """vLLM that applies adapters itself where that is asked for and it can for this model."""
    if arguments.get("enable_lora"):
        try:
            return start(**arguments)
        except Exception as error:  # noqa: BLE001 - of many kinds; without adapters it may start
            logger.warning(
                "vLLM cannot apply the adapters itself and gets whole weights with them added at every "
                "update (rollout.vllm.options={enable_lora: false} asks for that): %s",
                error,
            )
    plain = {
        k: v for k, v in arguments.items() if k not in ("enable_lora", "max_loras", "max_lora_rank")
    }
    return start(**plain)


def _completion(choice: Any, stop: StopRule, where: tuple[int, int]) -> Completion:
    tokens = choice.token_ids
    logprobs = [entry[token].logprob for token, entry in zip(tokens, choice.logprobs, strict=True)]
    return completion_of(tokens, logprobs, choice.finish_reason, choice.stop_reason, stop, where)


def _several_processes() -> bool:
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


_ENVIRONMENT = {
    # Weights are handed over as tensors, so the engine runs in this process.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Workers of its own are not forked from it: it has threads.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # This process goes on training: its threads are not to be tied to cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
}


@contextmanager
def _process_kept() -> Iterator[None]:
    """Puts back what starting vLLM changes in the whole process: random states, the default dtype,
    the number of threads and the function that sets it."""
    random_state, numpy_state = random.getstate(), numpy.random.get_state()
    threads, set_threads, dtype = (
        torch.get_num_threads(),
        torch.set_num_threads,
        torch.get_default_dtype(),
    )
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(random_state)
        numpy.random.set_state(numpy_state)
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
