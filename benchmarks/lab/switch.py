"""When to switch from SFT to RL, by the validation loss: once it is within 2 % of its minimum
(RETU, 2512.11470).

    python -m benchmarks.lab.switch --seeds 3 --out switch

Trains the verdict's SFT of nine epochs and measures, as it goes, the loss of demonstrations that it is not
trained on: 20 of each family of the training problems. ``switch.json`` has each seed's curve.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.lab.measure import demonstration_ids, loss_of
from transformers import TrainerCallback

from srft.experiments.catalog import EXPERIMENTS
from srft.experiments.experiment import arm_recipe, base_recipe
from srft.lab import lab_eval
from srft.lab.tasks import TASK_SETS
from srft.trainer.api import SRFTTrainer

WITHIN = 0.02
PROBLEMS = 20
EVERY = 25
"""Steps between two measurements."""

Curve = dict[int, float]


def first_within(curve: Curve, share: float = WITHIN) -> int:
    """The first step whose loss is at most ``share`` above the curve's minimum."""
    bound = (1 + share) * min(curve.values())
    return min(step for step, loss in curve.items() if loss <= bound)


class Watch(TrainerCallback):
    """Measures before the first step and after every ``EVERY``."""

    def __init__(self) -> None:
        self.curve: Curve = {}

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any, processing_class: Any, **kwargs: Any
    ) -> None:
        families = tuple(TASK_SETS["lab-hard"].inside)
        rows = lab_eval(PROBLEMS, families=families, tasks="lab-hard")
        end = processing_class.eos_token_id
        self.pairs = [(p, [*d, end]) for p, d in demonstration_ids(processing_class, rows)]
        self.curve[0] = loss_of(model, self.pairs)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step % EVERY == 0:
            self.curve[state.global_step] = loss_of(model, self.pairs)


def curve_of(seed: int, out: Path, rate: float) -> Curve:
    """Trains with one seed at a peak rate; step -> validation loss."""
    verdict = EXPERIMENTS["verdict"]
    (arm,) = (arm for arm in verdict.arms if arm.name == "sft 9 epochs")
    base = base_recipe(
        verdict, [f"train.learning_rate={rate}", "data.eval=null", "evaluation.every_steps=0"]
    )
    watch = Watch()
    recipe = arm_recipe(arm, base, seed=seed, folder=out / f"seed{seed}")
    SRFTTrainer(args=recipe, callbacks=[watch]).train()
    return watch.curve


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lab.switch")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rate",
        type=float,
        default=1e-3,
        help="peak learning rate: the verdict's choice for this arm",
    )
    parser.add_argument("--out", type=Path, default=Path("switch"))
    given = parser.parse_args()
    curves = {seed: curve_of(seed, given.out, given.rate) for seed in range(given.seeds)}
    for seed, curve in curves.items():
        low = min(curve, key=curve.__getitem__)
        print(
            f"seed {seed}: lowest {curve[low]:.4f} nats at step {low}; within {WITHIN:.0%} first at step "
            f"{first_within(curve)}; at 100, 300 and 900: "
            + ", ".join(f"{curve[step]:.4f}" for step in (100, 300, 900))
        )
    result = {"rate": given.rate, "curves": curves}
    (given.out / "switch.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
