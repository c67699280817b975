"""The command as a user meets it: bad input gives one clear line and an exit code, never a traceback."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from rich.console import Console

from srft import cli
from srft.cli import main
from srft.cli_options import as_options
from srft.config import SRFTConfig, load_config
from srft.errors import ConfigError
from srft.section import Section
from srft.trainer.checkpoint import list_checkpoints


@pytest.fixture
def srft(recipe, tmp_path, capsys):
    """``srft(*arguments, **sections)`` runs the command on a recipe file; returns (code, out, err)."""

    def run(*arguments: str, command: tuple[str, ...] = ("train",), **sections):
        path = tmp_path / "recipe.yaml"
        config = recipe(**{"train": {"steps": 2}, **sections})
        path.write_text(config.to_yaml())
        with pytest.raises(SystemExit) as stopped:
            main([*command, str(path), *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return stopped.value.code or 0, out, err

    return run


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def row(**columns) -> str:
    return json.dumps({"prompt": "a = 1 + 1 ; a ?", "answer": "2", **columns})


def test_a_run_ends_with_a_table_and_places(srft, tmp_path):
    code, out, _ = srft("data.eval=lab", "data.eval_limit=9", "evaluation.max_tokens=8")
    assert code == 0
    assert "out of distribution" in out and "exported model" in out
    for place in (
        "model/model.safetensors",
        "plots/overview.png",
        "metrics.jsonl",
        "samples.jsonl",
    ):
        assert (tmp_path / "run" / place).exists(), place


def test_a_figure_that_no_evaluation_gives_is_found_before_training(srft, tmp_path):
    code, _, err = srft("data.eval=lab", "data.eval_limit=9", "evaluation.best_metric=lab/length")
    assert code == 2 and "lab/length" in err and "lab/mean_tokens" in err
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_too_little_memory_is_said_with_what_to_lower(srft, monkeypatch, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr("srft.cli_train.run_training", fails)
    code, _, err = srft()
    assert code == 1 and "tokens_per_micro_batch" in err


def test_a_key_given_twice_is_an_error_and_not_the_last_one(tmp_path, capsys):
    path = tmp_path / "twice.yaml"
    path.write_text("train: {steps: 3}\nmodel: {path: x}\ntrain: {seed: 1}\n")
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(path), "--dry-run"])
    assert stopped.value.code == 2
    assert "'train' is given twice, in lines 1 and 3" in capsys.readouterr().err


def test_dry_run_prints_the_resolved_recipe_and_trains_nothing(srft, tmp_path):
    code, out, _ = srft("--dry-run", "train.learning_rate=0.25")
    assert code == 0
    assert yaml.safe_load(out)["train"]["learning_rate"] == 0.25
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("train.stepz=3", 2, ["train.stepz", "did you mean 'steps'"]),
        ("method=srtf", 2, ["srtf", "srft"]),
        ("train.steps=0", 2, ["train.steps", "greater than or equal to 1"]),
        ("objective.gate=0.5", 2, ["gate", "srft"]),
        ("model.path=/no/such/model", 4, ["/no/such/model", "model.path"]),
        ("data.train=/no/such/file.jsonl", 3, ["/no/such/file.jsonl"]),
        ("rollout.max_tokens=5000", 2, ["window of 256", "rollout.max_tokens"]),
        ("data.max_prompt_tokens=2", 3, ["none of the 40 examples", "max_prompt_tokens"]),
        ("rollout.temperature=0", 2, ["temperature", "use 1.0"]),
        ("evaluation.every_steps=1", 2, ["no evaluation data", "data.eval"]),
        ("data.train={", 2, ["data.train={", "not YAML"]),
        ("train.learning_rate=.inf", 2, ["train.learning_rate", "finite"]),
        ("alarms.no-rewards.steps=3", 2, ["no-rewards", "did you mean 'no-reward'"]),
        ("reward=maths", 2, ["maths", "math"]),
        ("train.device=cuda", 2, ["no GPU", "cpu"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_mend(srft, tmp_path, override, code, words):
    got, _, err = srft(override)
    assert got == code, err
    message = " ".join(err.split())
    for word in words:
        assert word in message
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ["empty"]),
        ([row(), "{broken"], ["train.jsonl:2"]),
        (
            [json.dumps({"question_text": "1 + 1", "solution": "2"})],
            ["question_text", "data.columns"],
        ),
        ([row(demonstration="a = 1 + 1 = 2 #### 2"), row(prompt="")], ["train.jsonl:2", "prompt"]),
    ],
    ids=["empty", "broken-json", "no-known-column", "empty-prompt"],
)
def test_bad_data_names_file_and_row(srft, tmp_path, lines, words):
    path = write(tmp_path / "train.jsonl", *lines)
    code, _, err = srft(f"data.train={path}")
    assert code == 3, err
    for word in words:
        assert word in err


def test_an_answer_that_the_verifier_cannot_read_is_found_before_training(srft, tmp_path):
    path = write(tmp_path / "train.jsonl", row(answer="4"), row(answer="$$"))
    code, _, err = srft(f"data.train={path}", "method=grpo", "reward=math")
    assert code == 3
    assert "train.jsonl:2" in err and "data.invalid_rows=drop" in err
    code, out, _ = srft(
        f"data.train={path}", "method=grpo", "reward=math", "data.invalid_rows=drop"
    )
    assert code == 0 and "left out" in out


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise KeyError('missing')", ["KeyError", "missing"]),
        ("return [1.0]", ["returned 1"]),
        ("return [float('nan')] * len(completions)", ["nan"]),
        ("return ['good'] * len(completions)", ["good"]),
    ],
    ids=["raises", "wrong-number", "nan", "text"],
)
def test_a_reward_function_that_fails_is_named_with_its_row(srft, tmp_path, body, words):
    function = write(
        tmp_path / "mine.py", "def mine(prompts, completions, **columns):", f"    {body}"
    )
    code, _, err = srft(reward={"function": f"{function}:mine"})
    assert code == 5, err
    for word in ["mine", *words]:
        assert word in err


def test_nothing_saved_is_lost_when_a_reward_fails_late(srft, tmp_path):
    lines = [
        "calls = 0",
        "def mine(prompts, completions, **columns):",
        "    global calls",
        "    calls += 1",
        "    if calls > 4:",
        "        raise RuntimeError('late')",
        "    return [float(len(c) % 2) for c in completions]",
    ]
    function = write(tmp_path / "mine.py", *lines)
    reward = {"function": f"{function}:mine", "failed_demonstrations": "keep"}
    code, _, err = srft("run.checkpoint_every=1", "train.steps=9", reward=reward)
    assert code == 5 and "late" in err
    saved = list_checkpoints(tmp_path / "run" / "checkpoints")
    steps = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(steps) == 3 and saved[-1].name == "step_000003"


def test_data_check_shows_tokens_and_finds_a_leak(srft, tmp_path):
    text = "one two three four five six seven eight nine ten eleven twelve thirteen ?"
    train = write(
        tmp_path / "t.jsonl", row(prompt=text, demonstration="#### 2"), row(demonstration="#### 3")
    )
    held_out = write(tmp_path / "e.jsonl", row(prompt="and " + text))
    code, out, _ = srft(f"data.train={train}", f"data.eval={held_out}", command=("data", "check"))
    assert code == 0
    assert "fail their verifier, of 2: 1" in out and "t.jsonl:2" in out
    assert "evaluation data e that occur in" in out and ": 1 of 1, in 1 rows" in out
    assert "t.jsonl:1 has " in out and "|<eos>" in out.replace(" ", "")
    bare = write(tmp_path / "b.jsonl", json.dumps({"prompt": "1 + 1 = ?"}))
    code, out, err = srft(f"data.train={bare}", command=("data", "check"))
    assert code == 3 and "answers that do not verify, of 1: 1" in out
    assert "error: a run would refuse this data" in err


def test_reward_check_lists_disagreements(tmp_path, capsys):
    path = write(
        tmp_path / "labelled.jsonl",
        json.dumps({"completion": "so it is \\boxed{1/2}", "answer": "0.5", "label": True}),
        json.dumps({"completion": "\\boxed{3}", "answer": "4", "label": True}),
    )
    with pytest.raises(SystemExit) as stopped:
        main(["reward", "check", path, "--reward", "{name: math, timeout_s: 4}"])
    out = capsys.readouterr().out
    assert not stopped.value.code
    assert "of 2 labelled right 1 scored wrong" in out and "outcome: ok 2" in out
    assert "agreement 50.00%" in out and "labelled.jsonl:2" in out


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command, without its warnings of loading."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return stopped.value.code or 0, out, err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "lab"}, ["model: {path: lab}"]),
        ({"data": "x.jsonl"}, ["data: {train: x.jsonl}"]),
        ({"train": {"betas": 0.9}}, ["train.betas", "such as [0.9, 0.999]"]),
        ({"train": {"betas": [True, 0.9]}}, ["train.betas", "not a number"]),
        ({"evaluation": {"suites": "lab"}}, ["evaluation.suites", "['lab']"]),
        (
            {"train": {"betas": [1.0, 2.0]}},
            ["train.betas: is [1.0, 2.0]; each is at least 0 and less than 1"],
        ),
        ({"train": {"steps": True}}, ["train.steps: is true, which is not a number"]),
        ({"train": {"seed": 2**70}}, ["train.seed", "whole numbers end before 2^62"]),
        ({"rollout": {"vllm": {"max_model_len": 2**63}}}, ["max_model_len", "before 2^62"]),
        ({"rollout": {"stop_token_ids": [-(2**64)]}}, ["stop_token_ids", "before 2^62"]),
        ({"parallel": {"timeout_s": 1e300}}, ["parallel.timeout_s", "30 years"]),
        ({"train": {"learning_rate": False}}, ["train.learning_rate: is false"]),
        ({"stages": [{"method": "srft", "steps": True}]}, ["stages.0.steps: is true"]),
        ({"rollout": {"vllm": {"tensor_parallel_size": True}}}, ["tensor_parallel_size: is true"]),
        ({"alarms": {"mine": {"metric": "x", "steps": True}}}, ["alarms.mine.steps: is true"]),
        ({"reward": {"name": "numeric", "tolerence": 0.1}}, ["did you mean 'tolerance'?"]),
        ({"reward": [{"name": "numeric", "tolerence": 0.1}]}, ["did you mean 'tolerance'?"]),
        ({"data": {"columns": ["prompt"]}}, ["data.columns: is not a mapping"]),
    ],
)
def test_a_recipe_of_the_wrong_shape_is_told_the_right_one(tmp_path, capsys, values, words):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(values))
    code, _, err = command(capsys, "train", str(path), "--dry-run")
    assert code == 2
    for word in words:
        assert word in " ".join(err.split())


def test_true_is_no_number_in_any_section():
    """Of every number of every section, so that a new setting is held to it too."""
    seen = 0

    def models(annotation):
        for kind in (annotation, *get_args(annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield kind
            elif kind is not annotation:
                yield from models(kind)

    def look(kind: type[Section]) -> None:
        nonlocal seen
        for name, field in kind.model_fields.items():
            for inner in models(field.annotation):
                look(inner)
            kinds = {field.annotation, *get_args(field.annotation)}
            if kinds & {int, float} and not kinds & {bool}:
                seen += 1
                for value in (True, False):
                    with pytest.raises(ValueError, match="not a number"):
                        kind.__pydantic_validator__.validate_assignment(
                            kind.model_construct(), name, value
                        )

    look(SRFTConfig)
    assert seen > 60


@pytest.mark.parametrize("word", ["caf\u00e9", "plain"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-16", b""),
        ("utf-16-be", b"\xfe\xff"),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
        ("utf-32", b""),
        ("latin-1", b""),
    ],
)
def test_a_recipe_that_is_not_utf8_is_told_how_to_convert_it(
    tmp_path, capsys, encoding, mark, word
):
    """And the advice is right: what iconv reads is the recipe."""
    path, text = tmp_path / "r.yaml", f"run: {{dir: {word}}}\n"
    if text.encode(encoding) == text.encode():
        pytest.skip("is UTF-8 as well")
    path.write_bytes(mark + text.encode(encoding))
    code, _, err = command(capsys, "train", str(path), "--dry-run")
    name = err.partition("iconv -f ")[2].partition(" -t UTF-8 r.yaml")[0]
    assert code == 2 and "not UTF-8" in err and path.read_bytes().decode(name) == text
    path.write_bytes("train: {steps: 7}\n".encode("utf-8-sig"))
    code, out, _ = command(capsys, "train", str(path), "--dry-run")
    assert code == 0 and "steps: 7" in out


@pytest.mark.parametrize(
    "arguments",
    [("lab", "data", "FILE"), ("lab", "table2", "--out", "FILE"), ("eval", "x", "--out", "FILE"),
     ("compare", "a", "b", "--out", "FILE"), ("analyze", "x", "--data", "y", "--out", "FILE")],
)  # fmt: skip
def test_a_file_where_a_folder_is_to_be_is_refused_first(tmp_path, capsys, arguments):
    file = write(tmp_path / "f", "x")
    code, _, err = command(capsys, *(str(file) if a == "FILE" else a for a in arguments))
    # In a box as wide as the terminal: where its lines break depends on the folder's name.
    assert code == 2 and "is a file" in " ".join(err.replace("│", " ").split())


def test_an_experiment_in_its_default_folder_trains_the_built_in_model(tmp_path, monkeypatch):
    """As the documentation has it, without --out: its folder is called like the model, ``lab``."""
    monkeypatch.chdir(tmp_path)
    sizes = ["train.steps=1", "train.prompts_per_step=1", "data.limit=4", "data.eval_limit=8"]
    run = [sys.executable, "-m", "srft", "lab", "table1", "--seeds", "1", "--arm", "base", *sizes]
    for finished in (2, 0):  # the second time everything is there
        done = subprocess.run(run, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert (done.stdout + done.stderr).count("finished ") == finished
    results = json.loads((tmp_path / "lab" / "table1" / "results.json").read_text())
    assert not results["failed"] and [arm["name"] for arm in results["arms"]] == ["base", "srft"]


PROBLEM = json.dumps({"problem": "a = 1 + 1 ; a ?", "solution": "2"})


def test_eval_proposes_its_own_options_and_they_do_what_they_say(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", PROBLEM)
    code, _, err = command(capsys, "eval", "lab", "--dataset", path)
    assert code == 3 and "data.columns" not in err
    (proposed,) = [line.strip() for line in err.splitlines() if "--columns" in line]
    assert proposed == "--columns '{prompt: problem, answer: solution}'"
    options = shlex.split(proposed)
    run = ["eval", "lab", "--dataset", path, "--max-tokens", "4", "--out", str(tmp_path / "e")]
    code, out, err = command(capsys, *run, "--reward", "exact", *options)
    assert code == 0, err
    assert "…" not in out  # no cell of a table is cut, however narrow the terminal


@pytest.mark.parametrize(
    ("arguments", "code", "words", "absent"),
    [
        (["eval", "EMPTY", "--suite", "lab"], 4, ["holds no model"], ["model.path"]),
        (["eval", "/no/such", "--suite", "lab"], 4, ["no such folder"], ["model.path", "Repo id"]),
        (["sample", "EMPTY", "hi"], 4, ["holds no model"], ["model.path"]),
        (["eval", "lab", "--suite", "gsm8k", "--data-dir", "/no"], 3, ["--data-dir"], ["evaluation"]),
        (["analyze", "lab", "lab", "--data", "FILE"], 3, ["--setting 'data.columns={"], [": {prompt"]),
        (["eval", "lab", "--suite", "gsm8"], 2, ["--suite: unknown", "did you mean 'gsm8k'"], ["suites:"]),
        (["eval", "lab", "--dataset", "x.csv", "--columns", "a"], 2, ["--columns: is not a mapping"], []),
        (["eval", "lab", "--dataset", "x.csv", "--columns", "{promt: a}"], 2,
         ["--columns promt: unknown key; did you mean 'prompt'"], ["[key]"]),
        (["eval", "lab", "--setting", "train.steps=3"], 2, ["data.KEY=VALUE"], []),
        (["eval", "lab", "--setting", "data.colums={}"], 2, ["did you mean"], []),
        (["compare", "/no/a", "/no/b"], 3, ["No such file or directory)"], ["Errno"]),
        (["compare", "EMPTY", "EMPTY"], 3, ["results.json", "No such file"], ["Errno"]),
        (["reward", "check", "BROKEN"], 3, ["Fix them."], ["data."]),
    ],
)  # fmt: skip
def test_commands_without_a_recipe_propose_no_settings_of_one(
    tmp_path, capsys, arguments, code, words, absent
):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "p.jsonl", PROBLEM)
    write(tmp_path / "b.jsonl", json.dumps({"completion": "x", "answer": "x", "label": 1}), "{x")
    places = {"EMPTY": "empty", "FILE": "p.jsonl", "BROKEN": "b.jsonl"}
    given = [str(tmp_path / places[a]) if a in places else a for a in arguments]
    got, _, err = command(capsys, *given)
    assert got == code, err
    for word in words:
        assert word in err
    for word in absent:
        assert word not in err.replace(str(tmp_path), "")


def test_names_of_settings_become_options_and_other_dotted_names_stay():
    options = {"model_path": "MODEL"}
    for text, expected in (
        ("set data.columns: {prompt: a b}", "set --setting 'data.columns={prompt: a b}'"),
        (
            "or data.invalid_rows: drop to continue",
            "or --setting data.invalid_rows=drop to continue",
        ),
        ("model.trust_remote_code=true.", "--setting model.trust_remote_code=true."),
        ("data.columns.prompt: no row has", "--setting data.columns.prompt: no row has"),
        (
            "Check model.path, or rollout.engine=generate",
            "Check MODEL, or --rollout engine=generate",
        ),
        ("data.jsonl and model.safetensors", "data.jsonl and model.safetensors"),
        ("my.data.columns", "my.data.columns"),
    ):
        assert as_options(text, options) == expected


@pytest.mark.parametrize("command", [["eval", "lab"], ["sample", "lab", "1 + 1"]])
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("max_tokens=1", "--max-tokens"),
        ("temperature=0", "--temperature"),
        ("group_size=2", "--n"),
        ("ahead=1", "training alone"),
    ],
)
def test_a_setting_of_rollouts_that_would_do_nothing_is_refused(command, setting, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--rollout", setting])
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"--rollout '{setting}': has no effect here" in said and words in said


def test_a_run_says_once_which_columns_it_uses_and_what_it_checked(srft, tmp_path):
    rows = [row(demonstration="a = 1 + 1 = 2 #### 2", level=3)] * 2
    path = write(tmp_path / "train.jsonl", *rows)
    code, out, _ = srft(f"data.train={path}")
    assert code == 0
    used = "`prompt`: prompt; `demonstration`: demonstration; `answer`: answer; for rewards only: `level`"
    assert out.count(used) == 1


def test_nothing_of_bitsandbytes_is_loaded_or_said_where_it_is_not_needed(tmp_path):
    code = (
        "import sys; import srft.trainer.setup\n"
        "assert not {'peft', 'bitsandbytes'} & set(sys.modules)\n"
        "import peft"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "gemm" not in done.stderr


def test_a_run_of_a_name_in_another_script_is_drawn_without_a_word_for_each_letter(
    srft, tmp_path, recwarn
):
    code, out, err = srft(f"run.dir={tmp_path}/日本語のラン한국어", "train.steps=1")
    assert code == 0, err
    assert not [w for w in recwarn if "Glyph" in str(w.message)] and "Glyph" not in out + err


def record(step: int, accuracy: float, name: str = "lab", **families: float) -> dict:
    return {"step": step, "name": name, "accuracy": accuracy, "interval": [0.1, 0.9],
            "n_problems": 50, "by_family": families}  # fmt: skip


def test_the_table_at_the_end_shows_the_evaluations_that_there_were():
    from srft.cli_train import evaluation_table

    def shown(evaluations: list[dict]) -> str:
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(evaluation_table(evaluations))
        return console.export_text()

    only_the_end = shown([record(40, 0.04, chain=0.04)])
    assert "step 40" in only_the_end and "4.0%" in only_the_end and "10.0% to 90.0%" in only_the_end
    for word in ("before", "after", "change", "+0.0"):
        assert word not in only_the_end
    both = shown([record(0, 0.04, chain=0.04), record(20, 0.1), record(40, 0.5, chain=0.5)])
    for word in ("step 0", "step 40", "4.0%", "50.0%", "+46.0", "change"):
        assert word in both
    assert "step 20" not in both
    # A set that was there at the end alone (a resume with another recipe).
    later = shown([record(0, 0.04), record(40, 0.5), record(40, 0.25, name="more")])
    assert "25.0%" in later and "+46.0" in later and "+25" not in later
    assert evaluation_table([]) is None


def commands(app, path=()):
    """(words, command) of every command there is."""
    yield path, app
    for name, command in getattr(app, "commands", {}).items():
        yield from commands(command, (*path, name))


@pytest.mark.parametrize("width", [80, 120])
def test_help_wraps_at_the_width_of_the_terminal(width, monkeypatch, capsys):
    import typer

    monkeypatch.setenv("COLUMNS", str(width))
    found = dict(commands(typer.main.get_command(cli.app)))
    assert len(found) > 15
    for path in found:
        with pytest.raises(SystemExit) as stopped:
            main([*path, "--help"])
        assert stopped.value.code == 0
        out = capsys.readouterr().out
        assert max(len(line.rstrip()) for line in out.splitlines()) <= width
        # A word that does not fit is cut with this sign. Two of typer's own long options at 80 columns.
        assert "\u2026" not in out.replace("--install-comp\u2026", ""), path


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tra", ["train"]),
        ("train my.yaml train.lear", ["train.learning_rate="]),
        ("plan my.yaml rollout.vllm.kv", ["rollout.vllm.kv_cache_gb="]),
        ("train my.yaml rollout.engine=vl", ["rollout.engine=vllm", "rollout.engine=vllm-server"]),
        ("train my.yaml method = grp", ["grpo"]),  # as bash splits it
        ("train my.yaml no.such=", []),
    ],
)
def test_the_shell_completes_commands_settings_and_values(typed, offered, monkeypatch, capsys):
    monkeypatch.setenv("_SRFT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"srft {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split())))
    with pytest.raises(SystemExit):
        cli.app(prog_name="srft")
    assert capsys.readouterr().out.split() == offered


def test_every_setting_that_is_offered_is_one_of_a_recipe():
    from srft.cli_completion import _settings

    names = [name for name, _ in _settings()]
    assert len(names) > 150 and len(set(names)) == len(names)
    assert {"method", "train.steps", "model.lora.rank", "rollout.server.transfer"} <= set(names)
    for name in names:  # an unknown one is an error before its value is looked at
        assert f"{name}: unknown key" not in load_error(f"{name}={{a: b}}")


def load_error(override: str) -> str:
    try:
        load_config(None, [override])
    except ConfigError as error:
        return str(error)
    return ""
