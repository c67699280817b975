"""``srft serve``: a vLLM server that takes weights from a training run.

It is vLLM's own server, started with what a run needs of it: the model as the recipe changes it,
log-probabilities of the sampling distribution, tokens in and out, and a way to receive weights.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srft.errors import ConfigError
from srft.paths import local_path

if TYPE_CHECKING:
    from srft.config import SRFTConfig
    from srft.model.model_config import ModelConfig

MEMORY_BACKEND = "srft-memory"
"""Name of our weight-transfer backend in vLLM's registry."""
WORKER_EXTENSION = "srft.rollout.vllm_worker.Extension"
"""What vLLM mixes into its workers so that they read weights from a file in memory."""


def server_command(config: SRFTConfig, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """The command line of the server, and the environment it adds.

    Raises:
        ConfigError: no model is named.
        ModelError: the model's config cannot be read.
    """
    import torch

    from srft.model.gguf import is_gguf
    from srft.model.loading import resolved_config
    from srft.model.positions import context_length
    from srft.rollout.vllm_wire import engine_arguments

    if not config.model.path:
        raise ConfigError("model.path: not set; a server needs a folder or a hub id")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    own = config.model
    if is_gguf(own.path):
        own = own.model_copy(update={"path": str(_as_folder(own))})
    path, model_config = resolved_config(own)
    text = model_config.get_text_config()
    transfer = config.rollout.server.transfer
    backend = "nccl" if transfer == "nccl" or (transfer, device) == ("auto", "cuda") else None
    # Adapters travel by a path: not to other machines. Experts' are added to the weights instead.
    lora = None if backend == "nccl" else own.lora
    rank = lora.rank if lora is not None and not lora.target_parameters else None
    arguments: dict[str, Any] = {
        "model": path,
        "served_model_name": "srft",
        "host": host,
        "port": port,
        "weight_transfer_config": {"backend": backend or MEMORY_BACKEND},
        "worker_extension_cls": WORKER_EXTENSION,
        "enable_scale_out": True,
        "disable_uvicorn_access_log": True,
        **engine_arguments(
            config.rollout.vllm, device, context_length(text), config.rollout.rows, rank
        ),
    }
    if own.tokenizer:
        arguments["tokenizer"] = own.tokenizer
    if own.revision and not Path(own.path).exists():
        arguments["revision"] = own.revision
    if own.trust_remote_code:
        arguments["trust_remote_code"] = True
    if any((own.rope_theta, own.rope_length, own.max_position_embeddings)):
        arguments["hf_overrides"] = {
            "rope_parameters": text.rope_parameters,
            "max_position_embeddings": text.max_position_embeddings,
        }
    # Not `vllm serve`: it looks for a distribution named vllm, and the CPU build has another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *_flags(arguments)]
    environment = {"VLLM_SERVER_DEV_MODE": "1"}
    if arguments.get("enable_lora"):
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if device == "cpu":
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return command, environment


def _as_folder(config: ModelConfig) -> Path:
    """The model of a GGUF file as a folder of floats, which takes the trainer's weights: in the user's
    cache, so that the next server finds it."""
    from srft.model.loading import load_tokenizer, open_model
    from srft.model.saving import save_model

    file = local_path(config.path).resolve()
    found = file.stat()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "srft"
    folder = cache / f"{file.stem}-{found.st_size}-{found.st_mtime_ns}"
    if not folder.is_dir():
        plain = type(config)(path=str(file), trust_remote_code=config.trust_remote_code)
        save_model(open_model(plain), load_tokenizer(plain), folder)
    return folder


def serve(config: SRFTConfig, host: str, port: int) -> None:
    """Becomes the server; returns only by raising: ConfigError where vLLM is not installed, and what
    ``server_command`` raises."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError("vLLM is not installed here; docs/rollouts.md says how to install it")
    command, environment = server_command(config, host, port)
    sys.stdout.flush()
    os.execve(command[0], command, {**os.environ, **environment})


def _flags(arguments: dict[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is False:
            flags.append(flag.replace("--", "--no-", 1))
        else:
            text = json.dumps(value) if isinstance(value, dict | list) else str(value)
            flags += [flag, text]
    return flags
