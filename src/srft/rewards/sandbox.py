"""What a verifier's worker may still do: compute, read the folders Python imports from, and answer.

A worker parses what a model wrote, so it is treated as if that text had taken control of it. On Linux it
gives up everything else before it reads the first text, by means that need no privileges:

- **seccomp**: the system calls it may make are listed (`_CALLS`, `_CHECKED`); no other exists for it.
  It can start no process, open no socket, signal nobody, and open, change, rename or remove no file
  but to read it. What it cannot start cannot outlive it.
- **Landlock**: the kernel opens no file for it outside the folders that Python imports from; the
  trainer's memory and environment in ``/proc`` are outside.
- A user and a network namespace of its own, no way to more privileges, and limits on file sizes,
  processes and core dumps stand behind these.

`Sandbox.holes` asks no kernel for its features: a process enters the sandbox and tries.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_LINUX = sys.platform.startswith("linux")
_libc = ctypes.CDLL(None, use_errno=True)

# -- seccomp ---------------------------------------------------------------------------------------

_CALLS = """
read 0 63 write 1 64 readv 19 65 pread64 17 67 lseek 8 62 close 3 57 dup 32 23 fstat 5 80 stat 4 -
lstat 6 - newfstatat 262 79 statx 332 291 access 21 - faccessat 269 48 faccessat2 439 439 readlink 89 -
readlinkat 267 78 getcwd 79 17 getdents64 217 61 mmap 9 222 mprotect 10 226 munmap 11 215 brk 12 214
mremap 25 216 madvise 28 233 futex 202 98 getrandom 318 278 rt_sigaction 13 134 rt_sigprocmask 14 135
rt_sigreturn 15 139 sigaltstack 131 132 setitimer 38 103 getitimer 36 102 getrusage 98 165 times 100 153
clock_gettime 228 113 clock_getres 229 114 gettimeofday 96 169 time 201 - nanosleep 35 101
clock_nanosleep 230 115 restart_syscall 219 128 getpid 39 172 gettid 186 178 getppid 110 173 getuid 102 174
geteuid 107 175 getgid 104 176 getegid 108 177 uname 63 160 sysinfo 99 179 sched_yield 24 124
sched_getaffinity 204 123 getcpu 309 168 recvfrom 45 207 sendto 44 206 poll 7 - ppoll 271 73 select 23 -
pselect6 270 72 exit 60 93 exit_group 231 94
"""
"""Name, number on x86_64, number on aarch64 and riscv64 (the kernel's generic table)."""
_CHECKED = {
    "openat": (257, 56, 2, ()),  # its third argument: flags; to read only
    "open": (2, None, 1, ()),
    # Is it a terminal, bytes waiting, (non-)blocking, closed or kept by exec; no typing into terminals.
    "ioctl": (16, 29, 1, (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)),
    # Copy a descriptor, read and set its flags; no locks, and no owner who gets signals.
    "fcntl": (72, 25, 1, (0, 1, 2, 3, 1030)),
}
"""Name, the two numbers, the argument that is looked at, and its values that are allowed."""
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7), "riscv64": (1, 0xC00000F3)}
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOWED, _NO_SUCH_CALL, _REFUSED, _KILLED = 0x7FFF0000, 0x00050026, 0x0005000D, 0x80000000


