"""Runs fit into memory by themselves: what is chosen, what is free, what happens when memory runs short."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from srft.config import parse_config
from srft.errors import ConfigError, MemoryShort
from srft.memory import free as free_module
from srft.memory import shape as shape_module
from srft.memory.assumptions import assume
from srft.memory.devices import GIB, read_cluster
from srft.memory.fit import AUTOCAST, AUTOMATIC, FULL, TOKENS, fit, get
from srft.memory.free import Free, free_memory
from srft.runs.files import read_jsonl
from srft.trainer import fitting
from srft.trainer import update as update_module
from srft.trainer.api import SRFTTrainer

CPU = torch.device("cpu")


def fitted(gpus, before=None, gain=1.0, **sections):
    values = {
        "model": {"path": "Qwen/Qwen2.5-0.5B"},
        "data": {"max_prompt_tokens": 256, "max_demonstration_tokens": 256},
        "rollout": {"max_tokens": 256},
        "train": {"prompts_per_step": 64},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    cluster = read_cluster(gpus)
    return fit(parse_config(values), cluster, assume(cluster), before=before, gain=gain)


def chosen(found):
    return tuple(get(found.config, key) for key in AUTOMATIC)


def test_less_memory_means_smaller_micro_batches_then_checkpointing():
    found = [fitted(f"cpu-{size}G") for size in (400, 100, 40, 16, 12, 10)]
    assert chosen(found[0]) == (16_384, 256, False)
    for more, less in itertools.pairwise(found):
        assert less.config.rollout.max_rows <= more.config.rollout.max_rows
        if more.config.model.gradient_checkpointing is less.config.model.gradient_checkpointing:
            tokens = [f.config.train.tokens_per_micro_batch for f in (less, more)]
            assert tokens == sorted(tokens)
        assert less.memory.peak.bytes <= FULL * less.memory.capacity
    assert {f.config.model.gradient_checkpointing for f in found} == {True, False}
    assert not fitted("cpu-6G").memory.fits  # float32 weights, gradients and moments alone are more


def test_the_arithmetic_leaves_the_random_state_as_it_was(monkeypatch):
    """What is drawn after it, adapters and noise, may not depend on whether it traced or remembered."""
    pytest.importorskip("peft")
    monkeypatch.setattr(shape_module, "_TRACED", {})
    before = torch.get_rng_state()
    fitted("cpu-16G", model={"path": "lab", "lora": {"rank": 2, "dropout": 0.2}})
    assert shape_module._TRACED and torch.equal(before, torch.get_rng_state())


def test_what_the_recipe_says_stays_and_what_a_run_has_chosen_comes_first():
    own = fitted("cpu-40G", train={"tokens_per_micro_batch": 3000}, rollout={"max_rows": 5})
    assert chosen(own)[:2] == (3000, 5)
    before = dict(zip(AUTOMATIC, (777, 11, True), strict=True))
    assert chosen(fitted("cpu-40G", before)) == (777, 11, True)
    assert chosen(fitted("cpu-40G", before, rollout={"max_rows": 9})) == (777, 9, True)
    huge = dict(zip(AUTOMATIC, (65_536, 256, False), strict=True))
    assert chosen(fitted("cpu-16G", huge)) == chosen(fitted("cpu-16G"))  # it does not fit here


def test_a_limit_on_addresses_is_seen():
    code = """
