"""What runs inside vLLM's workers: reading weights from a file in memory.

vLLM imports this module in each of its workers (``--worker-extension-cls``). For a server it registers
a weight-transfer backend there, before vLLM looks up the one that ``--weight-transfer-config`` names;
the control calls are those of its NCCL backend. The workers of an engine in the trainer's process are
told to read by ``Extension``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from srft.rollout.serve import MEMORY_BACKEND


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing has to be agreed on beforehand."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """path: a safetensors file with every weight of the model, under its name in a checkpoint."""

    path: str


class MemoryWeightTransferEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads whole checkpoints from a path, layer by layer, into the weights that are in use."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        self.model.load_weights(_tensors(update_info.path))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held."""


class Extension:
    """Mixed into vLLM's worker."""

    reload_weights: Any  # the worker's own

    def srft_load(self, path: str) -> None:
        """Replaces all weights; vLLM's own way from a path is closed to placeholder weights."""
        self.reload_weights(weights_iterator=_tensors(path))


def _tensors(path: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            yield name, file.get_tensor(name)


if MEMORY_BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(MEMORY_BACKEND, MemoryWeightTransferEngine)
