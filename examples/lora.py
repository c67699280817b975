"""SRFT with LoRA adapters on a real model: GSM8K, or rows of the same columns.

python examples/lora.py MODEL [DATA]        # e.g. HuggingFaceTB/SmolLM2-135M-Instruct openai/gsm8k
"""

from __future__ import annotations

import sys

from srft import SRFTConfig, SRFTTrainer
from srft.trainer.state import TrainResult


def main(
    model: str, data: object = "openai/gsm8k", steps: int = 50, run_dir: str | None = None
) -> TrainResult:
    named = isinstance(data, str)
    source = {"train": data, "subset": "main" if data == "openai/gsm8k" else None} if named else {}
    trainer = SRFTTrainer(
        model=model,
        args=SRFTConfig(
            # bfloat16 is right for a base that is not trained; the adapters themselves are float32.
            model={"dtype": "bfloat16", "lora": {"rank": 16, "alpha": 32, "export": "adapter"}},
            data=source,
            reward="math",
            rollout={"group_size": 4, "max_tokens": 128},
            train={"steps": steps, "prompts_per_step": 4, "learning_rate": 1e-4},
            run={"dir": run_dir},
        ),
        train_dataset=None if named else data,
    )
    return trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:3])
