"""The backend as the controller has it, when its machines are on another host: it asks the one over there.

What it can do is known before anybody has connected, from the backend it stands for. A fleet that never had a desktop
over there asks nobody what there is. A handle says whose desktop it is, so that nobody looks for it at the wrong host.
"""

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cu_fleet.backends import inside
from cu_fleet.backends.base import (
    Backend,
    Check,
    Endpoint,
    FileInfo,
    Found,
    Place,
    Process,
    Room,
    Saved,
    Spec,
    Usage,
)
from cu_fleet.backends.libvirt.far import homes, words
from cu_fleet.backends.libvirt.far.host import Host
from cu_fleet.backends.libvirt.far.process import FarProcess
from cu_fleet.backends.libvirt.far.talk import IN, OUT, Talk, splice
from cu_fleet.backends.libvirt.far.words import Seen
from cu_fleet.backends.libvirt.images import Golden
from cu_fleet.backends.libvirt.telling import telling
from cu_fleet.model.desktop import AT, PROGRESS, Handle
from cu_fleet.model.errors import FleetError, UnavailableError
from cu_fleet.model.profile import Profile

_SECONDS_TO_END = 15.0  # that a call may take to end over there when nobody wants its answer any more


class Asking:
    """One backend's calls to the other host."""

    def __init__(self, host: Host, place: Place, name: str) -> None:
        self.host, self.place, self.name = host, place, name
        self._marks = place.home / "machines-elsewhere"

    @property
    def mark(self) -> Path:
        return self._marks / hashlib.sha256(self.host.name.encode()).hexdigest()[:16]

    @property
    def used(self) -> bool:
        """Whether this fleet ever had a desktop over there."""
        return self.mark.exists()

    def use(self) -> None:
        self._marks.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.mark.write_text(f"{self.host.name}\n")

    def own(self, handle: Handle) -> Handle:
        """The handle as it was made over there."""
        at = handle.get(AT, "this machine")
        if at != self.host.name:
            raise UnavailableError(
                f"desktop {handle.get('desktop')} is on {at}, and machines are on {self.host.name} by now",
                remedy=f"set the hypervisor back to the one on {at} until its desktops have ended",
                code="other_host",
            )
        return {key: value for key, value in handle.items() if key != AT}

    @asynccontextmanager
    async def asking(self, do: str, **asked: object) -> AsyncIterator[Talk]:
        """A call. Whoever leaves it in the middle waits a while until it has ended over there, too."""
        async with await self.host.talk() as talk:
            await talk.say({"backend": self.name, "do": do, **asked})
            try:
                yield talk
            except BaseException:
                await _left(talk)
                raise

    async def call(self, do: str, **asked: object) -> Any:
        async with self.asking(do, **asked) as talk:
            return await self.answer(do, talk)

    async def answer(self, do: str, talk: Talk) -> Any:
        said = await talk.heard()
        if "error" in said:
            raise words.refusal_of(said["error"], self.host.name)
        if "done" not in said:
            raise words.nonsense(self.host.name, str(said)[:200])
        return words.answer_of(do, said["done"], self.host.name)

    async def made(self, do: str, spec: Spec, **asked: Handle) -> AsyncGenerator[Handle, None]:
        """Handles, the next of which is asked for only when the one before has been taken."""
        await asyncio.to_thread(self.use)
        laid: list[Profile] = []
        async with aclosing(telling(self._lay(spec.profile, laid), self._laying)) as told:
            async for progress in told:
                yield {"desktop": spec.desktop, **asked.get("handle", {}), AT: self.host.name, PROGRESS: progress}
        async with self.asking(do, spec=words.spec(replace(spec, profile=laid[0])), **asked) as talk:
            while True:
                await talk.say({"next": True})
                said = await talk.heard()
                if "handle" not in said:
                    talk.words.appendleft(said)
                    await self.answer(do, talk)
                    return
                yield words.handle_of(said["handle"], self.host.name) | {AT: self.host.name}

    async def _lay(self, profile: Profile, laid: list[Profile]) -> None:
        laid.append(await self.lay(profile))

    def _laying(self, seconds: float) -> str:
        return f"what its home begins with is carried to {self.host.name}, for {seconds:.0f} s so far"

    async def lay(self, profile: Profile) -> Profile:
        """The profile as it reads over there, where its home's contents are under a name that follows from them."""
        folder = await asyncio.to_thread(inside.template, profile, self.place.profile_dirs)
        if folder is None:
            return profile
        digest, data = await asyncio.to_thread(homes.pack, folder)
        if not await self.call("has_home", home=digest):
            async with self.asking("lay_home", home=digest) as talk:
                await self._send(talk, _whole(data))
                await self.answer("lay_home", talk)
        return profile.but(home=digest)

    async def _send(self, talk: Talk, data: AsyncIterator[bytes]) -> None:
        """All of it, unless the other side has enough before."""
        async for chunk in data:
            left = memoryview(chunk)
            while left:
                if not (sent := await talk.some(IN, left)):
                    return
                left = left[sent:]
        await talk.end(IN)

    async def put(self, talk: Talk, data: AsyncIterator[bytes]) -> int:
        await self._send(talk, data)
        size: int = await self.answer("put", talk)
        return size


