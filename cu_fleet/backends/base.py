"""What the controller asks of a backend: four verbs, and abilities it may have besides.

Write down before you create: `start` yields the handle it is *about* to create, then each better one, and the caller
stores each before asking for the next; one that says `SCREEN_ANSWERS` lets the caller look at the screen while the rest
comes up, and one with `PROGRESS` has its caller wait longer. `stop` takes any handle ever yielded, any number of times,
also while nothing of it exists. A backend keeps no state of its own in memory that a restart would lose.
"""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from cu_fleet.model.desktop import Handle
from cu_fleet.model.profile import Profile

SCREEN_ANSWERS = "screen"  # true in a handle whose screen can be connected to before `start` has come to its end


@dataclass(frozen=True)
class Spec:
    """All a backend needs to make a desktop."""

    desktop: str  # its id; names of resources come from it
    profile: Profile
    boot: str  # a fresh nonce for every start; the running desktop shows it
    label: str  # the name shown on the desktop's own screen, "codex-a" or "dk_…"
    snapshot: str | None = None  # begin with this saved state instead of a clean one
    keep_slot: bool = True  # over a restore; False: what lies in it is nobody's any more


@dataclass(frozen=True)
class Endpoint:
    """Where RFB answers. `connect` returns a connected, non-blocking stream socket."""

    connect: Callable[[], Awaitable[socket.socket]]
    where: str  # for people
    password: str | None = None
    helped: bool = True  # whether somebody of ours is inside, for what VNC cannot carry
    within: float | None = None  # seconds by which its server's own knowledge may be old, where that is known


@dataclass(frozen=True)
class Found:
    """A resource that bears our label, whoever left it there."""

    desktop: str
    handle: Handle
    what: str  # for people: "sandbox", "container", "files"


class Process(Protocol):
    """A command running inside a desktop. Everything it says may be a lie, and is bounded by who reads it."""

    async def write(self, data: bytes) -> None: ...

    async def close_stdin(self) -> None: ...

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Chunks as they come: (1, from stdout) and (2, from stderr); ends when both have."""
        ...

    async def wait(self) -> int:
        """The exit code; 128 + N for signal N."""
        ...

    async def kill(self) -> None:
        """End it and what it started, if it still runs."""
        ...


class Exec(Protocol):
    async def exec(
        self,
        handle: Handle,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process: ...


@dataclass(frozen=True)
class Saved:
    """What a backend says of a snapshot it made."""

    kind: str  # "disk" or "memory"
    size_bytes: int


class Snapshots(Protocol):
    async def save(self, handle: Handle, snapshot: str) -> Saved:
        """Save the desktop's state under this id, whole or not at all. It is frozen only while that needs it."""
        ...

    def restore(self, handle: Handle, spec: Spec) -> AsyncIterator[Handle]:
        """Put the desktop back to `spec.snapshot`, or to clean if that is None, and start a fresh screen.

        Ends every process of it first. Yields handles like `start`. May be called again after a crash at any point.
        """
        ...

    async def delete(self, snapshot: str) -> None:
        """Remove it, if it is there."""
        ...

    async def saved(self) -> list[str]:
        """The ids of all snapshots here, whole or not."""
        ...


class Standing(Protocol):
    """Programs of ours that stand ready in a desktop from its beginning, as they would take long to start."""

    async def take(self, handle: Handle, program: str) -> Process | None:
        """This one (what `python3 -I -c` would be given), if it stands ready: from now on it is the caller's."""
        ...


class Marks(Protocol):
    """What proves a rollback: left in a desktop before, and gone afterwards. Where there are none, commands do it."""

    async def leave(self, handle: Handle, name: str) -> None: ...

    async def there(self, handle: Handle, name: str) -> bool: ...


class Freeze(Protocol):
    async def freeze(self, handle: Handle) -> None: ...

    async def thaw(self, handle: Handle) -> None: ...


@dataclass(frozen=True)
class FileInfo:
    path: str  # below the slot, with slashes
    kind: str  # "file", "dir", "link", "other"
    size: int
    mtime: float
    mode: int


class Files(Protocol):
    """The desktop's slot, seen inside as `~/Shared`. A path never leaves it, whatever links lie in it."""

    async def put(self, handle: Handle, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644) -> int:
        """Write a file, whole or not at all, making folders on the way. Returns its size."""
        ...

    def get(self, handle: Handle, path: str) -> AsyncIterator[bytes]: ...

    async def listing(self, handle: Handle, path: str = "") -> list[FileInfo]: ...

    async def remove(self, handle: Handle, path: str) -> None:
        """Remove a file or a folder with all in it; nothing if it is not there. An empty path empties the slot."""
        ...


