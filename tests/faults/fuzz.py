"""Bad input by the thousand: always a clear error of ours or a right result, never a hang.

Each ``fuzz_*`` draws its inputs from a seed, so that a failure can be had again, and counts them. What
an input may come to: ``right`` (accepted, and the result has the properties it must have), ``clear``
(an SRFTError), or a failure: any other exception, a wrong result, or more than ``LIMIT_S`` seconds of
processor time (ten megabytes in tokens take some; a machine busy with other things takes longer).
"""

from __future__ import annotations

import copy
import json
import logging
import math
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from tests.toys import byte_tokenizer, save_lab_model

from srft.config import SRFTConfig, load_config
from srft.data.data_config import DataConfig
from srft.data.reading import load_examples
from srft.data.template import Template
from srft.data.tokenization import tokenize_dataset
from srft.errors import SRFTError
from srft.lab import QUICKSTART
from srft.model.loading import (
    check_finite_weights,
    check_vocabulary,
    load_model,
    load_tokenizer,
)
from srft.model.model_config import ModelConfig
from srft.model.policy import Policy
from srft.model.scoring_check import check_scoring
from srft.trainer.setup import build_methods
from srft.types import Example

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0
MEGABYTES = 10


@dataclass
class Outcome:
    """What came of all inputs of one kind; ``failures`` are the input's number and what happened.
    seconds, slowest: processor time of all inputs, and of the one that took most."""

    kind: str
    inputs: int = 0
    right: int = 0
    clear: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0

    @contextmanager
    def input(self, name: str) -> Iterator[None]:
        """Judges what happens inside as one input."""
        self.inputs += 1
        start = time.process_time()
        try:
            with limit(LIMIT_S):
                yield
            self.right += 1
        except SRFTError as error:
            if str(error).strip():
                self.clear += 1
            else:
                self.failures.append(f"{name}: an error without words")
        except Exception as error:  # noqa: BLE001 - any other error is what is looked for
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            self.failures.append(f"{name}: {type(error).__name__}: {str(error)[:300]} ({place})")
        took = time.process_time() - start
        self.seconds += took
        self.slowest = max(self.slowest, took)


class TooSlow(Exception):
    """An input took longer than its limit."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooSlow(f"more than {seconds:g} s")

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, 1), (signal.ITIMER_REAL, signal.SIGALRM, 20))
    previous = [signal.signal(number, late) for _, number, _ in timers]
    for timer, _, factor in timers:
        signal.setitimer(timer, factor * seconds)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(timers, previous, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@contextmanager
def silence() -> Iterator[None]:
    """Without the warnings about rows that are left out."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


# -- texts and values ---------------------------------------------------------------------------

