"""The command line: ``srft train | eval | sample | analyze | report | data | reward | lab | quickstart``.

Thin: each command reads its arguments, imports what it needs and calls one function of the library.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from srft import __version__
from srft.errors import SRFTError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
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

console = Console()

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace those of the recipe."),
]

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
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of run.dir.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")
    ] = False,
) -> None:
    """Train a model: [bold]srft train recipe.yaml train.steps=50[/]."""
    from srft.config import load_config

    arguments = list(overrides or [])
    if "=" in recipe and not Path(recipe).exists():
        arguments.insert(0, recipe)
        config = load_config(None, arguments)
    else:
        config = load_config(recipe, arguments)
    if dry_run:
        from srft.trainer.setup import build_methods

        build_methods(config)
        sys.stdout.write(config.to_yaml())
        return
    from srft.trainer.main import run_training

    result = run_training(config, resume=resume, console=console)
    if result.stopped_by:
        console.print(
            f"stopped by {result.stopped_by} after step {result.step}; go on with --resume "
            f"run.dir={result.run_dir}"
        )
        raise typer.Exit(STOPPED_EXIT_CODES[result.stopped_by])


@app.command()
def quickstart(
    overrides: Overrides = None,
) -> None:
    """Train the built-in base model on the built-in tasks, and show what it learned."""
    from srft.trainer.main import run_quickstart

    result = run_quickstart(list(overrides or []), console)
    if result.stopped_by:
        raise typer.Exit(STOPPED_EXIT_CODES[result.stopped_by])


@lab_app.command("pretrain")
def lab_pretrain(
    out: Annotated[Path, typer.Argument(help="Folder for the base model.")],
    seed: Annotated[int, typer.Option(help="Seed of corpus and weights.")] = 0,
) -> None:
    """Train the lab's base model again from random weights, by the recipe of the shipped one."""
    from srft.lab.pretrain import pretrain

    pretrain(out, seed=seed)


@lab_app.command("data")
def lab_data(
    out: Annotated[Path, typer.Argument(help="Folder for train.jsonl and eval.jsonl.")],
    n: Annotated[int, typer.Option(min=1, help="Training problems with a demonstration.")] = 1000,
    per_family: Annotated[int, typer.Option(min=1, help="Evaluation problems a family.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the problems.")] = 0,
) -> None:
    """Write the lab's problems as JSONL."""
    from srft.lab.data import lab_eval, lab_train, write_jsonl

    write_jsonl(lab_train(n, seed), out / "train.jsonl")
    write_jsonl(lab_eval(per_family, seed), out / "eval.jsonl")
    console.print(f"wrote {out / 'train.jsonl'} and {out / 'eval.jsonl'}")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors a user can mend are one line on stderr and an exit code, no traceback."""
    try:
        app(args=arguments, standalone_mode=True)
    except SRFTError as error:
        _fail(str(error), error, error.exit_code)
    except KeyboardInterrupt as error:
        _fail("interrupted", error, 130)
    except OSError as error:
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}", error, 1)


def _fail(message: str, error: BaseException, code: int) -> Any:
    if os.environ.get("SRFT_TRACEBACK"):
        raise error
    Console(stderr=True).print(
        f"[bold red]error:[/] {_escape(message)}", highlight=False, soft_wrap=True
    )
    sys.exit(code)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
