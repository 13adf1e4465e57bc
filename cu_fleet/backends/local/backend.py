"""The embedded backend: four verbs, and every ability there is. What it keeps, it keeps in files; see `layout`."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, Sequence

from cu_fleet.backends import door
from cu_fleet.backends.base import (
    SCREEN_ANSWERS,
    Abilities,
    Check,
    Endpoint,
    Found,
    Place,
    Process,
    Room,
    Saved,
    Spec,
    Usage,
)
from cu_fleet.backends.lending import SlotLending
from cu_fleet.backends.local import checks, disk, processes
from cu_fleet.backends.local.house import House, in_thread
from cu_fleet.backends.local.launch import Launch, Pipes
from cu_fleet.backends.local.layout import Desk
from cu_fleet.backends.slot import Slot, SlotFiles
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import BrokenError
from cu_fleet.model.profile import Profile

_SECONDS_TO_START = 30.0


class LocalBackend:
    name = "local"

    def __init__(self, place: Place) -> None:
        self.house = House(place)
        self.abilities = Abilities(
            snapshots=_Snapshots(self),
            exec=_Exec(self),
            freeze=_Freeze(self),
            files=SlotFiles(self._slot),
            lending=SlotLending(self._slot),
            network=_Network(),
            logs=_Logs(self),
            meter=_Meter(self),
            disk=_Disk(self),
        )

    def desk(self, handle: Handle) -> Desk:
        return self.house.layout.desk(str(handle["desktop"]))

    def _slot(self, handle: Handle) -> Slot:
        desk = self.desk(handle)
        return Slot(desk.slot, self.house.layout.uid(desk.id))

    def start(self, spec: Spec) -> AsyncIterator[Handle]:
        return self.start_over(spec, {})

    async def start_over(self, spec: Spec, before: Handle) -> AsyncIterator[Handle]:
        """Ends what runs, of which `before` may tell, and puts the state as the spec says."""
        desk = self.house.layout.desk(spec.desktop)
        yield {"desktop": desk.id}
        async with Launch(desk, Pipes()) as launch:
            etc = await in_thread(self.house.prepare, desk, spec, launch, before)
            handle: Handle = {"desktop": desk.id, "uid": launch.uid, "boot": spec.boot}
            try:
                async with asyncio.timeout(_SECONDS_TO_START):
                    await launch.go(spec.profile, spec.label, etc)
            except TimeoutError:
                raise await launch.failed(f"nothing of it ran within {_SECONDS_TO_START:.0f} s") from None
            first = processes.look(launch.pid)
            handle = handle | {"pid": launch.pid, "started": first.started if first else None} | launch.namespaces
            yield handle
            await in_thread(self.house.state.tidy, desk.dir)
            try:
                async with asyncio.timeout(_SECONDS_TO_START):
                    _check_size(desk, spec.profile, await launch.screen())
                yield handle | {SCREEN_ANSWERS: True}
                async with asyncio.timeout(_SECONDS_TO_START):
                    await launch.ready()
            except TimeoutError:
                raise await launch.failed(f"its screen was not up within {_SECONDS_TO_START:.0f} s") from None

    async def stop(self, handle: Handle) -> None:
        await in_thread(self.house.remove, self.desk(handle))

    async def endpoint(self, handle: Handle) -> Endpoint | None:
        desk = self.desk(handle)
        if not desk.is_locked():
            return None

        async def connect() -> socket.socket:
            return door.connect(desk, "rfb.sock", self.house.uid(desk))

        return Endpoint(connect, f"the screen's own socket in {desk.run}")

    async def found(self) -> list[Found]:
        return await in_thread(self._found)

    def _found(self) -> list[Found]:
        layout = self.house.layout
        prefix = f"cu-fleet/{layout.fleet}/"
        alive = {h.marker.removeprefix(prefix) for h in processes.holders(prefix, layout.uids())}
        named = sorted({*layout.known(), *alive})
        return [Found(one, {"desktop": one}, "processes and files" if one in alive else "files") for one in named]

    async def check(self, profile: Profile | None = None) -> list[Check]:
        return await checks.all_checks(self.house.home, self.house.cgroups, profile)


def _check_size(desk: Desk, profile: Profile, found: str) -> None:
    wanted = f"{profile.screen.width}x{profile.screen.height}"
    if found != wanted:
        raise BrokenError(
            f'the screen of desktop {desk.id} is {found}, not {wanted} as its profile "{profile.name}" says',
            code="wrong_geometry",
        )


class _Ability:
    def __init__(self, backend: LocalBackend) -> None:
        self.backend = backend
        self.house = backend.house


class _Snapshots(_Ability):
    async def save(self, handle: Handle, snapshot: str) -> Saved:
        return Saved("disk", await in_thread(self.house.save, self.backend.desk(handle), snapshot))

    def restore(self, handle: Handle, spec: Spec) -> AsyncIterator[Handle]:
        return self.backend.start_over(spec, handle)

    async def delete(self, snapshot: str) -> None:
        await in_thread(self.house.state.delete, snapshot)

    async def saved(self) -> list[str]:
        return await in_thread(self.house.state.saved)


class _Exec(_Ability):
    async def exec(
        self,
        handle: Handle,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        desk = self.backend.desk(handle)
        return await door.run(desk, self.house.uid(desk), argv, env, cwd)


class _Freeze(_Ability):
    async def freeze(self, handle: Handle) -> None:
        await in_thread(self.house.freeze, self.backend.desk(handle))

    async def thaw(self, handle: Handle) -> None:
        await in_thread(self.house.thaw, self.backend.desk(handle))


class _Network:
    modes = frozenset({"none", "full"})


class _Logs(_Ability):
    async def logs(self, handle: Handle) -> str:
        return await in_thread(door.read_log, self.backend.desk(handle))


class _Meter(_Ability):
    async def usage(self, handle: Handle) -> Usage:
        return await in_thread(lambda: processes.usage(self.house.running(self.backend.desk(handle)).pid))


class _Disk(_Ability):
    async def room(self, handle: Handle) -> Room:
        return await in_thread(Room.at, self.backend.house.home)

    async def used(self, handle: Handle) -> int:
        desk = self.backend.desk(handle)
        first = await in_thread(self.house.first, desk)
        return await disk.used(desk.dir, first.pid if first else None)
