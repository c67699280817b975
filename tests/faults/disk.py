"""Disks that are full, folders that cannot be written, checkpoints that are damaged."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.kills import Undisturbed
from tests.faults.runs import Trial, Workshop, clean_error, difference, fingerprint

KIB = 1024


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a small file system, as root may."""
    with suppress(OSError, subprocess.CalledProcessError), mounted(folder / "probe", 64 * KIB):
        return True
    return False


@contextmanager
def mounted(point: Path, size: int) -> Iterator[Path]:
    """A memory file system of ``size`` bytes at ``point``."""
    point.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(point))
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=False)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def can_make_immutable(folder: Path) -> bool:
    """Whether this process may set the immutable attribute, as root may on most file systems."""
    probe = folder / "immutable"
    probe.mkdir(exist_ok=True)
    if shutil.which("chattr") is None:
        return False
    allowed = subprocess.run(["chattr", "+i", str(probe)], capture_output=True).returncode == 0
    subprocess.run(["chattr", "-i", str(probe)], capture_output=True)
    return allowed


def full_disk_trials(
    workshop: Workshop, whole: Undisturbed, count: int, seed: int = 2
) -> Iterator[Trial]:
    """A disk that fills up at some moment; then it is given space, and the run goes on."""
    draw = random.Random(seed)
    done = 0
    for number in range(3 * count):
        if done == count:
            return
        size = int(2 ** draw.uniform(14, 20.3))  # 16 KiB to 1.3 MiB: at the start, or at the end
        with mounted(workshop.folder / f"full-{number}", size) as point:
            run_dir = point / "run"
            name = f"{size // KIB} KiB"
            code, output = workshop.train(run_dir)
            if code == 0:
                continue  # it was enough
            done += 1
            if wrong := clean_error(code, output, {1, 2, 7}, "space"):
                yield Trial("disk full", name, False, wrong)
                continue
            _mount("-o", "remount,size=64m", str(point))
            yield _goes_on("disk full", name, workshop, run_dir, whole)


def file_size_trials(
    workshop: Workshop, whole: Undisturbed, count: int, seed: int = 3
) -> Iterator[Trial]:
    """The same where mounting is not allowed: no file may grow beyond a limit."""
    draw = random.Random(seed)
    for number in range(count):
        limit = int(2 ** draw.uniform(10, 18))
        run_dir = workshop.folder / f"limit-{number}"
        code, output = workshop.train(run_dir, fault={"file_size": {"limit": limit}})
        name = f"{limit} bytes"
        if wrong := clean_error(code, output, {1, 2, 7}, "too large"):
            yield Trial("file size limit", name, False, wrong)
        else:
            yield _goes_on("file size limit", name, workshop, run_dir, whole)
        shutil.rmtree(run_dir, ignore_errors=True)


def read_only_trials(workshop: Workshop, whole: Undisturbed) -> Iterator[Trial]:
    """A folder that is, or becomes, read-only."""
    kind = "read-only folder"
    with mounted(workshop.folder / "ro-start", 64 * 2**20) as point:
        _mount("-o", "remount,ro", str(point))
        code, output = workshop.train(point / "run")
        wrong = clean_error(code, output, {2}, "ead-only")
        yield Trial(kind, "at the start", not wrong, wrong)
    for step in (1, 3, 6):
        run_dir = workshop.folder / f"ro-step-{step}"
        fault = {"immutable": {"folder": str(run_dir), "number": step}}
        try:
            code, output = workshop.train(run_dir, fault=fault)
        finally:
            subprocess.run(["chattr", "-i", str(run_dir)], check=True)
        name = f"from step {step} on"
        # The first checkpoint makes the folder of checkpoints; the end makes that of the model.
        if wrong := clean_error(code, output, {7}, "not permitted"):
            yield Trial(kind, name, False, wrong)
        else:
            yield _goes_on(kind, name, workshop, run_dir, whole)


def _goes_on(kind: str, name: str, workshop: Workshop, run_dir: Path, whole: Undisturbed) -> Trial:
    code, output = workshop.go_on(run_dir)
    if code:
        return Trial(kind, name, False, f"resume: exit code {code}: {output[-300:]}")
    wrong = difference(whole.outcome, fingerprint(run_dir))
    return Trial(kind, name, not wrong, f"differs: {wrong}" if wrong else "")