class Lending(Protocol):
    """Folders of this machine that lie in a slot for a time, where programs on both sides write. Moved, never copied.

    A folder is known by its device and inode, whatever the desktop calls it meanwhile. Both verbs may be called again
    after a crash at any point.
    """

    async def lend(self, handle: Handle, name: str, folder: Path, inode: tuple[int, int]) -> Path:
        """Move a folder into the slot, and let the desktop write there; returns where it is on this machine now."""
        ...

    async def fetch(self, handle: Handle, name: str, folder: Path, inode: tuple[int, int]) -> bool:
        """Move it, or what goes by its name, out again to where it was; False if no such folder is there any more."""
        ...


class Network(Protocol):
    """The network modes a profile may ask this backend for."""

    modes: frozenset[str]


class Logs(Protocol):
    async def logs(self, handle: Handle) -> str: ...


@dataclass(frozen=True)
class Usage:
    memory_bytes: int | None = None  # private memory of all its processes
    processes: int | None = None
    cpu_seconds: float | None = None


class Meter(Protocol):
    async def usage(self, handle: Handle) -> Usage: ...


@dataclass(frozen=True)
class Room:
    """What is left of a disk."""

    disk: str  # its name, the same for all who write to it
    free: int  # bytes that those may still write
    size: int
    host: str = ""  # where it is, if not here

    @classmethod
    def at(cls, folder: Path) -> "Room":
        found = os.statvfs(folder)
        return cls(f"{folder.stat().st_dev:x}", found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


class Disk(Protocol):
    async def used(self, handle: Handle) -> int:
        """Bytes on disk that the desktop has written, whatever it did to hide them."""
        ...

    async def room(self, handle: Handle) -> Room | None:
        """What is left of the disk that it writes to, where that is known."""
        ...


class Tidy(Protocol):
    async def tidy(self) -> list[str]:
        """Remove what was made for desktops and nothing needs any more; says what that was. Asked at every sweep."""
        ...


@dataclass(frozen=True)
class Check:
    """One line of `doctor`: what was looked at, how it is, and the command that mends it."""

    name: str
    ok: bool
    detail: str
    needed: bool = True  # False: things work without it, and `detail` says what is lost
    fix: tuple[tuple[str, ...], ...] = ()  # commands, run as root, that mend it


@dataclass(frozen=True)
class Abilities:
    """What a backend can do beyond the four verbs; None where it cannot."""

    snapshots: Snapshots | None = None
    marks: Marks | None = None
    exec: Exec | None = None
    standing: Standing | None = None
    freeze: Freeze | None = None
    files: Files | None = None
    lending: Lending | None = None
    network: Network | None = None
    logs: Logs | None = None
    meter: Meter | None = None
    disk: Disk | None = None
    tidy: Tidy | None = None
    helper: bool = True  # whether what exec runs can be spoken to while it runs, as our helper inside must be
    lacking: Callable[[Profile], frozenset[str]] = lambda _: frozenset()  # of these, in desktops of this profile

    def of(self, profile: Profile) -> "Abilities":
        """What desktops of this profile can do."""
        none: dict[str, Any] = dict.fromkeys(self.lacking(profile))
        return replace(self, **none)


class Backend(Protocol):
    name: str
    abilities: Abilities

    def start(self, spec: Spec) -> AsyncIterator[Handle]:
        """Make the desktop. When the iterator ends, the screen answers at `endpoint`."""
        ...

    async def stop(self, handle: Handle) -> None:
        """Take away all there is of it, and return when nothing is left."""
        ...

    async def endpoint(self, handle: Handle) -> Endpoint | None:
        """Where RFB answers, or None if this desktop does not run."""
        ...

    async def found(self) -> list[Found]:
        """Everything of this fleet that exists here, in whatever state."""
        ...

    async def check(self, profile: Profile | None = None) -> list[Check]:
        """What this machine has and lacks for this backend (and this profile)."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a backend may keep things, and whose they are."""

    home: Path  # the fleet's home; a backend keeps to its own folder in it
    fleet: str  # the fleet's id: part of every label
    profile_dirs: tuple[Path, ...] = field(default=())
    machines: Path | None = None  # where those of the virtual machines lie, if not at their usual place
    hypervisor: str | None = None  # libvirt's URI of whoever runs them, if not the usual one
