"""Results as tables like the paper's, in Markdown and in one self-contained HTML file.

Everything is read from results dictionaries (``results.json``), so tables can be made again, and of
several models at once. A number that was not measured under the full protocol carries a ``*``, and
what departs from it stands above the table.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srft.evaluation.benchmarks import BENCHMARKS, SUITES
from srft.runs.files import markdown_grid

Results = Mapping[str, Any]

PAPER_COLUMNS = (*SUITES["math5"], "math5", *SUITES["ood3"], "ood3")
QUOTED: dict[str, dict[str, float]] = {
    "SRFT, Qwen2.5-Math-7B (paper, Table 2)": {
        "aime24": 35.3,
        "amc": 74.3,
        "math500": 89.8,
        "minerva": 39.7,
        "olympiad": 58.3,
        "math5": 59.5,
        "arc_c": 85.3,
        "gpqa_diamond": 46.4,
        "mmlu_pro": 55.9,
        "ood3": 62.5,
    },
    "LUFFY, Qwen2.5-Math-7B (paper, Table 2)": {"math5": 55.5, "ood3": 57.8},
}
"""Percent, from arXiv 2506.19767."""
QUOTED_NOTE = (
    "Rows in italics are quoted from arXiv 2506.19767 and were not measured here. Its text and "
    "Table 3 give SRFT 59.1 on the five (AMC 72.2) where Table 2 gives 59.5. It states no "
    "intervals; other evaluation code, verifier and prompts are part of any difference."
)


@dataclass(frozen=True)
class Cell:
    """One number: text, whether it is short of the full protocol, and its interval as text."""

    value: str = "-"
    interval: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """Heads, and rows of a label, whether quoted, and cells. corner: head of the labels."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, bool, tuple[Cell, ...]], ...]
    corner: str = "model"


def departures(results: Sequence[Results]) -> list[str]:
    """What each model's numbers owe to another protocol than the declared one, one line each."""
    lines = []
    for result in results:
        for name, found in result["benchmarks"].items():
            if found.get("departures"):
                title = BENCHMARKS[name].title if name in BENCHMARKS else name
                lines.append(f"{result['model']}, {title}: {'; '.join(found['departures'])}")
    return lines


def build_tables(results: Sequence[Results]) -> list[Table]:
    """The paper's table where one of its benchmarks was run, a table of the others, details, and
    one of each benchmark whose problems have families or subjects."""
    names = list(dict.fromkeys(n for r in results for n in r["benchmarks"]))
    tables = []
    if any(name in PAPER_COLUMNS for name in names):
        quoted = tuple(
            (label, True, tuple(_quoted(values.get(c)) for c in PAPER_COLUMNS))
            for label, values in QUOTED.items()
        )
        heads = tuple(_head(c, results) for c in PAPER_COLUMNS)
        tables.append(
            Table("The paper's benchmarks", heads, _rows(results, PAPER_COLUMNS) + quoted)
        )
    others = tuple(name for name in names if name not in PAPER_COLUMNS)
    if others:
        heads = tuple(_head(c, results) for c in others)
        tables.append(Table("Other benchmarks", heads, _rows(results, others)))
    tables.append(_details(results))
    families = (_families(results, name) for name in names)
    return [*tables, *(table for table in families if table.rows)]


def _rows(
    results: Sequence[Results], columns: Sequence[str]
) -> tuple[tuple[str, bool, tuple[Cell, ...]], ...]:
    return tuple(
        (str(result["model"]), False, tuple(_cell(result, column) for column in columns))
        for result in results
    )


def _cell(result: Results, column: str) -> Cell:
    found = result["benchmarks"].get(column) or result["averages"].get(column)
    if found is None:
        return Cell()
    return Cell(_percent(found["accuracy"]), _range(found["interval"]), bool(found["departures"]))


def _quoted(value: float | None) -> Cell:
    return Cell() if value is None else Cell(f"{value:.1f}")


def _head(column: str, results: Sequence[Results]) -> str:
    if column in ("math5", "ood3"):
        return "avg"
    benchmark = BENCHMARKS.get(column)
    title = benchmark.title if benchmark else column
    ns = sorted({r["benchmarks"][column]["n"] for r in results if column in r["benchmarks"]})
    if not ns and benchmark:
        ns = [benchmark.n]
    return f"{title} {' / '.join('pass@1' if n == 1 else f'avg@{n}' for n in ns)}"


def _details(results: Sequence[Results]) -> Table:
    heads = (
        *("benchmark", "problems", "samples each", "accuracy", "s.e.", "interval (problems)"),
        *("interval (sampling)", "pass@n", "majority@n", "mean tokens", "truncated", "unscorable"),
    )
    rows = []
    for result in results:
        for name, f in result["benchmarks"].items():
            cells = (
                BENCHMARKS[name].title if name in BENCHMARKS else name,
                f"{f['problems_evaluated']} of {f['problems_in_set']}",
                str(f["n"]),
                _percent(f["accuracy"]),
                _percent(f["standard_error"]) if f.get("standard_error") is not None else "-",
                _range(f["interval"]),
                _range(f["sampling_interval"]) if f["sampling_interval"] else "-",
                _percent(f["pass_at_n"]),
                _percent(f["majority_at_n"]),
                f"{f['mean_tokens']:.0f}",
                _percent(f["truncated_share"]),
                _percent(f["unscorable_share"]),
            )
            rows.append((str(result["model"]), False, tuple(Cell(c) for c in cells)))
    return Table("Details", heads, tuple(rows))


