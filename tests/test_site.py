"""The documentation's site (`make site`, which is strict) has every page and names what exists."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def test_every_page_is_in_the_sites_menu_once():
    menu = re.findall(
        r"^ +- (?:\w+: )?([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE
    )
    assert sorted(menu) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_reference_names_what_exists():
    names = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert len(names) > 15
    for name in names:
        module, _, own = (
            name.rpartition(".") if name.rpartition(".")[2][0].isupper() else (name, "", "")
        )
        assert not own or hasattr(importlib.import_module(module), own), name
        importlib.import_module(module)


@pytest.mark.parametrize("repository", ["https://forge.example/a/srft/", ""])
def test_links_out_of_the_docs_lead_to_the_repository(repository, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DOCS), *sys.path])
    hooks = importlib.import_module("site_hooks")
    config = type("Config", (), {"repo_url": repository})
    page = "see [`types.py`](../src/srft/types.py), [data](data.md) and [it](https://x.y)"
    found = hooks.on_page_markdown(page, config=config)
    there = "[`types.py`](https://forge.example/a/srft/blob/main/src/srft/types.py)"
    assert found == page.replace(
        "[`types.py`](../src/srft/types.py)", there if repository else "`types.py`"
    )
