"""Rollouts by vLLM servers that are already running, on this machine or others.

Every rank of the trainer sends its own requests. Weights are sent once per update by the first rank,
while the others wait; each update has a name of its own, every answer says by which weights each
of its tokens was made, and an answer by any others is thrown away.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import distributed
from transformers import PreTrainedTokenizerBase

from srft.rollout.client import Server, ServerFailure
from srft.rollout.fleet import Job, fetch, none_left
from srft.rollout.requests import check_requests
from srft.rollout.response_end import StopRules
from srft.rollout.rollout_config import RolloutConfig
from srft.rollout.transfer import AdapterTransfer, Transfer, build_transfer
from srft.rollout.vllm_wire import completion_of, engine_dtype, is_exact, sampling_fields
from srft.types import Completion, RolloutRequest, SamplingParams

logger = logging.getLogger(__name__)


class VLLMServerEngine:
    """``RolloutEngine`` over the servers in ``config.servers``.

    Raises:
        RolloutError: no server answers in time, or one is not set up to take tokens and weights.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, config: RolloutConfig
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.stop_rules = StopRules(tokenizer)
        self.rank = distributed.get_rank() if _ranks() > 1 else 0
        self.transfer: Transfer | None = None
        self.servers = [Server(url, config.server) for url in config.servers]
        self.run, self.updates, self.version = uuid.uuid4().hex[:8], 0, ""
        try:
            if self.rank == 0:
                self._look(wait_for_all=True)
            dtype = engine_dtype(config.vllm, next(model.parameters()).device.type)
            self.transfer = build_transfer(
                config.server, model, dtype, self.rank == 0, self._take_adapters
            )
            self.update_weights()
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_completion: Callable[[int, int, Completion], None] | None = None,
    ) -> list[list[Completion]]:
        """See ``RolloutEngine.generate``."""
        return self.generate_on(self.servers, requests, params, on_completion)

    def generate_on(
        self,
        servers: Sequence[Server],
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_completion: Callable[[int, int, Completion], None] | None = None,
    ) -> list[list[Completion]]:
        """The same on some of the servers only."""
        check_requests(self.model, requests, params)
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        stop = self.stop_rules.get(self.model, params, vocabulary, torch.device("cpu"))
        results: list[list[Any]] = [[None] * request.n for request in requests]
        jobs = [
            Job(r, i, self._body(request, i, params))
            for r, request in enumerate(requests)
            for i in range(request.n)
        ]
        answers = fetch(servers, jobs, self.version, self._revive, self.config.server)
        with closing(answers):
            for job, answer in answers:
                r, i = job.request, job.sample
                completion = completion_of(
                    answer.token_ids,
                    answer.logprobs,
                    answer.finish_reason,
                    answer.stop_reason,
                    stop,
                    (r, i),
                )
                assert results[r][i] is None, "every completion arrives once"
                results[r][i] = completion
                if on_completion is not None:
                    on_completion(r, i, completion)
        return results

    def _body(self, request: RolloutRequest, sample: int, params: SamplingParams) -> dict[str, Any]:
        fields = sampling_fields(request, sample, params, self.model, self.tokenizer)
        body = {"token_ids": list(request.prompt_ids), "sampling_params": fields}
        adapters = isinstance(self.transfer, AdapterTransfer)
        return {**body, "model": self.version} if adapters else body

    @property
    def exact(self) -> bool:
        """Whether rounding is that of float32."""
        device = next(self.model.parameters()).device.type
        return is_exact(self.model, self.config.vllm, device)

    def parts(self) -> list[tuple[str, Any]]:
        """What the start-up check samples from: each server that answers."""
        return [
            (f"the vLLM server {server.url}", partial(self.generate_on, [server]))
            for server in self.servers
            if server.up
        ]

    # -- weights -------------------------------------------------------------------------------

    def update_weights(self) -> None:
        """Sends the trainer's present weights to every server that answers; called on all ranks.

        Raises:
            RolloutError: no server has them in the end.
        """
        self.updates += 1
        version = f"{self.run}-{self.updates}"
        assert self.transfer is not None
        if self.rank == 0:
            self._look()
        self.transfer.send([server for server in self.servers if server.up], version)
        if self.rank == 0 and not any(server.up for server in self.servers):
            self._wait_for_one(version)  # all of them fell while the weights were sent
        self._agree(version)

    def _take_adapters(self, rank: int) -> bool:
        """Whether all servers that answer apply adapters of this rank; asked on every rank."""
        ranks = [server.adapter_rank() for server in self.servers if server.up]
        (found,) = _from_first([all(r >= rank for r in ranks)])
        return bool(found)

    def _look(self, wait_for_all: bool = False) -> None:
        """Which servers answer. At the start all are waited for, later one is enough."""
        deadline = time.monotonic() + self.config.server.wait_s
        while True:
            for server in self.servers:
                try:
                    server.weight_version()
                    server.up = True
                except ServerFailure as failure:
                    server.up, server.reason = False, str(failure)
            ready = [server.up for server in self.servers]
            if all(ready) or (any(ready) and not wait_for_all):
                return
            if time.monotonic() > deadline:
                break
            time.sleep(min(self.config.server.check_every_s, 1.0))
        if not any(ready):
            raise none_left(self.servers, self.config.server)
        for server in self.servers:
            if not server.up:
                logger.warning("going on without %s: %s", server.url, server.reason)

    def _wait_for_one(self, version: str) -> None:
        deadline = time.monotonic() + self.config.server.wait_s
        while time.monotonic() < deadline:
            time.sleep(min(self.config.server.check_every_s, 1.0))
            for server in self.servers:
                try:
                    server.weight_version()
                    assert self.transfer is not None
                    self.transfer.send_again(server, version)
                except ServerFailure as failure:
                    server.reason = str(failure)
                else:
                    server.up = True
                    return
        raise none_left(self.servers, self.config.server)

    def _agree(self, version: str) -> None:
        """All ranks go on with what the first one found; until then the others wait."""
        self.version, ups = _from_first([version, [server.up for server in self.servers]])
        for server, up in zip(self.servers, ups, strict=True):
            server.up = up

    def _revive(self, server: Server) -> None:
        """For a server that was dropped: it has to hold the present weights before it is asked."""
        if server.weight_version() == self.version:
            return
        if self.rank > 0:
            raise ServerFailure("it holds other weights, which the first rank updates")
        assert self.transfer is not None
        self.transfer.send_again(server, self.version)

    def close(self) -> None:
        """Closes the connections to the servers, which keep running."""
        if self.transfer is not None:
            self.transfer.close()
        for server in self.servers:
            server.close()


def _from_first(values: list[Any]) -> list[Any]:
    """The first rank's values, on all ranks."""
    if _ranks() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values


def _ranks() -> int:
    if not distributed.is_available() or not distributed.is_initialized():
        return 1
    return distributed.get_world_size()
