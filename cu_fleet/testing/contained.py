"""The inside of a `DesktopContainer`: what lies in it, how it begins, and how its doors are reached.

All of it goes over the one stream that is attached to the container's first program: the screen, commands, the guest
helper. So it works with any engine, near or far, needs no port and no network; and when whoever holds the stream is
gone, however that came, the engine ends the program's input, the program leaves, and the container with it.
"""

import asyncio
import io
import os
import secrets
import tarfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from cu_fleet.backends import door, inside
from cu_fleet.backends.base import Spec
from cu_fleet.backends.docker import begin
from cu_fleet.backends.docker.engine import Engine
from cu_fleet.backends.docker.tunnel import Tunnel, upgrade
from cu_fleet.backends.inside import HOME, HOME_BEGINS, UID
from cu_fleet.controller.helper import SOURCE, Helper
from cu_fleet.guest import init as guest
from cu_fleet.guest.tunnel import STATUS
from cu_fleet.model.action import parse_actions
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.profile import Profile
from cu_fleet.rfb.canvas import Frame
from cu_fleet.rfb.fingers import Extra
from cu_fleet.rfb.hands import Hands
from cu_fleet.rfb.screen import Screen

_SECONDS_TO_START = 60.0
_SECONDS_TO_END = 5.0
# The first program reaps and waits: for the tunnel, whose input is ours, and for the desktop, which ends it as well.
SCRIPT = f"""trap 'exit 143' TERM
mkfifo -m 600 {guest.RUN}/{STATUS} && : >{guest.RUN}/log || exit
exec 3<&0 4>&1 7<>{guest.RUN}/{STATUS} </dev/null >&2
( ( exec 3<&- 4>&- 7>&- 8<>{guest.RUN}/{STATUS} 9</dev/null
umask 022
"$@" 8>&- 9>&- & exec /usr/bin/python3 -I -S {guest.SETUP}/init.py $! ); kill -s TERM $$ ) 3<&- 4>&- 7>&- &
/usr/bin/python3 -I -S {guest.SETUP}/tunnel.py <&3 >&4 3<&- 4>&- 7>&- &
wait $!"""


@dataclass(frozen=True)
class Desk:
    """As much of a desktop as its doors need; none of its folders is here."""

    id: str
    run: Path = Path(guest.RUN)


def command(profile: Profile, label: str) -> list[str]:
    return ["/bin/sh", "-c", SCRIPT, label, *inside.screen(profile, label, opengl=False)]


def memory() -> dict[str, str]:
    own = f"mode=0700,uid={UID},gid={UID},size=64m"
    return {guest.RUN: own, f"/run/user/{UID}": own, "/tmp/.X11-unix": "mode=1777,size=1m"}  # noqa: S108 - inside


def archive(profile: Profile, label: str) -> bytes:
    """What is laid into the container before it starts: the system's own files, init's, and a fresh home."""
    spec = Spec(label, profile, secrets.token_hex(8), label)
    programs = {"tunnel.py": (files("cu_fleet.guest") / "tunnel.py").read_bytes()}
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in begin.system_files(spec, UID).items():
            if name != "hosts":  # the engine's own
                _add(tar, f"/etc/{name}", 0o644, content)
        _add(tar, guest.SETUP, 0o755, None)
        for name, content in (begin.own_files(spec) | programs).items():
            _add(tar, f"{guest.SETUP}/{name}", 0o644, content)
        for name, (mode, found) in {"": (0o700, None), "Shared": (0o700, None), **HOME_BEGINS}.items():
            _add(tar, f"{HOME}/{name}".rstrip("/"), mode, found, UID)
    return data.getvalue()


def _add(tar: tarfile.TarFile, path: str, mode: int, content: bytes | None, uid: int = 0) -> None:
    member = tarfile.TarInfo(path[1:])
    member.uid = member.gid = uid
    member.mode = mode
    member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
    member.size = len(content or b"")
    tar.addfile(member, io.BytesIO(content or b""))


