"""One writer at a time in a folder.

``hold`` keeps ``.lock`` in the folder, which says who writes there, and locks it with flock. Where the
kernel grants the lock, whoever held it is gone, however it ended. Two things the kernel may not know:

another machine   On a folder that several machines share, flock may act on each of them alone. The holder
                  then touches the file every few seconds, and another machine takes the folder over only
                  when that has stopped for longer than such folders hide a change.
no flock at all   Some network folders have none. On the same machine the process is looked up by its
                  number and its start; between machines the touches decide.

What remains: a machine that is cut off from a shared folder for longer than that, and comes back, is two
writers until its next ``check``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from srft.errors import CheckpointError, ConfigError

NAME = ".lock"
TOUCH_S = 5.0
"""Seconds between two touches by a holder on a shared folder."""
GONE_S = 75.0
"""Seconds without one after which the holder on another machine is gone: NFS may hide a change for 60."""

_GRACE_S, _DYING_S = 2.0, 60.0
"""How long a holder is waited for that may be about to end, and one that is ending: a large process that
was killed takes a while to give its memory back, and its lock after that."""

_NO_FLOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "bcachefs"}
_here: dict[Path, Lock] = {}


class Lock:
    """The right to write in a folder. ``hold`` gives it."""

    def __init__(self, folder: Path, doing: str, say: Callable[[str], None]) -> None:
        self.folder, self.path, self._say = folder, folder / NAME, say
        self.thread = threading.get_ident()
        self._about = {
            "doing": doing,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "kernel": _kernel(),
            "processes": _processes(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            "token": uuid.uuid4().hex,
        }
        self._over = threading.Event()
        self._file = self._take()
        if not _is_local(folder):
            threading.Thread(target=self._touch, name="lock", daemon=True).start()

    def check(self) -> None:
        """Raises CheckpointError where another process has taken the folder over."""
        found = _read(self.path)
        if found.get("token") != self._about["token"]:
            why = f"{_who(found)} has taken it" if found else f"{NAME} was removed"
            raise CheckpointError(f"{self.folder}: this process may no longer write here: {why}")

    def clear(self) -> None:
        """Removes all else that is in the folder."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != self.path:
                path.unlink()

    def release(self) -> None:
        self._over.set()
        if self._about["pid"] != os.getpid():
            return  # a child that was forked: the lock is the parent's
        with contextlib.suppress(OSError):
            if _read(self.path).get("token") == self._about["token"]:
                self.path.unlink()
        os.close(self._file)

    def _take(self) -> int:
        """The file, opened, locked as far as can be, and ours."""
        begun = time.monotonic()
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                known = _flock(file)
                with contextlib.suppress(FileNotFoundError):
                    # Whoever released it meanwhile has removed it: then this one is nobody's.
                    if known is not False and os.fstat(file).st_ino == self.path.stat().st_ino:
                        self._judge(known is True)
                        self._write(file, known is True)
                        return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)
            found = _read(self.path)
            patience = _DYING_S if _is_dying(found) else _GRACE_S
            if known is False and time.monotonic() > begun + patience:
                raise ConfigError(_refusal(self.folder, found))
            time.sleep(0.05)

    def _judge(self, flocked: bool) -> None:
        """Whether whoever is written there is gone. Raises ConfigError where it is not."""
        found = _read(self.path)
        if not found:
            return
        if found.get("kernel") == self._about["kernel"]:
            if flocked:
                return  # its lock went with it
            if found.get("processes") == self._about["processes"]:
                if _started(int(found["pid"])) == found["started"]:
                    raise ConfigError(_refusal(self.folder, found))
                return
        elif flocked and _is_local(self.folder):
            return  # this machine has been started anew, or the disk has moved
        self._say(
            f"{self.folder}: {_who(found)}: waiting {GONE_S:g} s to see whether it still writes"
        )
        if _touched(self.path, GONE_S):
            raise ConfigError(_refusal(self.folder, found))

    def _write(self, file: int, flocked: bool) -> None:
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(self._about).encode() + b"\n", 0)
        os.fsync(file)
        if not flocked:
            # Two who came at once have both written: the last one has it.
            time.sleep(0.2)
            found = _read(self.path)
            if found.get("token") != self._about["token"]:
                raise ConfigError(_refusal(self.folder, found))

    def _touch(self) -> None:
        while not self._over.wait(TOUCH_S):
            with contextlib.suppress(OSError):
                os.utime(self.path)


@contextlib.contextmanager
def hold(folder: Path, doing: str, say: Callable[[str], None] = lambda _: None) -> Iterator[Lock]:
    """Makes the folder and keeps every other process, and every other thread of this one, from writing in
    it. What holds it already may hold it once more. ``say`` is told what is waited for.

    Raises:
        ConfigError: another process writes there, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.resolve()
        lock = _here.get(place)
        outer = lock is None or lock.thread != threading.get_ident()
        if outer:
            lock = _here[place] = Lock(place, doing, say)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from error
    assert lock is not None
    try:
        yield lock
    finally:
        if outer:
            _here.pop(place, None)
            lock.release()


def _forget_in_child() -> None:
    """A child that was forked must not keep the lock of a parent that is gone."""
    for lock in _here.values():
        os.close(lock._file)
    _here.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def _flock(file: int) -> bool | None:
    """Whether the lock was granted; None where there is no such thing."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        raise
    return True


def _read(path: Path) -> dict[str, Any]:
    """Who is written there; nothing where nobody is."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _touched(path: Path, seconds: float) -> bool:
    """Whether the file changes within so many seconds."""
    before, end = _state(path), time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(0.5, seconds / 10))
        if _state(path) != before:
            return True
    return False


def _state(path: Path) -> tuple[int, bytes]:
    """Opened anew, so that a network folder asks its server."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns, file.read()


def _who(found: dict[str, Any]) -> str:
    return (
        f"process {found.get('pid', '?')} on {found.get('host', '?')} ({found.get('doing', '?')} since "
        f"{found.get('since', '?')})"
    )


def _refusal(folder: Path, found: dict[str, Any]) -> str:
    who = f"{_who(found)} writes there" if found else "another process writes there"
    there = found and found.get("host") != socket.gethostname()
    remove = (
        f"; if no such process runs on {found['host']}, remove {folder / NAME}" if there else ""
    )
    return f"{folder}: in use: {who}. Wait for it, stop it, or choose another folder{remove}"


def _kernel() -> str:
    """The running kernel, the same in all containers on it; a new one with every start of a machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _processes() -> str:
    """Among which processes a number means anything: a container has its own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process began, so that a number given anew is not taken for it; None where it is gone."""
    if stat := _stat(pid):
        return stat[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "running"


def _is_dying(found: dict[str, Any]) -> bool:
    """Whether the holder is a process of this machine that is on its way out (PF_EXITING)."""
    if found.get("processes") != _processes() or found.get("kernel") != _kernel():
        return False
    stat = _stat(int(found["pid"]))
    return bool(stat) and (stat[0] in "ZX" or bool(int(stat[6]) & 4))


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from the state on; none where there is no such thing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _is_local(folder: Path) -> bool:
    """Whether no other machine can have the folder; unknown kinds of file systems count as shared."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    best, kind = "", ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        mount = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields.split()[4])
        if folder.is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, rest.split()[0]
    return kind in _LOCAL
