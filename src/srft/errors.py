"""Errors a user can fix. Each message says what is wrong, where, and what to do about it.

All inherit :class:`SRFTError`, and also the standard exception a caller would expect, so that
``except ValueError`` keeps working. Our own invariants are ``assert`` statements instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from srft.types import TrainingSequence


def did_you_mean(
    word: str, known: Iterable[str], otherwise: str = "", *, most: int = 1, cutoff: float = 0.6
) -> str:
    """``; did you mean 'grpo'?`` where ``known`` words are near, else ``otherwise``."""
    near = nearest(word, known, most=most, cutoff=cutoff)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else otherwise


def nearest(word: str, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6) -> list[str]:
    """The ``known`` words that are most like ``word``, the best first; none below ``cutoff``."""
    return difflib.get_close_matches(word, list(known), n=most, cutoff=cutoff)


def out_of_memory(error: BaseException) -> bool:
    """PyTorch's error on GPUs is told by its name, that of its CPU allocator by its words: neither is
    worth importing PyTorch for."""
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
    return named or any(said in str(error) for said in ("can't allocate memory", "std::bad_alloc"))


LESS_MEMORY = (
    "out of memory: lower rollout.max_rows, rollout.cache_tokens or train.tokens_per_micro_batch, or set "
    "model.gradient_checkpointing=true; `srft plan` says what fits"
)


class SRFTError(Exception):
    """Base class of every error this package raises for its users."""

    exit_code = 1


class ConfigError(SRFTError, ValueError):
    """A recipe or a setting is wrong."""

    exit_code = 2


class DataError(SRFTError, ValueError):
    """A dataset, or one row of it, cannot be used. The message names ``file:row``."""

    exit_code = 3


class ModelError(SRFTError, ValueError):
    """A model or tokenizer cannot be loaded or does not do what training needs of it."""

    exit_code = 4


class RewardError(SRFTError, ValueError):
    """A reward function failed or returned something that is not a reward."""

    exit_code = 5


class RolloutError(SRFTError, RuntimeError):
    """The rollout engine failed, or holds other weights than the trainer."""

    exit_code = 6


class CheckpointError(SRFTError, RuntimeError):
    """A checkpoint, a log or an exported model cannot be written or read."""

    exit_code = 7


class NumericalError(SRFTError, ArithmeticError):
    """A loss or gradient is not finite and the policy is to stop."""

    exit_code = 8


class NotFinite(SRFTError, ArithmeticError):
    """A step's batch holds a non-finite number. Training refuses the step; elsewhere it is an error
    like its siblings. ``sequences`` are those of the batch, as far as they are known."""

    sequences: Sequence[TrainingSequence] = ()


class RewardNotFinite(RewardError, NotFinite):
    """A reward function returned NaN or infinity."""


class RolloutNotFinite(RolloutError, NotFinite):
    """A log-probability of a rollout is NaN or infinite."""


class MemoryShort(SRFTError, MemoryError):
    """A backward pass ran out of memory before any weight was moved: fewer tokens at once may do."""


class AlarmError(SRFTError, RuntimeError):
    """An alarm whose action is to stop went off."""

    exit_code = 9


class RankError(SRFTError, RuntimeError):
    """A process of the run has died or does not answer; the message names it."""

    exit_code = 10


class PeerError(SRFTError, RuntimeError):
    """Another process of the run has failed and reports why; this one ends with the same code."""

    def __init__(self, rank: int, exit_code: int) -> None:
        super().__init__(f"rank {rank} has failed; its output says why")
        self.exit_code = exit_code
