"""Whole user stories by the thousand: a model, data and a recipe drawn from a seed, and commands over them.

    python -m tests.faults.stories [--stories 2000] [--first 0] [--seconds 3600] --log FILE

A story is ``Random(seed / number)``'s and nothing else's, so its number is all that has to be kept of one
that failed. Each command runs in a process of its own, forked with the libraries loaded. What it may come to
is right or clear (`judged`); anything else is a failure: a traceback, an exit code that is not documented, a
failure that says nothing, control characters, a secret in what it said or wrote, more than `LIMIT_S` seconds,
processes left behind, a success that left no result. With a log, stories already there are not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as parquet
import yaml
from tests.faults.runs import Trial, Workshop
from tests.toys import save_lab_model

from srft.config import SRFTConfig
from srft.lab import lab_train
from srft.objective.methods import METHODS

LIMIT_S = 120.0
SECRET = "hf_" + "qWeRtYuIoPaSdFgHjKlZxCvBnM12345678"
ENVIRONMENT = {"HF_TOKEN": SECRET}
_CODES = {0, *range(2, 11)}
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f]")
FAMILIES = ("qwen3", "llama", "gemma2", "gpt2", "mamba", "phi")


@dataclass
class Story:
    """What happened: the commands, their exit codes, and what was wrong, if anything."""

    number: int
    told: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Teller:
    """Makes stories in ``workshop``; everything of one is in a folder of its own."""

    def __init__(self, workshop: Workshop, seed: int = 0) -> None:
        self.workshop, self.seed = workshop, seed
        self.models = {}
        for family in FAMILIES:
            self.models[family] = save_lab_model(workshop.folder / f"model-{family}", family)

    def tell(self, number: int) -> Story:
        draw = random.Random(f"{self.seed}/{number}")
        story, start = Story(number), time.monotonic()
        folder = self.workshop.folder / f"story-{number}"
        folder.mkdir()
        try:
            Plot(draw, folder, self).play(story)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        story.seconds = round(time.monotonic() - start, 2)
        return story


# -- what a story is made of -----------------------------------------------------------------------

_NAMES = (
    "rows",
    "my rows",
    "[bold]rows",
    "\u6570\u636e",
    "-rows",
    "a=b",
    "r\u202eows",
    "x" * 80,
    "{rows}",
)
_ODD_TEXTS = ("\x1b]0;title\x07", "\x1b[2J", "\u202eabc", "a\x00b", "[red]x[/]", "{{ x }}", "<eos>", "\ud83d",
              "", " ", "\\boxed{", "x" * 5000, "\u0661\u0662", "<script>alert(1)</script>")  # fmt: skip


def make_rows(draw: random.Random) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one of the schemas that are documented, and what is wrong with them."""
    rows: list[dict[str, Any]] = [
        dict(row) for row in lab_train(draw.choice([6, 10]), draw.randrange(99))
    ]
    schema = draw.choice(["own", "own", "messages", "gsm8k", "rl", "columns"])
    made = []
    for row in rows:
        prompt, steps, answer = row["prompt"], row["demonstration"], row["answer"]
        if schema == "messages":
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": steps}]
            made.append({"messages": turns, "answer": answer})
        elif schema == "gsm8k":
            made.append({"question": prompt, "answer": f"{steps}\n#### {answer}"})
        elif schema == "rl":
            asked = [{"role": "user", "content": prompt}]
            made.append(
                {"prompt": asked, "reward_model": {"ground_truth": answer}, "demonstration": steps}
            )
        elif schema == "columns":
            made.append({"problem": prompt, "worked": steps, "truth": answer})
        else:
            made.append({"prompt": prompt, "demonstration": steps, "answer": answer})
    flaws = []
    if draw.random() < 0.4:
        for _ in range(draw.randint(1, 2)):
            flaw = draw.choice(["drop", "null", "text", "type", "empty", "extra", "twice"])
            flaws.append(flaw)
            place = draw.randrange(len(made)) if made else 0
            if flaw == "empty":
                made = []
            if not made:
                break
            key = draw.choice(sorted(made[place])) if made[place] else "prompt"
            value = {"null": None, "text": draw.choice(_ODD_TEXTS),
                     "type": draw.choice([7, 1.5, True, [], {}, [1], math.nan])}  # fmt: skip
            if flaw == "drop":
                made[place].pop(key, None)
            elif flaw == "extra":
                made[place][draw.choice(["reward", "id", "\x1b[2J", "prompt "])] = draw.choice(
                    _ODD_TEXTS
                )
            elif flaw == "twice":
                made.append(made[place])
            else:
                made[place][key] = value[flaw]
    return made, flaws


