"""The Docker backend: four verbs, and every ability there is.

What a desktop is like inside, and its doors, are those of every other desktop; they lie in folders that the container
and we both see. So commands and the screen cost nothing of the engine's time. Where the engine does not see our files,
whatever its address, a desktop's doors are reached over a tunnel, and the rest is the same; see `tunnel` and `far`.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial

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
)
from cu_fleet.backends.docker import begin, checks, tunnel
from cu_fleet.backends.docker.abilities import Ability, Freeze, Logs, Meter, Network, found_at, said_to_the_engine
from cu_fleet.backends.docker.disk import Counting
from cu_fleet.backends.docker.far import FarSlot
from cu_fleet.backends.docker.house import House, is_polled
from cu_fleet.backends.docker.layout import Desk
from cu_fleet.backends.docker.snapshots import Snapshots
from cu_fleet.backends.docker.tunnel import Tunnels
from cu_fleet.backends.inside import X11VNC_WITHIN
from cu_fleet.backends.lending import SlotLending
from cu_fleet.backends.slot import Slot, SlotFiles
from cu_fleet.guest.tunnel import STATUS
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import BrokenError, FleetError, UnavailableError
from cu_fleet.model.profile import Profile

_SECONDS_TO_START = 60.0
_SECONDS_TO_KNOW = 3  # that a container has ended, after its screen has


class DockerBackend:
    name = "docker"

    def __init__(self, place: Place, host: str | None = None) -> None:
        """`host` is the engine to use; without it, what `DOCKER_HOST` or the current Docker context names."""
        self.house = House(place, host)
        self.snapshots = Snapshots(self.house)
        self.counting = Counting(self.house)
        self.tunnels = Tunnels(self.house.engine, self._explain)
        self._coming_up: dict[str, bool] = {}  # desktops whose screens are up, and whether they are polled; see `start`
        self.abilities = Abilities(
            snapshots=_Snapshots(self),
            exec=_Exec(self),
            freeze=Freeze(self),
            files=SlotFiles(self._slot),
            lending=SlotLending(self._slot),
            network=Network(),
            logs=Logs(self),
            meter=Meter(self),
            disk=_Disk(self),
        )

    def desk(self, handle: Handle) -> Desk:
        return self.house.layout.desk(str(handle["desktop"]))

    def _slot(self, handle: Handle) -> Slot | FarSlot:
        desk = self.desk(handle)
        if desk.far:
            return FarSlot(desk, partial(self.run, desk))
        return Slot(desk.slot, self.house.layout.uid(desk.id))

    async def via(self, desk: Desk) -> door.Via | None:
        """The way to the desktop's doors, if they are not here."""
        return (await self.tunnels.of(desk)).connect if desk.far else None

    async def run(
        self, desk: Desk, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> Process:
        via = await self.via(desk)
        uid = os.geteuid() if via else self.house.layout.uid(desk.id)
        return await door.run(desk, uid, argv, env, cwd, via)

    async def ping(self, desk: Desk) -> tuple[str, str]:
        """The nonce of the start that is running, and the size of its screen."""
        return await door.ping(desk, self.house.layout.uid(desk.id), await self.via(desk))

    async def log(self, desk: Desk) -> str:
        if not desk.far:
            return await asyncio.to_thread(door.read_log, desk)
        return await said_to_the_engine(self.house, desk)

    async def start(self, spec: Spec) -> AsyncIterator[Handle]:
        desk, house, do = self.house.layout.desk(spec.desktop), self.house, self.house.engine.do
        yield {"desktop": desk.id}
        settled = await do(lambda api: house.clear(api, desk, spec))
        uid = settled.uid
        await self.tunnels.drop(desk)
        await house.engine.do_at_once(house.grounds(desk, spec, uid))
        if spec.snapshot is not None and not desk.far:
            await do(lambda api: self.snapshots.fetch(api, desk, spec), slow=True)
        container = await do(lambda api: house.create(api, desk, spec, settled))
        handle: Handle = {"desktop": desk.id, "uid": uid, "boot": spec.boot, "container": container}
        yield handle
        if desk.far:
            await do(lambda api: house.lay_in(api, container, spec, uid))
            if spec.snapshot is not None:
                await do(lambda api: self.snapshots.fetch(api, desk, spec, container), slow=True)
        async with _Status(await self._begin(desk, container)) as status:
            try:
                async with asyncio.timeout(_SECONDS_TO_START):
                    _insist_on_size(desk, spec, await self._heard(status, "screen", desk))
                    self._coming_up[desk.id] = settled.polled
                    yield handle | {SCREEN_ANSWERS: True}
                    await self._heard(status, "ready", desk)
            except TimeoutError:
                raise await self._failed(desk, f"its screen was not up within {_SECONDS_TO_START:.0f} s") from None
            finally:
                self._coming_up.pop(desk.id, None)
        (desk.init / begin.STATE).unlink(missing_ok=True)

    async def _begin(self, desk: Desk, container: str) -> int:
        """Start the container; returns a descriptor on which init tells how far it is."""
        if desk.far:
            await self.house.engine.do(lambda api: api.start(container))
            return (await self.tunnels.of(desk)).connect(STATUS).detach()
        fd = begin.open_status(desk)
        try:
            await self.house.engine.do(lambda api: api.start(container))
        except BaseException:
            os.close(fd)
            raise
        return fd

    async def _heard(self, status: "_Status", word: str, desk: Desk) -> str:
        """What init says with this word."""
        said, _, more = (await status.line()).decode("ascii", "replace").strip().partition(" ")
        if said != word:
            raise await self._failed(desk, "its screen or window manager did not come up")
        return more

    async def _failed(self, desk: Desk, why: str) -> UnavailableError:
        """What is to be said of a start that failed, with what the container says of itself."""
        with contextlib.suppress(FleetError):
            await self.house.engine.do(lambda api: self.house.running(api, desk))
        log = (await self.log(desk)).strip()[-1500:]
        return UnavailableError(
            f"desktop {desk.id} did not start: {why}" + (f"; it said: {log}" if log else ""),
            remedy="see its image: cu-fleet image list",
            code="start_failed",
            log=log,
        )

    async def _explain(self, desk: Desk) -> None:
        """A screen that nobody holds any more: raise why its container has ended, once the engine knows that."""
        with contextlib.suppress(FleetError):
            await self.house.engine.do(lambda api: api.wait(desk.name, timeout=_SECONDS_TO_KNOW))
        await self.house.engine.do(lambda api: self.house.running(api, desk))

    async def _connect(self, desk: Desk) -> socket.socket:
        if via := await self.via(desk):
            return via("rfb.sock")
        return door.connect(desk, "rfb.sock", self.house.layout.uid(desk.id))

    async def stop(self, handle: Handle) -> None:
        desk = self.desk(handle)
        self._coming_up.pop(desk.id, None)
        await self.tunnels.drop(desk)
        if self.house.layout.used:
            await self.house.engine.do(lambda api: self.house.remove(api, desk))
        await self.tunnels.drop(desk)  # whoever needed one meanwhile

    async def endpoint(self, handle: Handle) -> Endpoint | None:
        desk = self.desk(handle)
        if not desk.dir.exists():
            return None
        polled = self._coming_up.get(desk.id)  # the engine need not be asked what init has just said
        if polled is None:
            patience = tunnel.PATIENCE if desk.far else 0.0
            running = await self.house.engine.do_patiently(lambda api: self.house.running(api, desk), patience)
            if running is None:
                return None
            polled = is_polled(running)

        async def connect() -> socket.socket:
            try:
                return await self._connect(desk)
            except UnavailableError:
                await self._explain(desk)
                raise

        within = X11VNC_WITHIN if polled else None
        where = f"{self.house.engine.host}, {desk.name}" if desk.far else f"the screen's own socket in {desk.run}"
        return Endpoint(connect, where, within=within)

    async def found(self) -> list[Found]:
        return await found_at(self.house)

    async def check(self, profile: Profile | None = None) -> list[Check]:
        return await checks.all_checks(self.house, profile)


def _insist_on_size(desk: Desk, spec: Spec, size: str) -> None:
    screen = spec.profile.screen
    if size != f"{screen.width}x{screen.height}":
        raise BrokenError(
            f"the screen of desktop {desk.id} is {size[:20]}, not {screen.width}x{screen.height} as its "
            f'profile "{spec.profile.name}" says',
            code="wrong_geometry",
        )


class _Status:
    """What init says of its start, line by line, on a pipe that ends when the container does."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._said = b""
        self._news = asyncio.Event()
        self._over = False

    async def __aenter__(self) -> "_Status":
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._said = (self._said + data)[-4096:]
        if not data:
            self._over = True
            asyncio.get_running_loop().remove_reader(self._fd)
        self._news.set()

    async def line(self) -> bytes:
        """The next line; empty when there is none any more."""
        while b"\n" not in self._said and not self._over:
            self._news.clear()
            await self._news.wait()
        line, _, self._said = self._said.partition(b"\n")
        return line


class _Snapshots(Ability[DockerBackend]):
    async def save(self, handle: Handle, snapshot: str) -> Saved:
        desk = self.backend.desk(handle)
        return await self.do(lambda api: self.backend.snapshots.save(api, desk, snapshot), slow=True)

    def restore(self, handle: Handle, spec: Spec) -> AsyncIterator[Handle]:
        """Starting removes what runs, and begins a new container with the state the spec says: exactly what this is."""
        return self.backend.start(spec)

    async def delete(self, snapshot: str) -> None:
        await self.do(lambda api: self.backend.snapshots.delete(api, snapshot), slow=True)

    async def saved(self) -> list[str]:
        if not self.house.layout.used:
            return []
        return await self.do(self.backend.snapshots.saved)


class _Exec(Ability[DockerBackend]):
    async def exec(
        self,
        handle: Handle,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        return await self.backend.run(self.backend.desk(handle), argv, env, cwd)


class _Disk(Ability[DockerBackend]):
    async def room(self, handle: Handle) -> Room | None:
        """Of the home's disk, which the engine's is most likely too, if it is this machine's."""
        far = self.backend.desk(handle).far
        return None if far else await asyncio.to_thread(Room.at, self.backend.house.layout.top)

    async def used(self, handle: Handle) -> int:
        return await self.backend.counting.used(self.backend.desk(handle))
