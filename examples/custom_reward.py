"""A reward of your own beside a verifier: right, and short.

python examples/custom_reward.py            # on the built-in model and tasks
"""

from __future__ import annotations

from srft import SRFTConfig, SRFTTrainer
from srft.lab import lab_train
from srft.trainer.state import TrainResult

LONGEST = 40


def brief(completion_ids, log_metric, **columns):
    """Up to 0.2 for what stays below LONGEST tokens. Other columns of the rows come by their names, and
    what is logged stands in metrics.jsonl as user/length."""
    lengths = [len(ids) for ids in completion_ids]
    log_metric("length", sum(lengths) / len(lengths))
    return [0.2 * max(0.0, 1 - length / LONGEST) for length in lengths]


def main(steps: int = 50, run_dir: str | None = None) -> TrainResult:
    trainer = SRFTTrainer(
        model="lab",
        reward_funcs=["exact", brief],  # a verifier by its name, and a function
        args=SRFTConfig(
            # Right is what the verifier says: the most that `brief` alone can give is 0.2.
            reward={"correct_threshold": 0.5},
            rollout={"group_size": 4, "max_tokens": 64},
            train={"steps": steps, "prompts_per_step": 8, "learning_rate": 2e-4},
            run={"dir": run_dir},
        ),
        train_dataset=list(lab_train(500)),
    )
    return trainer.train()


if __name__ == "__main__":
    main()