def write_rows(draw: random.Random, rows: list[dict[str, Any]], folder: Path) -> Path:
    suffix = draw.choice([".jsonl", ".jsonl", ".json", ".parquet", ".csv"])
    path = folder / f"{draw.choice(_NAMES)}{suffix}"
    try:
        if suffix == ".parquet":
            parquet.write_table(pa.Table.from_pylist(rows or [{"prompt": "x"}]), path)
            return path
        if suffix == ".csv":
            with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
                writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
                writer.writeheader()
                writer.writerows(rows)
            return path
    except (pa.ArrowException, UnicodeError):
        path = path.with_suffix(".jsonl")  # what the format cannot hold
    lines = [json.dumps(row, ensure_ascii=draw.random() < 0.5) for row in rows]
    text = "\n".join(lines) + "\n" if path.suffix == ".jsonl" else f"[{','.join(lines)}]"
    encoding = draw.choices(["utf-8", "utf-8-sig", "utf-16", "latin-1"], [20, 2, 1, 1])[0]
    path.write_bytes(
        text.encode(
            encoding, errors="backslashreplace" if encoding == "latin-1" else "surrogatepass"
        )
    )
    return path


_SETTINGS: dict[str, tuple[Any, ...]] = {
    "train.optimizer": ("adamw", "adam", "sgd"), "train.schedule": ("constant", "cosine", "linear"),
    "train.warmup_steps": (0, 1, 9), "train.learning_rate": (1e-3, 1e-6, 0, 1.0, -1, "1e-3", True, math.inf),
    "train.optimizer_steps_per_batch": (1, 2, 3), "train.tokens_per_micro_batch": (64, 4096, 1, 0),
    "train.on_nonfinite": ("skip", "stop"), "train.interleave_prompts": (True, False, None),
    "train.weight_decay": (0.0, 0.1), "train.betas": ([0.9, 0.95], 0.9, [0.9], [1.0, 2.0]),
    "train.steps": (1, 2, 3, 0, True, "2", 2.5, None), "train.seed": (0, 7, -1, 2**70),
    "train.prompts_per_step": (1, 2, 4, 50, 0), "train.gradient_analysis_every": (0, 1),
    "rollout.group_size": (1, 2, 4, 0), "rollout.max_tokens": (1, 4, 12, 100_000, 0),
    "rollout.temperature": (1.0, 0.6, 0.0, 1e-9, -1), "rollout.stop": ([], ["\n"], "x", [""]),
    "rollout.ahead": (0, 1, 2), "rollout.engine": ("embedded", "generate", "vllm-server", "nothing"),
    "rollout.max_rows": (1, 3, 256), "rollout.cache_tokens": (None, 64, 4096),
    "model.dtype": ("auto", "float32", "bfloat16", "float64", "int8"),
    "model.lora": (None, {"rank": 2}, {"rank": 0}, {"r": 2}),
    "model.gradient_checkpointing": (True, False), "model.attention": ("auto", "eager", "sdpa", "flash"),
    "model.rope_theta": (None, 1e4), "model.trust_remote_code": (True, "yes"),
    "data.eval_fraction": (0.0, 0.3, 1.0, 2), "data.limit": (None, 3, 1, 0), "data.seed": (0, 3),
    "data.invalid_rows": ("error", "drop", "ignore"), "data.system_prompt": (None, "Be brief.", "\x1b[2J"),
    "data.max_prompt_tokens": (1024, 40, 1), "data.overlong_prompt": ("drop", "error", "truncate"),
    "data.max_demonstration_tokens": (8192, 10, 1), "data.prompt_template": ("{prompt}\n\n", "{x}", "no"),
    "data.columns": ({}, {"prompt": "problem", "answer": "truth", "demonstration": "worked"}, {"x": "y"}),
    "data.shuffle": (True, False), "data.chat_template": ("auto", "none", "{% bad", "chatml"),
    "reward": ("exact", "numeric", "math", "choice", "format", "countdown", "nothing",
               {"name": "numeric", "tolerance": 0.1}, {"name": "numeric", "tolerence": 0.1},
               ["exact", {"name": "format", "weight": 0.2}], {"function": "no/such.py:f"},
               {"name": "exact", "failed_demonstrations": "keep"}, {"name": "math", "workers": 1}),
    "evaluation.every_steps": (0, 1, 2), "evaluation.at_start": (True, False), "evaluation.n": (1, 2, 0),
    "evaluation.limit": (2, 1), "evaluation.best_metric": ("accuracy", "eval/mean_tokens", "nothing"),
    "evaluation.suites": ([], ["lab"], ["nothing"], ["gpqa_diamond"]),
    "evaluation.best_mode": ("max", "min", "best"),
    "objective.clip_low": (0.2, 0.0, 1.5), "objective.kl_coefficient": (0.0, 0.1, -1),
    "objective.importance_cap": (None, 2.0, 0), "objective.baseline": ("group", "leave-one-out", "none"),
    "objective.rollout_term": ("surrogate", "literal"), "objective.weight_cap": (None, 1.0),
    "run.checkpoint_every": (1, 2, 50, 0), "run.keep_checkpoints": (1, 2, 0), "run.export": (True, False),
    "run.background_checkpoints": (True, False), "run.samples_every": (1, 10, 0),
    "run.trackers": ([], ["nothing"], ["tensorboard"]), "run.live": ("never", "auto", "always"),
    "alarms": ({}, {"no-reward": {"steps": 1, "action": "stop"}}, {"mine": {"metric": "loss", "at_least": 0}},
               {"mine": {"metric": "lose", "at_least": 0}}),
    "stages": ([], [{"method": "sft", "steps": 1}, {"method": "grpo", "steps": 1}],
               [{"method": "sft", "steps": 2, "train": {}}], [{"steps": 1}]),
    "teacher.frozen": (True, False), "parallel.shard": (None, 1, 2),
    "": ("x",), "model": ("lab", {"path": "lab"}),
    "modle": ("x",), "train.learning_rates": (1e-3,),
}  # fmt: skip
"""Settings and the values a story may give them; wrong ones among them."""