_SCRIPTS = [
    "plain words",
    "\u05e9\u05dc\u05d5\u05dd \u202e reversed \u202c",  # right to left, and marks that turn it
    "\u0645\u0631\u062d\u0628\u0627 \u0661\u0662\u0663",
    "e\u0301\u0327\u0308" * 5,  # combining marks
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "\u4e2d\u6587 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4",
    "".join(map(chr, range(32))),
    "\x7f\x80\x9f\u2028\u2029\ufeff\u200b\u00a0",
    "\ud800", "\udfff tail", "\ufffe\uffff", "\U0010ffff",
    "#### 12", "\\boxed{7}", "{{ messages }}", "{% raise %}", "{prompt}", "%s %d {0}", "$(id)", "`id`",
    "[bold]x[/]", "[/INST]", "<script>alert(1)</script>", "a\x1b[31mred\x07",
    "NaN", "null", "true", "1e999", "-0", "0x1F", "\n", "\r\n", "\t", " ", "",
]  # fmt: skip
_CONTROLS = [
    *("<eos>", "<pad>", "<bos>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "</s>", "<s>"),
    *("<start_of_turn>", "<end_of_turn>", "<|eot_id|>", "<think>", "</think>", "<e<eos>os>"),
]


def nasty_text(draw: random.Random, controls: bool = True) -> str:
    """A text of a few pieces, some of them made to break readers, templates or terminals."""
    pieces = _SCRIPTS + (_CONTROLS if controls else [])
    text = "".join(draw.choice(pieces) for _ in range(draw.randint(0, 6)))
    return text * draw.choice([1, 1, 1, 2, 50])


def huge_text(draw: random.Random) -> str:
    """Ten megabytes of one thing, or of two in turn."""
    unit = draw.choice(
        ["a", " ", "\n", "(", "<eos>", "<|im_end|>\n", "\u05e9", "\U0001f600", "7", "{}"]
    )
    unit += draw.choice(["", "", " ", "x"])
    return unit * (MEGABYTES * 2**20 // len(unit.encode()))


def nasty_value(draw: random.Random, depth: int = 0) -> Any:
    """Any plain value: a number, a text, nothing, or a list or mapping of such."""
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: draw.random() < 0.5,
        lambda: draw.choice([0, -1, 1, 7, 2**31, 2**63, 2**64, -(10**30)]),
        lambda: draw.choice([0.0, -1.5, 1e308, 1e-308, math.inf, -math.inf, math.nan]),
        lambda: nasty_text(draw),
    ]
    if depth < 3:
        kinds += [
            lambda: [nasty_value(draw, depth + 1) for _ in range(draw.randint(0, 3))],
            lambda: {
                draw.choice(["role", "content", "value", nasty_text(draw)]): nasty_value(
                    draw, depth + 1
                )
                for _ in range(draw.randint(0, 3))
            },
        ]
    return draw.choice(kinds)()


# -- datasets -------------------------------------------------------------------------------------

_COLUMNS = [
    *("prompt", "demonstration", "demonstrations", "answer", "question", "target", "completion"),
    *("messages", "conversations", "reward_model", "data_source", "extra_info", "other", ""),
]
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizers() -> list[Any]:
    plain, chat = byte_tokenizer(), byte_tokenizer()
    special = ["<|im_start|>", "<|im_end|>", "<think>", "<|endoftext|>"]
    chat.add_special_tokens({"additional_special_tokens": special})
    chat.chat_template = _CHATML
    return [plain, chat]


def nasty_row(draw: random.Random, form: int) -> Any:
    """A good row of one of five forms; now and then one with columns spoiled, or no row at all."""
    asked, reply = "7?" + nasty_text(draw), {"role": "assistant", "content": "7"}
    user = {"role": "user", "content": asked}
    good: list[dict[str, Any]] = [
        {
            "prompt": asked,
            "demonstration": nasty_text(draw) + "7",
            "answer": "7" + nasty_text(draw),
        },
        {"prompt": [user], "demonstrations": ["7" + nasty_text(draw), [reply]], "answer": 7},
        {"question": asked, "answer": nasty_text(draw) + " #### 7"},
        {"prompt": [user], "target": [reply], "reward_model": {"ground_truth": "7"}},
        {"messages": [user, reply]},
    ]
    row = good[form]
    for _ in range(draw.choice([0, 0, 0, 0, 0, 1, 2])):
        row[draw.choice(_COLUMNS)] = nasty_value(draw)
    return row if draw.random() < 0.97 else nasty_value(draw)


def _csv(rows: list[Any]) -> str:
    import csv
    import io

    stream = io.StringIO()
    writer = csv.writer(stream, escapechar="\\")
    tables = [row for row in rows if isinstance(row, dict)]
    writer.writerow(tables[0] if tables else ["prompt"])
    for row in rows:
        writer.writerow(row.values() if isinstance(row, dict) else [row])
    return stream.getvalue()


def _write_rows(path: Path, rows: list[Any], draw: random.Random) -> None:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            pq.write_table(pa.Table.from_pylist([r for r in rows if isinstance(r, dict)]), path)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            path.write_bytes(draw.randbytes(200))  # no Parquet file can hold these
        return
    lines = [json.dumps(row, default=str, ensure_ascii=draw.random() < 0.5) for row in rows]
    if path.suffix == ".json":
        text = "[" + ",".join(lines) + "]"
    elif path.suffix == ".csv":
        text = _csv(rows)
    else:
        text = draw.choice(["\n", "\r\n"]).join(lines)
    encoding = draw.choice(
        ["utf-8"] * 20 + ["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32"]
    )
    data = text.encode(encoding, errors=draw.choice(["surrogatepass", "replace"])
                       if encoding.startswith("utf") else "replace")  # fmt: skip
    for _ in range(draw.choice([0] * 8 + [1, 3])):  # a few bytes go wrong
        place = draw.randrange(len(data) + 1)
        data = data[:place] + draw.randbytes(draw.randint(0, 3)) + data[place + 1 :]
    path.write_bytes(data)


def _check_tokens(examples: list[Example], tokenizer: Any, config: DataConfig) -> None:
    """User text never becomes a control token: a prompt holds the template's own, and a demonstration
    none but its end."""
    kept, _ = tokenize_dataset(examples, tokenizer, config)
    template = Template(tokenizer, config)
    control = template.controls.ids
    for item in kept:
        prompt = item.example.prompt
        messages = [{"role": "user", "content": "x"}] if isinstance(prompt, str) else prompt
        plain: Any = (
            "x" if isinstance(prompt, str) else tuple({**m, "content": "x"} for m in messages)
        )
        own = template.encode_prompt(template.render(Example(prompt=plain)))
        mine = [id_ for id_ in item.prompt_ids if id_ in control]
        assert mine == [id_ for id_ in own if id_ in control], "a control token in a prompt"
        for ids in item.demonstration_ids:
            assert ids[-1] == template.end_token_id
            assert control.isdisjoint(ids[:-1]), "a control token in a demonstration"


def fuzz_datasets(count: int, seed: int, scratch: Path) -> Outcome:
    """Files of rows, read, checked and tokenized."""
    outcome, tokenizers = Outcome("datasets"), _tokenizers()
    unlimited = {"max_prompt_tokens": None, "max_demonstration_tokens": None}
    unlimited["prompt_is_rendered"] = False
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        suffix = draw.choice([".jsonl"] * 4 + [".json", ".csv", ".parquet", ".txt"])
        form = draw.randrange(5)
        rows = [nasty_row(draw, form) for _ in range(draw.randint(1, 4))]
        if huge := number % 200 == 199:
            rows = [{"prompt": huge_text(draw), "demonstration": huge_text(draw), "answer": "7"}]
        path = scratch / f"rows{suffix}"
        with outcome.input(f"dataset {number}{' (huge)' if huge else ''}"), silence():
            _write_rows(path, rows, draw)
            policy = draw.choice(["error", "drop"])
            examples = load_examples(str(path), invalid_rows=policy)
            config = DataConfig.model_validate({"invalid_rows": policy, **unlimited})
            _check_tokens(examples, draw.choice(tokenizers), config)
    return outcome


# -- recipes --------------------------------------------------------------------------------------

_TRAPS = [
    *(
        "no",
        "off",
        "yes",
        "on",
        "~",
        "1_000",
        "0o17",
        "0x10",
        "1e-6",
        "1.0e-6",
        ".inf",
        ".nan",
        "-.inf",
    ),
    *(
        "2024-01-01",
        "12:30:45",
        "!!python/object/apply:os.system ['true']",
        "!!binary aGk=",
        "*anchor",
    ),
    *(
        "${oc.env:HOME}",
        "${model.path}",
        "${",
        "${nothing.here}",
        "{a: b: c}",
        "[1, 2",
        "'",
        '"',
        "?",
    ),
    *(
        "&a [*a]",
        "@x",
        "%TAG",
        "\t- x",
        "- - - x",
        "<<: 3",
        "!!set {a}",
        "# only a comment",
        "|",
        ">",
    ),
    *("9" * 5000, "[" * 500 + "]" * 500, "{" * 200, "\ud800", "\x00", "\u2028", "null", "'null'"),
]


def _paths(values: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    if isinstance(values, dict):
        for key, value in values.items():
            found += _paths(value, (*at, key))
    elif isinstance(values, list):
        for place, value in enumerate(values):
            found += _paths(value, (*at, place))
    return found


def mutate(values: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A recipe with one to three settings removed, renamed, retyped or made extreme."""
    values = copy.deepcopy(values)
    for _ in range(draw.randint(1, 3)):
        paths = _paths(values)
        if not paths:
            break
        *parents, key = draw.choice(paths)
        holder: Any = values
        for parent in parents:
            holder = holder[parent]
        kind = draw.choice(["delete", "rename", "value", "value", "wrap", "add"])
        if kind == "delete":
            del holder[key]
        elif kind == "rename" and isinstance(key, str):
            place = draw.randrange(len(key) + 1)
            holder[key[:place] + draw.choice(["x", "_", " ", "."]) + key[place:]] = holder.pop(key)
        elif kind == "wrap":
            holder[key] = [holder[key]] if draw.random() < 0.5 else {"x": holder[key]}
        elif kind == "add" and isinstance(holder, dict):
            holder[draw.choice([*SRFTConfig.model_fields, "new", 7, None])] = nasty_value(draw)
        else:
            holder[key] = nasty_value(draw)
    return values


def mutate_text(text: str, draw: random.Random) -> str:
    """A recipe's text with a trap of YAML in it, a line doubled, moved or cut."""
    lines = text.splitlines()
    place = draw.randrange(len(lines))
    kind = draw.choice(["trap", "trap", "double", "swap", "cut", "indent", "insert", "bytes"])
    if kind == "trap":
        head, found, _ = lines[place].partition(":")
        lines[place] = f"{head}: {draw.choice(_TRAPS)}" if found else draw.choice(_TRAPS)
    elif kind == "double":
        lines.insert(draw.randrange(len(lines)), lines[place])
    elif kind == "swap":
        other = draw.randrange(len(lines))
        lines[place], lines[other] = lines[other], lines[place]
    elif kind == "cut":
        del lines[place:]
    elif kind == "indent":
        lines[place] = draw.choice([" ", "  ", "\t"]) + lines[place]
    elif kind == "insert":
        lines.insert(place, draw.choice(_TRAPS))
    else:
        lines[place] = lines[place][:3] + nasty_text(draw) + lines[place][3:]
    return "\n".join(lines)


def _override(draw: random.Random) -> str:
    key = draw.choice(
        [
            "train.steps",
            "train",
            "model.path",
            "a..b",
            "",
            ".",
            "x[0]",
            "method",
            "alarms.no-reward.steps",
        ]
    )
    return draw.choice(
        [f"{key}={draw.choice(_TRAPS)}", f"{key}={nasty_text(draw)}", key, f"{key}=="]
    )


def fuzz_recipes(count: int, seed: int, scratch: Path) -> Outcome:
    """Every shipped recipe under random mutations, as data and as text, with overrides."""
    shipped = [QUICKSTART, *sorted((ROOT / "recipes").glob("*.yaml"))]
    outcome, path = Outcome("recipes"), scratch / "mutated.yaml"
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        text = shipped[number % len(shipped)].read_text()
        if draw.random() < 0.5:
            values = mutate(yaml.safe_load(text), draw)
            text = yaml.dump(values, allow_unicode=True, sort_keys=False)
        else:
            text = mutate_text(text, draw)
        with outcome.input(f"recipe {number}"):
            path.write_bytes(text.encode(errors="surrogatepass"))
            overrides = [_override(draw)] if draw.random() < 0.2 else []
            config = load_config(path, overrides)
            build_methods(config)
            again = SRFTConfig.model_validate(yaml.safe_load(config.to_yaml()))
            assert again == config, "the resolved recipe is another one"
            assert _finite(config.model_dump()), "a setting that is not finite was accepted"
    return outcome


def _finite(values: Any) -> bool:
    if isinstance(values, dict):
        return all(_finite(value) for key, value in values.items() if key not in _FREE)
    if isinstance(values, list | tuple):
        return all(map(_finite, values))
    return not isinstance(values, float) or math.isfinite(values)


_FREE = frozenset({"arguments", "chat_template_kwargs"})  # handed on as they are


# -- models and tokenizers --------------------------------------------------------------------------

_CANARY = "ran"
_CODE = f"""
from pathlib import Path
Path(__file__).with_name("{_CANARY}").touch()
Path("{{folder}}/{_CANARY}").touch()
from transformers import Qwen3Config as C, Qwen3ForCausalLM as M, PreTrainedTokenizerFast as T
"""


def _damage_file(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    kind = draw.choice(["remove", "empty", "cut", "noise", "flip", "head", "other"])
    if kind == "remove":
        path.unlink()
    elif kind == "other":
        path.write_text(
            draw.choice(["[]", "{}", "null", "7", '"x"', "{", "\ufeff{}", '{"a": 1e999}'])
        )
    else:
        place = draw.randrange(len(data))
        if kind == "flip":
            data[place] ^= 1 << draw.randrange(8)
        elif kind == "head":
            data[draw.randrange(min(64, len(data)))] = draw.randrange(256)
        new = {"empty": b"", "cut": data[:place], "noise": draw.randbytes(100)}.get(kind, data)
        path.write_bytes(new)


def _damage_json(path: Path, draw: random.Random) -> None:
    values = json.loads(path.read_text())
    sizes = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim",
             "num_attention_heads", "num_key_value_heads", "max_position_embeddings"}  # fmt: skip
    *parents, key = draw.choice(_paths(values))
    holder: Any = values
    for parent in parents:
        holder = holder[parent]
    if draw.random() < 0.3:
        del holder[key]
    elif key in sizes:
        holder[key] = draw.choice([0, -1, 1, 3, 64, 1000, "32", None, 2.5, [32]])
    else:
        holder[key] = nasty_value(draw)
    path.write_text(json.dumps(values))


def _bring_code(folder: Path, draw: random.Random) -> None:
    (folder / "evil.py").write_text(_CODE.replace("{folder}", str(folder)))
    for name, entries in (
        ("config.json", {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.T", None]}),
    ):
        path = folder / name
        values = json.loads(path.read_text())
        values["auto_map"] = entries
        if draw.random() < 0.5 and name == "config.json":
            values["model_type"] = "evil"
        path.write_text(json.dumps(values))


def _pickle_weights(folder: Path, draw: random.Random) -> None:
    (folder / "model.safetensors").unlink()
    bomb = _Bomb(folder / _CANARY)
    torch.save({"model.norm.weight": bomb}, folder / "pytorch_model.bin")
    del draw


class _Bomb:
    """Unpickling it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def _other_tokenizer(folder: Path, draw: random.Random) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    tokenizer = byte_tokenizer()
    if draw.random() < 0.5:
        tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)


def _odd_weights(folder: Path, draw: random.Random) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    name = draw.choice(sorted(weights))
    kind = draw.choice(["nan", "drop", "shape", "dtype", "extra"])
    if kind == "nan":
        weights[name].view(-1)[0] = draw.choice([math.nan, math.inf])
    elif kind == "drop":
        del weights[name]
    elif kind == "shape":
        weights[name] = torch.zeros(3, 5)
    elif kind == "dtype":
        weights[name] = weights[name].to(draw.choice([torch.int8, torch.float64, torch.bfloat16]))
    else:
        weights["an.unknown.weight"] = torch.zeros(2)
    save_file(weights, path, metadata={"format": "pt"})


def _damage_folder(folder: Path, draw: random.Random) -> None:
    kind = draw.choice(["file", "file", "json", "json", "weights", "tokenizer", "code", "pickle"])
    if kind == "file":
        _damage_file(draw.choice(sorted(p for p in folder.iterdir() if p.is_file())), draw)
    elif kind == "json":
        files = ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"]
        _damage_json(folder / draw.choice(files), draw)
    else:
        change = {"weights": _odd_weights, "tokenizer": _other_tokenizer, "code": _bring_code}
        change.get(kind, _pickle_weights)(folder, draw)


def fuzz_models(count: int, seed: int, scratch: Path) -> Outcome:
    """Folders of models and tokenizers, damaged or not meant well, loaded as a run loads them."""
    outcome = Outcome("model folders")
    source = save_lab_model(scratch / "sound", initializer_range=0.02)
    example = Example(prompt="1 + 1 = ?", demonstrations=("2",), answer="2")
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        folder = scratch / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        _damage_folder(folder, draw)
        try:
            with outcome.input(f"model folder {number}"), silence():
                config = ModelConfig(path=str(folder))
                tokenizer = load_tokenizer(config)
                tokenize_dataset([example], tokenizer, DataConfig())
                model = load_model(config)
                check_finite_weights(model, config.path)
                check_vocabulary(model, tokenizer)
                check_scoring(Policy(model, tokenizer, config))
        finally:
            if (folder / _CANARY).exists():
                outcome.failures.append(f"model folder {number}: code of the folder was run")
    return outcome


FUZZERS: dict[str, Callable[[int, int, Path], Outcome]] = {
    "datasets": fuzz_datasets,
    "recipes": fuzz_recipes,
    "model folders": fuzz_models,
}
