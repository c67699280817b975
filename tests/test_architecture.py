"""Data flows one way, and what is written down about the package is true."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from srft.config import SRFTConfig, load_config
from srft.reference import reference
from srft.trainer.main import QUICKSTART
from srft.trainer.setup import build_methods

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/srft"
RECIPES = [QUICKSTART, *sorted((ROOT / "recipes").glob("*.yaml"))]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(
    "room", ["runs", "objective", "rewards", "data", "model", "analysis", "report", "lab"]
)
def test_a_room_reaches_back_to_neither_trainer_nor_rollout(room):
    files = list((PACKAGE / room).rglob("*.py"))
    assert files
    for path in files:
        back = {name for name in imports(path) if name.startswith(("srft.trainer", "srft.rollout"))}
        assert not back, f"{path.relative_to(ROOT)} imports {back}"


def test_the_command_line_starts_without_the_heavy_libraries():
    heavy = ("torch", "transformers", "datasets")
    code = f"import srft.cli, sys; print(*[m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses_and_survives_a_round_trip(path):
    config = load_config(path)
    build_methods(config)
    again = SRFTConfig.model_validate(yaml.safe_load(config.to_yaml()))
    assert again == config


def test_the_configuration_page_is_up_to_date():
    assert (ROOT / "docs/configuration.md").read_text() == reference(), "run `make docs`"


def test_every_module_has_a_docstring_and_fits_a_head():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if text.strip():
            assert ast.get_docstring(ast.parse(text)), path
        assert text.count("\n") <= 500, f"{path} has {text.count(chr(10))} lines"
