"""When a switch that a method reads has no effect all the same, and why."""

from __future__ import annotations

from collections.abc import Callable

from srft.objective.switches import Switches

IDLE: dict[str, tuple[Callable[[Switches], bool], str]] = {
    "clip_low": (lambda s: not s.clip, "clip is false"),
    "clip_high": (lambda s: not s.clip, "clip is false"),
    "ratio_cap": (lambda s: not s.clip, "clip is false"),
    "demo_shaping": (lambda s: s.demo_ratio != "shaped", "demo_ratio is not shaped"),
    "importance_level": (lambda s: s.importance_cap is None, "importance_cap is null"),
    "importance_mode": (lambda s: s.importance_cap is None, "importance_cap is null"),
    "importance_floor": (lambda s: s.importance_cap is None, "importance_cap is null"),
    "ratio_level": (
        lambda s: s.kl_estimator != "k3-ratio"
        and (s.rollout_term == "literal" or (s.distill_form == "full" and s.weight_rollout == 0)),
        "nothing reads the ratio",
    ),
    "prefix_beta": (lambda s: s.prefix_high is None, "prefix_high is null"),
    "distill_clip": (lambda s: s.distill_form != "sampled", "distill_form is not sampled"),
    **dict.fromkeys(("distill_beta", "distill_top_k"), (
        lambda s: s.distill_form == "sampled" and s.weight_distill_demo == 0, "distill_form is sampled",
    )),
    "rlsd_clip": (lambda s: s.rlsd_mix == 0, "rlsd_mix is 0"),
    "literal_means": (
        lambda s: s.rollout_term != "literal" or s.shared_count,
        "rollout_term is not literal, or shared_count makes one mean of all",
    ),
    "mu_start": (lambda s: s.mu_warmup == s.mu_decay == 0, "mu_warmup and mu_decay are 0"),
    "mu_decay": (lambda s: s.mu_start == s.mu_end, "mu_start and mu_end are equal"),
    "hint_start": (lambda s: s.hint_steps == 0, "hint_steps is 0"),
    **dict.fromkeys(("std", "advantage_epsilon"), (
        lambda s: not s.normalize_std or s.baseline == "none",
        "no advantage is divided (normalize_std, baseline)",
    )),
    "normalize_std": (lambda s: s.baseline == "none", "baseline is none"),
    "demos_in_group": (lambda s: s.baseline == "none", "baseline is none"),
    "kl_estimator": (lambda s: s.kl_coefficient == 0, "kl_coefficient is 0"),
    "entropy_tokens": (lambda s: s.entropy_coefficient == 0, "entropy_coefficient is 0"),
    "entropy_target": (lambda s: s.entropy_coefficient == 0, "entropy_coefficient is 0"),
    "entropy_level": (
        lambda s: s.sft_entropy_sign == 0 and s.rl_entropy_sign == 0, "both entropy signs are 0",
    ),
    "constant_length": (
        lambda s: "constant" not in (s.average, s.sft_average), "no average is constant",
    ),
}  # fmt: skip