def seccomp_program(machine: str) -> bytes | None:
    """The filter for a processor, instructions of 8 bytes; None where its numbers are not known."""
    if machine not in _MACHINES:
        return None
    column, architecture = _MACHINES[machine]
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILLED)]
    code += [(_LOAD, 0, 0, 0)]
    for listed in _CALLS.split()[1 + column :: 3]:
        if listed != "-":
            code += [(_EQUAL, 0, 1, int(listed)), (_RETURN, 0, 0, _ALLOWED)]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    writing |= getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY
    for *numbers, argument, allowed in _CHECKED.values():
        number = numbers[column]
        if number is None:
            continue
        body = [(_LOAD, 0, 0, 16 + 8 * argument)]
        for value in allowed:
            body += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOWED)]
        if not allowed:
            body += [(_ANY_BIT, 1, 0, writing), (_RETURN, 0, 0, _ALLOWED)]
        body += [(_RETURN, 0, 0, _REFUSED)]
        code += [(_EQUAL, 0, len(body), number), *body]
    code += [(_RETURN, 0, 0, _NO_SUCH_CALL)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


# -- Landlock --------------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every processor
_READ_FILE, _READ_FOLDER, _WRITE_FILE = 1 << 2, 1 << 3, 1 << 1
# How many kinds of access to files the kernel knows, by Landlock's version; 4 adds TCP, 6 signals and
# abstract sockets.
_ACCESS_BITS = (0, 13, 14, 15, 15, 16)


def _landlock_rules() -> int | None:
    """A descriptor of rules: read where Python imports from, write to nothing but the null device."""
    version = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1) if _LINUX else -1
    if version < 1:
        return None
    bits = _ACCESS_BITS[min(version, len(_ACCESS_BITS) - 1)]
    handled = ((1 << bits) - 1, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = struct.pack("=QQQ", *handled)[:size]
    rules = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if rules < 0:
        return None
    allowed = {folder: _READ_FILE | _READ_FOLDER for folder in _import_folders()}
    allowed |= {"/etc/ld.so.cache": _READ_FILE, os.devnull: _READ_FILE | _WRITE_FILE}
    for path, access in allowed.items():
        with contextlib.suppress(FileNotFoundError, PermissionError):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            access &= -1 if Path(path).is_dir() else ~_READ_FOLDER
            _libc.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", access, place), 0)
            os.close(place)
    return rules


def _import_folders() -> set[str]:
    """Where modules and shared libraries are loaded from."""
    found = {*sys.path, f"{sys.prefix}/lib", f"{sys.base_prefix}/lib"}
    found |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64"}
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return {path for path in found | {str(Path(file).parent) for file in files if file} if path}


# -- both ------------------------------------------------------------------------------------------

_PARENT_DEATH_SIGNAL, _SECCOMP, _NO_NEW_PRIVILEGES = 1, 22, 38  # of prctl
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000


class Sandbox:
    """Prepared by the process that forks workers; `enter` takes a few system calls in each."""

    def __init__(self) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._rules = _landlock_rules()
        program = seccomp_program(platform.machine()) if _LINUX and sys.maxsize > 2**32 else None
        self._program = ctypes.create_string_buffer(program) if program else None
        if _LINUX:
            _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
            _libc.unshare(_NEW_USER | _NEW_NETWORK)  # -1 where the kernel allows none

    def enter(self, keep: int) -> None:
        """Give up all rights but those above, and all descriptors but `keep` and the first three.
        What the kernel lacks is passed over; `holes` tells."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
            resource.setrlimit(limit, (0, 0))
        if _LINUX:
            _libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if self._rules is not None:
            _libc.syscall(_RESTRICT_SELF, self._rules, 0)
        os.closerange(3, keep)
        os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
        if self._program is not None:
            address = ctypes.addressof(self._program)
            program = struct.pack("@HP", len(self._program) // 8, address)
            _libc.prctl(_SECCOMP, 2, program, 0, 0)

    def holes(self) -> list[str]:
        """What a process that has entered can do all the same (nothing, where the kernel has both)."""
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "file").write_text("x")
            ours, theirs = socket.socketpair()
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(BaseException):
                    self.enter(theirs.fileno())
                    theirs.sendall(
                        bytes(_possible(f, f"{folder}/file") for f in _ATTEMPTS.values())
                    )
                os._exit(0)
            theirs.close()
            with ours:
                found = ours.recv(len(_ATTEMPTS))
            os.waitpid(pid, 0)
        assert len(found) == len(_ATTEMPTS), "the sandbox cannot be entered"
        return [name for name, could in zip(_ATTEMPTS, found, strict=True) if could]


def _possible(attempts: tuple[Callable[[str], object], ...], file: str) -> bool:
    for attempt in attempts:
        with contextlib.suppress(OSError):
            attempt(file)
            return True
    return False


def _fork(_: str) -> None:
    if os.fork() == 0:
        os._exit(0)


_ATTEMPTS: dict[str, tuple[Callable[[str], object], ...]] = {
    "read any file of yours": (
        lambda file: Path(file).read_bytes(),
        lambda _: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    ),
    "change files": (
        lambda file: os.truncate(file, 0),
        lambda file: Path(file).chmod(0),
        os.unlink,
    ),
    "start processes": (_fork,),
    "send signals": (lambda _: os.kill(os.getppid(), 0),),
    "reach Unix sockets": (lambda _: socket.socket(socket.AF_UNIX),),
    "reach the network": (
        lambda _: socket.socket(type=socket.SOCK_DGRAM).connect(("127.0.0.1", 9)),
    ),
}
