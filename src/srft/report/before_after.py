"""The same problems before and after training, for a reader who compares answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from srft.report.page import script_json
from srft.runs.files import Record, is_number
from srft.runs.reading import Run, iterate_samples

_PROBLEMS = 40
_CHARACTERS = 20_000
_BYTES = 3_000_000
_TRAINING = "training"


def before_after(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Problems answered at two steps or more of a run: ``set``, ``asked``, ``answer`` and ``at``, the first
    and the last answer of each run. They are those of the evaluations; prompts of training that came
    again where no evaluation kept any."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for number, run in enumerate(runs):
        answers: dict[tuple[str, str], list[Record]] = {}
        for name, problem, answer in [*_evaluated(run)] or [*_sampled(run)]:
            key = (name, str(problem.get("asked") or problem.get("prompt") or ""))
            answers.setdefault(key, []).append(answer)
            if key not in found:
                true = problem.get("answer")
                found[key] = {
                    "set": name,
                    "asked": key[1][:_CHARACTERS],
                    "answer": None if true is None else str(true),
                    "at": [],
                }
        for key, given in answers.items():
            ends = [given[0], given[-1]] if given[0]["step"] != given[-1]["step"] else []
            found[key]["at"] += [{"run": number, **answer} for answer in ends]
    problems = list(islice((p for p in found.values() if p["at"]), _PROBLEMS))
    _cut([*problems, *(answer for problem in problems for answer in problem["at"])])
    return problems


def _cut(records: Sequence[dict[str, Any]]) -> None:
    """Cuts the longest texts, so that all of them together take ``_BYTES`` of the page at most."""
    texts = [(r, key) for r in records for key in ("asked", "answer", "text") if r.get(key)]
    sizes = [len(script_json(record[key])) for record, key in texts]
    left = _BYTES
    for place, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - place)
        if size > share:
            break
        left -= size
    else:
        return
    for (record, key), size in zip(texts, sizes, strict=True):
        if size > share:
            record[key] = record[key][: len(record[key]) * share // size]


def _evaluated(run: Run) -> Iterator[tuple[str, Record, Record]]:
    """(set, problem, answer), by step."""
    for evaluation in run.evaluations:
        samples = evaluation.get("samples")
        for sample in samples if isinstance(samples, list) else ():
            if isinstance(sample, dict):
                name = str(evaluation.get("name", "eval"))
                yield name, sample, _answer(sample, evaluation["step"])


def _sampled(run: Run) -> Iterator[tuple[str, Record, Record]]:
    """The first rollout of each saved prompt, by step."""
    for record in iterate_samples(run):
        rollouts = [
            r for r in record["responses"] if isinstance(r, dict) and r.get("kind") == "rollout"
        ]
        if rollouts and is_number(record.get("step")):
            yield _TRAINING, record, _answer(rollouts[0], record["step"])


def _answer(sample: Record, step: int) -> Record:
    tokens = sample.get("tokens")
    correct = sample.get("correct")
    return {
        "step": step,
        "text": str(sample.get("text") or "")[:_CHARACTERS],
        "correct": None if correct is None else bool(correct),
        "reward": sample["reward"] if is_number(sample.get("reward")) else None,
        "truncated": bool(sample.get("truncated")),
        "tokens": len(tokens)
        if isinstance(tokens, list)
        else tokens
        if is_number(tokens)
        else None,
    }
