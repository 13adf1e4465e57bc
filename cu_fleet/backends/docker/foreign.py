"""Desktops of images that are not ours: whatever serves its screen by VNC on a port inside its container.

Nothing is published, and the container has only the network that its profile says, or none. Its port is reached from a
second container, the door: of an image of ours, without any right, in the network of the first, where a small program
passes on what comes at a socket in the desktop's own folder. The password is made anew for each start, out of a key
that never leaves the home, and given to the image by the variable it reads.

Nobody of ours is inside, so there are no commands, files and snapshots: a rollback is a new container.
"""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cu_fleet.backends import door
from cu_fleet.backends.base import Abilities, Check, Endpoint, Found, Place, Room, Spec
from cu_fleet.backends.docker import begin, walls
from cu_fleet.backends.docker.abilities import Ability, Freeze, Logs, Meter, Network, found_at, said_to_the_engine
from cu_fleet.backends.docker.engine import short_log
from cu_fleet.backends.docker.house import House, Settled
from cu_fleet.backends.docker.layout import BOOT, Desk, Layout
from cu_fleet.backends.docker.options import VncOptions, vnc_options
from cu_fleet.backends.inside import hostname
from cu_fleet.guest import init as guest
from cu_fleet.guest import relay
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import BrokenError, FleetError, InvalidError, UnavailableError, UnsupportedError
from cu_fleet.model.profile import Profile

if TYPE_CHECKING:
    from docker import APIClient

_RELAY = Path(relay.__file__).read_text("utf-8")
_SECONDS_TO_START = 60.0
_AGAIN = 0.05
_GREETING = 12
_ROOT = {"", "0", "root"}


class DockerVncBackend:
    name = "docker-vnc"

    def __init__(self, place: Place, host: str | None = None) -> None:
        self.house = _House(place, host)
        self.abilities = Abilities(
            freeze=Freeze(self), network=Network(), logs=Logs(self), meter=Meter(self), disk=_Disk(self)
        )

    def desk(self, handle: Handle) -> Desk:
        return self.house.layout.desk(str(handle["desktop"]))

    async def start(self, spec: Spec) -> AsyncIterator[Handle]:
        desk, house, do = self.house.layout.desk(spec.desktop), self.house, self.house.engine.do
        yield {"desktop": desk.id}
        settled = await do(lambda api: house.clear(api, desk, spec))
        await house.engine.do_at_once(house.grounds(desk, spec, settled.uid))
        container = await do(lambda api: house.create(api, desk, spec, settled))
        within = vnc_options(spec.profile).within
        yield {"desktop": desk.id, "boot": spec.boot, "container": container, "within": within}
        try:
            async with asyncio.timeout(_SECONDS_TO_START):
                await do(lambda api: house.begin(api, desk, spec, container))
                await self._until_it_greets(desk)
        except TimeoutError:
            why = f"nothing answered on port {vnc_options(spec.profile).port} within {_SECONDS_TO_START:.0f} s"
            raise await self._failed(desk, why) from None
        except BrokenError:
            raise
        except FleetError as e:
            raise await self._failed(desk, await self._why(desk, e)) from None

    async def _why(self, desk: Desk, e: FleetError) -> str:
        """What has failed, or, if the image's own program has ended by then, that."""
        try:
            await self.house.engine.do(lambda api: self.house.must_run(api, desk))
        except FleetError as ended:
            return str(ended)
        return str(e)

    async def _until_it_greets(self, desk: Desk) -> None:
        """The door is open before the image's server is up."""
        while True:
            try:
                with self._connect(desk) as sock:
                    said = await asyncio.get_running_loop().sock_recv(sock, _GREETING)
            except (UnavailableError, ConnectionResetError):
                said = b""
            if said:
                return _insist_on_vnc(desk, said)
            await self.house.engine.do(lambda api: self.house.must_run(api, desk))
            await asyncio.sleep(_AGAIN)

    async def _failed(self, desk: Desk, why: str) -> UnavailableError:
        said = (await self.log(desk)).strip()[-1500:]
        return UnavailableError(
            f"desktop {desk.id} did not start: {why}" + (f"; its image said: {said}" if said else ""),
            remedy="see what the image's documentation says of its port and its user, and mend the profile's options",
            code="start_failed",
            log=said,
        )

    async def log(self, desk: Desk) -> str:
        return await said_to_the_engine(self.house, desk)

    def _connect(self, desk: Desk) -> socket.socket:
        return door.connect(desk, "rfb.sock", self.house.layout.uid(desk.id))

    async def stop(self, handle: Handle) -> None:
        desk = self.desk(handle)
        if self.house.layout.used:
            await self.house.engine.do(lambda api: self.house.remove(api, desk))

    async def endpoint(self, handle: Handle) -> Endpoint | None:
        desk = self.desk(handle)
        if not desk.dir.exists():
            return None
        running = await self.house.engine.do(lambda api: self.house.running(api, desk))
        if running is None:
            return None

        async def connect() -> socket.socket:
            try:
                return self._connect(desk)
            except UnavailableError:
                await self.house.engine.do(lambda api: self.house.must_run(api, desk))
                raise

        within = handle.get("within")
        password = self.house.password(desk, str(running["Config"]["Labels"][BOOT]))
        where = f"the screen's own socket in {desk.run}"
        return Endpoint(connect, where, password, helped=False, within=within if isinstance(within, float) else None)

    async def found(self) -> list[Found]:
        return await found_at(self.house)

    async def check(self, profile: Profile | None = None) -> list[Check]:
        if profile is None:
            return []  # of the engine itself the other backend tells
        name = f"image of {profile.name}"
        try:
            await self.house.engine.do(lambda api: self.house.insist(api, profile))
        except FleetError as e:
            return [Check(name, False, str(e), needed=False)]
        return [Check(name, True, f"the engine has {profile.image}", needed=False)]


