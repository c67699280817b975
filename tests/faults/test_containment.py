"""A worker that a completion has taken over: what it tries to do to the machine and to the trainer.

Every attempt is code that runs in a worker as a verifier does. `TRIES` must all fail; `FRAMES` are what
a worker may say in place of an answer: each must count as its own failure, run nothing in the trainer,
and leave the pool working.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from srft.errors import RewardError
from srft.rewards import pool as pool_module
from srft.rewards import sandbox
from srft.rewards.pool import VerifierPool

INTRUDER = textwrap.dedent(
    '''
    import ctypes, fcntl, mmap, os, signal, socket, stat, sys, threading, time
    from srft.rewards.verifiers import Verdict

    libc = ctypes.CDLL(None, use_errno=True)

    def call(number, *arguments):
        """A system call by number; OSError where it fails."""
        result = libc.syscall(number, *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def own_socket():
        return next(n for n in range(3, 50) if is_socket(n))

    def is_socket(n):
        try:
            return stat.S_ISSOCK(os.fstat(n).st_mode)
        except OSError:
            return False

    def attempt(text, answer, columns, options):
        """1 where the code in `text` goes through, 0 where the system refuses it."""
        try:
            exec(text, dict(globals(), **columns))
        except (OSError, RuntimeError) as refused:  # of a thread: "can't start new thread"
            return Verdict(0.0)
        return Verdict(1.0)

    def say(text, answer, columns, options):
        """Bytes to the pool in place of an answer; then asleep, dead, or on as if nothing were."""
        exec(text, dict(globals(), out=lambda data: os.write(own_socket(), data)))
        return Verdict(1.0)
    '''
)

CHANGE = """
open(file, "w")
open(file, "a")
open(file, "r+b")
open(folder + "/new", "x")
os.open(folder, os.O_TMPFILE | os.O_RDWR)
os.open(file, os.O_RDONLY | os.O_TRUNC)
os.truncate(file, 0)
os.unlink(file)
os.rename(file, file + "2")
os.replace(file + "2", file)
os.link(file, file + "3")
os.symlink(file, file + "4")
os.mkdir(folder + "/sub")
os.rmdir(folder + "/empty")
os.chmod(file, 0)
os.chown(file, 1, 1)
os.utime(file)
os.setxattr(file, "user.x", b"1")
os.mkfifo(folder + "/fifo")
os.mknod(folder + "/node")
f = os.open(readable, os.O_RDONLY); os.ftruncate(f, 0)
f = os.open(readable, os.O_RDONLY); os.fchmod(f, 0)
f = os.open(readable, os.O_RDONLY); os.fchown(f, 1, 1)
f = os.open(readable, os.O_RDONLY); os.write(f, b"x")
f = os.open(readable, os.O_RDONLY); mmap.mmap(f, 0, access=mmap.ACCESS_WRITE)
f = os.open(readable, os.O_RDONLY); mmap.mmap(f, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_WRITE)
f = os.open(file, os.O_RDWR); mmap.mmap(f, 0)[0] = 1
f = os.open(readable, os.O_RDONLY); fcntl.flock(f, fcntl.LOCK_EX)
f = os.open(readable, os.O_RDONLY); fcntl.lockf(f, fcntl.LOCK_SH)
f = os.open(readable, os.O_RDONLY); fcntl.fcntl(f, fcntl.F_SETOWN, trainer)
f = os.open(readable, os.O_RDONLY); fcntl.ioctl(f, 0x40086602, b"0" * 8)
f = os.open(readable, os.O_RDONLY); call(437, f, b"", b"\\0" * 24, 24)
os.memfd_create("x")
os.chdir("/")
os.chroot("/")
open("/proc/self/mem", "r+b")
open(f"/proc/{trainer}/mem", "r+b")
"""
READ = """
open(file)
os.listdir(folder)
os.listdir("/")
open("/etc/passwd")
open(f"/proc/{trainer}/environ")
open(f"/proc/{trainer}/cmdline")
open(f"/proc/{trainer}/maps")
open(f"/proc/{trainer}/mem", "rb")
os.readlink(f"/proc/{trainer}/exe")
os.listdir(f"/proc/{trainer}/fd")
open("/dev/tty")
open("/dev/mem", "rb")
open(os.path.expanduser("~/.bashrc"))
"""
START = """
os.fork()
os.forkpty()
libc.vfork() < 0 and call(-1)
os.posix_spawn("/bin/true", ["true"], {})
os.execv("/bin/true", ["true"])
os.system("true") == 0 or call(-1)
import subprocess; subprocess.run([sys.executable, "-c", ""])
threading.Thread(target=int).start()
[os.fork() for _ in range(200)]
call(435, b"\\0" * 88, 88)
call(425, 1, b"\\0" * 120)
os.setsid()
os.setpgid(0, trainer)
"""
REACH = """
socket.socket(socket.AF_UNIX).connect(unix)
socket.socket(socket.AF_UNIX).connect(chr(0) + abstract)
socket.socket(socket.AF_UNIX).bind(folder + "/mine")
socket.create_connection(("127.0.0.1", port), timeout=1)
socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port))
socket.socket(socket.AF_INET6).connect(("::1", port))
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
socket.socketpair()
os.pipe()
socket.socket(fileno=own_socket()).detach(); libc.sendmsg(own_socket(), b"\\0" * 56, 0) < 0 and call(-1)
"""
SIGNAL = """
os.kill(trainer, 0)
os.kill(trainer, signal.SIGCONT)
os.kill(os.getppid(), 0)
os.kill(-1, 0)
os.killpg(0, 0)
os.pidfd_open(trainer)
signal.pidfd_send_signal(0, 0)
call(438, 0, 0, 0)
import resource; resource.prlimit(trainer, resource.RLIMIT_FSIZE, (0, 0))
import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
os.setpriority(os.PRIO_PROCESS, trainer, 5)
os.sched_setaffinity(trainer, {0})
os.setuid(1)
os.setgroups([])
libc.ptrace(16, trainer, 0, 0) < 0 and call(-1)
libc.process_vm_readv(trainer, b"\\0" * 16, 1, b"\\0" * 16, 1, 0) < 0 and call(-1)
libc.process_vm_writev(trainer, b"\\0" * 16, 1, b"\\0" * 16, 1, 0) < 0 and call(-1)
libc.unshare(0x10000000) < 0 and call(-1)
libc.mount(b"none", b"/", b"tmpfs", 0, None) < 0 and call(-1)
libc.prctl(4, 1, 0, 0, 0) < 0 and call(-1)
libc.shmget(0, 4096, 0o1600) < 0 and call(-1)
libc.personality(0) < 0 and call(-1)
"""
KINDS = {"change": CHANGE, "read": READ, "start": START, "reach": REACH, "signal": SIGNAL}
TRIES = [(kind, code) for kind, text in KINDS.items() for code in text.strip().splitlines()]


class _Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def contained() -> bool:
    """Whether this kernel has both means; without them the attempts go through, and the pool says so."""
    code = "from srft.rewards.sandbox import Sandbox; print(Sandbox().holes())"
    said = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd="/",
        env={"PYTHONPATH": str(Path(sandbox.__file__).parents[2])},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    return said.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def whole() -> None:
    if not contained():
        pytest.skip("this kernel lacks seccomp or Landlock")


@pytest.fixture(scope="module")
def intruders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intruder")
    (folder / "intruder.py").write_text(INTRUDER)
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(folder))
    with VerifierPool(workers=1, timeout_s=1.0, wall_limit_s=2.0) as pool:
        yield pool
    patch.undo()


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory, intruders):
    """Things of the trainer's that a worker would like to get at."""
    folder = tmp_path_factory.mktemp("trainer")
    (folder / "empty").mkdir()
    (folder / "file").write_text("of the trainer's")
    (folder / "file2").write_text("another")
    readable = next(Path(p, "intruder.py") for p in sys.path if Path(p, "intruder.py").exists())
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        unix.bind(f"{folder}/unix")
        unix.listen()
        abstract.bind(f"\0srft-{os.getpid()}")
        abstract.listen()
        yield {
            "file": f"{folder}/file",
            "folder": str(folder),
            "readable": str(readable),
            "trainer": os.getpid(),
            "unix": f"{folder}/unix",
            "abstract": f"srft-{os.getpid()}",
            "port": tcp.getsockname()[1],
        }


