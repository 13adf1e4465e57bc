"""The fake backend, for tests and for trying things out: desktops that live in this process, with all abilities.

A desktop here is honest: its screen is a real RFB server that applies the keys and buttons it gets and changes the
picture; its files are a dictionary that snapshots copy; its commands are coroutines. What would outlive a controller
— desktops and snapshots — lives in a `MemoryWorld`: a new backend over the same world is a restarted controller.

    backend = MemoryBackend(place, world)
    backend.desktop("dk_…").events      # every key and pointer event that reached the screen
    backend.commands["greet"] = greet   # async def greet(call: Call) -> int
"""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from cu_fleet.backends.base import Abilities, Check, Endpoint, FileInfo, Found, Place, Room, Saved, Spec, Usage
from cu_fleet.backends.lending import SlotLending
from cu_fleet.backends.memory_inside import COMMANDS, HOME, Call, Command, MemoryDesktop, MemoryFile, MemoryProcess
from cu_fleet.backends.memory_screen import Gate, Screen
from cu_fleet.backends.slot import Slot, parts
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import ConflictError, InvalidError, NotFoundError, UnsupportedError
from cu_fleet.model.profile import Profile


@dataclass
class _MemorySnapshot:
    files: dict[str, MemoryFile]
    picture: bytes


@dataclass
class MemoryWorld:
    """What outlives a controller."""

    desktops: dict[str, MemoryDesktop] = field(default_factory=dict)
    snapshots: dict[str, _MemorySnapshot] = field(default_factory=dict)
    starts: int = 0


class MemoryBackend:
    """A backend whose desktops exist in this process only."""

    name = "memory"

    def __init__(self, place: Place, world: MemoryWorld | None = None) -> None:
        self.place = place
        self.world = world or MemoryWorld()
        self.commands: dict[str, Command] = dict(COMMANDS)
        self.abilities = Abilities(
            snapshots=_Snapshots(self),
            exec=_Exec(self),
            freeze=_Freeze(self),
            files=_Files(self),
            lending=SlotLending(self._lent),
            network=_Network(),
            logs=_Logs(self),
            meter=_Meter(self),
            disk=_Disk(self),
        )

    def desktop(self, desktop: str) -> MemoryDesktop:
        """A desktop by its id; NotFoundError if there is none."""
        found = self.world.desktops.get(desktop)
        if found is None or found.fleet != self.place.fleet:
            raise NotFoundError(f"desktop {desktop} does not exist", code="no_desktop", desktop=desktop)
        return found

    def of(self, handle: Handle) -> MemoryDesktop:
        return self.desktop(_id(handle))

    async def start(self, spec: Spec) -> AsyncIterator[Handle]:
        _check_network(spec.profile)
        yield {"desktop": spec.desktop}
        await self._end(spec.desktop)
        yield self._make(spec, {})

    def _make(self, spec: Spec, slot: dict[str, MemoryFile]) -> Handle:
        size = spec.profile.screen
        gate = Gate()
        made = MemoryDesktop(
            fleet=self.place.fleet,
            spec=spec,
            screen=Screen(size.width, size.height, f"{spec.label} {spec.boot}", gate),
            gate=gate,
            slot=slot,
        )
        if spec.snapshot is not None:
            saved = self._saved(spec.snapshot)
            made.files = dict(saved.files)
            made.screen.show(saved.picture)
        self.world.starts += 1
        made.number = self.world.starts
        made.log.append(f"started as {spec.label}, boot {spec.boot}")
        self.world.desktops[spec.desktop] = made
        return {"desktop": spec.desktop, "start": made.number}

    def _saved(self, snapshot: str) -> _MemorySnapshot:
        if snapshot not in self.world.snapshots:
            raise NotFoundError(f"there is no snapshot {snapshot}", code="no_snapshot", snapshot=snapshot)
        return self.world.snapshots[snapshot]

    async def stop(self, handle: Handle) -> None:
        await self._end(_id(handle))
        self.empty(handle)

    def _lent(self, handle: Handle) -> Slot:
        """Folders of the host cannot lie in memory: they lie in the home, which the fake's programs do not see."""
        folder = self.place.home / "memory" / _id(handle)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Slot(folder, None)

    def empty(self, handle: Handle) -> None:
        shutil.rmtree(self.place.home / "memory" / _id(handle), ignore_errors=True)

    async def _end(self, desktop: str) -> None:
        found = self.world.desktops.get(desktop)
        if found is not None and found.fleet == self.place.fleet:
            found.gate.open()
            await found.end_processes()
            await found.screen.close()
            self.world.desktops.pop(desktop, None)

    async def restore(self, handle: Handle, spec: Spec) -> AsyncIterator[Handle]:
        if spec.snapshot is not None:
            self._saved(spec.snapshot)
        yield {"desktop": spec.desktop}
        before = self.world.desktops.get(_id(handle))
        slot = before.slot if before else {}
        await self._end(spec.desktop)
        yield self._make(spec, slot)

    async def endpoint(self, handle: Handle) -> Endpoint | None:
        desktop = self.world.desktops.get(_id(handle))
        if desktop is None or desktop.fleet != self.place.fleet or desktop.screen.dead:
            return None

        async def connect() -> socket.socket:
            return await desktop.screen.connect()

        return Endpoint(connect, f"memory of this process, desktop {desktop.spec.desktop}")

    async def found(self) -> list[Found]:
        return [
            Found(name, {"desktop": name, "start": desktop.number}, "desktop in memory")
            for name, desktop in self.world.desktops.items()
            if desktop.fleet == self.place.fleet
        ]

    async def check(self, profile: Profile | None = None) -> list[Check]:
        return [Check("memory", True, "desktops in this process need nothing")]


