"""What the commands have in common: options, the console, and settings made of arguments."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

# Of several processes the first one speaks.
console = Console(quiet=os.environ.get("RANK", "0") != "0")

Rollout = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Setting of the engine, such as engine=vllm; repeat. As `rollout` in a recipe.",
    ),
]

Engine = Annotated[
    str | None, typer.Option(help="What generates: embedded, generate, vllm or vllm-server.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON instead.")]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace those of the recipe."),
]


def load_recipe(recipe: str, overrides: list[str] | None) -> Any:
    """The config of a recipe file, or of key=value arguments alone."""
    from srft.config import load_config

    arguments = list(overrides or [])
    if "=" in recipe and not Path(recipe).exists():
        return load_config(None, [recipe, *arguments])
    return load_config(recipe, arguments)


def rollout_section(engine: str | None, rollout: list[str] | None) -> Any:
    """The rollout section from --engine and --rollout."""
    from srft.config import section_from

    return section_from("rollout", [*([f"engine={engine}"] if engine else []), *(rollout or [])])


def reward_section(text: str) -> Any:
    """The reward section from a verifier's name, path.py:function, or YAML in brackets."""
    import yaml

    from srft.config import section
    from srft.errors import ConfigError

    try:
        return section("reward", yaml.safe_load(text) if text[:1] in ("{", "[") else text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--reward {text!r}: not valid YAML: {error}") from error


def print_json(values: Any) -> None:
    sys.stdout.write(json.dumps(values, indent=1, ensure_ascii=False) + "\n")
