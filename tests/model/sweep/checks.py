"""What an architecture is put through: what a run does with it against what transformers says.

Every figure is a largest difference: of log-probabilities and entropies in nats, of gradients as a
share of each parameter's largest entry. The reference is the model as ``from_pretrained`` gives it,
one sequence at a time.
"""

from __future__ import annotations

import copy
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from rich.console import Console
from tests.model.sweep.tiny import tiny_model
from tests.model.sweep.variants import VARIANTS
from tests.toys import byte_tokenizer
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from srft import SRFTConfig, SRFTTrainer
from srft.data.packing import pack
from srft.errors import SRFTError
from srft.model.packed_attention import packs
from srft.model.scoring import score
from srft.model.weight_files import reader_of
from srft.rollout.embedded import EmbeddedEngine
from srft.runs.files import read_jsonl
from srft.runs.run_dir import RunDir
from srft.types import RolloutRequest, SamplingParams, TrainingSequence

NATS = 1e-5
SHARE = 2e-4
NEW_TOKENS = 12
TRAINED = {"training": "full", "lora": "lora"}
"""Run directory of each check that trains."""
VOCABULARY = 272  # the tokenizer has 260, to which the classes of some model types add

# Lengths of (prompt, response); long: beyond every window (8), chunk and rope switch (64).
SCORED: dict[str, tuple[tuple[int, int], ...]] = {
    "one": ((6, 10),),
    "equal": ((6, 10), (6, 10), (6, 10)),
    "unequal": ((3, 14), (7, 5), (1, 9), (6, 1)),
    "long": ((9, 60), (40, 30), (5, 3)),
}
SAMPLED: dict[str, tuple[int, ...]] = {
    "one": (6,),
    "equal": (6, 6, 6),
    "unequal": (3, 11, 7),
    "long": (50, 5, 21),
}


@dataclass
class Report:
    """``outcome``: exact, refused (``reason``: what the user is told), failed (``failures``: the
    checks that did not hold), or unbuilt (no model came of the configuration class)."""

    kind: str
    outcome: str = "exact"
    reason: str = ""
    rows: str = ""
    sampler: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    version: str = transformers.__version__

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def examine(kind: str, folder: Path, quick: bool = False, **changes: Any) -> Report:
    """Everything about model type ``kind``; ``folder`` is for its files. quick: without training."""
    report = Report(kind)
    if kind in VARIANTS:
        kind, own = VARIANTS[kind]
        changes = {**copy.deepcopy(own), **changes}
    try:
        model = tiny_model(kind, VOCABULARY, **changes)
        base = _saved(model, folder / "base")
        plain = reader_of(model.config).from_pretrained(base, dtype=torch.float32).eval()
    except Exception as error:  # noqa: BLE001  whatever a class objects to
        report.outcome, report.reason = "unbuilt", _first_line(error)
        return report
    try:
        own_logits(plain, range(2, 12))
    except Exception as error:  # noqa: BLE001  what asks for more than tokens is to be refused
        report.reason = _first_line(error)
    with _warnings() as said:
        try:
            trainer = _trainer(base, folder / TRAINED["training"])
        except SRFTError as error:
            report.outcome, report.reason = "refused", str(error)
            return report
        except Exception as error:  # noqa: BLE001  is looked for
            report.outcome, report.failures["set up"] = "failed", _described(error)
            return report
    if report.reason:
        report.outcome, report.failures["not refused"] = "failed", report.reason
        return report
    report.notes = said
    report.rows = "packed" if packs(trainer.model) else "padded"
    report.sampler = "embedded" if isinstance(trainer.setup.engine, EmbeddedEngine) else "generate"
    checks: dict[str, Callable[[], float]] = {}
    for name, lengths in SCORED.items():
        checks[f"scores {name}"] = lambda lengths=lengths: score_gap(trainer.model, plain, lengths)
    for name, sizes in SAMPLED.items():
        checks[f"greedy {name}"] = lambda sizes=sizes: greedy_gap(trainer, plain, sizes)
    checks["gradient"] = lambda: gradient_gap(trainer.model, plain)
    if not quick:
        checks["gradient checkpointed"] = lambda: checkpointed_gap(base, folder / "ckpt", plain)
        checks["training"] = lambda: trained_gap(trainer)
        checks["lora"] = lambda: lora_gap(base, folder / TRAINED["lora"])
    for name, check in checks.items():
        _run(report, name, check, folder)
    if report.failures:
        report.outcome = "failed"
    return report


