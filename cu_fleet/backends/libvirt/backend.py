"""The libvirt backend: four verbs, and every ability there is, for a hypervisor on this machine.

Every desktop is a fork: its machine wakes from a saved state, a clean one that was warmed once for its profile or a
snapshot's, with its own disk over that state's, and is then told who it is. What wakes must first say the secret that
was left in the state when it was saved: not an exit code but this proves that it is the right one, and runs.

Commands go over a serial port (`wire`); the screen is QEMU's own VNC, on a socket in a folder of the desktop's.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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
from cu_fleet.backends.libvirt import carried, checks, disks, machines, network, snapshots
from cu_fleet.backends.libvirt.command import on_files, run, standing
from cu_fleet.backends.libvirt.files import Files
from cu_fleet.backends.libvirt.hypervisor import Hypervisor
from cu_fleet.backends.libvirt.identity import awake, identity
from cu_fleet.backends.libvirt.layout import Desk, Layout, fits_a_socket
from cu_fleet.backends.libvirt.machines import Names
from cu_fleet.backends.libvirt.options import options
from cu_fleet.backends.libvirt.seed import digest
from cu_fleet.backends.libvirt.snapshots import Snapshots
from cu_fleet.backends.libvirt.telling import telling
from cu_fleet.backends.libvirt.tidying import Tidy
from cu_fleet.backends.libvirt.warm import State, Warm, seed_of
from cu_fleet.backends.libvirt.wire import wire
from cu_fleet.guest.init import RUN
from cu_fleet.guest.port import MARKS
from cu_fleet.model.desktop import AT, EMULATED, PROGRESS, Handle
from cu_fleet.model.errors import (
    BrokenError,
    ConflictError,
    FleetError,
    InvalidError,
    UnavailableError,
    UnsupportedError,
)
from cu_fleet.model.profile import Profile

if TYPE_CHECKING:
    from libvirt import virDomain

log = logging.getLogger(__name__)
_SECONDS_TO_WAKE = 120.0
_DETACHED = f'exec setsid -f "$@" >>{RUN}/log 2>&1'


class LibvirtBackend:
    name = "libvirt"
    env: ClassVar[Mapping[str, str]] = {}  # of all that is run inside

    def __init__(self, place: Place, uri: str | None = None, store: Path | None = None) -> None:
        """`uri` is the hypervisor to use, `store` where its machines' files lie; see `hypervisor` and `layout`."""
        self.layout = Layout(place, store)
        self.hypervisor = Hypervisor(uri)
        self.warm = Warm(self.layout, self.hypervisor)
        self.snapshots = Snapshots(self.layout)
        self.tidying = Tidy(self.layout)
        self.abilities = Abilities(
            snapshots=_Snapshots(self),
            marks=_Marks(self),
            exec=_Exec(self),
            standing=_Standing(self),
            freeze=_Freeze(self),
            files=Files(self._files, self._glance),
            network=_Network(),
            logs=_Logs(self),
            meter=_Meter(self),
            disk=_Disk(self),
            tidy=_Tidy(self),
        )

    def desk(self, handle: Handle) -> Desk:
        if at := handle.get(AT):
            raise UnavailableError(
                f"desktop {handle['desktop']} is on {at}, and machines are on this machine by now",
                remedy=f"set the hypervisor back to the one on {at} until its desktops have ended",
                code="other_host",
            )
        return self.layout.desk(str(handle["desktop"]))

    async def _files(self, handle: Handle, argv: list[str]) -> Process:
        desk = self.desk(handle)
        return await on_files(desk.port, desk.id, argv)

    async def _glance(self, handle: Handle) -> object:
        return (await self.ask(handle, "s")).get("slot")

    async def ask(self, handle: Handle, kind: str, data: bytes = b"") -> dict[str, Any]:
        desk = self.desk(handle)
        async with wire(desk.port, desk.id) as one:
            return await one.ask(kind, data)

    async def start(self, spec: Spec) -> AsyncGenerator[Handle, None]:
        desk = self.layout.desk(spec.desktop)
        yield {"desktop": desk.id}
        options(spec.profile)
        if spec.profile.network not in _Network.modes:
            raise UnsupportedError(
                f'profile "{spec.profile.name}": the libvirt backend has no network {spec.profile.network!r}',
                remedy="say network: none, or full",
                code="no_such_network",
            )
        reaches = spec.profile.network == "full"
        if reaches:
            network.need()
        if wrong := spec.profile.screen.width % 16:
            raise InvalidError(
                f'profile "{spec.profile.name}": QEMU serves no screen {spec.profile.screen.width} pixels wide',
                remedy=f"say a multiple of 16, as screen.width: {spec.profile.screen.width + 16 - wrong}",
                code="bad_screen",
            )
        if not fits_a_socket(desk):
            raise InvalidError(f"{self.layout.store} is too long a path for the sockets of machines", code="long_path")
        await self._clear(desk)
        if spec.snapshot is None:
            async with contextlib.aclosing(self.warm.coming(spec.profile)) as coming:
                async for words in coming:
                    yield {"desktop": desk.id, PROGRESS: words + self.warm.beforehand(spec.profile)}
        state, base = await self._state(spec)
        uid = await asyncio.to_thread(self.layout.uids.take, desk.id)
        await asyncio.to_thread(self._furnish, desk, spec, state, base, uid)
        handle: Handle = {"desktop": desk.id, "boot": spec.boot, EMULATED: state.kind != "kvm"}
        yield handle
        names = Names(spec.label, seed_of(base.parent), uid, reaches)
        try:
            async with asyncio.timeout(_SECONDS_TO_WAKE):
                await self.hypervisor.do(lambda api: machines.wake(api, desk, state.memory, names))
                await self._prove_screen(desk, spec)
                yield handle | {SCREEN_ANSWERS: True}
                await self._become(desk, spec, state)
                self.warm.trust(state)
                await self._settle(handle, spec)
        except TimeoutError:
            raise UnavailableError(
                f"desktop {desk.id} did not wake within {_SECONDS_TO_WAKE:.0f} s", code="start_failed"
            ) from None
        except FleetError as e:
            if spec.snapshot is None:
                await asyncio.to_thread(self.warm.doubt, state, e)
            raise

    async def _clear(self, desk: Desk) -> None:
        """End what is left of an earlier start."""

        def work() -> None:
            self.hypervisor.now(lambda api: machines.refuse_foreign(api, desk))
            self._end(desk)
            self.layout.remove(desk)

        await self.hypervisor.wait(work)

    async def _state(self, spec: Spec) -> tuple[State, Path]:
        """What the desktop wakes from, and the disk that its own rests on."""
        if spec.snapshot is not None:
            return await asyncio.to_thread(self.snapshots.state, spec.snapshot)
        state = await self.warm.state(spec.profile)
        return state, state.disk

    def _furnish(self, desk: Desk, spec: Spec, state: State, base: Path, uid: int | None) -> None:
        self.layout.make(desk, uid)
        if spec.snapshot is None:
            disks.overlay(desk.disk, base, uid)
        else:
            disks.copy(state.disk, desk.disk, uid)
        snapshots.note(desk, state.kind, base, uid, {**self.env, **spec.profile.env})

    async def _become(self, desk: Desk, spec: Spec, state: State) -> None:
        place = network.place(desk) if spec.profile.network == "full" else None
        async with wire(desk.port, desk.id, at_once=True) as one:
            said = await one.ask("b", identity(spec.boot, spec.label, place))
        if said.get("was") != state.canary:
            raise BrokenError(
                f"desktop {desk.id} woke as something else than what was saved in {state.dir}", code="wrong_state"
            )

    async def _settle(self, handle: Handle, spec: Spec) -> None:
        """A snapshot never contains the slot, though it lies in the machine; and what comes with a clean desktop."""
        assert self.abilities.files
        assert self.abilities.exec
        if spec.snapshot is not None:
            await self.abilities.files.remove(handle, "")
            return
        for argv in spec.profile.autostart:
            process = await self.abilities.exec.exec(handle, ["sh", "-c", _DETACHED, "sh", *argv])
            await process.wait()

    async def _prove_screen(self, desk: Desk, spec: Spec) -> None:
        with self._connect(desk) as sock:
            width, height = await door.screen_size(sock)
        screen = spec.profile.screen
        if (width, height) != (screen.width, screen.height):
            raise BrokenError(
                f"the screen of desktop {desk.id} is {width}x{height}, not {screen.width}x{screen.height} as its "
                f'profile "{spec.profile.name}" says',
                code="wrong_geometry",
            )

    def _connect(self, desk: Desk) -> socket.socket:
        """QEMU, which makes the socket, is trusted no more than what runs in it."""
        uid = self.layout.uids.of(desk.id)
        return door.connect(desk, desk.screen.name, os.geteuid() if uid is None else uid)

    async def stop(self, handle: Handle) -> None:
        desk = self.desk(handle)
        if not self.layout.used:
            return

        def work() -> None:
            self._end(desk)
            carried.forget(desk)
            self.layout.remove(desk)

        await self.hypervisor.wait(work)

    def _end(self, desk: Desk) -> None:
        uid = self.layout.uids.of(desk.id)
        self.hypervisor.now(lambda api: machines.end(api, desk, uid))

    async def endpoint(self, handle: Handle) -> Endpoint | None:
        """libvirt is asked only why a screen is not there: while it is away itself, its machines live on."""
        desk = self.desk(handle)
        if not desk.run.exists():
            return None

        async def connect() -> socket.socket:
            try:
                return self._connect(desk)
            except UnavailableError:
                await self.hypervisor.do(lambda api: machines.must_run(api, desk))
                raise

        how = " (emulated, not KVM)" if handle.get(EMULATED) else ""
        return Endpoint(connect, f"the screen's own socket in {desk.run}{how}")

    async def found(self) -> list[Found]:
        if not self.layout.used:
            return []

        def work() -> dict[str, list[str]]:
            there = {desktop: ["files"] for desktop in sorted(self.layout.known()) if not desktop.startswith("warm-")}
            for desktop in self.hypervisor.now(lambda api: machines.found(api, self.layout)):
                there.setdefault(desktop, []).insert(0, "machine")
            return there

        there = await self.hypervisor.wait(work)
        return [Found(desktop, {"desktop": desktop}, " and ".join(kinds)) for desktop, kinds in there.items()]

    async def check(self, profile: Profile | None = None) -> list[Check]:
        return await checks.all_checks(self.layout, self.hypervisor, self.warm.acceleration.known(), profile)


