"""``srft analyze``: several models against a base on the same responses, and the paths of runs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from srft.analysis.analysis_page import write_page
from srft.analysis.analysis_result import AnalysisResult
from srft.analysis.dynamics import DEMONSTRATIONS, Dynamics, learning_dynamics
from srft.analysis.responses import TokenizedResponse, read_responses, tokenize
from srft.analysis.shift import THRESHOLD, Shift, summarize
from srft.analysis.words import token_class
from srft.data.data_config import DataConfig
from srft.errors import ConfigError
from srft.evaluation.open_model import Source, find_model, open_weights, template_of
from srft.model.model_config import ModelConfig
from srft.runs.files import Record, to_json, write_whole
from srft.runs.reading import Run, read_runs

if TYPE_CHECKING:
    from srft.analysis.distributions import TokenShift
    from srft.analysis.gradient import GradientView
    from srft.objective.method import Method

logger = logging.getLogger(__name__)

BROWSED = 300
"""Responses whose tokens go into the page."""


def analyze(
    models: Sequence[str],
    data: str | Path | Sequence[str | Path],
    out: Path | str,
    *,
    runs: Sequence[Path | str] = (),
    references: Sequence[str] = (),
    kinds: Sequence[str] | None = None,
    method: str | None = None,
    limit: int | None = 500,
    max_tokens: int = 4096,
    threshold: float = THRESHOLD,
    device: str = "cpu",
    seed: int = 0,
    data_config: DataConfig | None = None,
    model_options: dict[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> AnalysisResult:
    """Analyses models and runs, and writes analysis.json and analysis.html to ``out``.

    models: the base first, then what was made from it: folders, hub names, run directories or
        checkpoint folders. With the base alone only dynamics and gradient are made.
    data: responses to score (``read_responses`` says in which forms); ``kinds`` keeps some of
        them, ``limit`` is the most of each kind, ``max_tokens`` the most of each response.
    runs: run directories whose checkpoints become trajectories.
    references: models whose distances are the axes of the trajectories beside the base; without
        them the demonstrations themselves (probability 1), and the first of ``models`` after the base.
    method: whose gradient to look at; unset, that of the run with the most terms, else "srft".
    data_config: settings of ``data`` that replace those of the recipe beside the base.
    threshold: change of probability from which a token counts as changed.
    progress: is told what is being done.

    Raises:
        ConfigError: no model given, or two of the same name and place.
        DataError, ModelError, CheckpointError: something cannot be read or loaded.
    """
    if not models:
        raise ConfigError("analyze: give at least one model, the base first")
    from srft.analysis.distributions import compare
    from srft.model.loading import load_tokenizer

    say = progress or logger.info
    target = Path(out)
    settings = ModelConfig(**(model_options or {}))
    sources = _named([find_model(m, settings) for m in models])
    read = read_runs(runs) if runs else []
    places = [data] if isinstance(data, (str, Path)) else list(data)
    say("reading responses")
    columns = {str(role): name for role, name in (data_config or DataConfig()).columns.items()}
    responses = read_responses(places, kinds=kinds, limit=limit, seed=seed, columns=columns)
    tokenizer = load_tokenizer(sources[0].config)
    asked, other = _prompt_format(sources, data_config)
    tokenized, notes = tokenize(responses, tokenizer, asked, max_tokens)
    notes += other if any(not r.rendered for r in responses) else []

    base = open_weights(sources[0], device)
    scored: dict[str, TokenShift] = {}
    for source in sources[1:]:  # two models are in memory at a time
        say(f"scoring {source.name}")
        scored[source.name] = compare(base, open_weights(source, device), tokenized)
    texts, classes = _describe(tokenized, tokenizer)
    settled = {"base": sources[0].name, "threshold": threshold, "seed": seed}
    shifts = tuple(_shifts(scored, tokenized, texts, classes, **settled))
    dynamics = _dynamics(
        base, sources[0].name, scored, read, references, tokenized, device, settings, say
    )
    say("gradients")
    view = _gradient(base, sources[0].name, method, read, tokenized, notes)
    result = AnalysisResult(
        models=tuple(s.name for s in sources),
        paths=tuple(str(m) for m in models),
        data=tuple(map(str, places)),
        responses={k: sum(t.response.kind == k for t in tokenized) for k in _kinds(tokenized)},
        threshold=threshold,
        seed=seed,
        notes=tuple(notes),
        shifts=shifts,
        dynamics=dynamics,
        gradient=view,
        out=target,
        browsed=tuple(_records(scored, tokenized, texts)) if scored else (),
    )
    say("writing")
    return replace(result, files=tuple(_write(result)))


def _prompt_format(
    sources: Sequence[Source], given: DataConfig | None
) -> tuple[DataConfig, list[str]]:
    """That of the recipe beside the base, with what ``given`` sets on top; and a note where models were
    trained under another."""
    base, *models = [template_of(source) for source in sources]
    told = {} if given is None else {key: getattr(given, key) for key in given.model_fields_set}
    asked = base.model_copy(update=told)
    apart = [
        source.name
        for source, own in zip(sources[1:], models, strict=True)
        if own.model_copy(update=told).model_dump() != asked.model_dump()
    ]
    note = (
        f"Prompts are in the format of {sources[0].name}; the recipe of {', '.join(apart)} has another (its "
        "settings of data, such as data.prompt_template, can be given as --setting)."
    )
    return asked, [note] if apart else []


def _named(sources: list[Source]) -> list[Source]:
    """Sources under different names: runs of one name take the folder above along (``sft/seed0``), and
    a second ``model`` becomes ``model (2)``."""
    shared = Counter(source.name for source in sources)
    count: Counter[str] = Counter()
    named = []
    for source in sources:
        name = source.name
        if shared[name] > 1 and source.run is not None:
            name = f"{source.run.resolve().parent.name}/{name}"
        count[name] += 1
        named.append(replace(source, name=name if count[name] == 1 else f"{name} ({count[name]})"))
    return named


def _describe(
    tokenized: Sequence[TokenizedResponse], tokenizer: Any
) -> tuple[list[str], list[str]]:
    """Text and class of every token, responses end to end."""
    special = set(tokenizer.all_special_ids)
    known: dict[int, tuple[str, str]] = {}
    for token in {token for t in tokenized for token in t.own}:
        text = tokenizer.decode([token])
        known[token] = (text, token_class(text, token in special))
    flat = [known[token] for t in tokenized for token in t.own]
    return [text for text, _ in flat], [kind for _, kind in flat]


def _kinds(tokenized: Sequence[TokenizedResponse]) -> list[str]:
    return list(dict.fromkeys(t.response.kind for t in tokenized))


def _shifts(
    scored: Mapping[str, TokenShift],
    tokenized: Sequence[TokenizedResponse],
    texts: list[str],
    classes: list[str],
    **settings: Any,
) -> Iterator[Shift]:
    """Every model on every kind of response. settings: of ``summarize``."""
    kind_S = np.asarray([t.response.kind for t in tokenized])
    text_T, class_T = np.asarray(texts, dtype=object), np.asarray(classes)
    for kind in _kinds(tokenized):
        for name, shift in scored.items():
            keep_T = (kind_S == kind)[shift.sequence_T]
            of_kind = (shift.rows(keep_T), class_T[keep_T].tolist(), text_T[keep_T].tolist())
            yield summarize(*of_kind, model=name, kind=kind, **settings)


def _dynamics(
    base: Any,
    base_name: str,
    scored: Mapping[str, TokenShift],
    runs: Sequence[Run],
    references: Sequence[str],
    tokenized: list[TokenizedResponse],
    device: str,
    settings: ModelConfig,
    say: Callable[[str], None],
) -> Dynamics | None:
    from srft.analysis.distributions import token_logprobs

    if not runs:
        return None
    say("learning dynamics")
    base_T = np.exp(token_logprobs(base, tokenized))
    vectors: dict[str, np.ndarray] = {}
    for source in _named([find_model(r, settings) for r in references if r != DEMONSTRATIONS]):
        name = source.name if source.name != base_name else f"{source.name} (reference)"
        vectors[name] = np.exp(token_logprobs(open_weights(source, device), tokenized))
    if not references:
        vectors |= {n: np.exp(s.logprob_after_T) for n, s in list(scored.items())[:1]}
    return learning_dynamics(
        (base_name, base_T), vectors, runs, tokenized, device=device, settings=settings
    )


def _gradient(
    base: Any,
    name: str,
    method: str | None,
    runs: Sequence[Run],
    tokenized: Sequence[TokenizedResponse],
    notes: list[str],
) -> GradientView | None:
    from srft.analysis.gradient import gradient_view

    chosen = _method(method, runs)
    # Whole prompts, as in a training step.
    groups = list(dict.fromkeys(t.response.group for t in tokenized))[:64]
    batch = [t for t in tokenized if t.response.group in set(groups)]
    if chosen.rollouts and not any(t.response.kind != "demonstration" for t in batch):
        notes.append(
            "Gradient view: there are demonstrations only, so terms on rollouts have no tokens."
        )
    return gradient_view(base, name, chosen, batch)


def _method(name: str | None, runs: Sequence[Run]) -> Method:
    """The one asked for; else, among those of the runs, the one with the most terms; else SRFT."""
    from srft.objective.methods import get_method

    if name is not None:
        return get_method(name)
    settings = [run.config for run in runs if isinstance(run.config.get("method"), str)]
    found = [
        get_method(c["method"], c.get("objective") or None) for c in settings if not c.get("stages")
    ]
    return max(found, key=lambda method: len(method.terms), default=None) or get_method("srft")


def _records(
    scored: Mapping[str, TokenShift], tokenized: Sequence[TokenizedResponse], texts: Sequence[str]
) -> Iterator[Record]:
    """The first responses in the form of samples.jsonl, for the page's browser: a response a record,
    under each model in turn."""
    start = np.concatenate([[0], np.cumsum([len(t.own) for t in tokenized])])
    for i, t in enumerate(tokenized[:BROWSED]):
        r, at = t.response, slice(int(start[i]), int(start[i + 1]))
        seen = [
            {
                "label": name,
                "kind": r.kind,
                "text": r.text,
                "reward": r.reward,
                "correct": r.correct,
                "truncated": r.truncated,
                "tokens": list(texts[at]),
                "logprob": shift.logprob_after_T[at].tolist(),
                "base_logprob": shift.logprob_before_T[at].tolist(),
                "entropy": shift.entropy_before_T[at].tolist(),
                "jsd": shift.jsd_T[at].tolist(),
            }
            for name, shift in scored.items()
        ]
        prompt = list(r.prompt) if isinstance(r.prompt, tuple) else r.prompt
        yield {
            "prompt": prompt, "answer": r.answer, "source": r.source, "columns": {"kind": r.kind},
            "responses": seen,
        }  # fmt: skip


def _write(result: AnalysisResult) -> list[Path]:
    path = result.out / "analysis.json"
    write_whole(path, to_json(result.to_json(), indent=1, default=str) + "\n")
    return [path, write_page(result, result.out / "analysis.html")]
