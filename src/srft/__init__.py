"""srft: Supervised Reinforcement Fine-Tuning of language models (arXiv 2506.19767)."""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srft.config import SRFTConfig
    from srft.trainer.api import SRFTTrainer

from srft.version import __version__

# It complains on every import of a kernel for CPUs that it does without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__all__ = ["SRFTConfig", "SRFTTrainer", "__version__"]


def __getattr__(name: str) -> Any:
    """The two public classes, imported when they are asked for: the command line starts at once."""
    if name == "SRFTConfig":
        from srft.config import SRFTConfig

        return SRFTConfig
    if name == "SRFTTrainer":
        from srft.trainer.api import SRFTTrainer

        return SRFTTrainer
    raise AttributeError(f"module 'srft' has no attribute {name!r}")