class Room:
    """A desktop that runs, as one event loop reaches it."""

    def __init__(self, tunnel: Tunnel, desk: Desk, screen: Screen) -> None:
        self._tunnel, self._desk, self._screen = tunnel, desk, screen
        self._turn = asyncio.Lock()
        self._helper: Helper | None = None
        extra = Extra(self._button, self._lift)
        self._hands = Hands(screen, lambda: None, self._paste, extra, self._heard)

    @classmethod
    async def open(cls, engine: Engine, container: str) -> Self:
        """Start the container and return when its desktop is ready; its end takes the container along."""
        version, desk = await engine.do(lambda api: api.api_version), Desk(container[:12])
        async with AsyncExitStack() as held:
            reader, writer = await engine.dial()
            held.callback(writer.close)
            where = f"/v{version}/containers/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1"
            await upgrade(reader, writer, where, {})
            tunnel = Tunnel(reader, writer, desk.id)
            held.push_async_callback(tunnel.close)
            await engine.do(lambda api: api.start(container))
            try:
                async with asyncio.timeout(_SECONDS_TO_START):
                    await _ready(tunnel, desk)
                    screen = await Screen.open(tunnel.connect("rfb.sock"))
            except TimeoutError:
                raise _failed(tunnel, desk, f"it was not up within {_SECONDS_TO_START:.0f} s") from None
            held.pop_all()
        return cls(tunnel, desk, screen)

    async def close(self) -> None:
        """What it runs ends with the tunnel."""
        try:
            async with asyncio.timeout(_SECONDS_TO_END):
                if self._helper:
                    await self._helper.close()
                await self._screen.close()
        except TimeoutError:
            pass  # it does not answer any more
        finally:
            await self._tunnel.close()

    async def act(self, actions: Sequence[dict[str, Any]]) -> None:
        """One after the other; nothing of another call comes between."""
        parsed = parse_actions(list(actions))
        async with self._turn:
            for action in parsed:
                await self._hands.do(action)

    async def look(self, *, pointer: bool) -> Frame:
        async with self._turn:
            return await self._screen.frame(pointer=pointer)

    async def ask(self, do: str, **args: object) -> dict[str, object]:
        return await (await self._helping()).call(do, timeout=15.0, **args)

    async def run(self, argv: Sequence[str]) -> door.Command:
        return await door.run(self._desk, os.geteuid(), argv, None, None, self._tunnel.connect)

    async def _helping(self) -> Helper:
        if self._helper is None or not self._helper.alive:
            process = await self.run(["/usr/bin/python3", "-I", "-c", SOURCE])
            self._helper = Helper(process, self._desk.id)
        return self._helper

    async def _paste(self, text: str, press: Any) -> None:
        await (await self._helping()).paste(text, press)

    async def _button(self, name: str, down: bool, x: int, y: int) -> None:
        await self.ask("button", name=name, down=down, x=x, y=y)

    async def _lift(self) -> None:
        await self.ask("lift")

    async def _heard(self, presses: int) -> bool:
        return (await self.ask("heard", presses=presses))["heard"] is True


async def _ready(tunnel: Tunnel, desk: Desk) -> None:
    """Return when init has said so. The door is opened by whoever comes first, so it may not be there yet."""
    said = b""
    while b"ready" not in said:
        reader, writer = await asyncio.open_unix_connection(sock=tunnel.connect(STATUS))
        try:
            async for line in reader:
                said += line
                if b"ready" in said:
                    break
        finally:
            writer.close()
        if not tunnel.works:
            raise _failed(tunnel, desk, "it ended at once")
        await asyncio.sleep(0.02)


def _failed(tunnel: Tunnel, desk: Desk, why: str) -> UnavailableError:
    said = tunnel.said.decode("utf-8", "replace").strip()
    return UnavailableError(
        f"the desktop in container {desk.id} did not start: {why}" + (f"; it said: {said}" if said else ""),
        remedy="its image needs what cu-fleet image build desktop puts into it",
        code="start_failed",
    )
