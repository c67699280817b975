"""Two processes never write in one folder, and one that was killed is in nobody's way."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from srft.errors import CheckpointError, ConfigError
from srft.runs import lock
from srft.runs.lock import NAME, hold

HOLDER = """
import os, sys, time
from pathlib import Path
from srft.runs import lock
if "noflock" in sys.argv:
    def flock(*_):
        raise OSError({enolck}, "No locks available")
    lock.fcntl.flock = flock
    lock._is_local = lambda folder: False
if "fork" in sys.argv:
    with lock.hold(Path(sys.argv[1]), "training"):
        if os.fork() == 0:
            time.sleep(60)
        print("held", flush=True)
        time.sleep(60)
with lock.hold(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
""".replace("{enolck}", str(errno.ENOLCK))


class Other:
    """Another process that holds a folder."""

    def __init__(self, folder: Path, *words: str) -> None:
        command = [sys.executable, "-c", HOLDER, str(folder), *words]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate("go\n", timeout=60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def other(tmp_path: Path):
    made = []

    def start(*words: str) -> Other:
        made.append(Other(tmp_path / "run", *words))
        return made[-1]

    yield start
    for one in made:
        one.kill()
        one.process.stdin.close()
        one.process.stdout.close()


def held_by(folder: Path, **changes) -> None:
    """As a process elsewhere has left it."""
    with hold(folder, "training"):
        about = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**about, "token": "another", **changes}))


@pytest.mark.parametrize("words", [(), ("noflock",)])
def test_a_second_process_is_refused_with_the_first_ones_host_and_number(
    other, tmp_path, words, monkeypatch
):
    first = other(*words)
    assert first.said == "held"
    if words:
        no_flock(monkeypatch)
    with pytest.raises(ConfigError) as refused, hold(tmp_path / "run", "training"):
        pytest.fail("two at once")
    assert f"process {first.process.pid} on {socket.gethostname()}" in str(refused.value)
    first.end()
    with hold(tmp_path / "run", "training") as mine:
        mine.check()
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("words", [(), ("noflock",)])
def test_a_killed_holder_is_in_nobodys_way(other, tmp_path, words, monkeypatch):
    other(*words).kill()
    assert (tmp_path / "run" / NAME).exists()
    if words:
        no_flock(monkeypatch)
    with hold(tmp_path / "run", "training") as mine:
        mine.check()


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(other, tmp_path):
    first = other("fork")
    first.kill()
    children = subprocess.run(
        ["pgrep", "-f", str(tmp_path / "run")], capture_output=True, text=True
    )
    assert children.stdout.split(), "the child should be there"
    try:
        with hold(tmp_path / "run", "training"):
            pass
    finally:
        for pid in children.stdout.split():
            os.kill(int(pid), signal.SIGKILL)


def test_a_number_that_was_given_anew_is_not_taken_for_the_holder(tmp_path, monkeypatch):
    no_flock(monkeypatch)
    held_by(tmp_path, pid=os.getppid(), started="1")
    with hold(tmp_path, "training"):
        pass
    held_by(tmp_path, pid=os.getppid(), started=lock._started(os.getppid()))
    with pytest.raises(ConfigError, match=f"process {os.getppid()}"), hold(tmp_path, "training"):
        pass


def test_another_threads_run_is_refused_and_ones_own_is_not(tmp_path):
    refused = []

    def elsewhere() -> None:
        try:
            with hold(tmp_path, "training"):
                pass
        except ConfigError as error:
            refused.append(str(error))

    with hold(tmp_path, "training") as outer, hold(tmp_path, "report") as inner:
        assert inner is outer
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        outer.check()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]


def no_flock(monkeypatch) -> None:
    """A network folder without locks."""

    def refuse(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "_is_local", lambda folder: False)


@pytest.fixture(params=["flock acts on each machine alone", "no flock"])
def shared(request, monkeypatch) -> None:
    """A folder that another machine has too."""
    monkeypatch.setattr(lock, "TOUCH_S", 0.05)
    monkeypatch.setattr(lock, "GONE_S", 1.0)
    monkeypatch.setattr(lock, "_is_local", lambda folder: False)
    if request.param == "no flock":
        no_flock(monkeypatch)


def test_another_machines_run_that_still_writes_is_refused(shared, tmp_path):
    held_by(tmp_path, host="node7", kernel="other", pid=12)
    stop = threading.Event()

    def touch() -> None:
        while not stop.wait(0.05):
            os.utime(tmp_path / NAME)

    thread = threading.Thread(target=touch)
    thread.start()
    said = []
    try:
        with (
            pytest.raises(ConfigError, match=r"process 12 on node7.*no such process.*remove"),
            hold(tmp_path, "training", said.append),
        ):
            pass
    finally:
        stop.set()
        thread.join()
    assert len(said) == 1 and "waiting" in said[0]


def test_another_machines_run_that_is_gone_is_taken_over(shared, tmp_path):
    held_by(tmp_path, host="node7", kernel="other", pid=12)
    with hold(tmp_path, "training") as mine:
        mine.check()
        before = (tmp_path / NAME).stat().st_mtime_ns
        deadline = time.monotonic() + 30
        while (tmp_path / NAME).stat().st_mtime_ns == before:
            assert time.monotonic() < deadline, "the holder never touches its lock"
            time.sleep(0.02)


def test_a_machine_that_comes_back_sees_that_its_run_was_taken_over(shared, tmp_path):
    with hold(tmp_path, "training") as mine:
        mine.check()
        about = json.loads((tmp_path / NAME).read_text())
        taken = {**about, "token": "another", "host": "node7", "pid": 12}
        (tmp_path / NAME).write_text(json.dumps(taken))
        with pytest.raises(CheckpointError, match="process 12 on node7"):
            mine.check()
    # What the other one holds is not removed by the first one's end.
    assert json.loads((tmp_path / NAME).read_text())["host"] == "node7"
    (tmp_path / NAME).unlink()
    with hold(tmp_path, "training") as mine:
        (tmp_path / NAME).unlink()
        with pytest.raises(CheckpointError, match="was removed"):
            mine.check()


def test_a_local_disk_that_has_moved_to_another_machine_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_is_local", lambda folder: True)
    held_by(tmp_path, host="the-instance-before", kernel="other", pid=12)
    with hold(tmp_path, "training"):
        pass


def test_two_that_come_at_once_without_flock_do_not_both_get_it(tmp_path, monkeypatch):
    no_flock(monkeypatch)
    held, refused = [], []
    barrier, done = threading.Barrier(4), threading.Event()

    def come() -> None:
        barrier.wait()
        try:
            with hold(tmp_path, "training"):
                held.append(1)
                done.wait(30)
        except ConfigError:
            refused.append(1)

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while len(held) + len(refused) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    done.set()
    for thread in threads:
        thread.join()
    assert len(held) <= 1


@pytest.mark.parametrize("text", ["", "half a li", "[]", '{"pid": 3}'])
def test_a_lock_file_of_any_content_stops_nobody(tmp_path, text, monkeypatch):
    monkeypatch.setattr(lock, "_is_local", lambda folder: True)
    (tmp_path / NAME).write_text(text)
    with hold(tmp_path, "training"):
        pass


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"), hold(tmp_path / "file", "training"):
        pass


def test_errors_of_the_body_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match="of the body"), hold(tmp_path, "training"):
        raise OSError("of the body")
    assert list(tmp_path.iterdir()) == []


def test_a_name_with_spaces_is_found_among_the_mounts(tmp_path, monkeypatch):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
        "2 1 0:5 / /net/my\\040data rw shared:1 - nfs4 server:/x rw\n"
        "3 1 0:6 / /net/my\\040data/local rw - xfs /dev/sdb rw\n"
    )
    real = lock.Path
    monkeypatch.setattr(
        lock, "Path", lambda name: mounts if name == "/proc/self/mountinfo" else real(name)
    )
    places = ["/home/x", "/net/my data/runs", "/net/my data/local/runs", "/net/my datax"]
    assert [lock._is_local(real(place)) for place in places] == [True, False, True, True]
