"""The verifiers by name, in one dict. Light: imports none of them (the command line reads it)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verifier:
    """A verifier that scores one completion at a time.

    check: ``package.module:function``, see `srft.rewards.verifiers`.
    isolated: runs in the worker pool, because one hostile answer can take hours or all memory.
    needs_answer: the example must have an answer.
    options: names of the options it takes.
    columns: the dataset columns it reads. asked, prompt_end: reads the question, or the end of the prompt,
        as well.
    packages: what workers have imported before they are shut off from the disk.
    """

    check: str
    isolated: bool = False
    needs_answer: bool = True
    options: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    asked: bool = False
    prompt_end: bool = False
    packages: tuple[str, ...] = ()


REWARDS: dict[str, Verifier] = {
    "math": Verifier(
        "srft.rewards.verifiers:check_math",
        isolated=True,
        options=("announced_only",),
        asked=True,
    ),
    "exact": Verifier(
        "srft.rewards.verifiers:check_exact", options=("case_sensitive",), asked=True
    ),
    "choice": Verifier(
        "srft.rewards.verifiers:check_choice", columns=("options", "choices", "answer_index")
    ),
    "numeric": Verifier(
        "srft.rewards.verifiers:check_numeric",
        options=("tolerance", "relative_tolerance"),
        asked=True,
    ),
    "countdown": Verifier(
        "srft.rewards.countdown:check_countdown",
        isolated=True,
        needs_answer=False,
        options=("use_all",),
        columns=("numbers", "nums", "target"),
    ),
    "reasoning-gym": Verifier(
        "srft.rewards.gym:check_gym",
        isolated=True,
        columns=("reasoning_gym",),
        packages=("reasoning_gym",),
    ),
    "format": Verifier("srft.rewards.verifiers:check_format", needs_answer=False, prompt_end=True),
}