class _Ability:
    def __init__(self, backend: LibvirtBackend) -> None:
        self.backend = backend
        self.do = backend.hypervisor.do


class _Snapshots(_Ability):
    async def save(self, handle: Handle, snapshot: str) -> Saved:
        desk, boot = self.backend.desk(handle), str(handle.get("boot"))
        made = await self.do(lambda api: self.backend.snapshots.save(api, desk, snapshot, boot))
        if not await self.do(lambda api: machines.is_paused(machines.must_run(api, desk))):
            await self.backend.ask(handle, "b", awake())
        return made

    async def restore(self, handle: Handle, spec: Spec) -> AsyncIterator[Handle]:
        """Starting ends what runs, and wakes the state the spec says: exactly what this is, but for the slot."""
        can = self.backend.abilities.of(spec.profile)
        has_slot = can.exec and can.files  # else nobody is inside who could be asked
        restored = self._with_its_slot(handle, spec) if has_slot else self.backend.start(spec)
        async with contextlib.aclosing(restored) as made:
            async for last in made:
                yield last

    async def _with_its_slot(self, handle: Handle, spec: Spec) -> AsyncGenerator[Handle, None]:
        desk = self.backend.layout.desk(spec.desktop)
        slot = self._slot(desk, spec.profile.limits.disk)
        if not spec.keep_slot:
            await asyncio.to_thread(carried.forget, desk)
        elif await self._runs(desk):
            async with contextlib.aclosing(telling(slot.out(handle), carried.words)) as told:
                async for words in told:
                    yield handle | {PROGRESS: words}
        last = handle
        async with contextlib.aclosing(self.backend.start(spec)) as made:
            async for last in made:
                yield last
        if slot.there:
            async with contextlib.aclosing(telling(slot.back(last), carried.words)) as told:
                async for words in told:
                    yield last | {PROGRESS: words}
            yield last

    def _slot(self, desk: Desk, most: int) -> carried.Carried:
        return carried.Carried(desk, self.backend.abilities, most)

    async def _runs(self, desk: Desk) -> bool:
        """Whether somebody inside can say what is in the slot. What a machine had that has ended is gone with it."""
        if not desk.dir.exists() or (domain := await self.do(lambda api: machines.running(api, desk))) is None:
            return False
        await self.do(lambda _: _still(domain, False))
        return True

    async def delete(self, snapshot: str) -> None:
        await asyncio.to_thread(self.backend.snapshots.delete, snapshot)

    async def saved(self) -> list[str]:
        return await asyncio.to_thread(self.backend.snapshots.saved)


