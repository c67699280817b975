"""Tables of experiments in a Markdown page, and the figures they come from, without retyping.

    python -m benchmarks.lab.publish docs/results.md --data benchmarks/results/lab --out lab

copies what the experiments under ``--out`` have written (``results.json``, ``tables.md``) into ``--data``,
and fills every block of the page that stands between

    <!-- lab: table2 -->
    <!-- end -->

with the table of that experiment. Arms may be named, with an underscore for every space:
``<!-- lab: table2 sft grpo srft -->``. ``lab-short:`` leaves out all but accuracy and FLOPs;
``lab-effects:`` is what each factor of a factorial is worth (``effects.py``). Without
``--out`` the page is filled from what ``--data`` holds. ``--world sums`` names what was made by ``--recipe``
on other problems: ``<!-- lab: verdict-sums -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lab import effects, figure2

from srft.errors import ConfigError
from srft.runs.files import markdown_grid

_BLOCK = re.compile(
    r"(<!-- lab(?P<kind>-short|-effects)?: (?P<name>[\w-]+)(?P<arms>[^\n]*) -->\n).*?(<!-- end -->)",
    re.DOTALL,
)
_MARKS = {1: " ▲", -1: " ▼", 0: ""}
_PARTS = {"in": "in distribution", "out": "out of it"}


def collect(out: Path, data: Path, world: str = "") -> list[str]:
    """Copies the results of every experiment under ``out`` into ``data``; returns the names that they
    have there, which end in the ``world`` where one is given."""
    data.mkdir(parents=True, exist_ok=True)
    names = []
    for path in out.glob("*/figure2.json"):
        shutil.copy(path, data)
    for path in sorted(out.glob("*/results.json")):
        name = f"{path.parent.name}-{world}" if world else path.parent.name
        result = json.loads(path.read_text(encoding="utf-8"))
        for run in result["runs"]:
            run["folder"] = "/".join(Path(run["folder"]).parts[-3:])
        text = json.dumps(rounded(result), ensure_ascii=False, separators=(",", ":"))
        (data / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        shutil.copy(path.with_name("tables.md"), data / f"{name}.md")
        names.append(name)
    return names


def rounded(value: Any) -> Any:
    """Eight significant digits say more than the tables show."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def fill(page: str, data: Path) -> str:
    """The page with every block filled from ``data``.

    Raises:
        ConfigError: a block names an experiment or an arm that is not there.
    """

    def block(match: re.Match[str]) -> str:
        path = data / f"{match['name']}.json"
        if not path.is_file():
            raise ConfigError(f"{path}: missing; run the experiment and give its --out")
        result = json.loads(path.read_text(encoding="utf-8"))
        if "shifts" in result:
            return f"{match[1]}{figure2.table(result)}\n<!-- end -->"
        wanted = [arm.replace("_", " ") for arm in match["arms"].split()]
        if match["kind"] == "-effects":
            return f"{match[1]}{effects.table(result)}\n<!-- end -->"
        short = match["kind"] == "-short"
        return f"{match[1]}{table(result, wanted, short)}\n<!-- end -->"

    return _BLOCK.sub(block, page)


def table(result: Mapping[str, Any], wanted: Sequence[str] = (), short: bool = False) -> str:
    """One row an arm: accuracy, difference to the reference, greedy accuracy, tokens and FLOPs; ``short``:
    accuracy and FLOPs. Below, how many seeds that rests on."""
    arms = {arm["name"]: arm for arm in result["arms"]}
    unknown = [name for name in wanted if name not in arms]
    if unknown:
        raise ConfigError(
            f"{result['experiment']}: no arm {unknown[0]!r}; it has {', '.join(arms)}"
        )
    reference = result["reference"]
    rows = [_head(reference, short)]
    for name in wanted or arms:
        arm = arms[name]
        row = [f"**{name}**" if name == reference else name]
        for part in _PARTS:
            row.append(_accuracy(arm["accuracy"][part]))
            if not short:
                greedy = arm["greedy"].get(part)
                row.append(_difference(arm["difference"].get(part)))
                row.append(f"{100 * greedy['mean']:.1f}" if greedy else "")
        if not short:
            row += [f"{arm[kind] / 1000:.0f}k" for kind in ("sampled_tokens", "trained_tokens")]
        rows.append([*row, f"{arm['flops'] / 1e12:.2f}"])
    grid = markdown_grid(rows[0], rows[1:], texts=1)
    return f"{grid}\n\n{_seeds([arms[name] for name in wanted or arms])}"


def _head(reference: str, short: bool) -> list[str]:
    more = [] if short else [f"minus {reference}", "greedy"]
    tokens = [] if short else ["tokens sampled", "trained"]
    return ["arm", *(h for part in _PARTS.values() for h in (part, *more)), *tokens, "TFLOP"]


def _seeds(arms: Sequence[Mapping[str, Any]]) -> str:
    """The base model has one run, for it has no seed."""
    trained = [arm for arm in arms if arm["flops"]]
    most = max(arm["seeds"] for arm in trained)
    fewer = [f"{arm['name']} {arm['seeds']}" for arm in trained if arm["seeds"] < most]
    return f"{most} seeds{'; fewer: ' + ', '.join(fewer) if fewer else ''}."


def _accuracy(value: Mapping[str, Any]) -> str:
    half = "" if value["seeds"] is None else f" ± {100 * (value['seeds'][1] - value['mean']):.1f}"
    return f"{100 * value['mean']:.1f}{half}"


def _difference(value: Mapping[str, Any] | None) -> str:
    """With its interval over seeds, and a mark where that over problems leaves out zero as well."""
    if value is None or not value["of"]:
        return ""
    estimate = value["estimate"]
    text = f"{100 * estimate['mean']:+.1f}"
    if estimate["seeds"] is None:
        return text
    intervals = (estimate["seeds"], estimate["problems"])
    sign = all(low > 0 for low, _ in intervals) - all(high < 0 for _, high in intervals)
    low, high = (100 * end for end in estimate["seeds"])
    return f"{text} [{low:+.1f}, {high:+.1f}]{_MARKS[sign]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fill a page with the tables of experiments.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published figures")
    parser.add_argument("--out", type=Path, help="folder of the experiments' runs")
    parser.add_argument("--world", default="", help="the problems, where they are not the lab's")
    options = parser.parse_args()
    if options.out:
        collect(options.out, options.data, options.world)
    filled = fill(options.page.read_text(encoding="utf-8"), options.data)
    options.page.write_text(filled, encoding="utf-8")
