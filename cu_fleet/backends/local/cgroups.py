"""Limits and the freezer by cgroup, where this machine lets us: version 1, version 2, or some of each.

Root makes `cu-fleet-FLEET/DESKTOP` at the top of each hierarchy. An ordinary user has only what was delegated: with
version 2 the controller's own group, if it may write there. Of the groups of version 2, only the machine's own top can
have processes beside limits for its children: in any other, as a user's or a container's, they move into a leaf. Which
folders a desktop has is written down before they are made, because the controller's own group may be another one next
time.
"""

import contextlib
import errno
import json
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cu_fleet.model.profile import Limits

KINDS = ("memory", "pids", "cpu")
_PERIOD = 100_000
_TRIES = 5
_JOIN = 'for g; do echo 0 >"$g/cgroup.procs" || exit 1; done'
_LEAF = "cu-fleet-controller"


@dataclass(frozen=True)
class Groups:
    """What a desktop got: the folders its first process joins, and what could not be had."""

    joins: tuple[Path, ...] = ()
    lacking: dict[str, str] = field(default_factory=dict)  # the kind of limit, and why it is not enforced


class Cgroups:
    def __init__(self, fleet: str, mounts: str | None = None, own: str | None = None) -> None:
        """`mounts` and `own` stand for /proc/self/mounts and /proc/self/cgroup."""
        self._name = f"cu-fleet-{fleet}"
        self._root = os.geteuid() == 0
        self.v1, self.v2 = _hierarchies(mounts if mounts is not None else Path("/proc/self/mounts").read_text())
        self._own = _own_v2(own if own is not None else Path("/proc/self/cgroup").read_text())

    def make(self, desktop: str, limits: Limits, record: Path) -> Groups:
        """Groups with these limits, as far as they can be had."""
        for _ in range(_TRIES):
            joins, failed = self._make(desktop, limits, record)
            if not any(isinstance(e, FileNotFoundError) for e in failed.values()):
                break  # otherwise the last desktop to leave has taken the fleet's own folder along
        return Groups(joins, {kind: _words_of(e) for kind, e in failed.items() if kind in KINDS})

    def _make(self, desktop: str, limits: Limits, record: Path) -> tuple[tuple[Path, ...], dict[str, OSError]]:
        failed: dict[str, OSError] = {}
        joins: dict[Path, None] = {}
        base = None
        if self.v2 is not None and not {*KINDS, "freezer"} <= self.v1.keys():
            with _noting(failed, "base"):
                base = self._v2_base(self.v2, desktop, record)
        for kind in (*KINDS, "freezer"):
            folder = self._folder(kind, desktop, base)
            if folder is None:
                failed[kind] = failed.get("base") or OSError(0, f"this machine has no cgroup controller {kind}")
                continue
            with _noting(failed, kind):
                _remember(record, folder)
                folder.mkdir(parents=True, exist_ok=True)
                for name, value in _settings(kind, limits, folder):
                    (folder / name).write_text(value)
                joins[folder] = None
        return tuple(joins), failed

    def lacking(self) -> dict[str, str]:
        """Which limits cannot be had here, and why: found out by making a group, joining it and removing it."""
        with tempfile.TemporaryDirectory() as folder:
            record = Path(folder) / "cgroups"
            try:
                groups = self.make(f"check-{os.getpid()}-{secrets.token_hex(4)}", Limits(), record)
                joined = subprocess.run(["/bin/sh", "-c", _JOIN, "sh", *groups.joins], check=False, capture_output=True)
                if joined.returncode:
                    return dict.fromkeys(KINDS, joined.stderr.decode(errors="replace").strip())
                return groups.lacking
            finally:
                self.remove(record)

    def _folder(self, kind: str, desktop: str, base: Path | None) -> Path | None:
        if kind in self.v1:
            return self.v1[kind] / self._name / desktop
        if base is None:
            return None
        if kind != "freezer" and kind not in _words(base / "cgroup.subtree_control"):
            return None
        return base / desktop

    def _v2_base(self, top: Path, desktop: str, record: Path) -> Path:
        """The folder whose children are our desktops, made ready to give them limits."""
        if not self._root and self._own is not None:
            top = top / self._own.lstrip("/")
            top = top.parent if top.name == _LEAF else top
        base = top / self._name
        _remember(record, base / desktop)
        base.mkdir(exist_ok=True)
        wanted = [kind for kind in KINDS if kind in _words(top / "cgroup.controllers")]
        if set(wanted) - set(_words(top / "cgroup.subtree_control")):
            self._enable(top, wanted)
        if set(wanted) - set(_words(base / "cgroup.subtree_control")):
            _enable(base, wanted)
        return base

    def _enable(self, top: Path, wanted: list[str]) -> None:
        try:
            _enable(top, wanted)
        except OSError as e:
            if e.errno != errno.EBUSY:
                raise
            (top / _LEAF).mkdir(exist_ok=True)
            for pid in _words(top / "cgroup.procs"):
                with contextlib.suppress(ProcessLookupError):
                    (top / _LEAF / "cgroup.procs").write_text(pid)
            _enable(top, wanted)

    def freezer(self, record: Path) -> Path | None:
        """The folder by which a desktop can be frozen."""
        for folder in _remembered(record):
            if (folder / "cgroup.freeze").exists() or (folder / "freezer.state").exists():
                return folder
        return None

    def remove(self, record: Path) -> bool:
        """Remove a desktop's groups. False if one still has processes, and it must be tried again."""
        gone = True
        for folder in _remembered(record):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                gone = False
                continue
            with contextlib.suppress(OSError):  # other desktops are still in it
                folder.parent.rmdir()
        return gone


