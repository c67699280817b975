"""The effects of a factorial experiment, by hand, and the design of the one that we run."""

from __future__ import annotations

import itertools

import pytest
from benchmarks.lab.effects import effects, table

from srft.experiments.catalog import EXPERIMENTS

# One step in x is worth 10 points, in y it costs 20, and seed 1 is 4 points better throughout.
ARMS = {"srft": 0.5, "x": 0.6, "y": 0.3, "x, y": 0.4}


def result(seeds=3):
    runs = [
        {"arm": arm, "seed": seed, kind: {"in": value + 0.04 * (seed == 1), "out": 1 - value}}
        for seed in range(seeds)
        for arm, value in {**ARMS, "grpo": 0.9}.items()
        for kind in ("accuracy",)
    ]
    for run in runs:
        run["greedy"] = run["accuracy"]
    return {"reference": "srft", "arms": [{"name": a} for a in (*ARMS, "grpo")], "runs": runs}


def test_an_effect_is_the_difference_of_two_means_under_each_seed():
    assert effects(result(), "accuracy", "in") == {
        "x": pytest.approx([0.1] * 3),
        "y": pytest.approx([-0.2] * 3),
    }
    assert effects(result(), "greedy", "out")["y"] == pytest.approx([0.2] * 3)


def test_a_seed_without_every_arm_is_left_out():
    found = result()
    found["runs"] = [run for run in found["runs"] if (run["arm"], run["seed"]) != ("x, y", 1)]
    assert effects(found, "accuracy", "in")["x"] == pytest.approx([0.1] * 2)
    lines = table(found).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["y", "x"]
    assert "-20.0" in lines[2] and "[" not in lines[2] and lines[-1] == "Seeds: 2."
    assert "-20.0 [-20.0, -20.0]" in table(result())


def test_the_design_confounds_no_factor_with_another_or_with_two_others():
    experiment = EXPERIMENTS["factorial"]
    design = [
        set() if arm.name == "srft" else set(arm.name.split(", "))
        for arm in experiment.arms
        if arm.name != "srft-official"
    ]
    factors = sorted(set().union(*design))
    assert len(design) == 16 and len(factors) == 7
    level = {f: [1 if f in chosen else -1 for chosen in design] for f in factors}
    for size in (1, 2, 3):
        for names in itertools.combinations(factors, size):
            products = [
                level[names[0]][i] * (level[names[1]][i] if size > 1 else 1)
                * (level[names[2]][i] if size > 2 else 1)
                for i in range(16)
            ]  # fmt: skip
            assert sum(products) == 0, names


def test_every_arm_of_the_design_has_what_its_name_says():
    for arm in EXPERIMENTS["factorial"].arms:
        settings = {**arm.objective, **arm.recipe.get("rollout", {}), **arm.recipe.get("train", {})}
        settings.pop("entropy_tokens", None)
        means = {
            "sign": ("sft_entropy_sign", 1), "shaped": ("demo_ratio", "shaped"),
            "token": ("average", "token"), "bonus": ("entropy_coefficient", 0.001),
            "no std": ("normalize_std", False), "7 + 1": ("group_size", 7),
            "2 steps": ("optimizer_steps_per_batch", 2),
        }  # fmt: skip
        named = arm.name.split(", ") if arm.name not in ("srft", "srft-official") else []
        assert settings == dict(means[name] for name in named)
