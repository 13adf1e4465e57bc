"""A desktop's processes as seen from the host: found, counted, held still and ended.

The processes that hold a desktop from outside, and the first one inside, bear its marker as an argument. The inside
can imitate that, but not from where it is: a process counts only if it lies in our own process namespace, or is the
first of one directly below. It can also rewrite the first one's arguments: so that is found as the child of one
outside, too. All else inside descends from that first process, and dies with it, as that does with its parent.
"""

# ruff: noqa: PTH116, PTH208  # all of /proc is looked at in every start, and pathlib takes thrice as long

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cu_fleet.backends.base import Usage

_TICKS = os.sysconf("SC_CLK_TCK")
_LOOKS = 50  # how often a tree is looked at again that keeps forking while it is being stopped


@dataclass(frozen=True)
class Holder:
    """A process that bears a marker."""

    pid: int
    started: int  # with the pid, names a process for good
    marker: str
    first: bool  # it is the first process of the desktop's own namespace
    session: int


@dataclass(frozen=True)
class Seen:
    """One process of a desktop, at one look."""

    pid: int
    parent: int
    session: int
    started: int
    state: str
    cpu: int  # in ticks, with that of its children that have ended


def holders(prefix: str, uids: Iterable[int]) -> list[Holder]:
    """The processes with a marker that is `prefix`, or begins with it if it ends in a slash."""
    allowed = set(uids)
    found = {pid: h for pid in _pids() if (h := holder(pid, prefix, allowed))}
    for outer in [h for h in found.values() if not h.first]:
        for pid in _children(outer.pid):
            if _depth(pid) == [1]:  # whatever it has made of its arguments
                seen = look(pid)
                found |= {pid: Holder(pid, seen.started, outer.marker, True, seen.session)} if seen else {}
    return list(found.values())


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _depth(pid: int) -> list[int] | None:
    """Its numbers in the process namespaces below ours."""
    try:
        lines = _read(pid, "status").splitlines()
    except OSError:
        return None
    return next(([int(n) for n in line.split()[2:]] for line in lines if line.startswith(b"NSpid:")), None)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def holder(pid: int, prefix: str, uids: set[int]) -> Holder | None:
    try:
        words = _read(pid, "cmdline", 65536).split(b"\0")
        markers = [m for m in words if m.startswith(prefix.encode())]
        if not markers or os.stat(f"/proc/{pid}").st_uid not in uids:
            return None
        marker = markers[0].decode("ascii", "replace")
        if marker != prefix and not prefix.endswith("/"):
            return None
    except OSError:
        return None
    seen, depth = look(pid), _depth(pid)
    return Holder(pid, seen.started, marker, depth == [1], seen.session) if seen and depth in ([], [1]) else None


def _read(pid: int, name: str, most: int = 16384) -> bytes:
    fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, most)
    finally:
        os.close(fd)


def look(pid: int) -> Seen | None:
    try:
        fields = _read(pid, "stat").rpartition(b")")[2].split()
    except OSError:
        return None
    parent, session, started = int(fields[1]), int(fields[3]), int(fields[19])
    return Seen(pid, parent, session, started, fields[0].decode(), sum(int(n) for n in fields[11:15]))


def tree(first: int) -> list[Seen]:
    """A process and all that descend from it, parents before children."""
    seen = {s.pid: s for pid in _pids() if (s := look(pid))}
    children: dict[int, list[Seen]] = {}
    for s in seen.values():
        children.setdefault(s.parent, []).append(s)
    found = [seen[first]] if first in seen else []
    for s in found:
        found += children.get(s.pid, [])
    return found


def end(found: Iterable[Holder], seconds: float, then: Callable[[], object] = lambda: None) -> bool:
    """Kill these processes, each by a descriptor that cannot mean another; True when all have ended.

    `then` is called when all have been told: what is frozen takes no notice before it is thawed.
    """
    fds = []
    try:
        for holder in found:
            fd = _same(holder.pid, holder.started)
            if fd is not None:
                fds.append(fd)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
        then()
        return all(_ended(fd, seconds) for fd in fds)
    finally:
        for fd in fds:
            os.close(fd)


def _ended(fd: int, seconds: float) -> bool:
    poll = select.poll()  # `select` would fail for a controller with more than a thousand descriptors
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _same(pid: int, started: int) -> int | None:
    """A descriptor of this very process; None if it has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    seen = look(pid)
    if seen is None or seen.started != started:
        os.close(fd)
        return None
    return fd


def _signal(pid: int, started: int, number: signal.Signals) -> bool:
    fd = _same(pid, started)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def stop_all(first: int, record: Path) -> bool:
    """SIGSTOP the whole tree, parents first, until no process of it runs; True when that is reached.

    The record, written before each signal, says whom we stopped, so that `go_on` leaves alone who was stopped before.
    """
    ours: list[tuple[int, int]] = recorded(record)
    for _ in range(_LOOKS):
        running = [s for s in tree(first)[1:] if s.state not in "TtZX"]
        if not running:
            return True
        new = [(s.pid, s.started) for s in running if (s.pid, s.started) not in ours]
        ours += new
        _write_whole(record, json.dumps(ours))
        for pid, started in new:
            _signal(pid, started, signal.SIGSTOP)
        time.sleep(0.002)
    return False


def go_on(record: Path) -> None:
    """Let go on whom `stop_all` stopped: children first, so that no shell sees a stopped child."""
    for pid, started in reversed(recorded(record)):
        _signal(pid, started, signal.SIGCONT)
    record.unlink(missing_ok=True)


def recorded(record: Path) -> list[tuple[int, int]]:
    try:
        return [(int(pid), int(started)) for pid, started in json.loads(record.read_text())]
    except FileNotFoundError:
        return []


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def of_uid(uid: int) -> list[Holder]:
    """All processes of a uid that is nobody else's."""
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == uid and (seen := look(pid)) and seen.state not in "ZX":
                found.append(Holder(pid, seen.started, "", False, seen.session))
    return found


def usage(first: int) -> Usage:
    processes = tree(first)
    private = sum(private_memory(s.pid) for s in processes)
    return Usage(memory_bytes=private, processes=len(processes), cpu_seconds=sum(s.cpu for s in processes) / _TICKS)


def private_memory(pid: int) -> int:
    """Bytes that would come free if this process ended."""
    try:
        lines = _read(pid, "smaps_rollup").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(b"Private_")) * 1024