def set_frozen(folder: Path, *, frozen: bool, seconds: float = 10.0) -> bool:
    """Freeze or thaw by the freezer; True when it is so."""
    v2 = (folder / "cgroup.freeze").exists()
    if v2:
        (folder / "cgroup.freeze").write_text("1" if frozen else "0")
    else:
        (folder / "freezer.state").write_text("FROZEN" if frozen else "THAWED")
    until = time.monotonic() + seconds
    while is_frozen(folder) != frozen:
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True


def is_frozen(folder: Path) -> bool:
    if (folder / "cgroup.freeze").exists():
        return "frozen 1" in (folder / "cgroup.events").read_text()
    return (folder / "freezer.state").read_text().strip() == "FROZEN"


def _hierarchies(mounts: str) -> tuple[dict[str, Path], Path | None]:
    v1: dict[str, Path] = {}
    v2 = None
    for line in mounts.splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup":
            v1 |= {c: Path(where) for c in options.split(",") if c in (*KINDS, "freezer")}
        elif kind == "cgroup2":
            v2 = Path(where)
    return v1, v2


def _own_v2(text: str) -> str | None:
    return next((line.removeprefix("0::") for line in text.splitlines() if line.startswith("0::")), None)


def _settings(kind: str, limits: Limits, folder: Path) -> Iterator[tuple[str, str]]:
    v2 = (folder / "cgroup.controllers").exists()
    if kind == "memory" and v2:
        yield "memory.max", str(limits.memory)
        if (folder / "memory.swap.max").exists():
            yield "memory.swap.max", "0"
    elif kind == "memory":
        if (folder / "memory.memsw.limit_in_bytes").exists():
            yield "memory.memsw.limit_in_bytes", "-1"  # never below the other, whatever was set before
        yield "memory.limit_in_bytes", str(limits.memory)
        if (folder / "memory.memsw.limit_in_bytes").exists():
            yield "memory.memsw.limit_in_bytes", str(limits.memory)
    elif kind == "pids":
        yield "pids.max", str(limits.processes)
    elif kind == "cpu" and v2:
        yield "cpu.max", f"{int(limits.cpus * _PERIOD)} {_PERIOD}"
    elif kind == "cpu":
        yield "cpu.cfs_period_us", str(_PERIOD)
        yield "cpu.cfs_quota_us", str(int(limits.cpus * _PERIOD))


@contextlib.contextmanager
def _noting(failed: dict[str, OSError], kind: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        failed[kind] = e


def _words_of(e: OSError) -> str:
    return f"{e.filename}: {e.strerror}" if e.filename else str(e.strerror)


def _enable(folder: Path, kinds: list[str]) -> None:
    (folder / "cgroup.subtree_control").write_text(" ".join(f"+{kind}" for kind in kinds))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except FileNotFoundError:
        return []


def _remember(record: Path, folder: Path) -> None:
    known = _remembered(record)
    if folder not in known:
        record.write_text(json.dumps([str(f) for f in (*known, folder)]))


def _remembered(record: Path) -> list[Path]:
    try:
        return [Path(f) for f in json.loads(record.read_text())]
    except (FileNotFoundError, ValueError):  # a half-written record was written before its folder was made
        return []
