"""Weights from the trainer to vLLM servers, by vLLM's own control calls.

    init_weight_transfer_engine   once a connection
    start_weight_update           per update
    update_weights                what is sent, or where it is
    finish_weight_update          and what the weights are called from now on

``MemoryTransfer`` names a file in shared memory, which our backend inside the server reads
(``vllm_worker.py``). ``AdapterTransfer`` sends the base of adapters so, once, and then folders of adapters
by ``load_lora_adapter``. ``NCCLTransfer`` is vLLM's NCCL backend: one group of the trainer's first rank and
every worker of every server, one broadcast for all.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from srft.errors import ConfigError, RolloutError
from srft.model.adapters import adapter_rank, adapter_weights
from srft.rollout.client import Server, ServerFailure
from srft.rollout.rollout_config import ServerConfig
from srft.rollout.vllm_weights import MemoryFile, named_weights

logger = logging.getLogger(__name__)

Weights = Callable[[], Iterator[tuple[str, Tensor]]]
"""A fresh pass over the trainer's weights; a collective where they are sharded."""


class Transfer(Protocol):
    """How weights travel. Called on every rank of the trainer; only the sender speaks to servers."""

    def send(self, servers: Sequence[Server], version: str) -> None:
        """Brings the present weights to all ``servers``; one that fails has ``up`` False and its
        reason set afterwards."""
        ...

    def send_again(self, server: Server, version: str) -> None:
        """Brings what was last sent to a server that was away. May be called while training goes
        on. Raises ServerFailure where it cannot."""
        ...

    def close(self) -> None: ...


def build_transfer(
    config: ServerConfig,
    model: nn.Module,
    dtype: torch.dtype,
    sender: bool,
    takes_adapters: Callable[[int], bool],
) -> Transfer:
    """The transfer that the config names, of ``model`` in ``dtype``. ``takes_adapters``: whether the servers
    apply adapters of that rank themselves."""
    chosen, device = config.transfer, next(model.parameters()).device
    if chosen == "auto":
        chosen = "nccl" if device.type == "cuda" else "memory"
    if chosen == "nccl" and device.type != "cuda":
        raise ConfigError(
            "rollout.server.transfer is nccl, but the trainer's weights are not on a GPU; use memory"
        )
    rank = adapter_rank(model)
    if chosen == "memory" and rank is not None and takes_adapters(rank):
        return AdapterTransfer(config, model, dtype, sender)
    weights = partial(named_weights, model, dtype)
    return (NCCLTransfer if chosen == "nccl" else MemoryTransfer)(config, weights, sender)


class MemoryTransfer:
    """Through a file in shared memory: servers on the sender's machine."""

    def __init__(self, config: ServerConfig, weights: Weights, sender: bool) -> None:
        self.config, self.weights, self.sender = config, weights, sender
        self.file = MemoryFile(config.shared_memory) if sender else None
        self.path: Path | None = None

    def send(self, servers: Sequence[Server], version: str) -> None:
        if self.file is None:
            for _ in self.weights():
                pass
            return
        self.path = self.file.write(dict(self.weights()))
        self._tell(servers, version)

    def _tell(self, servers: Sequence[Server], version: str) -> None:
        with ThreadPoolExecutor(max(1, len(servers))) as pool:
            list(pool.map(lambda server: self._try(server, version), servers))

    def _try(self, server: Server, version: str) -> None:
        try:
            self.send_again(server, version)
        except ServerFailure as failure:
            server.up, server.reason = False, str(failure)
            logger.warning(
                "%s is dropped: its weights could not be updated: %s", server.url, failure
            )

    def send_again(self, server: Server, version: str) -> None:
        assert self.path is not None, "nothing has been sent yet"
        timeout = self.config.update_timeout_s
        post = lambda path, body=None: server.call("POST", path, body, timeout)  # noqa: E731
        post("/init_weight_transfer_engine", {"init_info": {}})
        refused: ServerFailure | None = None
        try:
            post("/start_weight_update")
        except ServerFailure as failure:
            # vLLM's answer where a trainer that was killed left its update open, and where anything else
            # is wrong. Ours goes on in the open one's place; if there is none, that fails and this is why.
            if failure.status != 500:
                raise
            refused = failure
        try:
            post("/update_weights", {"update_info": {"path": str(self.path)}})
            post("/finish_weight_update", {"weight_version": version})
        except ServerFailure as failure:
            raise (
                failure if refused is None else ServerFailure(f"{refused}; then {failure}")
            ) from failure
        # Keys and values of prompts were computed with the old weights.
        post("/reset_prefix_cache")

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class AdapterTransfer(MemoryTransfer):
    """Adapters alone, to servers on the sender's machine: each has been given their base. Adapters are
    called by the version, so that a server never answers by others than it is asked for."""

    def __init__(
        self, config: ServerConfig, model: nn.Module, dtype: torch.dtype, sender: bool
    ) -> None:
        super().__init__(config, partial(named_weights, model, dtype, adapted=False), sender)
        self.model = model
        self.adapter: Path | None = None
        self.first = True

    def send(self, servers: Sequence[Server], version: str) -> None:
        if self.first:
            base = dict(self.weights())
            self.path = self.file.write(base) if self.file else None
            self.first = False
        tensors = dict(adapter_weights(self.model))
        if self.file is not None:
            self.adapter = self.file.write_adapter(self.model, tensors)
            self._tell(servers, version)

    def send_again(self, server: Server, version: str) -> None:
        run = version.rpartition("-")[0]
        held = server.weight_version()
        if held.rpartition("-")[0] != run:
            held = f"{run}-base"
            super().send_again(server, held)
        timeout = self.config.update_timeout_s
        loaded = {"lora_name": version, "lora_path": str(self.adapter)}
        server.call("POST", "/v1/load_lora_adapter", loaded, timeout)
        server.call("POST", "/update_weight_version", {"new_version": version})
        server.call("POST", "/reset_prefix_cache")
        if held != f"{run}-base":
            with suppress(ServerFailure):  # the server has forgotten it by itself
                server.call("POST", "/v1/unload_lora_adapter", {"lora_name": held})