class _Marks(_Ability):
    """Of root's in there, whom nobody of the desktop can become. What was saved before its port knew of marks has them
    left and looked for by commands, in the same place: a snapshot stays one.
    """

    async def leave(self, handle: Handle, name: str) -> None:
        try:
            await self.backend.ask(handle, "m", name.encode())
        except UnsupportedError:
            if await self._run(handle, name, "touch"):
                raise

    async def there(self, handle: Handle, name: str) -> bool:
        try:
            return (await self.backend.ask(handle, "t", name.encode())).get("there") is not False
        except UnsupportedError:
            return await self._run(handle, name, "test", "-e") != 1

    async def _run(self, handle: Handle, name: str, *words: str) -> int:
        desk = self.backend.desk(handle)
        process = await run(desk.port, desk.id, [*words, f"{MARKS}/.cu-fleet-{name}"], None, None)
        return await process.wait()


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
        return await run(desk.port, desk.id, argv, {**snapshots.env_of(desk), **(env or {})}, cwd)


class _Standing(_Ability):
    async def take(self, handle: Handle, program: str) -> Process | None:
        desk = self.backend.desk(handle)
        return await standing(desk.port, desk.id, digest(program))


class _Freeze(_Ability):
    async def freeze(self, handle: Handle) -> None:
        desk = self.backend.desk(handle)
        await self.do(lambda api: _still(machines.must_run(api, desk), True))

    async def thaw(self, handle: Handle) -> None:
        desk = self.backend.desk(handle)
        if await self.do(lambda api: _still(machines.must_run(api, desk), False)):
            await self.backend.ask(handle, "b", awake())