async def _left(talk: Talk) -> None:
    talk.leave()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SECONDS_TO_END):
            await talk.over()


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


class FarBackend:
    """What stands for a backend of another host."""

    def __init__(self, like: Backend, host: Host, place: Place) -> None:
        """`like` is the same backend as it would be here: its name, and what it can do."""
        self.name = like.name
        self.ask = Asking(host, place, like.name)
        own = {name: kind(self.ask) for name, kind in _ABILITIES.items() if getattr(like.abilities, name) is not None}
        self.abilities = replace(like.abilities, lending=None, marks=None, standing=None, **own)

    async def start(self, spec: Spec) -> AsyncGenerator[Handle, None]:
        async with aclosing(self.ask.made("start", spec)) as made:
            async for handle in made:
                yield handle

    async def stop(self, handle: Handle) -> None:
        there = self.ask.own(handle)
        if self.ask.used:
            await self.ask.call("stop", handle=there)

    async def endpoint(self, handle: Handle) -> Endpoint | None:
        there = self.ask.own(handle)
        seen: Seen | None = await self.ask.call("endpoint", handle=there) if self.ask.used else None
        if seen is None:
            return None
        where = f"{seen.where} on {self.ask.host.name}"
        return Endpoint(partial(self._connect, there), where, seen.password, seen.helped, seen.within)

    async def _connect(self, handle: Handle) -> socket.socket:
        """One end of a pair, whose other end is a stream that leads to the screen's own socket."""
        talk = await self.ask.host.talk()
        try:
            await talk.say({"backend": self.name, "do": "screen", "handle": handle})
            await self.ask.answer("screen", talk)
            ours, theirs = socket.socketpair()
        except BaseException:
            talk.close()
            raise
        for one in (ours, theirs):
            one.setblocking(False)
        task = self.ask.host.carry(splice(talk, ours, to=OUT, back=IN), f"screen of {handle.get('desktop')}")
        task.add_done_callback(partial(_closed, ours, talk))  # also if it never began
        return theirs

    async def found(self) -> list[Found]:
        if not self.ask.used:
            return []
        there: list[Found] = await self.ask.call("found")
        return [replace(one, handle=one.handle | {AT: self.ask.host.name}) for one in there]

    async def check(self, profile: Profile | None = None) -> list[Check]:
        """What there is to mend is over there."""
        at = self.ask.host.name
        try:
            said = profile and words.profiles([profile.but(home=None)])[0]
            found: list[Check] = await self.ask.call("check", profile=said)
        except FleetError as e:
            return [Check("libvirt", False, f"no desktops in virtual machines: {e}", needed=False)]
        return [_told(one, at) for one in found]


def _told(one: Check, at: str) -> Check:
    mend = f"; over there: {'; '.join(' '.join(command) for command in one.fix)}" if one.fix and not one.ok else ""
    return replace(one, detail=f"on {at}: {one.detail}{mend}", fix=())


def _closed(sock: socket.socket, talk: Talk, task: object) -> None:
    del task
    sock.close()
    talk.close()


