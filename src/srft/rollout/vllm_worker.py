"""What runs inside a vLLM server: a weight-transfer backend that reads a file in memory.

vLLM imports this module in each of its workers (``--worker-extension-cls``), before it looks up the
backend that ``--weight-transfer-config`` names. The control calls are those of its NCCL backend.
"""

from __future__ import annotations

from dataclasses import dataclass

from safetensors import safe_open
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
        with safe_open(update_info.path, framework="pt", device="cpu") as file:
            self.model.load_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held."""


class Extension:
    """Mixed into vLLM's worker; importing this module is what matters."""


if MEMORY_BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(MEMORY_BACKEND, MemoryWeightTransferEngine)
