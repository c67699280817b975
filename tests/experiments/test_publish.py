"""The page of results says what the published figures say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks.lab.between import differences
from benchmarks.lab.publish import collect, fill, table

from srft.errors import ConfigError

ROOT = Path(__file__).parents[2]


def interval(mean: float, half: float) -> dict[str, object]:
    return {
        "mean": mean,
        "seeds": [mean - half, mean + half],
        "problems": [mean - 0.01, mean + 0.01],
    }


def arm(name: str, accuracy: float, difference: dict[str, object] | None) -> dict[str, object]:
    return {
        "name": name,
        "seeds": 5,
        "accuracy": {"in": interval(accuracy, 0.02), "out": interval(0.5, 0.02)},
        "difference": {"in": {"of": 5, "estimate": difference}} if difference else {},
        "greedy": {"in": interval(0.75, 0.02)},
        "sampled_tokens": 40_000,
        "trained_tokens": 51_234,
        "flops": 4.2e11,
    }


RESULT = {
    "experiment": "small",
    "reference": "srft",
    "arms": [
        arm("srft", 0.7, None),
        arm("sft now", 0.6, interval(-0.1, 0.05)),
        {**arm("open", 0.69, interval(-0.01, 0.05)), "seeds": 3},
    ],
    "runs": [{"folder": "/somewhere/out/small/srft/seed0", "accuracy": {"in": 1 / 3}}],
}


def test_a_mark_needs_both_intervals():
    srft, sft, level, _, seeds = table(RESULT).splitlines()[2:]
    assert seeds == "5 seeds; fewer: open 3."
    assert srft.startswith("| **srft** | 70.0 ± 2.0 |  | 75.0 | 50.0 ± 2.0 |")
    assert "| -10.0 [-15.0, -5.0] ▼ |" in sft and "| 40k | 51k | 0.42 |" in sft
    assert "| -1.0 [-6.0, +4.0] |" in level


def test_blocks_are_filled_and_the_rest_of_the_page_stays(tmp_path):
    folder = tmp_path / "out" / "small"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(RESULT))
    (folder / "tables.md").write_text("all of it\n")
    data = tmp_path / "data"
    assert collect(tmp_path / "out", data) == ["small"]
    run = json.loads((data / "small.json").read_text())["runs"][0]
    assert run == {"folder": "small/srft/seed0", "accuracy": {"in": 0.33333333}}
    assert collect(tmp_path / "out", data, "sums") == ["small-sums"]
    assert "| **srft** |" in fill("<!-- lab: small-sums srft -->\n<!-- end -->", data)
    page = "before\n<!-- lab: small sft_now srft -->\nold\n<!-- end -->\nafter\n"
    filled = fill(page, data)
    assert filled.startswith("before\n<!-- lab") and filled.endswith("<!-- end -->\nafter\n")
    assert re.findall(r"^\| (\S[^|]*) \| [67]", filled, re.MULTILINE) == ["sft now", "**srft**"]
    assert fill(filled, data) == filled
    short = fill("<!-- lab-short: small srft -->\n<!-- end -->", data)
    assert "| arm | in distribution | out of it | TFLOP |" in short
    assert "| **srft** | 70.0 ± 2.0 | 50.0 ± 2.0 | 0.42 |" in short
    with pytest.raises(ConfigError, match="no arm 'gone'"):
        fill("<!-- lab: small gone -->\n<!-- end -->", data)
    with pytest.raises(ConfigError, match="missing"):
        fill("<!-- lab: other -->\n<!-- end -->", data)


@pytest.mark.parametrize("name", ["results", "results-paper", "results-methods"])
def test_the_pages_of_results_are_what_the_published_figures_give(name):
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert "<!-- lab: " in page
    assert fill(page, ROOT / "benchmarks" / "results" / "lab") == page


def test_the_difference_of_two_records_is_that_of_the_published_table():
    data = ROOT / "benchmarks" / "results" / "lab"
    record = data / "records" / "verdict-symbolic.jsonl.gz"
    published = json.loads((data / "verdict-symbolic.json").read_text(encoding="utf-8"))
    arms = [a for a in published["arms"] if a["seeds"] == 3 and a["name"] != published["reference"]]
    assert len(arms) == 3
    for arm in arms:
        found = differences(record, arm["name"], record, published["reference"])
        for kind, stored in (("scores", "difference"), ("greedy", "greedy_difference")):
            for part, ours in arm[stored].items():
                estimate = found[kind, part].estimate
                assert estimate.mean == pytest.approx(ours["estimate"]["mean"], abs=1e-7)
                assert estimate.seeds == pytest.approx(ours["estimate"]["seeds"], abs=1e-7)
                assert estimate.problems == pytest.approx(ours["estimate"]["problems"], abs=1e-7)
    with pytest.raises(ConfigError, match="share no seed"):
        differences(record, "gone", record, "sft")
