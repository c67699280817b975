"""What a run was made with: versions, machine and command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from srft.secrets import redact
from srft.version import __version__

_LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "math-verify", "numpy", "pydantic")


def environment() -> dict[str, object]:
    """Of this process. No environment variables: they hold secrets."""
    import torch

    versions = {"srft": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions,
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu_cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpus": gpus,
        },
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": redact(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
    }