class Plot:
    """One story: its model, its data, its recipe, and what the user does."""

    def __init__(self, draw: random.Random, folder: Path, teller: Teller) -> None:
        self.draw, self.folder, self.teller = draw, folder, teller
        self.run = folder / draw.choice(["run", "my run", "[red]run", "\u8fd0\u884c", "r\x1b[2J"])
        rows, self.flaws = make_rows(draw)
        self.data = write_rows(draw, rows, folder)
        self.model = self._model()
        self.recipe = self._recipe(rows)

    def _model(self) -> str:
        known = self.teller.models
        kind = self.draw.choices(["tiny", "other", "gone", "empty", "damaged"], [30, 8, 1, 1, 1])[0]
        if kind == "tiny":
            return str(known["qwen3"])
        if kind == "other":
            return str(known[self.draw.choice(FAMILIES)])
        made = self.folder / "model"
        if kind == "empty":
            made.mkdir()
        elif kind == "damaged":
            shutil.copytree(known["qwen3"], made)
            victim = self.draw.choice(sorted(path for path in made.iterdir()))
            victim.write_bytes(victim.read_bytes()[: self.draw.choice([0, 10, 100])])
        return str(made)

    def _recipe(self, rows: list[dict[str, Any]]) -> Path:
        draw = self.draw
        values: dict[str, Any] = {
            "method": draw.choice(["srft", "srft", draw.choice(list(METHODS)), draw.choice(list(METHODS))]),
            "model": {"path": self.model},
            "data": {"train": str(self.data)},
            "reward": "exact",
            "rollout": {"group_size": 2, "max_tokens": 6},
            "train": {"steps": draw.choice([1, 2, 3]), "prompts_per_step": 2, "learning_rate": 1e-3},
            "run": {"live": "never", "checkpoint_every": 1, "dir": str(self.run)},
        }  # fmt: skip
        if rows and "problem" in rows[0] and draw.random() < 0.8:
            values["data"]["columns"] = {
                "prompt": "problem",
                "answer": "truth",
                "demonstration": "worked",
            }
        if draw.random() < 0.3:
            values["data"]["eval"] = str(self.data)
            values["evaluation"] = {"every_steps": 1}
        if values["method"] in ("opd", "gkd") and draw.random() < 0.8:
            values["teacher"] = {"path": self.model}
        for _ in range(draw.choice([0, 0, 1, 2, 3])):
            name = draw.choice(list(_SETTINGS))
            self._set(values, name, draw.choice(_SETTINGS[name]))
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=draw.random() < 0.5)
        encoding = draw.choices(["utf-8", "utf-8-sig", "utf-16"], [30, 1, 1])[0]
        path = self.folder / draw.choice(
            ["recipe.yaml", "my recipe.yaml", "[b]r.yaml", "\u914d.yml"]
        )
        path.write_bytes(text.encode(encoding))
        return path

    @staticmethod
    def _set(values: dict[str, Any], name: str, value: Any) -> None:
        *parents, key = name.split(".")
        for parent in parents:
            inner = values.setdefault(parent, {})
            if not isinstance(inner, dict):
                return
            values = inner
        values[key] = value

    # -- what the user does ---------------------------------------------------------------------------

    def play(self, story: Story) -> None:
        first = self._do(story, *self.draw.choice(self._openings()))
        if first != 0 or not (self.run / "config.yaml").is_file():
            if self.draw.random() < 0.3:  # a user tries on
                self._do(story, *self.draw.choice(self._sequels()))
            return
        for _ in range(self.draw.choice([0, 1, 1, 2])):
            self._do(story, *self.draw.choice(self._sequels()))

    def _openings(self) -> list[tuple[str, ...]]:
        recipe, draw = str(self.recipe), self.draw
        train = ("train", recipe, *self._overrides())
        asked = ("--dataset", str(self.data), "--limit", "2", "--max-tokens", "4")
        more = draw.choice([(), ("--n", "2"), ("--reward", "exact"), ("--json",)])
        evaluate = ("eval", self.model, *asked, "--out", str(self.folder / "ev"), *more)
        prompt = draw.choice([("1 + 1 = ?",), ("--lab", "1"), (), ("\x1b[2J",)])
        verifier = draw.choice(["exact", "math", "{name: numeric}", "{", "nothing"])
        return [
            *[train] * 9,
            (*train, "--dry-run"),
            ("data", "check", recipe, *draw.choice([(), ("--show", "0"), ("--against", "lab")])),
            ("plan", recipe, *draw.choice([(), ("--json",), ("--gpus", "8xH100-80G"), ("--gpus", "x")])),
            *[evaluate] * 2,
            ("sample", self.model, *prompt, "--max-tokens", "4"),
            ("reward", "check", str(self.data), "--reward", verifier),
            ("report", str(self.run)),
            ("serve", recipe, "--dry-run"),
            ("lab", "data", str(self.folder / "lab"), "--n", "3", "--per-family", "1"),
        ]  # fmt: skip

    def _sequels(self) -> list[tuple[str, ...]]:
        run, recipe, out = str(self.run), str(self.recipe), str(self.folder / "out")
        return [
            ("train", recipe, "--resume"),
            ("train", recipe, "--resume", "train.steps=4"),
            ("train", recipe, "--resume", *self._overrides()),
            ("train", recipe),
            ("eval", run, "--dataset", str(self.data), "--limit", "2", "--max-tokens", "4", "--out", out),
            ("eval", f"{run}/checkpoints/step_000001", "--dataset", str(self.data), "--limit", "1",
             "--max-tokens", "2", "--reward", "exact", "--out", out),
            ("sample", run, "2 + 2 = ?", "--max-tokens", "4"),
            ("report", run),
            ("report", run, str(self.folder), "--out", f"{out}.html"),
            ("analyze", self.model, run, "--data", run, "--out", out, "--limit", "3"),
            ("compare", out, str(self.folder / "ev")),
        ]  # fmt: skip

    def _overrides(self) -> list[str]:
        if self.draw.random() < 0.75:
            return []
        name = self.draw.choice(list(_SETTINGS))
        value = self.draw.choice(_SETTINGS[name])
        text = value if isinstance(value, str) else json.dumps(value)
        return [f"{name}={text}"]

    def _do(self, story: Story, *arguments: str) -> int:
        """One command and the verdict on it."""
        if any("\x00" in argument for argument in arguments):
            return 2
        workshop = self.teller.workshop
        story.told.append(json.dumps(["srft", *arguments], ensure_ascii=True))
        known = {path: path.stat().st_mtime_ns for path in self._written()}
        pid = workshop.start(*arguments, pictures=story.number % 8 == 0)
        code = workshop.wait(LIMIT_S)
        output = workshop.log.read_text(encoding="utf-8", errors="replace")
        story.codes.append(code)
        wrong = list(judged(arguments, code, output))
        if any(_alive(process, pid) for process in psutil.process_iter(["pid"])):
            wrong.append("left processes behind")
        if code == 0:
            wrong += results(arguments, self.run, output)
        for path in self._written():
            if known.get(path) != path.stat().st_mtime_ns and SECRET.encode() in path.read_bytes():
                wrong.append(f"the secret is in {path.name}")
        story.wrong += [f"{' '.join(arguments[:2])}: {one}" for one in wrong]
        return code

    def _written(self) -> list[Path]:
        return [p for p in self.folder.rglob("*") if p.is_file() and p.stat().st_size < 5_000_000]


