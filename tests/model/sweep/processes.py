"""A sample of types in two processes, each with a part of every matrix, against one process.

python -m tests.model.sweep.processes           # what is compared: metrics, exported tensors
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from tests.distributed import work
from tests.distributed.ranks import finish, start
from tests.model.sweep.checks import ROWS, VOCABULARY, _saved
from tests.model.sweep.tiny import tiny_model

SAMPLE = (
    *("llama", "gemma3_text", "gpt2", "phi3", "bloom", "falcon", "qwen3_moe", "deepseek_v3", "gpt_oss"),
    *("mamba2", "qwen3_next", "granitemoehybrid", "recurrent_gemma", "llama4_text", "rwkv", "gemma3"),
    "qwen2_5_vl",
)  # fmt: skip


def compared(kind: str, folder: Path) -> str:
    """Largest differences of two steps of two processes to those of one; or what went wrong."""
    base = _saved(tiny_model(kind, VOCABULARY), folder / "base")
    found = {}
    for size in (1, 2):
        recipe = {
            "model": {"path": str(base)},
            "reward": {"failed_demonstrations": "keep"},
            "rollout": {"group_size": 2, "max_tokens": 6},
            "train": {"steps": 2, "prompts_per_step": 2, "learning_rate": 1e-3, "device": "cpu"},
            "run": {"dir": str(folder / str(size)), "live": "never"},
        }
        outcomes = finish(start(work.train, size, recipe, ROWS))
        errors = [outcome.error for outcome in outcomes if outcome.error]
        errors.sort(key=lambda error: error.startswith("PeerError"))  # who waited says less
        if errors:
            return f"{size} processes: {errors[0].splitlines()[0][:300]}"
        run = outcomes[0].value
        found[size] = work.logged(run), load_file(run / "model/model.safetensors")
    (one, tensors), (two, others) = found[1], found[2]
    if tensors.keys() != others.keys():
        return f"other tensors: {sorted(tensors.keys() ^ others.keys())[:3]}"
    apart = max(
        abs(ours[key] - theirs[key]) / max(1.0, abs(ours[key]))
        for ours, theirs in zip(one, two, strict=True)
        for key in ("loss", "train/gradient_norm", "logprob/rollouts", "logprob/demos")
    )
    moved, name = max((float((t - others[n]).abs().max()), n) for n, t in tensors.items())
    return f"metrics {apart:.0e}, tensors {moved:.0e} ({name})"


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    found = {}
    for kind in sys.argv[1:] or SAMPLE:
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = compared(kind, Path(folder))
    # At the end, since the runs talk too.
    sys.stdout.writelines(f"== {kind:20} {told}\n" for kind, told in found.items())


if __name__ == "__main__":
    main()
