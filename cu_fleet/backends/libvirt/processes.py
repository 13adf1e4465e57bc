"""Processes that belong to a machine, told by their command lines, and ended by us: libvirt knows nothing of some."""

import ctypes
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cu_fleet.model.errors import UnavailableError

_SECONDS_TO_END = 10.0
_SECONDS_TO_DIE = 0.5
_SECONDS_TO_GO = 0.2  # which its parent decides
_PIDFD_GETFD = 438
_GLANCE = 0.001


def end(mark: bytes) -> None:
    """End all that bear this mark as a word of their command lines, and what they may just have begun."""
    until = time.monotonic() + _SECONDS_TO_END
    while kill(mark + b"\0"):
        if time.monotonic() > until:
            raise UnavailableError(f"{os.fsdecode(mark)} does not end", code="not_removed")


def kill(mark: bytes, uid: int | None = None) -> int:
    """Kill all whose command lines have this in them, of this user if one is given; how many there were.

    Returns when they are gone, or soon after.
    """
    count = 0
    for process in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended
            if process.name.isdigit() and (uid is None or process.stat().st_uid == uid):
                count += _killed(process, mark)
    return count


def _killed(process: Path, mark: bytes) -> bool:
    known = os.pidfd_open(int(process.name))
    try:
        if mark not in (process / "cmdline").read_bytes():
            return False
        with _kept_open(process, known):
            signal.pidfd_send_signal(known, signal.SIGKILL)
            ending = select.poll()
            ending.register(known)
            ending.poll(_SECONDS_TO_DIE * 1000)
            until = time.monotonic() + _SECONDS_TO_GO
            while process.exists() and time.monotonic() < until:
                time.sleep(_GLANCE)
    finally:
        os.close(known)
    return True


@contextmanager
def _kept_open(process: Path, known: int) -> Iterator[None]:
    """Keep from hearing that it ended whoever is connected to it, until it is gone: libvirt would find it dead, but
    there, and look again only a fifth of a second later.
    """
    held = []
    with suppress(OSError):  # whose descriptors are not ours to see just ends
        for fd in (process / "fd").iterdir():
            with suppress(FileNotFoundError):
                if os.fspath(fd.readlink()).startswith("socket:"):
                    held.append(ctypes.CDLL(None).syscall(_PIDFD_GETFD, known, int(fd.name), 0))
    try:
        yield
    finally:
        for one in held:
            if one >= 0:  # or it may not be had
                os.close(one)