import json, resource, torch
from pathlib import Path
from srft.memory.free import free_memory, held_memory
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()  # a CUDA build: 10 GB
resource.setrlimit(resource.RLIMIT_AS, (mapped + 2_000_000_000,) * 2)
free, device = free_memory(torch.device("cpu")), torch.device("cpu")
tensor = torch.ones(round((free.bytes - held_memory(device)) * 0.9) // 4)
try:
    torch.ones(round(free.bytes * 0.3) // 4)
    more = True
except RuntimeError:
    more = False
print(json.dumps([free.limit, free.bytes, more]))
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    limit, count, more = json.loads(child.stdout)
    assert limit == "ulimit -v" and 1e9 < count < 3e9 and not more


@pytest.mark.parametrize(
    ("line", "folder", "files"),
    [
        ("0::/a/b", "a", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:memory:/a/b",
            "memory/a",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_the_limit_of_a_control_group_above_is_seen(line, folder, files, tmp_path, monkeypatch):
    group = tmp_path / folder
    (group / "b").mkdir(parents=True)
    (group / files[0]).write_text("1000000000\n")
    (group / files[1]).write_text("600000000\n")
    (group / "memory.stat").write_text(f"anon 5\n{files[2]} 100000000\n")
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text(f"9:cpu:/x\n{line}\n")
    monkeypatch.setattr(free_module, "_SELF", tmp_path / "self")
    monkeypatch.setattr(free_module, "_CGROUPS", tmp_path)
    monkeypatch.setattr(free_module, "held_memory", lambda device: 2e8)
    assert free_memory(CPU) == Free(7e8, "the control group's limit")
    assert free_memory(CPU, processes=2).bytes == pytest.approx(4.5e8)


@pytest.mark.parametrize(
    "gpus, gain, before, sections, expected",
    [
        ("cpu-400G", 2.0, {}, {}, "bfloat16"),
        ("cpu-400G", 1.9, {}, {}, "float32"),
        ("cpu-400G", 9.0, {AUTOCAST: "float32"}, {}, "float32"),  # as the run began
        ("cpu-400G", 1.0, {AUTOCAST: "bfloat16"}, {}, "bfloat16"),
        ("cpu-400G", 9.0, {TOKENS: 777}, {}, "float32"),  # by a version that knew no other
        ("cpu-400G", 9.0, {}, {"model": {"autocast": "float32"}}, "float32"),
        ("cpu-400G", 9.0, {}, {"model": {"dtype": "bfloat16"}}, "auto"),
        ("cpu-400G", 9.0, {}, {"model": {"lora": {"quantization": "nf4"}}}, "auto"),
        ("A100-80G", 9.0, {}, {}, "auto"),
    ],
)
def test_products_are_rounded_on_a_processor_that_is_faster_so(
    gpus, gain, before, sections, expected
):
    found = fitted(gpus, before, gain, **sections)
    assert found.config.model.autocast == expected
    assert ("products in bfloat16" in found.settings()) == (found.case.layout.autocast is not None)


WATCHED = """
import torch
from srft.memory.free import held_memory, watch_peak
before = held_memory(torch.device("cpu"))
with watch_peak(torch.device("cpu")) as peak:
    torch.ones(50_000_000)
print(peak.bytes and peak.bytes - before)
"""


def test_a_peak_is_measured_even_where_it_was_let_go_of():
    # In a process of its own: one that has run other tests has freed memory that is used anew.
    command = [sys.executable, "-c", WATCHED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if done.stdout.strip() == "None":
        pytest.skip("this system does not tell a process's peak anew (/proc/self/clear_refs)")
    assert 1.7e8 < float(done.stdout) < 4e8


@pytest.fixture
def short_of_memory(monkeypatch):
    """``short_of_memory(most, after)``: passes over more than ``most`` response tokens fail."""

    def limit(most, error, after=0):
        passes = []
        real = update_module.compute_loss

        def compute(method, batch, *rest):
            passes.append(len(batch.logprob_T))
            if len(passes) > after and passes[-1] > most:
                raise error
            return real(method, batch, *rest)

        monkeypatch.setattr(update_module, "compute_loss", compute)

    return limit


def weights_of(run: Path):
    return torch.cat([p.flatten() for p in _trained(run).values()])


def _trained(run: Path):
    from safetensors.torch import load_file

    return load_file(run / "model/model.safetensors")


def test_what_is_freed_between_blocks_in_use_goes_back():
    """By itself glibc keeps them, from the first large block on that was ever freed."""
    code = """if True:
        import sys, psutil, torch
        from srft.memory.free import keep_nothing_freed

        def held():
            return psutil.Process().memory_info().rss

        if sys.argv[1] == "True":
            keep_nothing_freed()
        del (first := [torch.ones(1 << 20) for _ in range(3)])[:]
        blocks = [torch.ones(1 << 18) for _ in range(200)]
        before = held()
        del blocks[::2]
        print(before - held())"""
    freed = [
        int(subprocess.check_output([sys.executable, "-c", code, back], text=True))
        for back in ("True", "False")
    ]
    assert freed[0] > 90 << 20
    assert freed[1] < 20 << 20, "this C library gives back by itself: the function may go"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_a_step_that_runs_out_of_memory_is_done_in_smaller_pieces(
    recipe, short_of_memory, tmp_path, error
):
    def train(name, tokens):
        args = recipe(run={"dir": str(tmp_path / name)}, train={"tokens_per_micro_batch": tokens})
        SRFTTrainer(args=args).train()
        return weights_of(tmp_path / name)

    plain = train("plain", 4096)
    short_of_memory(100, error)
    assert torch.allclose(train("short", 4096), plain, atol=2e-5)
    said = [
        e["message"]
        for e in read_jsonl(tmp_path / "short/events.jsonl")
        if "memory" in e["message"]
    ]
    assert said and len(said) < 9  # the smaller size stays for the steps after
    kept = yaml.safe_load((tmp_path / "short/config.yaml").read_text())["train"]
    assert 1 < kept["tokens_per_micro_batch"] < 4096
    until = yaml.safe_load((tmp_path / "short/config.until_step_000000.yaml").read_text())
    assert until["train"]["tokens_per_micro_batch"] == 4096


def test_without_end_it_is_an_error_that_says_what_to_lower(recipe, short_of_memory, tmp_path):
    short_of_memory(0, MemoryError())
    with pytest.raises(MemoryShort, match="tokens_per_micro_batch"):
        SRFTTrainer(args=recipe(run={"dir": str(tmp_path / "run")})).train()


def test_nothing_is_repeated_once_weights_have_moved(recipe, short_of_memory, tmp_path):
    parts = {"optimizer_steps_per_batch": 2, "tokens_per_micro_batch": 100_000}
    short_of_memory(0, MemoryError(), after=1)
    with pytest.raises(MemoryError) as raised:
        SRFTTrainer(args=recipe(run={"dir": str(tmp_path / "run")}, train=parts)).train()
    assert not isinstance(raised.value, MemoryShort)


def test_a_run_that_cannot_fit_is_refused_with_what_would_make_it_fit(
    recipe, monkeypatch, tmp_path
):
    held = free_module.held_memory(CPU)
    monkeypatch.setattr(fitting, "free_memory", lambda *_: Free(held + 0.125 * GIB, "a test"))
    args = recipe(run={"dir": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match=r"before the first step.*a test"):
        SRFTTrainer(args=args)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_what_was_chosen_and_the_trial_leaves_no_trace(
    recipe, monkeypatch, tmp_path, capsys
):
    def train(name, steps, resume=False):
        args = recipe(run={"dir": str(tmp_path / name)}, train={"steps": steps})
        trainer = SRFTTrainer(args=args)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.args

    def rows(name):
        return [
            {k: v for k, v in row.items() if "time/" not in k and "seconds" not in k}
            for row in read_jsonl(tmp_path / name / "metrics.jsonl")
        ]

    train("plain", 2)
    held = free_module.held_memory(CPU)
    monkeypatch.setattr(fitting, "free_memory", lambda *_: Free(held + 3 * GIB, "a test"))
    monkeypatch.setattr(fitting, "_PLAIN", 0.0)
    monkeypatch.setattr(fitting, "_CAREFUL", 0.0)
    chosen = train("tried", 2).train.tokens_per_micro_batch
    assert "tried with one micro-batch" in capsys.readouterr().out.replace("\n", " ")
    for one, other in zip(rows("plain"), rows("tried"), strict=True):
        one.pop("tokens_per_second"), other.pop("tokens_per_second")
        assert one == other
    config = tmp_path / "tried/config.yaml"
    assert yaml.safe_load(config.read_text())["train"]["tokens_per_micro_batch"] == chosen
    config.write_text(config.read_text().replace(f"micro_batch: {chosen}", "micro_batch: 1234"))
    assert train("tried", 3, resume=True).train.tokens_per_micro_batch == 1234
    assert "tokens_per_micro_batch" not in (tmp_path / "tried/events.jsonl").read_text()


def test_a_trial_that_takes_too_much_gets_smaller_micro_batches(recipe, monkeypatch, tmp_path):
    """The arithmetic is made to err: what a trial takes grows with its tokens far beyond it."""
    held = free_module.held_memory(CPU)
    tried = []

    def trial(room, policy, tokens, gradients):
        tried.append(tokens)
        return held + tokens * 0.02 * GIB

    monkeypatch.setattr(fitting, "free_memory", lambda *_: Free(held + 3 * GIB, "a test"))
    monkeypatch.setattr(fitting, "_PLAIN", 0.0)
    monkeypatch.setattr(fitting, "_trial", trial)
    step = {"prompts_per_step": 16}
    trainer = SRFTTrainer(args=recipe(run={"dir": str(tmp_path / "run")}, train=step))
    trainer.close()
    assert len(tried) > 1 and tried == sorted(tried, reverse=True) and tried[-1] < 150
    assert trainer.args.train.tokens_per_micro_batch <= 256
    fixed = {**step, "tokens_per_micro_batch": 4096}
    with pytest.raises(ConfigError, match=r"before the first step"):
        SRFTTrainer(args=recipe(run={"dir": str(tmp_path / "fixed")}, train=fixed))