class NCCLTransfer:
    """By vLLM's NCCL backend. A server that comes back joins at the next update, when the group is
    made anew; one that dies amid a broadcast ends the run (resume it)."""

    def __init__(self, config: ServerConfig, weights: Weights, sender: bool) -> None:
        self.config, self.weights, self.sender = config, weights, sender
        self.members: list[Server] = []
        self.engine: Any = None
        self.described: list[tuple[str, torch.dtype, tuple[int, ...]]] | None = None

    def send(self, servers: Sequence[Server], version: str) -> None:
        # Every rank makes as many passes as the sender, who describes the weights before the first one.
        if self.described is None:
            self.described = [(name, t.dtype, tuple(t.shape)) for name, t in self.weights()]
        if not self.sender or not servers:
            for _ in self.weights():
                pass
            return
        try:
            if self.engine is None or self.members != list(servers):
                self._connect(servers)
            self.engine.send_weights()
            for server in servers:
                server.call("POST", "/update_weight_version", {"new_version": version})
                server.call("POST", "/reset_prefix_cache")
        except ServerFailure as failure:
            raise RolloutError(
                f"weights could not be sent to the vLLM servers: {failure}; restart them and resume"
            ) from failure

    def _connect(self, servers: Sequence[Server]) -> None:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        self.close()
        sizes = [server.world_size() for server in servers]
        host = self.config.nccl_host or socket.gethostbyname(socket.gethostname())
        self.engine = WeightTransferTrainerFactory.trainer_init(
            NCCLTrainerInitInfo(
                rank=0, master_address=host, master_port=_free_port(), world_size=1 + sum(sizes)
            ),
            client=_Together(servers, sizes, self.config.update_timeout_s),
            source=_source(self.weights, self.described or []),
        )
        self.members = list(servers)

    def send_again(self, server: Server, version: str) -> None:
        raise ServerFailure("it gets weights, and joins, at the next update")

    def close(self) -> None:
        if self.engine is not None:
            self.engine.shutdown()
            for server in self.members:
                try:
                    server.call("POST", "/shutdown_weight_transfer_engine")
                except ServerFailure as failure:
                    logger.warning("%s: %s", server.url, failure)
            self.engine, self.members = None, []


class _Together:
    """vLLM's ``VLLMWeightSyncClient`` for several servers as if they were one: each call goes to all
    at once, since all have to enter a broadcast; only the rank of the first worker differs."""

    def __init__(self, servers: Sequence[Server], sizes: Sequence[int], timeout: float) -> None:
        self.servers, self.sizes, self.timeout = servers, sizes, timeout

    def _post(self, path: str, bodies: Sequence[Any]) -> None:
        with ThreadPoolExecutor(len(self.servers)) as pool:
            calls = [
                pool.submit(server.call, "POST", path, body, self.timeout)
                for server, body in zip(self.servers, bodies, strict=True)
            ]
            for call in calls:
                call.result()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        first, bodies = init_info["rank_offset"], []
        for size in self.sizes:
            bodies.append({"init_info": {**init_info, "rank_offset": first}})
            first += size
        self._post("/init_weight_transfer_engine", bodies)

    def start_weight_update(self) -> None:
        self._post("/start_weight_update", [None] * len(self.servers))

    def update_weights(self, update_info: Any) -> None:
        self._post("/update_weights", [{"update_info": update_info}] * len(self.servers))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        body = {"weight_version": weight_version} if weight_version else None
        self._post("/finish_weight_update", [body] * len(self.servers))


def _source(weights: Weights, described: Sequence[tuple[str, torch.dtype, tuple[int, ...]]]) -> Any:
    """The trainer's weights as vLLM's ``WeightSource``; ``described``: name, dtype and shape of each."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):
        def metadata(self) -> list[Any]:
            return [ParamMeta(*one) for one in described]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return weights()

    return Source()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
