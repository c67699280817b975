"""A script written for TRL's GRPOTrainer, with the class's name changed.

python examples/trl_migration.py MODEL      # a folder or hub id of an instruct model; trl and peft installed
"""

from __future__ import annotations

import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import EarlyStoppingCallback
from trl import GRPOConfig

from srft import SRFTTrainer  # was: from trl import GRPOTrainer
from srft.trainer.state import TrainResult


def right(completions, answer, **columns):
    """TRL's signature: a completion of a conversation is a list of messages."""
    return [float(a in text[-1]["content"]) for text, a in zip(completions, answer, strict=True)]


def rows(start: int, stop: int) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"What is {n} + {n + 1}?"}],
                "answer": str(2 * n + 1),
            }
            for n in range(start, stop)
        ]
    )


def main(
    model: str, output_dir: str = "trl-migration", max_steps: int = 50, **more: object
) -> TrainResult:
    trainer = SRFTTrainer(  # was: GRPOTrainer(
        model=model,
        reward_funcs=right,
        args=GRPOConfig(
            output_dir=output_dir,
            max_steps=max_steps,
            per_device_train_batch_size=16,
            num_generations=8,
            max_completion_length=64,
            learning_rate=1e-4,
            eval_strategy="steps",
            eval_steps=10,
            metric_for_best_model="accuracy",
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            **more,
        ),
        train_dataset=rows(1, 200),
        eval_dataset=rows(200, 216),
        peft_config=LoraConfig(r=8, lora_alpha=16),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
    )
    result = trainer.train()
    trainer.save_model(f"{output_dir}/final")
    print(trainer.evaluate())
    return result


if __name__ == "__main__":
    main(sys.argv[1])