def _id(handle: Handle) -> str:
    return str(handle.get("desktop", ""))


def _check_network(profile: Profile) -> None:
    if profile.network not in _Network.modes:
        raise UnsupportedError(f"backend memory has no network {profile.network!r}", code="no_network")


class _Network:
    modes = frozenset({"none", "full"})


@dataclass
class _Ability:
    backend: MemoryBackend


class _Snapshots(_Ability):
    async def save(self, handle: Handle, snapshot: str) -> Saved:
        desktop = self.backend.of(handle)
        if snapshot in self.backend.world.snapshots:
            raise ConflictError(f"there already is a snapshot {snapshot}", code="snapshot_exists", snapshot=snapshot)
        files = {path: MemoryFile(f.data, f.mode, f.mtime) for path, f in desktop.files.items()}
        self.backend.world.snapshots[snapshot] = _MemorySnapshot(files, bytes(desktop.screen.pixels))
        return Saved("memory", sum(len(f.data) for f in files.values()) + len(desktop.screen.pixels))

    def restore(self, handle: Handle, spec: Spec) -> AsyncIterator[Handle]:
        return self.backend.restore(handle, spec)

    async def delete(self, snapshot: str) -> None:
        self.backend.world.snapshots.pop(snapshot, None)

    async def saved(self) -> list[str]:
        return sorted(self.backend.world.snapshots)


class _Freeze(_Ability):
    async def freeze(self, handle: Handle) -> None:
        self.backend.of(handle).gate.shut()

    async def thaw(self, handle: Handle) -> None:
        self.backend.of(handle).gate.open()


class _Logs(_Ability):
    async def logs(self, handle: Handle) -> str:
        return "\n".join(self.backend.of(handle).log) + "\n"


class _Meter(_Ability):
    async def usage(self, handle: Handle) -> Usage:
        desktop = self.backend.of(handle)
        size = len(desktop.screen.pixels) + sum(len(f.data) for f in desktop.files.values())
        return Usage(memory_bytes=size, processes=1 + len(desktop.processes), cpu_seconds=0.0)


class _Disk(_Ability):
    async def room(self, handle: Handle) -> Room:
        return await asyncio.to_thread(Room.at, self.backend.place.home)

    async def used(self, handle: Handle) -> int:
        desktop = self.backend.of(handle)
        return sum(len(file.data) for files in (desktop.files, desktop.slot) for file in files.values())


class _Files(_Ability):
    async def put(self, handle: Handle, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644) -> int:
        names, slot = parts(path), self.backend.of(handle).slot
        if not names:
            raise InvalidError("a file needs a name", code="bad_path", path=path)
        if any("/".join(names[:n]) in slot for n in range(1, len(names))):
            raise InvalidError(f"{path!r} leads through a file", code="bad_path", path=path)
        if any(other.startswith(f"{path}/") for other in slot):
            raise ConflictError(f"{path!r} is a folder already", code="not_a_file", path=path)
        content = b"".join([chunk async for chunk in data])
        slot[path] = MemoryFile(content, mode & 0o777)
        return len(content)

    async def get(self, handle: Handle, path: str) -> AsyncIterator[bytes]:
        slot = self.backend.of(handle).slot
        if "/".join(parts(path)) not in slot:
            raise NotFoundError(f"there is no {path!r} in the slot", code="no_file", path=path)
        data = slot[path].data
        for at in range(0, len(data), 65536):
            yield data[at : at + 65536]

    async def listing(self, handle: Handle, path: str = "") -> list[FileInfo]:
        slot, names = self.backend.of(handle).slot, parts(path)
        if path in slot:
            return [_info(path, slot[path])]
        below = f"{path}/" if names else ""
        inside = sorted({below + p.removeprefix(below).split("/")[0] for p in slot if p.startswith(below)})
        if names and not inside:
            raise NotFoundError(f"there is no {path!r} in the slot", code="no_file", path=path)
        return [_info(p, slot[p]) if p in slot else FileInfo(p, "dir", 0, 0.0, 0o755) for p in inside]

    async def remove(self, handle: Handle, path: str) -> None:
        slot, names = self.backend.of(handle).slot, parts(path)
        for other in [p for p in slot if not names or p == path or p.startswith(f"{path}/")]:
            del slot[other]
        if not names:
            self.backend.empty(handle)


def _info(path: str, file: MemoryFile) -> FileInfo:
    return FileInfo(path, "file", len(file.data), file.mtime, file.mode)


class _Exec(_Ability):
    async def exec(
        self,
        handle: Handle,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> MemoryProcess:
        desktop = self.backend.of(handle)
        if not argv:
            raise InvalidError("say what to run", code="no_command")
        command = self.backend.commands.get(argv[0].rpartition("/")[2], _unknown)
        environment = {"HOME": HOME, "DISPLAY": ":0", **desktop.spec.profile.env, **(env or {})}
        return MemoryProcess(desktop, command, Call(desktop, list(argv), environment, cwd or HOME))


async def _unknown(call: Call) -> int:
    await call.err("not found")
    return 127
