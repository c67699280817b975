"""Data flows one way, and what is written down about the package is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml
from docs.generate import metrics_tables, reference

from srft.config import SRFTConfig, load_config
from srft.lab import QUICKSTART, REAL
from srft.runs.metrics import GROUPS
from srft.trainer.setup import build_methods

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/srft"
RECIPES = [QUICKSTART, REAL, *sorted((ROOT / "recipes").glob("*.yaml"))]


MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


@dataclass(frozen=True)
class Room:
    """A row of a table of docs/architecture.md. ``files``: patterns below the package; ``allowed``: rooms,
    or single files of other rooms."""

    part: str
    name: str
    files: tuple[str, ...]
    allowed: tuple[str, ...]

    def holds(self, file: str) -> bool:
        return any(fnmatch(file, f"{p}*" if p.endswith("/") else p) for p in self.files)


def read_rooms(page: str) -> list[Room]:
    """Rooms of the page's tables ``| room | what it holds | may import |``, under the heading of each."""
    rooms, part = [], ""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("#"):
            part = line.strip("# ")
        elif line.startswith("| `") and len(cells) == 3:
            name, *files = re.findall(r"`([^`]+)`", cells[0])
            assert files or name.endswith("/"), f"{name}: a room is a folder, or a name with files"
            allowed = re.findall(r"`([^`]+)`", cells[2])
            rooms.append(Room(part, name, tuple(files or [name]), tuple(allowed)))
    return rooms


ROOMS = [
    room
    for room in read_rooms((ROOT / "docs/architecture.md").read_text())
    if room.part in ("Core", "Studies", "Commands")
]


def file_of(module: str) -> str:
    return MODULES[module].relative_to(PACKAGE).as_posix()


def room_of(module: str) -> Room:
    """Rooms of named files come before rooms that are folders."""
    named = [room for room in ROOMS if room.holds(file_of(module)) and room.files != (room.name,)]
    folders = [room for room in ROOMS if room.holds(file_of(module)) and room.files == (room.name,)]
    found = named or folders
    assert len(found) == 1, f"{file_of(module)} is in {len(found)} rooms of docs/architecture.md"
    return found[0]


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in it: for types only, or when called."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= below & MODULES.keys() or {node.module}
    return found & MODULES.keys()


IMPORTS = {module: imports(path) - {module} for module, path in MODULES.items()}


def test_every_module_is_in_a_room_and_every_room_and_pattern_has_modules():
    used = Counter(room_of(module).name for module in MODULES)
    assert set(used) == {room.name for room in ROOMS}
    files = [file_of(module) for module in MODULES]
    for room in ROOMS:
        for pattern in room.files:
            assert any(Room("", "", (pattern,), ()).holds(f) for f in files), f"no file {pattern}"


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_imports_what_its_row_allows_and_all_of_it(room):
    unused = set(room.allowed)
    for module in MODULES:
        if room_of(module) is not room:
            continue
        for other in IMPORTS[module]:
            if room_of(other) is room:
                continue
            fits = {room_of(other).name, file_of(other)} & set(room.allowed)
            assert fits, f"{file_of(module)} imports {file_of(other)}, which {room.name} may not"
            unused -= fits
    assert not unused, f"{room.name} may import {sorted(unused)}, and does not: say so"


def test_nothing_of_the_core_may_import_a_study_or_a_command():
    parts = {room.name: room.part for room in ROOMS}
    parts |= {file_of(module): room_of(module).part for module in MODULES}
    for room in ROOMS:
        reach = {parts[name] for name in room.allowed}
        assert room.part == "Commands" or "Commands" not in reach, room.name
        assert room.part != "Core" or reach <= {"Core"}, room.name


def circles(graph: Mapping[str, Iterable[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_there_are_no_circles_between_modules_and_none_between_rooms():
    assert not circles(IMPORTS)
    rooms: dict[str, set[str]] = {room.name: set() for room in ROOMS}
    for module, others in IMPORTS.items():
        rooms[room_of(module).name] |= {room_of(other).name for other in others}
    assert not circles({name: others - {name} for name, others in rooms.items()})


def test_there_are_no_circles_between_benchmarks():
    """They import each other by their bare names, as scripts of one folder."""
    files = {path.stem: path for path in (ROOT / "benchmarks").glob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
        graph[name] = set(names) & files.keys()
    assert any(graph.values()) and not circles(graph)


def test_the_tables_are_read_row_by_row():
    """The reader of the page: a wrong row fails, it is not passed over."""
    page = (
        "### Core\n| room | what | may import |\n|---|---|---|\n| `x/` | a | `base`, `y/z.py` |\n"
    )
    page += "| `base`: `a.py`, `b_*.py` | b | nothing |\n"
    rooms = read_rooms(page)
    assert [(r.name, r.files, r.allowed) for r in rooms] == [
        ("x/", ("x/",), ("base", "y/z.py")),
        ("base", ("a.py", "b_*.py"), ()),
    ]
    assert rooms[0].holds("x/deep/one.py") and not rooms[0].holds("xy/one.py")
    assert circles({"a": ["b"], "b": ["a"]}) and not circles({"a": ["b"], "b": []})


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


def test_the_page_of_metrics_is_up_to_date():
    page = (ROOT / "docs/metrics.md").read_text()
    assert page == metrics_tables(page), "run `make docs`"
    assert all(f"`{m.key}`" in page for found in GROUPS.values() for m in found)


def test_every_module_has_a_docstring_and_fits_a_head():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if text.strip():
            assert ast.get_docstring(ast.parse(text)), path
        assert text.count("\n") <= 500, f"{path} has {text.count(chr(10))} lines"


PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
# What runs and evaluations write, and names that stand for a file of the reader's or of others.
ELSEWHERE = {
    "config.yaml",
    "config.until_step_000100.yaml",
    "tables.md",
    "log.txt",
    "rlplus_core_alg.py",
}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_names_is_there(path):
    """`file.py:Class.method`, files in backticks, targets of links; in objective.md `module.function`."""
    page = path.read_text()
    for file, name in re.findall(r"`([\w/]+\.py):([\w.]+)`", page):
        assert file == "path.py" or defines(PACKAGE / file, name), f"{file}:{name}"
    for file in re.findall(r"`([\w./-]+\.(?:py|yaml|md|js|css|txt))`", page):
        places = [
            ROOT,
            ROOT / "src",
            ROOT / "docs",
            PACKAGE,
            PACKAGE / "report/assets",
            ROOT / "tests/objective",
        ]
        places += [room for room in PACKAGE.iterdir() if room.is_dir()]
        assert file in ELSEWHERE or any((place / file).is_file() for place in places), file
    for target in re.findall(r"\]\(([^)#\s]+)", page):
        assert "://" in target or (path.parent / target).exists(), target
    if path.name == "objective.md":
        named = re.findall(r"  (\w+)\.(\w+)$", page, re.MULTILINE)
        assert len(named) > 10
        for module, name in named:
            assert defines(PACKAGE / f"objective/{module}.py", name), f"{module}.{name}"


def defines(file: Path, name: str) -> bool:
    """Whether there is such a function or class, or method of one (``Class.method``)."""
    body = ast.parse(file.read_text()).body
    for part in name.split("."):
        kinds = (ast.FunctionDef, ast.ClassDef)
        found = next((n for n in body if isinstance(n, kinds) and n.name == part), None)
        if found is None:
            return False
        body = found.body
    return True
