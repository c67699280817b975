"""From a benchmark's declaration to the problems a model is asked."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from srft.data.files import READERS
from srft.errors import DataError
from srft.evaluation.benchmarks import LAB_PER_FAMILY, Benchmark
from srft.evaluation.choices import shuffle_options
from srft.paths import local_path
from srft.rewards.options import as_list
from srft.types import Example, Message

MATH_INSTRUCTION = "Reason step by step and put the final answer in \\boxed{}."
CHOICE_INSTRUCTION = "Reason step by step and put the letter of the right option in \\boxed{}."


def load_benchmark(
    benchmark: Benchmark,
    data_dir: str | Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    system_prompt: str | None = None,
) -> list[Example]:
    """The problems of a benchmark, ready to be asked, in a fixed order.

    data_dir: folder with local copies; None takes SRFT_DATA_DIR. What is not there comes from the
    hub. seed: orders the options and chooses under ``limit``. system_prompt: see ``with_system``.

    A prompt that is plain text gets a sentence on how to answer; one that is a chat is asked as it
    stands, instructions being in its system message. The lab's are asked as they are.

    Raises:
        DataError: neither a local copy nor the hub can be read, or a row is not usable.
    """
    examples, layout = _rows(benchmark, data_dir, seed)
    if benchmark.verifier == "choice":
        examples = [shuffle_options(e, layout, seed) for e in examples]
    elif layout == "answer_list":
        examples = [_join_answers(e) for e in examples]
    for example in examples:
        if not (example.answer or "").strip():
            raise DataError(f"{example.source}: has no answer to compare with.")
    if not benchmark.families:
        text = CHOICE_INSTRUCTION if benchmark.verifier == "choice" else MATH_INSTRUCTION
        examples = [_with_instruction(e, text) for e in examples]
    examples = [replace(_with_subject(e, benchmark.subject), demonstrations=()) for e in examples]
    return select([with_system(e, system_prompt) for e in examples], limit, seed)


def source_of(benchmark: Benchmark, data_dir: str | Path | None = None) -> str:
    """Where the problems would be read from: the file's path, ``hub:repository`` or ``lab``."""
    local = _local(benchmark, data_dir)
    if local is not None:
        return str(local)
    return "lab" if benchmark.families else f"hub:{benchmark.hub}"


def _local(benchmark: Benchmark, data_dir: str | Path | None) -> Path | None:
    folder = data_dir or os.environ.get("SRFT_DATA_DIR")
    if data_dir is not None and not Path(data_dir).is_dir():
        raise DataError(f"{data_dir}: no such folder; evaluation.data_dir names one.")
    if not folder or not benchmark.file:
        return None
    path = local_path(folder) / benchmark.file
    candidates = (path, *(path.with_suffix(end) for end in READERS), path.with_suffix(""))
    return next((found for found in candidates if found.exists()), None)


def _rows(
    benchmark: Benchmark, data_dir: str | Path | None, seed: int
) -> tuple[list[Example], Any]:
    from srft.data.reading import as_examples, load_examples

    if benchmark.families:
        from srft.lab.data import lab_eval

        return as_examples(lab_eval(LAB_PER_FAMILY, seed, benchmark.families)), "plain"
    local = _local(benchmark, data_dir)
    if local is not None:
        split = benchmark.split if local.is_dir() else None
        return _local_rows(benchmark, str(local), split)
    try:
        examples = load_examples(
            benchmark.hub,
            split=benchmark.split,
            subset=benchmark.hub_config,
            columns=dict(benchmark.columns),
        )
    except DataError as error:
        raise DataError(
            f"benchmark {benchmark.name}: {error}. A local copy is looked for at "
            f"DATA_DIR/{benchmark.file} (or .jsonl, .csv); set SRFT_DATA_DIR or evaluation.data_dir."
        ) from error
    return examples, benchmark.layout


def _local_rows(benchmark: Benchmark, path: str, split: str | None) -> tuple[list[Example], Any]:
    """The rows of a local file: in the RL community's schema, or a copy of the hub's."""
    from srft.data.reading import load_examples

    try:
        layout = "letters" if benchmark.verifier == "choice" else "plain"
        return load_examples(path, split=split), layout
    except DataError as error:
        try:
            columns = dict(benchmark.columns)
            return load_examples(path, split=split, columns=columns), benchmark.layout
        except DataError:
            raise error from None


def _join_answers(example: Example) -> Example:
    """OlympiadBench: a list of answers, and at times a context that several questions share."""
    answers = as_list(example.columns.get("final_answer"))
    if not answers:
        raise DataError(f"{example.source}: needs the column `final_answer`, a list of answers.")
    context = str(example.columns.get("context") or "").strip()
    prompt = example.prompt
    if context and isinstance(prompt, str):
        prompt = f"{context}\n\n{prompt}"
    return replace(example, prompt=prompt, answer=", ".join(map(str, answers)))


def _with_subject(example: Example, column: str) -> Example:
    """The subject as the column ``family``, which results are broken down by."""
    subject = example.columns.get(column)
    if not isinstance(subject, str):
        return example
    return replace(example, columns={**example.columns, "family": subject})


def _with_instruction(example: Example, instruction: str) -> Example:
    if not isinstance(example.prompt, str):
        return example
    return replace(example, prompt=f"{example.prompt.strip()}\n\n{instruction}")


def with_system(example: Example, system_prompt: str | None) -> Example:
    """``example`` with its system message replaced; an empty string removes it, None keeps it."""
    if system_prompt is None:
        return example
    prompt = example.prompt
    messages: tuple[Message, ...] = (
        ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    )
    rest = tuple(m for m in messages if m["role"] != "system")
    if system_prompt:
        return replace(example, prompt=({"role": "system", "content": system_prompt}, *rest))
    # Without a system message a plain text stays one: templates may treat it differently.
    return example if isinstance(prompt, str) else replace(example, prompt=rest)


def select(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """At most ``limit`` examples, drawn with ``seed``, in their original order.

    A smaller limit's choice is part of a larger one's, and families have the share that they have
    in the whole.
    """
    if limit is None or limit >= len(examples):
        return list(examples)
    order = list(range(len(examples)))
    random.Random(f"{seed}/limit").shuffle(order)
    families = [examples[i].columns.get("family") for i in order]
    size, turn = Counter(families), Counter[Any]()
    keyed = []
    for place, (family, i) in enumerate(zip(families, order, strict=True)):
        keyed.append(((turn[family] + 0.5) / size[family], place, i))
        turn[family] += 1
    chosen = sorted(i for _, _, i in sorted(keyed)[:limit])
    return [examples[i] for i in chosen]