def state(folder: str) -> dict[str, tuple]:
    return {
        str(path): (s.st_mode, s.st_uid, s.st_size, s.st_mtime_ns, s.st_nlink)
        for path in [Path(folder), *Path(folder).rglob("*")]
        for s in [path.stat()]
    }


@pytest.mark.parametrize(("kind", "code"), TRIES)
def test_a_worker_that_was_taken_over_can_do_nothing(whole, intruders, surroundings, kind, code):
    before = state(surroundings["folder"])
    verdict = intruders.submit("intruder:attempt", code, None, surroundings).result()
    assert verdict.score == 0.0 and verdict.status in ("ok", "crash"), verdict
    assert state(surroundings["folder"]) == before


def test_a_worker_sees_no_variable_that_is_not_listed(monkeypatch, intruders):
    monkeypatch.setenv("HARMLESS_NAME", "canary-in-the-environment")
    with VerifierPool(workers=1) as pool:
        sees = "assert 'canary' not in repr(os.environ) and 'PATH' in os.environ"
        assert pool.submit("intruder:attempt", sees, None).result().score == 1.0


def test_the_attempts_work_where_nothing_contains_them(surroundings):
    """They are refused by the sandbox, not by a slip in them."""
    able = [
        'open(file, "a")', "os.chmod(file, 0o600)", "os.utime(file)", "open(file)", 'os.listdir("/")',
        "socket.socket(socket.AF_UNIX).connect(unix)", "os.kill(trainer, 0)", "os.pidfd_open(trainer)",
        "socket.socket(socket.AF_UNIX).connect(chr(0) + abstract)", "threading.Thread(target=int).start()",
        'socket.create_connection(("127.0.0.1", port), timeout=1)', "os.system('true') == 0 or call(-1)",
        'f = os.open(file, os.O_RDWR); mmap.mmap(f, 0)[0] = 1', 'os.memfd_create("x")',
    ]  # fmt: skip
    names: dict = {}
    exec(INTRUDER, names)
    for code in able:
        assert names["attempt"](code, None, surroundings, {}).score == 1.0, code