# -- damage ------------------------------------------------------------------------------------


def _flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def _cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def _noise(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(draw.randrange(1, 300)))


def _other_json(path: Path, draw: random.Random) -> None:
    path.write_text(draw.choice(["[]", "null", "1", "{}", '"x"', "{", '{"a": NaN}', "[[[["]))


DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {
    "bit flipped": _flip,
    "cut short": _cut,
    "emptied": lambda path, draw: path.write_bytes(b""),
    "removed": lambda path, draw: path.unlink(),
    "noise": _noise,
    "other JSON": _other_json,
    "a byte more": lambda path, draw: path.write_bytes(path.read_bytes() + b"\0"),
}


def newest_files(source: Path) -> list[Path]:
    """The files of a run's newest checkpoint, from the run's folder."""
    newest = sorted((source / "checkpoints").glob("step_*"))[-1]
    return [p.relative_to(source) for p in sorted(newest.rglob("*")) if p.is_file()]


damaged_files = newest_files


def unwrapped(output: str) -> str:
    """A console breaks long paths wherever its width ends."""
    return output.replace("\n", "")


def damage_trials(
    workshop: Workshop, whole: Undisturbed, rounds: int, seed: int = 4
) -> Iterator[Trial]:
    """Every file of the newest checkpoint under every kind of damage: the one before it is used, that
    is said, and the run ends as if nothing had happened. Then all checkpoints at once."""
    draw = random.Random(seed)
    source = workshop.folder / "whole"
    files = damaged_files(source)
    newest = files[0].parts[1]
    kind = "damaged checkpoint"
    for number, (file, how) in enumerate(
        (file, how) for _ in range(rounds) for file in files for how in DAMAGE
    ):
        run_dir = workshop.folder / f"damaged-{number}"
        shutil.copytree(source, run_dir)
        before = (run_dir / file).read_bytes()
        DAMAGE[how](run_dir / file, draw)
        name = f"{file.name} {how}"
        code, output = workshop.go_on(run_dir)
        if code:
            yield Trial(kind, name, False, f"exit code {code}: {output[-400:]}")
        elif newest not in unwrapped(output).partition("resumed after")[0] and (
            not (run_dir / file).exists() or (run_dir / file).read_bytes() != before
        ):
            yield Trial(kind, name, False, f"not said: {output[:300]}")
        else:
            wrong = difference(whole.outcome, fingerprint(run_dir))
            yield Trial(kind, name, not wrong, f"differs: {wrong}" if wrong else "")
        shutil.rmtree(run_dir)
    run_dir = workshop.folder / "damaged-all"
    shutil.copytree(source, run_dir)
    for path in (run_dir / "checkpoints").rglob("*.safetensors"):
        _flip(path, draw)
    code, output = workshop.go_on(run_dir)
    wrong = clean_error(code, output, {7}, "no checkpoint to resume from")
    yield Trial(kind, "every checkpoint", not wrong, wrong)
    shutil.rmtree(run_dir)


def damaged_log_trials(workshop: Workshop, seed: int = 5) -> Iterator[Trial]:
    """Logs that someone cut, emptied or removed: the run goes on to its end all the same."""
    draw = random.Random(seed)
    source = workshop.folder / "whole"
    for log in (
        "metrics.jsonl",
        "samples.jsonl",
        "evaluation.jsonl",
        "events.jsonl",
        "config.yaml",
    ):
        for how in ("cut short", "emptied", "removed", "noise"):
            if not (source / log).stat().st_size:
                continue
            run_dir = workshop.folder / "damaged-log"
            shutil.copytree(source, run_dir)
            shutil.rmtree(sorted((run_dir / "checkpoints").glob("step_*"))[-1])
            DAMAGE[how](run_dir / log, draw)
            code, output = workshop.train(run_dir, "--resume")
            fine = code == 0 and "Traceback" not in output
            yield Trial("damaged log", f"{log} {how}", fine, "" if fine else output[-600:])
            shutil.rmtree(run_dir)
