"""Pre-train the lab's base model from scratch (about an hour on one CPU core).

    python -m srft.lab.pretrain --out my_base
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from srft.lab.corpus import Mix, document
from srft.lab.tokenizer import EOS, PAD, TOKEN_ID, VOCABULARY, build_tokenizer


@dataclass(frozen=True)
class Recipe:
    """The committed recipe."""

    seed: int = 0
    updates: int = 20_000
    rows: int = 12
    row_tokens: int = 128
    lr: float = 2e-3
    warmup: int = 300
    decay_share: float = 0.4
    weight_decay: float = 0.1
    hidden: int = 128
    layers: int = 4
    intermediate: int = 384
    mix: Mix = field(default_factory=Mix)


def build_model(recipe: Recipe) -> Qwen3ForCausalLM:
    torch.manual_seed(recipe.seed)
    heads = recipe.hidden // 32
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(VOCABULARY),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=32,
            tie_word_embeddings=True,
            max_position_embeddings=256,
            initializer_range=0.05,
            pad_token_id=TOKEN_ID[PAD],
            eos_token_id=TOKEN_ID[EOS],
            bos_token_id=None,
            dtype="float32",
        )
    )


class Packer:
    """Packs the stream of documents into rows; no document is cut, and none sees another."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.rng = random.Random(f"corpus/{recipe.seed}")
        self.waiting: list = []

    def _row(self):
        room, row = self.recipe.row_tokens, []
        index = 0
        while index < len(self.waiting) or len(self.waiting) < 24:
            if index == len(self.waiting):
                self.waiting.append(document(self.rng, self.recipe.mix))
            if len(self.waiting[index][0]) <= room:
                row.append(self.waiting.pop(index))
                room -= len(row[-1][0])
                if room < 5:
                    break
            else:
                index += 1
        return row

    def batch(self) -> dict[str, torch.Tensor]:
        """ids, labels, positions [R, T] and the block-diagonal causal mask [R, 1, T, T]."""
        rows, tokens = self.recipe.rows, self.recipe.row_tokens
        ids = torch.full((rows, tokens), TOKEN_ID[PAD])
        labels = torch.full((rows, tokens), -100)
        positions = torch.zeros(rows, tokens, dtype=torch.long)
        owner = torch.full((rows, tokens), -1)
        for r in range(rows):
            at = 0
            for n, (tokens_d, learn_d) in enumerate(self._row()):
                end = at + len(tokens_d)
                ids[r, at:end] = torch.tensor(tokens_d)
                wanted = torch.tensor(tokens_d)
                wanted[~torch.tensor(learn_d)] = -100
                labels[r, at:end] = wanted
                positions[r, at:end] = torch.arange(end - at)
                owner[r, at:end] = n
                at = end
        same = owner[:, :, None] == owner[:, None, :]
        mask = same & torch.ones(tokens, tokens, dtype=torch.bool).tril()
        return {"ids": ids, "labels": labels, "positions": positions, "mask": mask[:, None]}


def learning_rate(recipe: Recipe, update: int) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last `decay_share`."""
    left = (recipe.updates - update) / (recipe.decay_share * recipe.updates)
    return recipe.lr * min(1.0, (update + 1) / recipe.warmup, left)


def batch_loss(model, batch) -> torch.Tensor:
    logits = model(
        input_ids=batch["ids"],
        attention_mask=batch["mask"],
        position_ids=batch["positions"],
        use_cache=False,
    ).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten())


def save(model, out_dir: Path) -> None:
    import copy

    out_dir.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out_dir)
    GenerationConfig(
        do_sample=True,
        temperature=1.0,
        max_new_tokens=96,
        pad_token_id=TOKEN_ID[PAD],
        eos_token_id=TOKEN_ID[EOS],
    ).save_pretrained(out_dir)
    build_tokenizer().save_pretrained(out_dir)


def pretrain(out_dir: str | Path, recipe: Recipe = Recipe(), save_every: int = 2000) -> list[dict]:
    """Pre-train and save under `out_dir`."""
    out_dir = Path(out_dir)
    model, packer = build_model(recipe), Packer(recipe)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": recipe.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    curve, losses, started = [], [], time.time()
    forward = torch.compile(model)
    for update in range(recipe.updates):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, update)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = batch_loss(forward, packer.batch())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (update + 1) % 200 == 0:
            seconds = time.time() - started
            curve.append(
                {
                    "update": update + 1,
                    "loss": round(sum(losses) / len(losses), 4),
                    "seconds": round(seconds),
                }
            )
            losses = []
            print(curve[-1], f"{(update + 1) / seconds:.2f} updates/s", flush=True)
        if (update + 1) % save_every == 0 or update + 1 == recipe.updates:
            save(model, out_dir)
            (out_dir / "loss_curve.json").write_text(json.dumps(curve))
    return curve


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--out")
    p.add_argument("--updates", type=int, default=20000)
    a = p.parse_args()
    pretrain(a.out, Recipe(updates=a.updates))