def _alive(process: psutil.Process, session: int) -> bool:
    import os

    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False


# -- verdicts ----------------------------------------------------------------------------------------


def judged(arguments: tuple[str, ...], code: int, output: str) -> Iterator[str]:
    """What is wrong with the end of a command, whatever it was to do."""
    if code == -9:
        yield f"no end in {LIMIT_S:g} s: {output[-300:]!r}"
    elif code not in _CODES and not (code == 1 and arguments[0] == "plan"):
        yield f"exit code {code}: {output[-600:]!r}"
    if "Traceback (most recent call last)" in output:
        yield f"a traceback: {output[-900:]!r}"
    if code > 0 and not re.search(
        r"error:|Error|Usage|refused|does not fit|problem:|wrong|stopped", output
    ):
        yield f"exit code {code} without a reason: {output[-300:]!r}"
    found = _CONTROL.search(output)
    if found:
        yield f"control characters: {output[max(0, found.start() - 60) : found.end() + 60]!r}"
    if SECRET in output:
        yield "the secret is in the output"


def results(arguments: tuple[str, ...], run: Path, output: str) -> list[str]:
    """What a command that says it did well has not left as it should."""
    try:
        check = _RESULTS.get(arguments[0])
        return [] if check is None else list(check(arguments, run, output))
    except (OSError, ValueError, KeyError, IndexError, yaml.YAMLError) as error:
        return [f"exit code 0, but {type(error).__name__}: {str(error)[:200]}"]