def test_no_system_call_beyond_the_list_exists(whole, intruders, surroundings):
    """Every number up to 600, zeros for arguments."""
    column, _ = sandbox._MACHINES[platform.machine()]
    known = {int(n) for n in sandbox._CALLS.split()[1 + column :: 3] if n != "-"}
    known |= {numbers[column] for numbers in sandbox._CHECKED.values()}
    code = (
        "for n in numbers:\n assert libc.syscall(n, 0, 0, 0, 0, 0, 0) == -1 and"
        " ctypes.get_errno() == 38, n"
    )
    known |= {335, 336}  # x86_64's probes: the kernel's own, which end whoever else calls them
    numbers = {"numbers": [n for n in range(600) if n not in known]}
    assert len(numbers["numbers"]) > 500
    assert intruders.submit("intruder:attempt", code, None, numbers).result().score == 1.0
    assert intruders.submit("intruder:attempt", "call(39)", None, {}).result().status == "ok"


def test_a_process_that_cannot_be_contained_is_announced(intruders, monkeypatch, caplog):
    """As on a kernel without seccomp and Landlock: one line, and what can be held is held."""
    without = (
        "from srft.rewards import sandbox; sandbox.seccomp_program = lambda machine: None; "
        "sandbox._landlock_rules = lambda: None; from srft.rewards.worker"
    )
    blind = pool_module._BOOTSTRAP.replace("from srft.rewards.worker", without)
    monkeypatch.setattr(pool_module, "_BOOTSTRAP", blind)
    monkeypatch.setattr(pool_module._Nursery, "_holes_said", False)
    with caplog.at_level(logging.WARNING), VerifierPool(workers=2, timeout_s=5.0) as pool:
        forks = "[os.fork() or time.sleep(60) for _ in range(5)]"
        pool.submit("intruder:attempt", forks, None).result()
        assert pool._state is not None
        nursery = psutil.Process(pool._state.nursery._process.pid)
        left = nursery.children(recursive=True)
        assert len(left) == 6 or (os.geteuid() and left)  # RLIMIT_NPROC binds all but root
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "read any file of yours, change files" in lines[0]
    psutil.wait_procs(left, timeout=5)
    assert not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


