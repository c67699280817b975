"""One registry: what is written is in it, what is in it is written, and nobody names anything else."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path

import pytest
from tests.conftest import KINDS

from srft.config import parse_config
from srft.errors import ConfigError
from srft.objective.methods import METHODS, get_method
from srft.report.plots import PANELS
from srft.runs.files import read_jsonl
from srft.runs.metrics import GROUPS, PHASES, TERMS, Metric, metric, register, registered
from srft.trainer.alarms import BUILT_IN
from srft.trainer.live import SHOWN

ROOT = Path(__file__).parents[2]
EVERY = {m.key: m for m in chain.from_iterable(GROUPS.values())}


@pytest.fixture(scope="session")
def written(real_run):
    """Key -> the kinds of run that wrote it, to the log or to a tracker."""
    found: dict[str, set[str]] = {}
    for kind in KINDS:
        folder = real_run(kind)
        told = json.loads((folder / "tracked.json").read_text())
        for row in [*read_jsonl(folder / "metrics.jsonl"), *(row for _, row in told)]:
            for key in row:
                found.setdefault(key, set()).add(kind)
    return found


def test_every_key_of_a_real_run_is_registered(written):
    assert len(written) > 100
    assert [key for key in written if metric(key) is None] == []


def test_every_registered_key_is_written_by_some_run(written):
    missing = []
    # Only mixtures of experts write it: tests/model/test_experts.py.
    for key, known in EVERY.items() - {("loss/router_aux", EVERY["loss/router_aux"])}:
        pattern = re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(key)))
        if not any(pattern.fullmatch(name) for name in written):
            missing.append(key)
        if known.spread:
            missing += [k for end in ("max", "min") if (k := f"{key}/{end}") not in written]
    assert missing == []


def test_only_what_has_a_spread_has_extremes(written):
    for key in written:
        if key.endswith(("/max", "/min")) and not key.startswith("user/"):
            name = key.rpartition("/")[0].removeprefix("interleave/")
            assert EVERY[name].spread, key


def test_shares_lie_between_nought_and_one_and_names_are_texts(real_run):
    for kind in KINDS:
        for row in read_jsonl(real_run(kind) / "metrics.jsonl"):
            for key, value in row.items():
                known = metric(key)
                assert isinstance(value, str) == (known.unit == "name"), key
                if known.unit == "share" and value is not None:
                    assert 0 <= value <= 1, key


def test_phases_add_up_to_the_step(real_run):
    for row in read_jsonl(real_run("srft") / "metrics.jsonl"):
        assert sum(row[f"time/{p}"] for p in PHASES) == pytest.approx(row["time/step"])


def test_the_terms_are_those_of_the_methods():
    switches = [{}, {"kl_coefficient": 0.1, "entropy_coefficient": 0.1}]
    names = set()
    for name in METHODS:
        for chosen in switches:
            try:
                names |= {term.name for term in get_method(name, chosen or None).terms}
            except ConfigError:
                continue  # a method that does not read these
    literal = {"rollout_term": "literal", "literal_means": "separate"}
    names |= {term.name for term in get_method("srft", literal).terms}
    assert names == set(TERMS)


@pytest.mark.parametrize("key", ["loss/sft", "reward/mena", "eval/lab", "interleave/user/x", ""])
def test_a_key_that_nobody_registered_cannot_be_written(key):
    with pytest.raises(KeyError, match=r"not in srft/runs/metrics\.py"):
        registered({"loss": 1.0, key: 2.0})


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("reward/mena", "no metric is called 'reward/mena'; did you mean 'reward/mean'"),
        ("loss/sft", "did you mean"),
        ("loss/{term}", "no metric"),
        ("zzz", "docs/metrics.md lists them"),
        ("method", "is a text"),
    ],
)
def test_a_key_that_nobody_registered_cannot_be_watched(key, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as error:
        parse_config({"alarms": {"mine": {"metric": key, "at_least": 1}}})
    assert "alarms.mine.metric" in str(error.value)


@pytest.mark.parametrize(
    "key",
    ["loss/demo_sft", "weight/sft/max", "user/words", "eval/my set/accuracy/a/b",
     "interleave/loss/demo_sft", "eval/gsm8k/pass@8"],
)  # fmt: skip
def test_what_a_run_writes_can_be_watched(key):
    config = parse_config({"alarms": {"mine": {"metric": key, "at_least": 1}}})
    assert config.alarms["mine"].metric == key
    assert parse_config({"alarms": {n: a.model_dump() for n, a in config.alarms.items()}}) == config


def test_a_method_of_ones_own_registers_what_it_writes(monkeypatch):
    from srft.runs import metrics

    monkeypatch.setattr(metrics, "_known", dict(metrics._known))
    register(Metric("loss/mine", "Loss: mine", meaning="of a test", spread=True))
    try:
        assert metric("loss/mine").group == "Other"
        assert metric("loss/mine/max").title == "Loss: mine, largest"
        with pytest.raises(KeyError, match="registered already"):
            register(Metric("loss", "again"))
    finally:
        monkeypatch.undo()
        metric.cache_clear()
    assert metric("loss/mine") is None


_LITERAL = re.compile(
    r"""["'`]((?:loss|reward|rollout|groups|demo|weight|entropy|logprob|advantage|ratio|clip|mismatch|train"""
    r"""|tokens|teacher|gradient|time|total|eval|prefix|interleave|user)/[a-z_]+(?:/[a-z_]+)*|learning_rate"""
    r"""|kl_[a-z]+|tokens_per_second)["'`]"""
)
# Words of this shape that are something else: settings, figures of an analysis, a unit, a sum on its way.
_OTHER = {"learning_rate", "kl_coefficient", "kl_estimator", "kl_forward", "kl_backward", "kl_loss"}
_OTHER |= {"tokens/s", "loss/total", "loss/right_sft"}


def test_no_source_and_no_page_names_a_key_that_is_not_registered():
    """Figures that the report, the plots, benchmarks and docs ask for by name."""
    sources = [
        *(p for folder in ("src", "benchmarks") for p in (ROOT / folder).rglob("*.py")),
        *(ROOT / "src/srft/report/assets").glob("*.js"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "README.md",
    ]
    named = {
        (path.relative_to(ROOT).as_posix(), key)
        for path in sources
        for key in _LITERAL.findall(path.read_text(encoding="utf-8"))
        if key not in _OTHER and not key.endswith("/step")
    }
    assert len({key for _, key in named}) > 60
    assert sorted((path, key) for path, key in named if metric(key) is None) == []


def test_what_is_shown_and_watched_is_registered():
    keys = [*SHOWN, *(key for key, _ in PANELS), *(a.metric for a in BUILT_IN.values())]
    assert [key for key in keys if metric(key) is None] == []


def test_a_value_is_shown_in_its_unit():
    shown = [metric("reward/accuracy").show(0.456), metric("rollout/length_mean").show(1234.56)]
    shown += [metric("rollout/entropy").show(0.5), metric("loss").show(-0.123456)]
    assert shown == ["45.6%", "1,234.6 tokens", "0.500 nats", "-0.1235"]


def test_every_field_of_the_other_logs_is_on_the_page(real_run):
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    for name in ("evaluation", "samples", "events"):
        part = page.partition(f"## {name}.jsonl")[2].partition("\n## ")[0]
        kind = "sft then grpo" if name == "events" else "srft"
        rows = read_jsonl(real_run(kind) / f"{name}.jsonl")
        fields = {key for row in rows for key in row}
        if name == "samples":
            fields |= {key for row in rows for r in row["responses"] for key in r}
        assert {f for f in fields if f"`{f}`" not in part} == set(), name
