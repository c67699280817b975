"""The commands that measure: ``srft eval | compare | sample | data check | reward check``, and ``data
demonstrate``, which keeps what was measured to be right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from srft.cli_options import (
    AsJson,
    Engine,
    Overrides,
    Rollout,
    Setting,
    asked_as,
    console,
    load_recipe,
    print_json,
    reward_section,
    rollout_section,
    show_tables,
    with_options,
    yaml_of,
)
from srft.section import LARGEST

_EVALUATION = (
    "dataset",
    "columns",
    "split",
    "n",
    "temperature",
    "max_tokens",
    "limit",
    "data_dir",
    "seed",
)


@with_options(
    model_path="MODEL",
    evaluation_suites="--suite",
    **{f"evaluation_{name}": f"--{name.replace('_', '-')}" for name in _EVALUATION},
)
def evaluate(
    model: Annotated[
        str, typer.Argument(help="Folder, run directory or hub id; `lab`: the base model.")
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(help="Suite or benchmark, such as lab, math5, gsm8k; repeatable."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="File or hub id to evaluate on instead.")
    ] = None,
    columns: Annotated[
        str, typer.Option(help="Columns of --dataset: '{prompt: problem, answer: solution}'.")
    ] = "{}",
    split: Annotated[str, typer.Option(help="Split of a --dataset of the hub.")] = "test",
    reward: Annotated[
        str | None,
        typer.Option(
            help="Verifier of --dataset, or YAML: '{name: numeric, tolerance: 0.1}'; unset: math, or the "
            "environment's own reward."
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option(min=1, help="Samples a problem; unset: the protocol.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0: greedy; unset: the protocol.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest response.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many problems of each set.")
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder with local benchmark files.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST - 1, help="Seed of the samples.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for results; continued if it holds some."),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Name in the tables; unset: the model as given.")
    ] = None,
    engine: Engine = None,
    rollout: Rollout = None,
    setting: Setting = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on benchmarks or a dataset, with intervals."""
    from srft.config import section
    from srft.evaluation.run import evaluate_model

    settings = {
        "suites": suite or ([] if dataset else ["lab"]),
        "dataset": dataset,
        "columns": yaml_of("--columns", columns),
        "split": split,
        "n": n,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "limit": limit,
        "data_dir": data_dir,
        "seed": seed,
    }
    result = evaluate_model(
        model,
        section("evaluation", settings),
        out,
        label=label,
        reward=None if reward is None else reward_section(reward),
        rollout=rollout_section(engine, rollout),
        **asked_as(model, setting),
    )
    if as_json:
        print_json({"folder": str(result.folder), **result.summary})
        return
    show_tables(result.markdown)
    console.print(f"written to {result.folder}", highlight=False, markup=False, soft_wrap=True)


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of `srft eval`: one, and those to compare with it."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for tables.md and tables.html of all of them."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Paired differences between evaluated models, each against the first, with intervals."""
    from srft.errors import ConfigError
    from srft.evaluation.compare import compare as paired
    from srft.evaluation.run import load_results, write_tables

    if len(folders) < 2:
        raise ConfigError("give at least two folders of `srft eval`")
    results = [load_results(folder) for folder in folders]
    tables = [paired(results[0], other) for other in results[1:]]
    written = write_tables(results, out) if out else None
    if as_json:
        print_json([table.as_dict() for table in tables])
        return
    for table in tables:
        show_tables(table.markdown())
    if written:
        console.print(f"written to {written}", highlight=False, markup=False, soft_wrap=True)


@with_options(model_path="MODEL")
def sample(
    model: Annotated[
        str, typer.Argument(help="Folder, run directory or hub id; `lab`: the base model.")
    ],
    prompt: Annotated[str | None, typer.Argument(help="What to ask.")] = None,
    lab: Annotated[
        int, typer.Option(min=0, help="Ask this many of the lab's problems instead.")
    ] = 0,
    n: Annotated[int, typer.Option(min=1, help="Completions of each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy.")] = 0.6,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST - 1, help="Seed of the samples.")] = 0,
    engine: Engine = None,
    rollout: Rollout = None,
    setting: Setting = None,
) -> None:
    """Show what a model answers."""
    from rich.markup import escape

    from srft.errors import ConfigError
    from srft.evaluation.sample import sample_texts
    from srft.types import transcript

    if (prompt is None) == (lab == 0):
        raise ConfigError("give either a prompt or --lab N")
    asked = [(prompt or "", "")]
    if lab:
        from srft.lab import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION, lab_eval

        each = -(-lab // len([*IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION]))
        rows = lab_eval(each)
        # Evenly over the families, which stand one after the other.
        turns = sorted(range(len(rows)), key=lambda place: place % each)
        asked = [(rows[k]["prompt"], rows[k]["answer"]) for k in turns[:lab]]
    answered = sample_texts(
        model,
        [text for text, _ in asked],
        n,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        rollout=rollout_section(engine, rollout),
        **asked_as(model, setting),
    )
    for (text, answer), completions in zip(asked, answered, strict=True):
        note = f"  [dim](right: {escape(answer)})[/]" if answer else ""
        console.print(f"[bold]{escape(text)}[/]{note}", highlight=False, soft_wrap=True)
        for completion in completions:
            cut = "" if completion.finish_reason == "stop" else " [yellow](cut)[/]"
            console.print(
                f"  {escape(transcript(completion.text))}{cut}", highlight=False, soft_wrap=True
            )


def data_check(
    recipe: Annotated[str, typer.Argument(help="The recipe whose data to check.")],
    overrides: Overrides = None,
    show: Annotated[int, typer.Option(min=0, help="Rows to show as tokens.")] = 2,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Suite or benchmark to look for in the training data; repeatable."),
    ] = None,
) -> None:
    """Score every demonstration with the recipe's verifier and show what the model would see."""
    from srft.errors import DataError
    from srft.trainer.inspect import check_data

    if not check_data(load_recipe(recipe, overrides), show, console, against or []):
        raise DataError(
            "a run would refuse this data, or leave rows out: answers or demonstrations do not verify (above)"
        )