class _Ability:
    def __init__(self, ask: Asking) -> None:
        self.ask = ask

    async def on(self, do: str, handle: Handle, **more: object) -> Any:
        return await self.ask.call(do, handle=self.ask.own(handle), **more)


class _Snapshots(_Ability):
    async def save(self, handle: Handle, snapshot: str) -> Saved:
        made: Saved = await self.on("save", handle, snapshot=snapshot)
        return made

    async def restore(self, handle: Handle, spec: Spec) -> AsyncGenerator[Handle, None]:
        async with aclosing(self.ask.made("restore", spec, handle=self.ask.own(handle))) as made:
            async for last in made:
                yield last

    async def delete(self, snapshot: str) -> None:
        if self.ask.used:
            await self.ask.call("delete", snapshot=snapshot)

    async def saved(self) -> list[str]:
        there: list[str] = await self.ask.call("saved") if self.ask.used else []
        return there


class _Exec(_Ability):
    async def exec(
        self,
        handle: Handle,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        asked = {"handle": self.ask.own(handle), "argv": list(argv), "env": dict(env or {}), "cwd": cwd}
        talk = await self.ask.host.talk()
        try:
            await talk.say({"backend": self.ask.name, "do": "exec", **asked})
            await self.ask.answer("exec", talk)
        except BaseException:
            talk.close()
            raise
        return FarProcess(talk)


class _Freeze(_Ability):
    async def freeze(self, handle: Handle) -> None:
        await self.on("freeze", handle)

    async def thaw(self, handle: Handle) -> None:
        await self.on("thaw", handle)


class _Files(_Ability):
    async def put(self, handle: Handle, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644) -> int:
        async with self.ask.asking("put", handle=self.ask.own(handle), path=path, mode=mode) as talk:
            return await self.ask.put(talk, data)

    async def get(self, handle: Handle, path: str) -> AsyncIterator[bytes]:
        async with self.ask.asking("get", handle=self.ask.own(handle), path=path) as talk:
            async for chunk in talk.chunks(OUT):
                yield chunk
            await self.ask.answer("get", talk)

    async def listing(self, handle: Handle, path: str = "") -> list[FileInfo]:
        there: list[FileInfo] = await self.on("listing", handle, path=path)
        return there

    async def remove(self, handle: Handle, path: str) -> None:
        await self.on("remove", handle, path=path)


class _Logs(_Ability):
    async def logs(self, handle: Handle) -> str:
        said: str = await self.on("logs", handle)
        return said


class _Meter(_Ability):
    async def usage(self, handle: Handle) -> Usage:
        found: Usage = await self.on("usage", handle)
        return found


class _Disk(_Ability):
    async def used(self, handle: Handle) -> int:
        size: int = await self.on("used", handle)
        return size

    async def room(self, handle: Handle) -> Room | None:
        there: Room | None = await self.on("room", handle)
        return there and replace(there, host=self.ask.host.name)


class _Tidy(_Ability):
    async def tidy(self) -> list[str]:
        removed: list[str] = await self.ask.call("tidy") if self.ask.used else []
        return [f"{one} on {self.ask.host.name}" for one in removed]


_ABILITIES: dict[str, Any] = {
    "snapshots": _Snapshots,
    "exec": _Exec,
    "freeze": _Freeze,
    "files": _Files,
    "logs": _Logs,
    "meter": _Meter,
    "disk": _Disk,
    "tidy": _Tidy,
}


class FarImages:
    """The images of machines over there."""

    def __init__(self, host: Host, place: Place) -> None:
        self.ask = Asking(host, place, "libvirt")

    async def listing(self) -> list[Golden]:
        there: list[Golden] = await self.ask.call("images")
        return there

    async def build(self, name: str, say: Callable[[str], None], profiles: Sequence[Profile], *, fresh: bool) -> Golden:
        laid = [await self.ask.lay(one) for one in profiles]
        async with self.ask.asking("build", name=name, fresh=fresh, profiles=words.profiles(laid)) as talk:
            while "progress" in (said := await talk.heard()):
                say(str(said["progress"])[:2000])
            talk.words.appendleft(said)
            made: Golden = await self.ask.answer("build", talk)
            return made
