"""An environment of your own: the model guesses a number, and is told whether it is higher or lower.

python examples/custom_environment.py Qwen/Qwen3-0.6B           # a model whose chat template knows tools
"""

from __future__ import annotations

import sys

from srft import SRFTConfig, SRFTTrainer
from srft.trainer.state import TrainResult


class HigherOrLower:
    """Every public method with types and a docstring is a tool. One object is made for each rollout and used
    again: `reset` is given the row, and what it returns is put behind the prompt."""

    def reset(self, secret: int, **row: object) -> str:
        self.secret, self.guesses, self.found = secret, 0, False
        return " It is between 1 and 100."

    def guess(self, number: int) -> str:
        """
        Guesses the number.

        Args:
            number: What it may be.

        Returns:
            higher, lower or right.
        """
        if not 1 <= number <= 100:
            raise ValueError("between 1 and 100")  # the model is told
        self.guesses += 1
        self.found = number == self.secret
        return "right" if self.found else "higher" if number < self.secret else "lower"

    def get_reward(self) -> float:
        """The fewer guesses the better: seven are always enough."""
        return 1.0 / max(1, self.guesses - 6) if self.found else 0.0


def main(model: str, steps: int = 100, run_dir: str | None = None) -> TrainResult:
    ask = [
        {"role": "user", "content": "Guess my number with the tool, and say it when you know it."}
    ]
    trainer = SRFTTrainer(
        model=model,
        args=SRFTConfig(
            method="grpo",
            rollout={"group_size": 8, "max_tokens": 512},  # of all turns, with what the tool says
            environment={"max_turns": 10, "timeout_s": 5},
            train={"steps": steps, "prompts_per_step": 8, "learning_rate": 1e-5},
            run={"dir": run_dir},
        ),
        train_dataset=[{"prompt": ask, "secret": 1 + 37 * n % 100} for n in range(100)],
        environment_factory=HigherOrLower,
    )
    return trainer.train()


if __name__ == "__main__":
    main(sys.argv[1])