def _families(results: Sequence[Results], name: str) -> Table:
    """One benchmark by family or subject: a row each, so that many of them stay readable."""
    parts = [r["benchmarks"].get(name, {}).get("families", {}) for r in results]
    rows = []
    for family in dict.fromkeys(family for part in parts for family in part):
        found = [part.get(family) for part in parts]
        count = max(f["problems"] for f in found if f)
        cells = (
            Cell(_percent(f["accuracy"]), _range(f["interval"])) if f else Cell() for f in found
        )
        rows.append((family, False, (Cell(str(count)), *cells)))
    title = BENCHMARKS[name].title if name in BENCHMARKS else name
    heads = ("problems", *(str(r["model"]) for r in results))
    return Table(f"{title} by part", heads, tuple(rows), "part")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _range(interval: Sequence[float]) -> str:
    low, high = interval
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def _legend(results: Sequence[Results], tables: Sequence[Table]) -> list[str]:
    confidences: dict[float, list[str]] = {}
    for result in results:
        for value, titles in _made(result, "confidence").items():
            confidences.setdefault(0.95 if value is None else value, []).extend(titles)
    kinds = ", ".join(
        f"{value:.0%}" + (f" ({', '.join(dict.fromkeys(titles))})" if len(confidences) > 1 else "")
        for value, titles in sorted(confidences.items())
    )
    lines = [
        f"Percent, with {kinds} intervals [low, high] (over problems of this kind). avg@n is the "
        "mean over n samples of each problem; pass@1 is one sample."
    ]
    if any(quoted for table in tables for _, quoted, _ in table.rows):
        lines.append(QUOTED_NOTE)
    return lines


def _made(result: Results, key: str) -> dict[Any, list[str]]:
    """What was asked for under ``key``: each value with the benchmarks and averages that it holds for."""
    whole = {**result["settings"], "device": result.get("device"), "date": result.get("date")}
    found: dict[Any, list[str]] = {}
    for name, one in (*result["benchmarks"].items(), *result["averages"].items()):
        title = BENCHMARKS[name].title if name in BENCHMARKS else name
        made = one.get("made", whole)
        if key in made or name in result["benchmarks"]:
            found.setdefault(made.get(key), []).append(title)
    return found


def _header(result: Results) -> str:
    parts = []
    for key in ("device", "seed", "limit", "n", "temperature", "date"):
        made = _made(result, key)
        word = "" if key in ("device", "date") else f"{key} "
        for value, titles in made.items():
            only = f" ({', '.join(titles)})" if len(made) > 1 else ""
            parts += [f"{word}{value}{only}"] if value is not None else []
    return f"{result['model']} (weights {result.get('weights', '?')}): {', '.join(parts)}"


def markdown(results: Sequence[Results]) -> str:
    """All tables as Markdown."""
    tables = build_tables(results)
    lines = ["# Evaluation", "", *(f"- {_header(r)}" for r in results), ""]
    marked = departures(results)
    if marked:
        lines += ["**Not the full protocol** (marked `*`):", "", *(f"- {m}" for m in marked), ""]
    for note in dict.fromkeys(note for r in results for note in r.get("notes", ())):
        lines += [f"Note: {note}", ""]
    for table in tables:
        lines += [f"## {table.title}", ""]
        rows = [
            [
                f"*{_escape(label)}*" if quoted else _escape(label),
                *(_markdown_cell(cell, quoted) for cell in cells),
            ]
            for label, quoted, cells in table.rows
        ]
        lines += [markdown_grid([table.corner, *map(_escape, table.heads)], rows), ""]
    return "\n".join([*lines, *_legend(results, tables)]) + "\n"


def _escape(text: str) -> str:
    return text.replace("*", "\\*")


def _markdown_cell(cell: Cell, quoted: bool) -> str:
    text = cell.value + ("\\*" if cell.marked else "")
    text = f"*{text}*" if quoted and cell.value != "-" else text
    return f"{text} {cell.interval}".strip()


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid color-mix(in srgb, currentColor 40%, transparent); }
td { border-bottom: 1px solid color-mix(in srgb, currentColor 15%, transparent); }
th:first-child, td:first-child { text-align: left; }
.interval { display: block; font-size: .8em; opacity: .7; }
.quoted { font-style: italic; opacity: .75; }
.warning { border-left: 4px solid #c77700; padding: .3rem 1rem; }
p, li { max-width: 60rem; }
"""


def html_page(results: Sequence[Results]) -> str:
    """All tables as one HTML file that needs nothing else."""
    tables = build_tables(results)
    e = html.escape
    body = ["<h1>Evaluation</h1><ul>", *(f"<li>{e(_header(r))}</li>" for r in results), "</ul>"]
    marked = departures(results)
    if marked:
        items = "".join(f"<li>{e(m)}</li>" for m in marked)
        body.append(
            '<div class="warning"><strong>Not the full protocol</strong> (marked *)'
            f"<ul>{items}</ul></div>"
        )
    for note in dict.fromkeys(note for r in results for note in r.get("notes", ())):
        body.append(f"<p>Note: {e(note)}</p>")
    for table in tables:
        heads = "".join(f"<th scope=col>{e(h)}</th>" for h in (table.corner, *table.heads))
        rows = "".join(_html_row(*row) for row in table.rows)
        body.append(
            f"<h2>{e(table.title)}</h2><div class=wide><table><thead><tr>{heads}</tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )
    body += [f"<p>{e(line)}</p>" for line in _legend(results, tables)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _html_row(label: str, quoted: bool, cells: Sequence[Cell]) -> str:
    parts = [f"<td>{html.escape(label)}</td>"]
    for cell in cells:
        below = f'<span class="interval">{html.escape(cell.interval)}</span>'
        text = html.escape(cell.value) + ("*" if cell.marked else "")
        parts.append(f"<td>{text}{below if cell.interval else ''}</td>")
    kind = ' class="quoted"' if quoted else ""
    return f"<tr{kind}>{''.join(parts)}</tr>"