def _trained(arguments: tuple[str, ...], run: Path, output: str) -> Iterator[str]:
    if "--dry-run" in arguments:
        SRFTConfig.model_validate(yaml.safe_load(output))
        return
    config = SRFTConfig.model_validate(yaml.safe_load((run / "config.yaml").read_text("utf-8")))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    beyond = (
        "--resume" in arguments
    )  # with fewer steps than the run has: what is done is not undone
    enough = len(rows) == config.total_steps or (beyond and len(rows) > config.total_steps)
    if not enough or [r["step"] for r in rows] != list(range(1, len(rows) + 1)):
        yield f"{len(rows)} steps in metrics.jsonl of {config.total_steps}"
    if config.run.export and not list((run / "model").glob("*.safetensors")):
        yield "no exported model"
    if not (run / "report.html").is_file():
        yield "no report"
    left = [path.name for path in run.rglob(".*") if path.name != ".lock" or not arguments]
    if left or (run / ".lock").exists():
        yield f"left behind: {left or '.lock'}"


def _evaluated(arguments: tuple[str, ...], run: Path, output: str) -> Iterator[str]:
    out = Path(arguments[arguments.index("--out") + 1])
    found = json.loads((out / "results.json").read_text("utf-8"))
    for name, one in found["benchmarks"].items():
        low, high = one["interval"]
        if not 0 <= low <= one["accuracy"] <= high <= 1:
            yield f"{name}: {one['accuracy']} is not within {low} and {high}"
    if "--json" in arguments:
        first = re.search(r"^\{$", output, re.MULTILINE)  # the log holds both streams
        json.loads(output[first.start() :] if first else "")