class _House(House):
    """The same, for containers in which nothing is ours."""

    def __init__(self, place: Place, host: str | None) -> None:
        super().__init__(place, host)
        self.layout = Layout(place, "docker-vnc")

    def insist(self, api: APIClient, profile: Profile) -> None:
        """Refuse, in words, what cannot be had."""
        own = vnc_options(profile)
        if profile.image is None:
            raise InvalidError(f'profile "{profile.name}" names no image', remedy="say image: …", code="no_image")
        for key in ("launch", "autostart", "home"):
            if getattr(profile, key):
                raise UnsupportedError(
                    f'profile "{profile.name}": {key}: needs a program of ours inside, and {profile.image} has none',
                    remedy=f"leave out {key}, or use an image of ours: cu-fleet image list",
                    code=f"no_{key}",
                )
        found = self.image_of(api, profile.image)
        self.image_of(api, own.door)
        _insist_on_user(profile, own, str(found["Config"].get("User") or ""))

    def clear(self, api: APIClient, desk: Desk, spec: Spec) -> Settled:
        self.insist(api, spec.profile)
        self.end(api, desk)
        if self.engine.near is None:
            self.engine.near = self._try_near(api, desk, spec)
        if not self.engine.near:
            raise UnsupportedError(
                f"desktops of images that are not ours need an engine that sees our files; {self.engine.host} does not",
                remedy="use this machine's engine, or an image of ours: cu-fleet image list",
                code="remote_engine",
            )
        self.layout.uids.take(desk.id)
        return Settled(self.layout.uid(desk.id), polled=False)

    def grounds(self, desk: Desk, spec: Spec, uid: int) -> list[Callable[[APIClient], None]]:
        """No volumes, and of files the one folder that the door sees."""
        network = [lambda api: self.create_network(api, desk)] if spec.profile.network == "full" else []
        return [lambda _: begin.make_run(desk, uid), *network]

    def written(self, api: APIClient, desk: Desk) -> int:
        """What lies over its image."""
        found = api.containers(all=True, size=True, filters={"name": f"^/{desk.name}$"})
        return sum(int(one.get("SizeRw") or 0) for one in found if self.layout.is_our_container(one))

    def password(self, desk: Desk, boot: str) -> str:
        """VNC heeds eight characters."""
        return base64.b32encode(self.layout.derived("password", desk.id, boot))[:8].decode()

    def create(self, api: APIClient, desk: Desk, spec: Spec, settled: Settled) -> str:
        words = self._container(api, desk, spec)
        return self.create_as(api, desk, spec.profile, words, require_limits=vnc_options(spec.profile).require_limits)

    def _container(self, api: APIClient, desk: Desk, spec: Spec) -> dict[str, Any]:
        profile, own = spec.profile, vnc_options(spec.profile)
        given = {own.password_env: self.password(desk, spec.boot)} if own.password_env else {}
        return {
            "image": profile.image,
            "name": desk.name,
            "command": list(own.command) or None,
            "user": own.user,
            "hostname": hostname(spec.label),
            "environment": {"TZ": profile.timezone, **profile.env, **given},
            "labels": self.layout.labels(desk.id, **{BOOT: spec.boot}),
            "host_config": api.create_host_config(
                network_mode=desk.name if profile.network == "full" else "none", log_config=short_log("1m"),
                cap_add=list(own.capabilities), init=own.init,
                **walls.powers(user_namespaces=own.user_namespaces), **walls.limits(profile, own.shm),
            ),
        }  # fmt: skip

    def begin(self, api: APIClient, desk: Desk, spec: Spec, container: str) -> None:
        """Start the container, and the door to it."""
        from docker.types import Mount

        api.start(container)
        own, uid = vnc_options(spec.profile), self.layout.uid(desk.id)
        made = api.create_container(
            own.door,
            ["/usr/bin/python3", "-I", "-S", "-c", _RELAY, str(own.port)],
            name=desk.door,
            entrypoint=[],
            user=f"{uid}:{uid}",
            working_dir="/",
            labels=self.layout.labels(desk.id),
            healthcheck={"test": ["NONE"]},
            host_config=api.create_host_config(
                mounts=[Mount(guest.RUN, str(desk.run), type="bind")], network_mode=f"container:{container}",
                mem_limit=64 << 20, memswap_limit=64 << 20, pids_limit=64, read_only=True, log_config=short_log("64k"),
                **walls.powers(user_namespaces=False),
            ),
        )  # fmt: skip
        api.start(made["Id"])


def _insist_on_user(profile: Profile, own: VncOptions, of_image: str) -> None:
    user = (own.user or of_image).partition(":")[0]
    if user in _ROOT and not own.root:
        raise InvalidError(
            f'profile "{profile.name}": {profile.image} runs as root',
            remedy="say options.user: 1000:1000, or, where the image needs it, options.root: true",
            code="runs_as_root",
        )


def _insist_on_vnc(desk: Desk, said: bytes) -> None:
    if not said.startswith(b"RFB"):
        raise BrokenError(f"what answers in desktop {desk.id} is no VNC server", code="not_rfb", desktop=desk.id)


class _Disk(Ability[DockerVncBackend]):
    async def room(self, handle: Handle) -> Room:
        return await asyncio.to_thread(Room.at, self.backend.house.layout.top)  # the engine sees our files

    async def used(self, handle: Handle) -> int:
        desk = self.backend.desk(handle)
        return await self.do(lambda api: self.backend.house.written(api, desk), slow=True)
