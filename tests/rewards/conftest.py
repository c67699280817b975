"""What the tests of the rewards share: a pool, hostile verifiers, the real data where it is."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from srft.rewards.pool import VerifierPool
from srft.types import Example

MATH = "srft.rewards.verifiers:check_math"

HOSTILE = textwrap.dedent(
    """
    import ctypes, os, sys, time
    from srft.rewards.verifiers import Verdict

    def nap(text, answer, columns, options):
        time.sleep(float(text))
        return Verdict(float(answer or 1))

    def echo(text, answer, columns, options):
        time.sleep((hash(text) % 7) / 1000)
        return Verdict(float(text))

    def grow(text, answer, columns, options):
        held = []
        while True:
            held.append(bytearray(4 * 2**20))
            time.sleep(0.001)

    def rest(text, answer, columns, options):
        held = bytearray(b"x") * (192 * 2**20)  # above a limit of 128 MiB, within the address space
        time.sleep(30)
        return Verdict(float(len(held) > 0))

    def gulp(text, answer, columns, options):
        return Verdict(float(len(bytearray(8 * 2**30))))

    def hold_the_lock(text, answer, columns, options):
        return Verdict(float(pow(7, 10**9) > 0))  # one C call that holds the interpreter lock

    def die(text, answer, columns, options):
        ctypes.string_at(0)

    def die_once(text, answer, columns, options):
        if os.getpid() == int(text):  # the worker of the first try
            os._exit(3)
        return Verdict(1.0)

    def fail(text, answer, columns, options):
        raise KeyError("no such thing")

    def loaded(text, answer, columns, options):
        return Verdict(float(text in sys.modules))

    def pid(text, answer, columns, options):
        return Verdict(float(os.getpid()))
    """
)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a module `hostile`, importable here and in the workers."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile.py").write_text(HOSTILE)
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(folder))
    yield folder
    patch.undo()


@pytest.fixture(scope="session")
def pool(hostile: Path) -> Iterator[VerifierPool]:
    """Two workers, one second for each item."""
    with VerifierPool(workers=2, timeout_s=1.0, wall_limit_s=4.0, memory_mb=128) as made:
        yield made


@pytest.fixture(scope="session")
def gsm8k(real_data: Path) -> list[Example]:
    """GSM8K's test rows, the solution as demonstration."""
    lines = (real_data / "gsm8k" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Example(
            prompt=row["question"],
            demonstrations=(row["answer"],),
            answer=row["answer"].split("####")[1].strip(),
            source=f"test.jsonl:{number}",
        )
        for number, row in enumerate(rows, start=1)
    ]


@pytest.fixture(scope="session")
def benchmarks(real_data: Path) -> list[Example]:
    """The mathematical benchmarks' problems."""
    parquet = pytest.importorskip("pyarrow.parquet")
    examples = []
    for file in sorted((real_data / "benchmarks").glob("*.parquet")):
        if file.stem == "arc_c":
            continue
        for number, row in enumerate(parquet.read_table(file).to_pylist(), start=1):
            examples.append(
                Example(
                    prompt=tuple(row["prompt"]),
                    answer=row["reward_model"]["ground_truth"],
                    source=f"{file.name}:{number}",
                )
            )
    return examples
