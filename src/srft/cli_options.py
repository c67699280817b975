"""What the commands have in common: options, the console, and settings made of arguments."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.cells import cell_len

from srft.cli_completion import complete_setting
from srft.errors import ConfigError, DataError, ModelError, RolloutError
from srft.terminal import Terminal, visible

# Of several processes the first one speaks.
console = Terminal(quiet=os.environ.get("RANK", "0") != "0")

Rollout = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Setting of the engine, such as engine=vllm, or `stop`; repeatable. As `rollout` in a recipe.",
    ),
]

Engine = Annotated[
    str | None, typer.Option(help="What generates: embedded, generate, vllm or vllm-server.")
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Setting of a recipe's sections data, model and environment, such as model.dtype=bfloat16; "
        "repeatable.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON instead.")]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings that replace those of the recipe.",
        autocompletion=complete_setting,
    ),
]


def load_recipe(recipe: str, overrides: list[str] | None) -> Any:
    """The config of a recipe file, or of key=value arguments alone."""
    from srft.config import load_config

    arguments = list(overrides or [])
    if "=" in recipe and not Path(recipe).exists():
        return load_config(None, [recipe, *arguments])
    return load_config(recipe, arguments)


def where_to_resume(recipe: str, overrides: list[str]) -> list[str]:
    """The arguments with ``run.dir``: where the recipe is a run's own config.yaml, that run.

    Raises:
        ConfigError: nothing says which run is to be continued.
    """
    from srft.runs.run_dir import RunDir

    if any(override.startswith("run.dir=") for override in overrides):
        return overrides
    beside = RunDir(Path(recipe).parent)
    if Path(recipe).name == beside.config.name and beside.begun:
        return [*overrides, f"run.dir={json.dumps(str(beside.path))}"]
    if load_recipe(recipe, overrides).run.dir is None:
        runs = [path.parent for path in Path("runs").glob("*/config.yaml")]
        newest = max(runs, key=lambda run: run.stat().st_mtime, default="runs/NAME")
        raise ConfigError(
            f"--resume: which run? Its folder is run.dir, such as run.dir={newest}"
            + (" (the newest one here)" if runs else "")
        )
    return overrides


_SAMPLING = {
    "temperature": "--temperature sets it",
    "max_tokens": "--max-tokens sets it",
    "group_size": "--n sets it",
    "ahead": "it is of training alone",
    "max_mismatch": "it is of training alone",
}


def rollout_section(engine: str | None, rollout: list[str] | None) -> Any:
    """The rollout section from --engine and --rollout: the engine's settings, and what ends a response."""
    from srft.config import section_from

    for setting in rollout or []:
        if elsewhere := _SAMPLING.get(setting.partition("=")[0]):
            raise ConfigError(f"--rollout {setting!r}: has no effect here; {elsewhere}")
    return section_from("rollout", [*([f"engine={engine}"] if engine else []), *(rollout or [])])


def data_and_model(settings: list[str] | None) -> Any:
    """The sections data and model from --setting."""
    config = _sections("data", "model", settings=settings)
    return config.data, config.model


def _sections(*names: str, settings: list[str] | None) -> Any:
    from srft.config import load_config

    for setting in settings or []:
        if setting.partition(".")[0] not in names:
            known = " or ".join(f"{name}.KEY=VALUE" for name in names)
            raise ConfigError(f"--setting {setting!r}: write {known}")
    return load_config(None, settings or [])


def asked_as(model: str, settings: list[str] | None) -> dict[str, Any]:
    """How a model is opened and asked: by the recipe beside it, with --setting on top."""
    from srft.evaluation.open_model import environment_of, find_model, template_of

    asked = _sections("data", "model", "environment", settings=settings)
    source = find_model(model, asked.model)
    named = asked.environment.model_fields_set & {"tools", "factory"}
    own = {
        "data": template_of(source),
        "environment": asked.environment if named else environment_of(source),
    }
    changed = {
        name: section.model_copy(
            update={
                key: getattr(getattr(asked, name), key)
                for key in getattr(asked, name).model_fields_set
            }
        )
        for name, section in own.items()
    }
    return {**changed, "model": asked.model}


_VALUE = r"\{[^}]*\}|\[[^\]]*\]|true|false|null|none|auto|drop|keep|\d+\b"
_SETTING = re.compile(
    r"(?<![\w./-])((data|model|rollout|evaluation|environment)\.([a-z_]+)(?:\.[a-z_]+)*)\b"
    rf"(?::\ ({_VALUE})|=({_VALUE}|[^\s,;)]+))?"
)


def with_options(**options: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For a command without a recipe: errors propose its options where they name a recipe's settings.
    ``options``: those with a name of their own, ``model_path="MODEL"`` for model.path."""

    def spoken(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                command(*args, **kwargs)
            except (ConfigError, DataError, ModelError, RolloutError) as error:
                raise type(error)(as_options(str(error), options)) from error

        return run

    return spoken


def as_options(text: str, options: dict[str, str]) -> str:
    """A message with options in place of a recipe's settings."""
    from srft.config import SRFTConfig

    def option(match: re.Match[str]) -> str:
        name, section, first, *values = match.groups()
        value = next(filter(None, values), None)
        fields: Any = SRFTConfig.model_fields[section].annotation
        if first not in fields.model_fields:
            return match[0]  # a file's name, say
        own = options.get(f"{section}_{first}")
        if own is not None:
            inside = name.removeprefix(f"{section}.{first}").replace(".", " ")
            return f"{own}{inside} {shlex.quote(value)}" if value else f"{own}{inside}"
        if section == "evaluation":
            return match[0]
        given = name.removeprefix("rollout.") + (f"={value}" if value else "")
        return f"--{'rollout' if section == 'rollout' else 'setting'} {shlex.quote(given)}"

    return _SETTING.sub(option, text)


def show_tables(tables: Any) -> None:
    """Markdown or rich's tables on the console, wide enough that no cell is cut."""
    from rich.markdown import Markdown

    parts = _parts_of(tables) if isinstance(tables, str) else [(tables, 0)]
    for part, needed in parts:
        if isinstance(part, str):
            part = Markdown(part)
        else:
            needed = console.measure(part, options=console.options.update(width=300)).maximum
        width = max(console.width, needed)
        Terminal(width=width, markup=False, quiet=console.quiet).print(part)


def _parts_of(text: str) -> list[tuple[str, int]]:
    """The tables of a Markdown text and what stands between them, each with the width that it needs."""
    parts: list[tuple[str, int]] = []
    for is_table, lines in itertools.groupby(text.splitlines(), lambda line: line[:1] == "|"):
        block = list(lines)
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in block]
        columns = itertools.zip_longest(*cells, fillvalue="") if is_table else ()
        # Two blanks on either side of a column, and a rule.
        parts.append(("\n".join(block), sum(max(map(cell_len, c)) + 5 for c in columns)))
    return parts


def yaml_of(option: str, text: str) -> Any:
    """An option's value, YAML where it stands in brackets."""
    import yaml

    try:
        return yaml.safe_load(text) if text[:1] in ("{", "[") else text
    except yaml.YAMLError as error:
        raise ConfigError(f"{option} {text!r}: not valid YAML: {error}") from error


def reward_section(text: str) -> Any:
    """The reward section from a verifier's name, path.py:function, or YAML in brackets."""
    from srft.config import section

    return section("reward", yaml_of("--reward", text))


def print_json(values: Any) -> None:
    sys.stdout.write(visible(json.dumps(values, indent=1, ensure_ascii=False)) + "\n")
