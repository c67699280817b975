"""The report as a file: self-contained, small, and safe whatever a model writes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from srft.errors import DataError
from srft.report.page import asset, page, script_json
from srft.report.report_page import render_report, write_report


class Scripts(HTMLParser):
    """Collects script elements and every attribute that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[dict] = []
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append(dict(attrs))
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]


def parse(text: str) -> Scripts:
    parser = Scripts()
    parser.feed(text)
    return parser


def test_hostile_text_adds_no_element(make_run):
    """The runs hold </script>, <img onerror> and comments in prompts, tokens and events."""
    found = parse(render_report([make_run(groups=15)]))
    assert [s for s in found.scripts if "type" not in s] == [{}]
    assert "img" not in found.tags
    assert found.tags.count("script") == len(found.scripts)


def test_the_file_loads_nothing(make_run):
    text = render_report([make_run()])
    assert parse(text).loads == []
    assert "connect-src 'none'" in text
    assert "default-src 'none'" in text


def test_json_in_a_script_element_cannot_end_it():
    value = {"a": "</script><!--", "b": ["\u2028", "<img>"], "c": float("nan"), "d": "\ud800"}
    text = script_json(value)
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == {**value, "c": None}


def test_data_that_names_a_placeholder_stays_what_it_is():
    text = page("t", ["page.js"], {"x": "{{script}} {{title}}"}, {})
    assert "{{script}} {{title}}" in text


def test_the_assets_stand_in_a_script_element_as_they_are():
    for name in ("page.js", "chart.js", "report.js", "samples.js", "space.js", "analysis.js"):
        assert "</script" not in asset(name).lower()
        assert "innerHTML" not in asset(name)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", asset(name))


@pytest.mark.parametrize(
    "gone",
    ["metrics.jsonl", "config.yaml", "environment.json", "evaluation.jsonl", "samples.jsonl"],
)
def test_each_missing_file_is_said_in_the_report(make_run, gone):
    path = make_run()
    (path / gone).unlink()
    assert gone in render_report([path])


def test_the_report_stays_below_its_limit_and_says_what_is_left_out(make_run, tmp_path):
    path = make_run(groups=200, rollouts=4, tokens=50)
    out = write_report([path], tmp_path / "r.html", max_bytes=250_000)
    assert out.stat().st_size <= 250_000
    data = json.loads(re.search(r'id="data">(.*?)</script>', out.read_text(encoding="utf-8"))[1])
    assert 0 < data["samples"]["shown"] < data["samples"]["total"] == 200


def test_five_thousand_groups_fit_into_ten_megabytes(make_run, tmp_path):
    out = write_report([make_run(groups=5000, rollouts=1, tokens=12, steps=5)], tmp_path / "r.html")
    assert out.stat().st_size < 10_000_000
    assert '"shown":5000' in out.read_text(encoding="utf-8")


def test_the_report_goes_into_the_run_unless_told_otherwise(make_run):
    path = make_run(steps=2)
    assert write_report([path]) == path / "report.html"


def test_no_run_is_refused():
    with pytest.raises(DataError):
        write_report([])


def test_long_runs_are_thinned_but_keep_their_totals(make_run):
    from srft.report.gather import _curves
    from srft.runs.reading import read_run

    run = read_run(make_run(steps=300))
    curves = _curves(run, 100)
    assert curves["window"] == 3
    assert curves["steps"][-1] == 300
    assert curves["columns"]["total/rollout_tokens"][-1] == 100.0 * 300
    assert "mismatch/abs" not in curves["columns"]  # null at every step