def _run(report: Report, name: str, check: Callable[[], float], folder: Path) -> None:
    try:
        found = report.figures[name] = check()
    except SRFTError as error:
        if name in ("lora", "gradient checkpointed"):
            report.notes.append(f"{name}: refused: {error}")
        else:
            report.failures[name] = _described(error)
        return
    except Exception as error:  # noqa: BLE001  is looked for
        report.failures[name] = _described(error)
        return
    allowed = SHARE if name.startswith("gradient") else NATS
    if found > NATS and name in TRAINED and report.sampler == "generate":  # the class's own steps
        own = steps_gap(folder / TRAINED[name])
        report.notes.append(f"{name}: its own steps and its own whole pass are {own:.1e} apart")
        allowed = max(NATS, 2 * own)
    if not found <= allowed:
        report.failures[name] = f"off by {found:.2g}"


# -- the reference -----------------------------------------------------------------------------


@torch.no_grad()
def own_logits(plain: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """[tokens, vocabulary] of the model's own forward pass over one sequence."""
    return plain(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].clone()


@torch.no_grad()
def steps_gap(run_dir: Path) -> float:
    """How far a trained model's own steps with its cache are from its own whole pass: rounding of the
    class's own, below which no sampler of it can be."""
    folder = RunDir(run_dir).model
    reader = reader_of(AutoConfig.from_pretrained(folder))
    plain = reader.from_pretrained(folder, dtype=torch.float32).eval()
    draw, worst = torch.Generator().manual_seed(7), 0.0
    for size in range(4, 44):
        ids = torch.tensor([_tokens(size + 6, draw)])
        whole = plain(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        out = plain(input_ids=ids[:, :size], use_cache=True)
        steps = [out.logits[:, -1]]
        for at in range(size, size + 6):
            out = plain(
                input_ids=ids[:, at : at + 1], past_key_values=out.past_key_values, use_cache=True
            )
            steps.append(out.logits[:, -1])
        gap = torch.stack(steps, 1).log_softmax(-1) - whole[:, size - 1 :]
        worst = max(worst, float(gap.abs().max()))
    return worst


def score_gap(model: Any, plain: PreTrainedModel, lengths: Sequence[tuple[int, int]]) -> float:
    """Log-probabilities and entropies of sequences scored together."""
    sequences = _sequences(lengths)
    (batch,) = pack(sequences, None, 100_000, share_prompts=packs(model))
    model.eval()
    with torch.no_grad():
        scores = score(model, batch)
    logprobs, entropies = [], []
    for row in batch.rows:
        prompt, response = sequences[row].prompt_ids, sequences[row].response_ids
        logp = own_logits(plain, prompt + response)[len(prompt) - 1 : -1].log_softmax(-1)
        logprobs.append(logp.gather(1, torch.tensor(response)[:, None])[:, 0])
        entropies.append(-(logp.exp() * logp).sum(-1))
    return max(
        _off(scores.logprob_T, torch.cat(logprobs)), _off(scores.entropy_T, torch.cat(entropies))
    )


def _off(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, as a share where values are above 1: rounding grows with them."""
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=1.0)).max())


def greedy_gap(trainer: SRFTTrainer, plain: PreTrainedModel, sizes: Sequence[int]) -> float:
    """Greedy responses: their log-probabilities, and how far each token is below the best one."""
    draw = torch.Generator().manual_seed(5)
    prompts = [tuple(_tokens(size, draw)) for size in sizes]
    groups = trainer.setup.engine.generate(
        [RolloutRequest(prompt, 1 + n % 2, 0) for n, prompt in enumerate(prompts)],
        SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS),
    )
    worst = 0.0
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            ids = completion.token_ids
            logp = own_logits(plain, prompt + ids)[len(prompt) - 1 : -1].log_softmax(-1)
            chosen = logp.gather(1, torch.tensor(ids)[:, None])[:, 0]
            worst = max(
                worst,
                _off(torch.tensor(completion.logprobs), chosen),
                float((logp.max(-1).values - chosen).max()),
            )
    return worst


def gradient_gap(model: Any, plain: PreTrainedModel) -> float:
    """Of the sum of log-probabilities and entropies over sequences of every kind of length."""
    sequences = _sequences(SCORED["unequal"] + SCORED["long"])
    (batch,) = pack(sequences, None, 100_000, share_prompts=packs(model))
    model.zero_grad()
    model.train()
    scores = score(model, batch)
    (scores.logprob_T.sum() + scores.entropy_T.sum()).backward()
    ours = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.eval()
    theirs_model = copy.deepcopy(plain)
    for sequence in sequences:
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.response_ids]])
        logits = theirs_model(input_ids=ids, use_cache=False).logits[0]
        logp = logits[len(sequence.prompt_ids) - 1 : -1].log_softmax(-1)
        target = torch.tensor(sequence.response_ids)[:, None]
        (logp.gather(1, target).sum() - (logp.exp() * logp).sum()).backward()
    theirs = {
        n: p.grad for n, p in theirs_model.named_parameters() if p.grad is not None and p.grad.any()
    }
    lost = sorted(theirs.keys() - ours.keys())
    assert not lost, f"without a gradient: {lost}"
    # Of what is exactly zero (biases of keys) there is only rounding.
    least = 1e-2 * max(float(grad.abs().max()) for grad in theirs.values())
    return max(
        float((ours[name] - grad).abs().max()) / max(float(grad.abs().max()), least)
        for name, grad in theirs.items()
    )


def checkpointed_gap(base: Path, folder: Path, plain: PreTrainedModel) -> float:
    with _without_planning():
        trainer = _trainer(base, folder, model={"gradient_checkpointing": True})
    trainer.setup.close()
    return gradient_gap(trainer.model, plain)


# -- whole runs --------------------------------------------------------------------------------


def trained_gap(trainer: SRFTTrainer) -> float:
    """Two steps: the sampler against the trainer in every step, and the exported model."""
    result = trainer.train()
    rows = read_jsonl(result.run_dir / "metrics.jsonl")
    assert len(rows) == 2 and all(torch.tensor(row["loss"]).isfinite() for row in rows), rows
    assert result.model_dir is not None
    mismatch = max(row.get("mismatch/abs/max", 0.0) for row in rows)
    return max(mismatch, exported_gap(trainer, result.model_dir))


def exported_gap(trainer: SRFTTrainer, folder: Path) -> float:
    """Logits of the exported model, which must hold every tensor and no other."""
    exported, loaded = reader_of(trainer.model.config).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    problems = {key: sorted(map(str, found)) for key, found in loaded.items() if found}
    assert not problems, f"the exported folder: {problems}"
    trainer.model.eval()
    worst = 0.0
    for size in (1, 5, 30):
        ids = _tokens(size, torch.Generator().manual_seed(size))
        ours, theirs = own_logits(trainer.model, ids), own_logits(exported.eval(), ids)
        worst = max(worst, _off(ours.log_softmax(-1), theirs.log_softmax(-1)))
    return worst


def lora_gap(base: Path, folder: Path) -> float:
    """Two steps on adapters at a rate that moves the model, and its export."""
    with _without_planning():
        trainer = _trainer(
            base, folder, model={"lora": {"rank": 4}}, train={"learning_rate": 3e-3, "steps": 2}
        )
    before = own_logits(trainer.model.eval(), range(2, 12))
    found = trained_gap(trainer)
    assert not torch.allclose(before, own_logits(trainer.model.eval(), range(2, 12)), atol=1e-4), (
        "training moved nothing"
    )
    return found


def _without_planning() -> AbstractContextManager[Any]:
    """Without counting the memory of a model again, half of the time a tiny one takes to set up."""
    return mock.patch("srft.memory.fit.build_case", side_effect=NotImplementedError)


def _trainer(base: Path, folder: Path, **sections: dict[str, Any]) -> SRFTTrainer:
    settings: dict[str, dict[str, Any]] = {
        "rollout": {"group_size": 2, "max_tokens": 6},
        "train": {"steps": 2, "prompts_per_step": 2, "learning_rate": 1e-3, "device": "cpu"},
        "reward": {"failed_demonstrations": "keep"},
        "run": {"dir": str(folder), "checkpoint_every": 100},
    }
    for name, own in {"model": {"path": str(base)}, **sections}.items():
        settings[name] = {**settings.get(name, {}), **own}
    settings["model"]["path"] = str(base)
    return SRFTTrainer(
        train_dataset=ROWS,
        reward_funcs=_reward,
        args=SRFTConfig(**settings),
        console=Console(file=io.StringIO()),
    )


ROWS = [
    {"prompt": f"What is {a} plus {b}?", "demonstration": f"It is {a + b}", "answer": str(a + b)}
    for a, b in ((2, 3), (14, 9), (40, 41), (5, 77))
]


def _reward(prompts: Any, completions: Sequence[str], **columns: Any) -> list[float]:
    """By the sum of the bytes: it differs within most groups."""
    return [float(sum(text.encode()) % 2) for text in completions]


# -- small parts -------------------------------------------------------------------------------


def _saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _tokens(count: int, draw: torch.Generator) -> list[int]:
    return torch.randint(2, 258, (count,), generator=draw).tolist()


def _sequences(lengths: Sequence[tuple[int, int]]) -> list[TrainingSequence]:
    """One for each (prompt, response) length, and a second response to the first prompt."""
    draw = torch.Generator().manual_seed(3)
    pairs = [(_tokens(p, draw), _tokens(r, draw)) for p, r in lengths]
    groups = list(range(len(pairs)))
    if len(pairs) > 1:
        pairs.append((pairs[0][0], _tokens(7, draw)))
        groups.append(0)
    return [
        TrainingSequence(tuple(p), tuple(r), group=g, is_demo=False, reward=0.0, correct=False)
        for (p, r), g in zip(pairs, groups, strict=True)
    ]


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join(lines) or type(error).__name__)[:600]


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What srft's loggers say meanwhile."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler, logger = Keep(logging.WARNING), logging.getLogger("srft")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
