"""The table of methods: each one is a few terms, the switches it sets, and what data it needs.

To add a method, add an entry (and, where a loss is new, a term in ``terms.py``); docs/objective.md
walks through an example.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from srft.errors import ConfigError, did_you_mean
from srft.objective import advantage, distillation, schedules, terms
from srft.objective.idle import IDLE
from srft.objective.method import Method, Progress, Teacher, Term
from srft.objective.switches import Switches
from srft.types import SequenceTable, TokenBatch

REGULARIZERS = (
    "kl_coefficient", "kl_estimator", "entropy_coefficient", "entropy_tokens", "entropy_target",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One row of the table; ``get_method`` turns it into a :class:`Method`.

    terms: the summands for the switches as set. defaults: switches that differ from
    ``Switches()``. reads: switches read by anything but the terms. Other fields as in ``Method``, but
    ``prefix`` is handed the switches as well.
    """

    summary: str
    terms: Callable[[Switches], tuple[Term, ...]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    rollouts: bool = True
    demonstrations: bool = True
    select: Callable[[SequenceTable, Switches], Tensor] | None = None
    prefix: schedules.PrefixLength | None = None
    refill: bool = False
    collect_unsolved: bool = False
    interleave: str | None = None
    teacher: Teacher | None = None
    token_advantage: Callable[[TokenBatch, Switches], Tensor] | None = None
    rescue: Callable[[int, int, Progress, Switches], int | None] | None = None


def _srft_terms(switches: Switches) -> tuple[Term, ...]:
    """Eq. 13: supervised and RL on demonstrations, RL on rollouts."""
    return (
        replace(terms.DEMO_SFT, weight=switches.weight_sft),
        replace(terms.DEMO_RL, weight=switches.weight_demo_rl),
        *_rollout_terms(switches),
    )


def _rollout_terms(switches: Switches) -> tuple[Term, ...]:
    """The rollouts' term of SRFT in the form asked for (Eq. 11, 12)."""
    if switches.rollout_term == "surrogate":
        chosen: tuple[Term, ...] = (terms.WEIGHTED_SURROGATE,)
    elif switches.literal_means == "joint":
        chosen = (terms.LITERAL,)
    else:
        chosen = (terms.LITERAL_RIGHT, terms.LITERAL_WRONG)
    return tuple(replace(term, weight=switches.weight_rollout) for term in chosen)


def _rl_terms(switches: Switches) -> tuple[Term, ...]:
    return (replace(terms.SURROGATE, weight=switches.weight_rollout),)


def _cispo_terms(switches: Switches) -> tuple[Term, ...]:
    return (replace(terms.CISPO, weight=switches.weight_rollout),)


def _sft_terms(switches: Switches) -> tuple[Term, ...]:
    return (replace(terms.DEMO_SFT, weight=switches.weight_sft),)


def _dft_terms(switches: Switches) -> tuple[Term, ...]:
    return (replace(terms.DFT, weight=switches.weight_sft),)


def _sft_rl_terms(switches: Switches) -> tuple[Term, ...]:
    return (*_sft_terms(switches), *_rl_terms(switches))


def _luffy_terms(switches: Switches) -> tuple[Term, ...]:
    return (replace(terms.DEMO_RL, weight=switches.weight_demo_rl), *_rl_terms(switches))


def _chord_terms(switches: Switches) -> tuple[Term, ...]:
    return (
        replace(terms.DEMO_SFT, weight=schedules.chord_mu),
        replace(terms.SURROGATE, weight=schedules.chord_one_minus_mu),
    )


def _chord_phi_terms(switches: Switches) -> tuple[Term, ...]:
    return (
        replace(terms.CHORD_PHI, weight=schedules.chord_mu),
        replace(terms.SURROGATE, weight=schedules.chord_one_minus_mu),
    )


def _uft_terms(switches: Switches) -> tuple[Term, ...]:
    return (replace(terms.HINT, weight=switches.hint_coefficient), *_rl_terms(switches))


def _prefix_terms(switches: Switches) -> tuple[Term, ...]:
    return (replace(terms.PREFIX_SURROGATE, weight=switches.weight_rollout),)


def _eaft_terms(switches: Switches) -> tuple[Term, ...]:
    return (replace(terms.EAFT, weight=switches.weight_sft),)


def _distill_terms(switches: Switches) -> tuple[Term, ...]:
    """Distillation on rollouts, on demonstrations, and a policy gradient beside them."""
    chosen = []
    if switches.weight_distill:
        chosen.append(replace(distillation.DISTILL, weight=switches.weight_distill))
    if switches.weight_distill_demo:
        chosen.append(replace(distillation.DISTILL_DEMO, weight=switches.weight_distill_demo))
    return (*chosen, *(_rl_terms(switches) if switches.weight_rollout else ()))


def _asft_terms(switches: Switches) -> tuple[Term, ...]:
    anchor = replace(distillation.DISTILL_DEMO, weight=switches.weight_distill_demo)
    return (*_dft_terms(switches), anchor)


_PLAIN_SFT = {"sft_coefficient": 1.0, "sft_entropy_sign": 0}
# Where the paper is silent: the constant average, measured against the others in docs/results-paper.md.
_SRFT = {"weight_cap": 10.0, "average": "constant"}
_SRFT_READS = ("rollout_term", "literal_means", "weight_sft", "weight_demo_rl", "weight_rollout")
_ON_POLICY = {"demos_in_group": False}
_RL_READS = ("weight_rollout",)
_DISTILL = {"weight_rollout": 0.0, "distill_form": "sampled"}
_DISTILL_READS = ("weight_distill", "weight_rollout")
# What LUFFY's scripts set, and those of what is forked from it.
_LUFFY = {
    "clip": False, "normalize_std": False, "average": "constant", "shared_count": True,
    "entropy_coefficient": 0.001, "entropy_tokens": "all",
}  # fmt: skip
_SFT_RL_READS = ("weight_sft", "weight_rollout")

METHODS: dict[str, Entry] = {
    # SRFT in its three readings.
    "srft": Entry(
        "SRFT, paper (Eq. 6-13), with the rollouts' term as a clipped surrogate",
        _srft_terms, _SRFT, reads=_SRFT_READS,
    ),
    "srft-official": Entry(
        "SRFT, released code: 0.5 exp(+H), pi / (pi + 0.1), entropy bonus; std, mean and clip guessed "
        "as verl's defaults",
        _srft_terms,
        {"sft_entropy_sign": 1, "demo_ratio": "shaped", "entropy_coefficient": 0.001,
         "entropy_tokens": "all"},
        reads=_SRFT_READS,
    ),
    "srft-official-luffy": Entry(
        "SRFT, released code; std, mean and clip guessed as in LUFFY's scripts, which it forks",
        _srft_terms, {"sft_entropy_sign": 1, "demo_ratio": "shaped", **_LUFFY}, reads=_SRFT_READS,
    ),
    "srft-hpt": Entry(
        "SRFT, reproduction in the HPT repository: Eq. 12 literally, H per sequence",
        _srft_terms,
        {"rollout_term": "literal", "entropy_level": "sequence", "average": "constant",
         "sft_average": "token", "normalize_std": False,
         "entropy_coefficient": 0.001, "entropy_tokens": "all"},
        reads=_SRFT_READS,
    ),
    # Ablations (Table 3) and what the reviewers asked for.
    "srft-wsft1": Entry(
        "SRFT with w_SFT = 1", _srft_terms, {**_SRFT, **_PLAIN_SFT}, reads=_SRFT_READS,
    ),
    "srft-wrl1": Entry(
        "SRFT with w_RL = 1", _srft_terms, {**_SRFT, "rl_coefficient": 1.0, "rl_entropy_sign": 0},
        reads=_SRFT_READS,
    ),
    "srft-no-sft": Entry(
        "SRFT without its SFT term", _srft_terms, {**_SRFT, "weight_sft": 0.0}, reads=_SRFT_READS,
    ),
    "srft-no-demo-rl": Entry(
        "SRFT without RL on demonstrations", _srft_terms, {**_SRFT, "weight_demo_rl": 0.0},
        reads=_SRFT_READS,
    ),
    "srft-no-rollout": Entry(
        "SRFT without the rollouts' term (they still set the advantages)", _srft_terms,
        {**_SRFT, "weight_rollout": 0.0}, reads=_SRFT_READS,
    ),
    "sft+rl": Entry(
        "plain sum of SFT on demonstrations and GRPO on rollouts (Fig. 5)", _sft_rl_terms,
        {**_PLAIN_SFT, **_ON_POLICY}, reads=_SFT_RL_READS,
    ),
    # Supervised only.
    "sft": Entry("supervised fine-tuning", _sft_terms, _PLAIN_SFT, ("weight_sft",), rollouts=False),
    "dft": Entry(
        "SFT with each token weighted by its own probability (2508.05629)", _dft_terms,
        reads=("weight_sft",), rollouts=False,
    ),
    "eaft": Entry(
        "SFT with each token weighted by the entropy there (2601.02151)", _eaft_terms,
        reads=("weight_sft",), rollouts=False,
    ),
    "asft": Entry(
        "DFT anchored to the base by KL(base || policy) (2509.23753)", _asft_terms,
        {"weight_distill_demo": 0.05, "distill_beta": 0.0},
        reads=("weight_sft", "weight_distill_demo"), rollouts=False, teacher="reference",
    ),
    # RL only.
    "grpo": Entry(
        "GRPO: group advantage, clipped surrogate, mean of sequence means (2402.03300)", _rl_terms,
        {"average": "sequence"}, _RL_READS, demonstrations=False,
    ),
    "dr-grpo": Entry(
        "Dr. GRPO: no standard deviation, no division by length (2503.20783)", _rl_terms,
        {"average": "constant", "normalize_std": False}, _RL_READS, demonstrations=False,
    ),
    "dapo": Entry(
        "DAPO: higher upper clip, token mean, groups of equal reward replaced (2503.14476)",
        _rl_terms, {"clip_high": 0.28}, _RL_READS, demonstrations=False, refill=True,
    ),
    "gspo": Entry(
        "GSPO: ratio of whole sequences (2507.18071)", _rl_terms,
        {"average": "sequence", "ratio_level": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
        _RL_READS, demonstrations=False,
    ),
    "cispo": Entry(
        "CISPO: clipped ratio without gradient times the log-probability (2506.13585)",
        _cispo_terms, {"clip_high": 4.0}, _RL_READS, demonstrations=False,
    ),
    "rloo": Entry(
        "RLOO: the baseline is the mean of the other rollouts (2402.14740)", _rl_terms,
        {"baseline": "leave-one-out", "normalize_std": False, "average": "constant"},
        _RL_READS, demonstrations=False,
    ),
    # Demonstrations and rollouts.
    "luffy": Entry(
        "LUFFY: demonstrations as off-policy members of the group, pi / (pi + 0.1) (2504.14945)",
        _luffy_terms,
        {"demo_ratio": "shaped", **_LUFFY}, reads=("weight_demo_rl", "weight_rollout"),
    ),
    "rl-plus": Entry(
        "RL-PLUS: LUFFY with a mixture's ratio and more for unlikely tokens (2508.00222)",
        _luffy_terms,
        {"demo_ratio": "mixture", "demo_focus": 0.5, **_LUFFY},
        reads=("weight_demo_rl", "weight_rollout"),
    ),
    "relift": Entry(
        "ReLIFT: RL, with SFT steps on the questions no rollout solved (2506.07527)", _rl_terms,
        {"average": "constant", "normalize_std": False, "clip": False,
         "entropy_coefficient": 0.001},
        reads=("weight_rollout",), demonstrations=False, collect_unsolved=True, interleave="sft",
    ),
    "hpt": Entry(
        "HPT: SFT where the success rate is <= gate, RL elsewhere (2509.04419)", _sft_rl_terms,
        {**_PLAIN_SFT, **_ON_POLICY, "average": "constant", "sft_average": "token",
         "normalize_std": False, "clip": False,
         "entropy_coefficient": 0.001, "entropy_tokens": "all"},
        reads=(*_SFT_RL_READS, "gate"), select=schedules.hpt_gate,
    ),
    "chord": Entry(
        "CHORD-mu: (1 - mu) RL + mu SFT with mu decaying (2508.11408)", _chord_terms,
        {**_PLAIN_SFT, **_ON_POLICY}, reads=schedules.MU_READS,
    ),
    "chord-phi": Entry(
        "CHORD-phi: fixed mu, SFT tokens weighted by p (1 - p) (2508.11408)", _chord_phi_terms,
        {**_ON_POLICY, "mu_start": 0.1, "mu_end": 0.1, "mu_decay": 0.0},
        reads=schedules.MU_READS,
    ),
    "uft": Entry(
        "UFT: hints of annealed length, SFT on the hint, RL on what follows (2505.16984)",
        _uft_terms, {"kl_coefficient": 0.001},
        reads=("weight_rollout", "hint_coefficient", "hint_slices", *schedules.HINT_READS),
        demonstrations=False, prefix=schedules.uft_hint_length,
    ),
    "prefix-rft": Entry(
        "Prefix-RFT: a rollout continues a demonstration's prefix (2507.01679)", _prefix_terms,
        {"average": "constant", "normalize_std": False, "hint_steps": 1.0, "prefix_high": 0.95,
         "prefix_entropy_scope": "batch"},
        reads=("weight_rollout", "prefix_rollouts", "prefix_high", "prefix_beta",
               *schedules.HINT_READS),
        demonstrations=False, prefix=schedules.prefix_length,
    ),
    "ghpo": Entry(
        "GRPO; a prompt whose rollouts all failed is sampled again after more and more of its "
        "demonstration (GHPO 2507.10628, BREAD 2506.17211)",
        _rl_terms, {"average": "sequence"}, reads=("weight_rollout", "rescue_shares"),
        demonstrations=False, rescue=schedules.rescue_length,
    ),
    # Distillation: a teacher scores the same responses in its own context.
    "opd": Entry(
        "on-policy distillation: reverse KL to a frozen teacher on own rollouts (2306.13649)",
        _distill_terms, _DISTILL, reads=_DISTILL_READS, demonstrations=False, teacher="model",
    ),
    "gkd": Entry(
        "GKD: Jensen-Shannon divergence to a frozen teacher, half on rollouts, half on "
        "demonstrations (2306.13649)",
        _distill_terms,
        {**_DISTILL, "distill_form": "full", "distill_beta": 0.5, "weight_distill": 0.5,
         "weight_distill_demo": 0.5},
        reads=(*_DISTILL_READS, "weight_distill_demo"), teacher="model",
    ),
    "sdft": Entry(
        "self-distillation: the policy that was shown the demonstration teaches itself without it "
        "(2601.19897)",
        _distill_terms, _DISTILL, reads=_DISTILL_READS, demonstrations=False,
        teacher="demonstration",
    ),
    "sdpo": Entry(
        "self-distillation from a right rollout of the same prompt (2601.20802)",
        _distill_terms, _DISTILL, reads=_DISTILL_READS, demonstrations=False, teacher="rollout",
    ),
    "rlsd": Entry(
        "GRPO whose advantage the self-teacher spreads over the tokens (2604.03128)",
        _rl_terms, {"average": "sequence"}, reads=("weight_rollout", *distillation.RLSD_READS),
        demonstrations=False, teacher="demonstration",
        token_advantage=distillation.rlsd_advantage,
    ),
}  # fmt: skip


def get_method(
    name: str,
    overrides: Mapping[str, Any] | Switches | None = None,
    *,
    longest_response: int = 1024,
) -> Method:
    """The method of this name, with the switches that ``overrides`` sets in place of its own.

    A ``Switches`` object overrides only the fields it was given. ``longest_response``, in tokens,
    is what ``constant_length`` becomes where it is not set.

    Raises:
        ConfigError: unknown method, unknown or invalid switch, or a switch set to something other
            than the method's default that nothing in the method reads.
    """
    if name not in METHODS:
        hint = did_you_mean(name, METHODS, f"; known are {', '.join(METHODS)}", most=2)
        raise ConfigError(f"unknown method {name!r}{hint}")
    entry = METHODS[name]
    switches = _switches(name, entry, overrides)
    _check_reads(name, switches)
    if switches.constant_length is None:
        switches = switches.model_copy(update={"constant_length": longest_response})
    chosen = _all_terms(entry, switches)
    return Method(
        name=name,
        summary=entry.summary,
        switches=switches,
        terms=chosen,
        advantage=advantage.group_advantage if entry.rollouts else advantage.no_advantage,
        rollouts=entry.rollouts,
        demonstrations=entry.demonstrations,
        select=entry.select,
        prefix=_bind(entry.prefix, switches),
        refill=entry.refill,
        collect_unsolved=entry.collect_unsolved,
        interleave=entry.interleave,
        needs_old=_reads_before(chosen, switches),
        needs_reference=any(term.name == "kl" for term in chosen),
        teacher=entry.teacher,
        divergence=_reads_divergence(chosen, switches),
        token_advantage=entry.token_advantage,
        rescue=_bind(entry.rescue, switches),
    )


def switches_read(name: str, switches: Switches) -> set[str]:
    """Names of the switches that something in this method, so set up, reads."""
    entry = METHODS[name]
    chosen = _all_terms(entry, switches)
    read = _term_reads(chosen) | set(entry.reads) | {"average", "constant_length"}
    if any(term.source == "sft" for term in chosen):
        read.add("sft_average")
    if sum(term.source == "rl" for term in chosen) > 1:
        read.add("shared_count")
    if entry.rollouts:
        read |= set(REGULARIZERS)
    return read


def _term_reads(chosen: tuple[Term, ...]) -> set[str]:
    return {name for term in chosen for name in term.reads}


def _all_terms(entry: Entry, switches: Switches) -> tuple[Term, ...]:
    return (*entry.terms(switches), *_regularizers(entry, switches))


def _regularizers(entry: Entry, switches: Switches) -> tuple[Term, ...]:
    """The KL term and the entropy bonus, where they are switched on; none without rollouts."""
    if not entry.rollouts:
        return ()
    chosen = []
    if switches.kl_coefficient > 0:
        chosen.append(replace(terms.KL, weight=switches.kl_coefficient))
    if switches.entropy_coefficient > 0:
        everywhere = switches.entropy_tokens == "all"
        chosen.append(terms.ALL_ENTROPY if everywhere else terms.ROLLOUT_ENTROPY)
    return tuple(chosen)


def _switches(name: str, entry: Entry, overrides: Mapping[str, Any] | Switches | None) -> Switches:
    if isinstance(overrides, Switches):
        overrides = overrides.model_dump(include=overrides.model_fields_set)
    given = dict(overrides or {})
    for key in given:
        if key not in Switches.model_fields:
            known = f"; known are {', '.join(Switches.model_fields)}"
            hint = did_you_mean(key, Switches.model_fields, known, most=2)
            raise ConfigError(f"objective.{key}: no such switch{hint}")
    try:
        return Switches(**{**entry.defaults, **given})
    except ValidationError as error:
        lines = [
            f"objective.{'.'.join(map(str, e['loc']))} (method {name}): {e['msg']}"
            for e in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from error


def _check_reads(name: str, switches: Switches) -> None:
    """Refuses switches nothing reads; warns of those whose effect another switch turns off."""
    entry = METHODS[name]
    own = Switches(**entry.defaults)
    changed = {k for k in Switches.model_fields if getattr(switches, k) != getattr(own, k)}
    read = switches_read(name, switches)
    unread = [key for key in Switches.model_fields if key in changed - read]
    if unread:
        listed = ", ".join(f"objective.{key}" for key in unread)
        raise ConfigError(
            f"method {name!r} does not read {listed} as it is set up, so the setting would "
            f"be ignored: remove it. It reads {', '.join(sorted(read))}."
        )
    idle = {key: why for key, (test, why) in IDLE.items() if test(switches)}
    if not entry.demonstrations:
        idle["demos_in_group"] = "demonstrations are in no group"
        if entry.prefix is None and entry.rescue is None:
            idle["entropy_tokens"] = "it trains on no token of a demonstration"
    chosen = _all_terms(entry, switches)
    silent = [term for term in chosen if term.weight == 0]
    heard = _term_reads(tuple(term for term in chosen if term.weight != 0))
    for term in silent:
        idle |= {key: f"{term.name} has weight 0" for key in term.reads if key not in heard}
    for key in sorted(changed & set(idle)):
        warnings.warn(
            f"objective.{key} has no effect in method {name!r}: {idle[key]}", stacklevel=3
        )


def _bind(function: Callable[..., Any] | None, switches: Switches) -> Callable[..., Any] | None:
    """The function with the switches put in as its last argument."""
    return None if function is None else lambda *arguments: function(*arguments, switches)


def _reads_before(chosen: tuple[Term, ...], switches: Switches) -> bool:
    """Whether a term reads what only a pass over the whole batch beforehand can tell."""
    read = _term_reads(chosen)
    by_entropy = "entropy_level" in read and switches.entropy_level == "batch"
    by_prefix = "prefix_entropy_scope" in read and switches.prefix_entropy_scope == "batch"
    return by_entropy or by_prefix


def _reads_divergence(chosen: tuple[Term, ...], switches: Switches) -> bool:
    names = {term.name for term in chosen}
    return "distill_demo" in names or ("distill" in names and switches.distill_form == "full")