def data_demonstrate(
    recipe: Annotated[str, typer.Argument(help="The recipe whose prompts to answer.")],
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option(help="Folder for demonstrations.parquet; continued if it holds samples.")
    ] = Path("demonstrations"),
    model: Annotated[
        str | None,
        typer.Option(help="Whom to ask: folder, run or hub id; unset: the recipe's model."),
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Samples of each prompt.")] = 4,
    keep: Annotated[int, typer.Option(min=1, help="Right ones kept of each prompt, at most.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy.")] = 0.6,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Keep prompts that no sample solved, without one.")
    ] = False,
) -> None:
    """Make demonstrations: sample a model on the recipe's prompts and keep what its verifier finds right."""
    from srft.evaluation.demonstrate import demonstrate

    with console.status("sampling") as status:
        found = demonstrate(
            load_recipe(recipe, overrides),
            out,
            model=model,
            n=n,
            keep=keep,
            temperature=temperature,
            all_rows=all_rows,
            progress=lambda done, total: status.update(f"sampling: {done:,} of {total:,} judged"),
        )
    console.print(
        f"{found.rows}\n{found.solved:,} of {found.prompts:,} prompts solved; {found.kept:,} of "
        f"{found.samples:,} samples kept\ntrain on them with data.train={found.file}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def reward_check(
    file: Annotated[
        Path, typer.Argument(help="JSONL, Parquet or CSV with completion, answer, label.")
    ],
    reward: Annotated[
        str, typer.Option(help="Verifier, path.py:function, or YAML: '{name: math, timeout_s: 1}'.")
    ] = "math",
    show: Annotated[int, typer.Option(min=0, help="Disagreements of each kind to list.")] = 20,
) -> None:
    """Compare a verifier with labels: agreement, false negatives, false positives."""
    from srft.data.files import read_file
    from srft.data.row_errors import Problems
    from srft.rewards.audit import audit
    from srft.rewards.scorer import Scorer

    problems = Problems(str(file))
    rows = read_file(file, problems)
    problems.settle(len(rows), "refuse")
    with Scorer(reward_section(reward)) as scorer:
        found = audit([row.values for row in rows], scorer, str(file))
        outcomes = {k: n for k, n in scorer.stats()["pool"].items() if n}
    console.print(f"{found.summary()}", highlight=False, soft_wrap=True)
    if outcomes:
        counts = ", ".join(f"{name} {n:,}" for name, n in outcomes.items())
        console.print(f"verifications by outcome: {counts}", highlight=False, soft_wrap=True)
    for title, findings in (
        ("labelled right, scored wrong", found.false_negatives),
        ("labelled wrong, scored right", found.false_positives),
        ("no reward applies", found.unscorable),
    ):
        if findings:
            console.print(f"[bold]{title}: {len(findings)}[/]")
            for finding in findings[:show]:
                console.print(f"  {finding}", highlight=False, markup=False, soft_wrap=True)
