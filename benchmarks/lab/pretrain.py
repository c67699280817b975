"""Pre-train the lab's base model from scratch: about 25 minutes on one CPU core.

    python -m benchmarks.lab.pretrain --out my_base

Plain PyTorch in float32 on purpose: for a model this small bfloat16 and compilation gain little
on a CPU. Batches are small and many (about 1,500 tokens an update), because what takes long
to learn is where in the question to look, and that takes updates rather than tokens.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from benchmarks.lab.corpus import Document, Loss, Mix, next_document
from benchmarks.lab.tokenizer import EOS, PAD, TOKEN_ID, VOCABULARY, build_tokenizer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from srft.lab.tasks import ANSWER_MARK

LOG_EVERY = 200  # updates
SHORTEST_DOCUMENT = 5  # tokens; a row with less room than this is full
LOOKAHEAD = 24  # documents searched for one that fits


@dataclass(frozen=True)
class Recipe:
    """The committed recipe; the shipped base model is `Recipe()`."""

    seed: int = 0
    updates: int = 7_500
    rows: int = 12
    row_tokens: int = 128  # the longest document has 116
    lr: float = 3e-3
    warmup: int = 300  # updates
    decay_share: float = 0.5  # last share of the updates, over which the rate falls to zero
    weight_decay: float = 0.1
    hidden: int = 128
    layers: int = 4
    intermediate: int = 384
    mix: Mix = field(default_factory=Mix)


def build_model(recipe: Recipe) -> Qwen3ForCausalLM:
    """A freshly initialised model, in float32."""
    torch.manual_seed(recipe.seed)
    head_dim = 32
    heads = recipe.hidden // head_dim
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        tie_word_embeddings=True,
        max_position_embeddings=256,
        initializer_range=0.05,
        pad_token_id=TOKEN_ID[PAD],
        eos_token_id=TOKEN_ID[EOS],
        bos_token_id=None,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


@dataclass(frozen=True)
class Batch:
    """Packed rows. ids, labels (-100: no loss), opening (bool: learned among openings), positions:
    [R, T]; mask: bool [R, 1, T, T], true where a token may look: at its document, up to itself."""

    ids: torch.Tensor
    labels: torch.Tensor
    opening: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor


class Packer:
    """Packs a seeded stream of documents into rows; none is cut, and none sees another."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.rng = random.Random(f"corpus/{recipe.seed}")
        self.waiting: list[Document] = []

    def _row(self) -> list[Document]:
        """The next documents, in order of arrival, that fit in one row."""
        room, row = self.recipe.row_tokens, []
        at = 0
        while room >= SHORTEST_DOCUMENT and at < LOOKAHEAD:
            if at == len(self.waiting):
                self.waiting.append(next_document(self.rng, self.recipe.mix))
            size = len(self.waiting[at].ids)
            assert size <= self.recipe.row_tokens, "a document is longer than a row"
            if size <= room:
                row.append(self.waiting.pop(at))
                room -= size
            else:
                at += 1
        return row

    def batch(self) -> Batch:
        """The next `rows` rows."""
        rows, tokens = self.recipe.rows, self.recipe.row_tokens
        ids = torch.full((rows, tokens), TOKEN_ID[PAD])
        labels = torch.full((rows, tokens), -100)
        opening = torch.zeros(rows, tokens, dtype=torch.bool)
        positions = torch.zeros(rows, tokens, dtype=torch.long)
        owner = torch.full((rows, tokens), -1)
        for r in range(rows):
            at = 0
            for number, doc in enumerate(self._row()):
                words, loss = torch.tensor(doc.ids), torch.tensor(doc.loss)
                span = slice(at, at + len(words))
                ids[r, span] = words
                labels[r, span] = torch.where(loss == Loss.NONE, -100, words)
                opening[r, span] = loss == Loss.AMONG_OPENINGS
                positions[r, span] = torch.arange(len(words))
                owner[r, span] = number
                at = span.stop
        same = owner[:, :, None] == owner[:, None, :]
        causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        return Batch(ids, labels, opening, positions, (same & causal)[:, None])


def batch_loss(model: Qwen3ForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy (nats) over the learned tokens."""
    logits = model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).logits[:, :-1]
    mark = torch.arange(logits.shape[-1]) == TOKEN_ID[ANSWER_MARK]
    logits = logits.masked_fill(batch.opening[:, 1:, None] & mark, -torch.inf)
    return F.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten())


def learning_rate(recipe: Recipe, update: int) -> float:
    """Linear warm-up, then constant, then linear to zero over the last `decay_share`."""
    left = (recipe.updates - update) / (recipe.decay_share * recipe.updates)
    return recipe.lr * min(1.0, (update + 1) / recipe.warmup, left)


def build_optimizer(model: Qwen3ForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; matrices decay, gains of the norms do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": gains, "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        betas=(0.9, 0.98),
        fused=True,
    )


def save(model: Qwen3ForCausalLM, out_dir: Path, curve: list[dict[str, float]]) -> None:
    """The model in bfloat16, its tokenizer, generation defaults and loss curve."""
    out_dir.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).bfloat16().save_pretrained(out_dir)
    build_tokenizer().save_pretrained(out_dir)
    GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=96,
        pad_token_id=TOKEN_ID[PAD],
        eos_token_id=TOKEN_ID[EOS],
    ).save_pretrained(out_dir)
    lines = ",\n".join(json.dumps(point) for point in curve)
    (out_dir / "loss_curve.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("pre-training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
        console=console,
    )


def pretrain(
    out_dir: str | Path,
    recipe: Recipe | None = None,
    *,
    save_every: int = 1500,
    console: Console | None = None,
) -> list[dict[str, float]]:
    """Pre-train a base model and save it under `out_dir` (also every `save_every` updates).

    Returns the loss curve: mean loss in nats per learned token over each LOG_EVERY updates, with
    the update, the tokens read so far and the seconds since the start.
    """
    recipe, out_dir = recipe or Recipe(), Path(out_dir)
    model, packer = build_model(recipe), Packer(recipe)
    optimizer = build_optimizer(model, recipe)
    curve: list[dict[str, float]] = []
    losses: list[float] = []
    started = time.perf_counter()
    with _progress(console) as progress:
        bar = progress.add_task("", total=recipe.updates, loss=math.nan)
        for update in range(recipe.updates):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, update)
            loss = batch_loss(model, packer.batch())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            done, last = update + 1, update + 1 == recipe.updates
            if done % LOG_EVERY == 0 or last:
                curve.append(
                    {
                        "update": done,
                        "tokens": done * recipe.rows * recipe.row_tokens,
                        "loss": round(sum(losses) / len(losses), 4),
                        "seconds": round(time.perf_counter() - started),
                    }
                )
                losses.clear()
                if not progress.console.is_terminal:  # a bar in a log file would say nothing
                    progress.console.print(curve[-1])
            progress.update(bar, advance=1, loss=curve[-1]["loss"] if curve else loss.item())
            if done % save_every == 0 or last:
                save(model, out_dir, curve)
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pre-train the lab's base model.")
    parser.add_argument("--out", required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=Recipe.updates)
    options = parser.parse_args()
    pretrain(options.out, Recipe(seed=options.seed, updates=options.updates))
