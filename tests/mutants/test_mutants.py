"""The list of mutations can be tried: every snippet is there, once, and its mutation is Python."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest
from tests.mutants.__main__ import search_path
from tests.mutants.mutants import Mutant, mutants

ROOT = Path(__file__).parents[2]
ALL = list(mutants())


def test_there_are_enough_in_every_room_and_none_twice():
    rooms = Counter(mutant.room for mutant in ALL)
    assert len(ALL) >= 60
    assert min(rooms.values()) >= 10
    assert rooms.keys() == {
        "objective",
        "data",
        "model",
        "rollout",
        "rewards",
        "trainer",
        "environments",
    }
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in ALL}) == len(ALL)


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.title)
def test_a_mutation_can_be_made(mutant: Mutant):
    source = (ROOT / "src/srft" / mutant.file).read_text()
    assert source.count(mutant.old) == 1, "the snippet is gone, or no longer the only one"
    mutated = source.replace(mutant.old, mutant.new)
    assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source))
    for test in mutant.tests:
        assert (ROOT / "tests" / test).is_file()


def test_the_tree_takes_our_place_and_the_environment_stays(tmp_path: Path):
    inside = str(ROOT / ".venv/lib/python3/site-packages")
    found = search_path(tmp_path, ["", str(ROOT / "src"), str(ROOT), inside, "/usr/lib/python3"])
    assert found == [str(tmp_path / "src"), str(tmp_path), inside, "/usr/lib/python3"]