def _planned(arguments: tuple[str, ...], run: Path, output: str) -> Iterator[str]:
    if "--json" in arguments:
        json.loads(output)
    elif not output.strip():
        yield "no plan"


_RESULTS: dict[str, Callable[[tuple[str, ...], Path, str], Iterator[str]]] = {
    "train": _trained, "eval": _evaluated, "plan": _planned,
}  # fmt: skip


# -- many --------------------------------------------------------------------------------------------


def story_trials(workshop: Workshop, count: int, seed: int = 0) -> Iterator[Trial]:
    """``count`` stories as trials of the harness."""
    teller = Teller(workshop, seed)
    for number in range(count):
        story = teller.tell(number)
        yield Trial("user story", f"{seed}/{number}", not story.wrong, "; ".join(story.wrong)[:600])


def main() -> int:
    parser = argparse.ArgumentParser(description="User stories by the thousand.")
    parser.add_argument("--stories", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of stories")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin none after these")
    parser.add_argument("--log", type=Path, required=True, help="one line of JSON for each story")
    arguments = parser.parse_args()
    known = set()
    if arguments.log.is_file():
        known = {json.loads(line)["number"] for line in arguments.log.read_text().splitlines()}
    start, bad = time.monotonic(), 0
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workshop = stack.enter_context(Workshop(scratch / "workshop", ENVIRONMENT))
        teller = Teller(workshop, arguments.seed)
        numbers = arguments.only or range(arguments.first, arguments.first + arguments.stories)
        for number in numbers:
            if number in known or time.monotonic() - start > arguments.seconds:
                continue
            story = teller.tell(number)
            with arguments.log.open("a") as log:
                log.write(json.dumps(asdict(story)) + "\n")
            bad += bool(story.wrong)
            if story.wrong or arguments.only:
                print(f"{number}: {story.codes} {story.told} {story.wrong}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
