"""Processes that belong to a machine, told by their command lines, and ended by us: libvirt knows nothing of some."""

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path

from cu_fleet.model.errors import UnavailableError

_SECONDS_TO_END = 10.0
_SECONDS_TO_DIE = 0.5
_SECONDS_TO_GO = 0.05  # which its parent decides; libvirt looks again but a fifth of a second after it found a dead one
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
        signal.pidfd_send_signal(known, signal.SIGKILL)
        ending = select.poll()
        ending.register(known)
        ending.poll(_SECONDS_TO_DIE * 1000)
    finally:
        os.close(known)
    until = time.monotonic() + _SECONDS_TO_GO
    while process.exists() and time.monotonic() < until:
        time.sleep(_GLANCE)
    return True