# -- what a worker says ----------------------------------------------------------------------------

FRAMES = {
    "noise": r"out(bytes(range(256)) + b'\n'); time.sleep(9)",
    "a line that never ends": r"out(b'[1.0, '); time.sleep(9)",
    "a byte at a time": "while True: out(b'1'); time.sleep(0.01)",
    "more than was expected": "while True: out(b'1' * 60000)",
    "two answers": r"out(b'[1.0, \"ok\", false]\n[1.0, \"ok\", false]\n'); time.sleep(9)",
    "not UTF-8": r"out(b'[1.0, \"\xff\xfe\", false]\n'); time.sleep(9)",
    "nested": r"out(b'[' * 60000 + b'\n'); time.sleep(9)",
    "a number of 60,000 digits": r"out(b'[' + b'9' * 60000 + b', \"ok\", false]\n'); time.sleep(9)",
    "NaN": r"out(b'[NaN, \"ok\", false]\n'); time.sleep(9)",
    "infinity": r"out(b'[1e999, \"ok\", false]\n'); time.sleep(9)",
    "a true score": r"out(b'[true, \"ok\", false]\n'); time.sleep(9)",
    "a score of text": r"out(b'[\"1\", \"ok\", false]\n'); time.sleep(9)",
    "no such status": r"out(b'[1.0, \"fine\", false]\n'); time.sleep(9)",
    "a status that is a list": r"out(b'[1.0, [\"ok\"], false]\n'); time.sleep(9)",
    "a mapping": r"out(b'{\"a\": 1, \"b\": 2, \"c\": 3}\n'); time.sleep(9)",
    "nothing": r"out(b'null\n'); time.sleep(9)",
    "two values": r"out(b'[1.0, \"ok\"]\n'); time.sleep(9)",
    "closed and alive": "os.close(own_socket()); time.sleep(9)",
    "exit": "os._exit(0)",
}
LIMITED = {"a line that never ends": {"timeout"}, "a byte at a time": {"timeout", "crash"}}


@pytest.mark.parametrize("name", FRAMES)
def test_what_is_no_answer_is_the_workers_own_failure(intruders, name):
    verdict = intruders.submit("intruder:say", FRAMES[name], None).result()
    assert verdict.score == 0.0 and verdict.status in LIMITED.get(name, {"crash"}), verdict
    assert intruders.submit("intruder:attempt", "1", None).result().score == 1.0


def test_nothing_that_a_worker_sends_is_run(intruders, tmp_path):
    import pickle

    canary = tmp_path / "canary"
    bomb = pickle.dumps(_Bomb(canary))
    for data in (bomb, struct.pack("!i", len(bomb)) + bomb, bomb + b"\n"):
        code = f"out({data!r}); time.sleep(9)"
        assert intruders.submit("intruder:say", code, None).result().score == 0.0
    assert not canary.exists()


def test_an_answer_given_before_the_question_counts_for_nothing(intruders):
    """A worker that answers twice is replaced before the next item."""
    code = r"out(b'[1.0, \"ok\", false]\n'); time.sleep(0.3)"
    intruders.submit("intruder:say", code, None).result()
    time.sleep(0.6)
    assert intruders.submit("intruder:attempt", "os.fork()", None).result().score == 0.0
    assert intruders.submit("intruder:attempt", "1", None).result().score == 1.0


def test_a_worker_that_switches_its_timer_off_is_stopped(intruders):
    with VerifierPool(workers=1, timeout_s=0.2, wall_limit_s=60.0) as pool:
        code = "signal.setitimer(signal.ITIMER_PROF, 0)\nwhile True: pass"
        verdict = pool.submit("intruder:attempt", code, None).result()
    assert (verdict.score, verdict.status) == (0.0, "timeout")


def test_a_worker_that_reads_nothing_more_holds_nobody_up(intruders):
    """The next item does not fit into the socket's buffer."""
    with VerifierPool(workers=1, timeout_s=5.0, wall_limit_s=1.0) as pool:
        pool.submit("intruder:attempt", "1", None).result()
        os.kill(pool.worker_pids()[0], signal.SIGSTOP)
        verdict = pool.submit("intruder:attempt", "#" * 5_000_000, None).result()
    assert (verdict.score, verdict.status) == (0.0, "timeout")