def _still(domain: "virDomain", wanted: bool) -> bool:
    """Whether it had to be changed."""
    if machines.is_paused(domain) == wanted:
        return False
    (domain.suspend if wanted else domain.resume)()
    return True


class _Network:
    modes = frozenset({"none", "full"})


class _Logs(_Ability):
    async def logs(self, handle: Handle) -> str:
        desk = self.backend.desk(handle)
        process = await run(desk.port, desk.id, ["tail", "-c", "65536", f"{RUN}/log"], None, None)
        try:
            said = b"".join([data async for _, data in process.output()])
        finally:
            await process.kill()
        return said[-65536:].decode("utf-8", "replace")


class _Meter(_Ability):
    async def usage(self, handle: Handle) -> Usage:
        desk = self.backend.desk(handle)
        memory, seconds = await self.do(lambda api: machines.usage(machines.must_run(api, desk)))
        processes = (await self.backend.ask(handle, "p")).get("processes")
        return Usage(memory, processes if isinstance(processes, int) else None, seconds)


class _Tidy(_Ability):
    async def tidy(self) -> list[str]:
        return await asyncio.to_thread(self.backend.tidying.if_due) if self.backend.layout.used else []


class _Disk(_Ability):
    async def room(self, handle: Handle) -> Room:
        return await asyncio.to_thread(Room.at, self.backend.layout.desktops)

    async def used(self, handle: Handle) -> int:
        desk = self.backend.desk(handle)
        if not desk.dir.exists():
            raise ConflictError(f"desktop {desk.id} has no disk", code="not_running")
        return sum(disks.used(path) for path in desk.dir.glob("disk*.qcow2"))