def test_what_is_not_plain_data_is_refused_where_it_is_handed_over(intruders):
    with pytest.raises(RewardError, match="object is not plain data"):
        intruders.submit("intruder:attempt", "1", None, {"numbers": object()})
    held: list = []
    held.append(held)
    with pytest.raises(RewardError, match="cannot be handed"):
        intruders.submit("intruder:attempt", "1", None, {"numbers": held})


def test_columns_arrive_as_they_are(intruders):
    import fractions

    import numpy as np

    columns = {
        "text": "\ud800\x00\u2028\n", "number": 2**70, "nan": float("nan"), "none": None, "deep": [[{}]],
        "array": np.arange(3), "one": np.int64(7), "half": np.float32(0.5), "third": fractions.Fraction(1, 3),
    }  # fmt: skip
    checks = (
        r"assert text == '\ud800\x00\u2028\n' and number == 2**70 and nan != nan and none is None; "
        "assert deep == [[{}]] and array == [0, 1, 2] and one == 7 and half == 0.5 and third == '1/3'"
    )
    assert intruders.submit("intruder:attempt", checks, None, columns).result().score == 1.0


# -- the filter itself -------------------------------------------------------------------------------


def run_filter(program: bytes, architecture: int, number: int, arguments=(0,) * 6) -> int:
    """What the kernel would do: an interpreter of the few instructions there are."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments)
    code = list(struct.iter_unpack("<HBBI", program))
    place = value = 0
    while True:
        operation, yes, no, constant = code[place]
        place += 1
        if operation == sandbox._LOAD:
            (value,) = struct.unpack_from("<I", data, constant)
        elif operation == sandbox._RETURN:
            return constant
        else:
            holds = value == constant if operation == sandbox._EQUAL else bool(value & constant)
            place += yes if holds else no


@pytest.mark.parametrize("machine", sorted(sandbox._MACHINES))
def test_the_filter_admits_its_list_and_nothing_else(machine):
    program = sandbox.seccomp_program(machine)
    assert program is not None
    column, architecture = sandbox._MACHINES[machine]
    words = sandbox._CALLS.split()
    listed = {int(n) for n in words[1 + column :: 3] if n != "-"}
    checked = {n[column]: (n[2], n[3]) for n in sandbox._CHECKED.values() if n[column] is not None}
    for number in range(1000):
        done = run_filter(program, architecture, number)
        expected = sandbox._ALLOWED if number in listed else sandbox._NO_SUCH_CALL
        if number not in checked:
            assert done == expected, number
        assert run_filter(program, architecture ^ 1, number) == sandbox._KILLED
        assert run_filter(program, architecture, number | 0x40000000) == sandbox._NO_SUCH_CALL
    for number, (place, values) in checked.items():
        near = {v + d for v in values for d in (-1, 0, 1) if v + d >= 0}
        for value in {*range(4096), *(1 << bit for bit in range(32)), *near}:
            arguments = [0xFFFFFFFF << 32] * 6
            arguments[place] |= value
            done = run_filter(program, architecture, number, arguments) == sandbox._ALLOWED
            writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            reads = value & (writing | (os.O_TMPFILE & ~os.O_DIRECTORY)) == 0
            assert done == (value in values if values else reads), (number, value)
    assert sandbox.seccomp_program("sparc64") is None


HEADERS = {
    "x86_64": (0, Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")),
    "aarch64": (1, Path("/usr/include/asm-generic/unistd.h")),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_are_those_of_the_kernels_headers(machine):
    column, header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", header.read_text()))
    words = sandbox._CALLS.split()
    ours = {words[i]: words[i + 1 + column] for i in range(0, len(words), 3)}
    ours |= {name: str(n[column]) for name, n in sandbox._CHECKED.items()}
    for name, number in ours.items():
        if number not in ("-", "None"):
            kernels = {"newfstatat": "fstatat"}.get(name, name) if column else name
            assert numbers[kernels] == number, name
        else:
            assert name not in numbers, name
