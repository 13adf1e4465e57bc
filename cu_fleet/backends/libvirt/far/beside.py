"""`cu-fleet serve-machines`: the far side as a process, begun through SSH by a controller elsewhere.

Its standard input is what it lives by: a line that says who asks and for what, then a sign of life every few seconds.
When that ends, or none comes for a while, it ends, so that nothing of it outlasts a connection that broke. One line of
its output says where it listens: on a socket in a folder that only this user may enter.

Whoever serves a fleet is alone: the one before, which may not know yet that its connection broke, is told to leave.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from cu_fleet.backends.base import Backend, Place
from cu_fleet.backends.libvirt import building
from cu_fleet.backends.libvirt.backend import LibvirtBackend
from cu_fleet.backends.libvirt.far import greeting, homes, words
from cu_fleet.backends.libvirt.far.serving import Serving
from cu_fleet.backends.libvirt.far.talk import Talk
from cu_fleet.backends.libvirt.far.words import Words
from cu_fleet.backends.libvirt.foreign import LibvirtVncBackend
from cu_fleet.backends.libvirt.layout import STORE, drop
from cu_fleet.model.errors import FleetError, UnavailableError

log = logging.getLogger(__name__)
_SILENT = 30.0  # seconds without a sign of life
_SECONDS_TO_LEAVE = 40.0  # for whoever served before
_MOST_HELLO = 4096


def backends_of(place: Place, uri: str | None, store: Path | None = None) -> dict[str, Backend]:
    several: list[Backend] = [LibvirtBackend(place, uri, store), LibvirtVncBackend(place, uri, store)]
    return {backend.name: backend for backend in several}


def abilities_of(backends: dict[str, Backend]) -> dict[str, list[str]]:
    """What each can do for somebody elsewhere, whose folders cannot lie in a desktop here."""
    return {
        name: [ability for ability in words.ABILITIES if getattr(one.abilities, ability) is not None]
        for name, one in backends.items()
    }


async def serve(home: Path, machines: Path | None, making: Callable[..., dict[str, Backend]] = backends_of) -> int:
    """Until nobody is there any more. `home` is this user's own, `machines` where theirs lie."""
    reader = await _stdin()  # before anything is answered: who stands at a terminal is told so in words
    try:
        fleet, uri = greeting.asked(await _hello(reader))
    except FleetError as e:
        greeting.answer(words.refusal(e))
        return 1
    own = home / "far" / fleet
    store = machines or (STORE if os.geteuid() == 0 else home / "libvirt")
    place = Place(own, fleet, profile_dirs=(home / "far" / "homes",), machines=store)
    backends = making(place, uri, store)
    with tempfile.TemporaryDirectory(prefix="cu-fleet-machines-") as folder, Alone(own, Path(folder, "sock")) as alone:
        serving = Serving(backends, place.profile_dirs[0], alone.reached)
        serving.beside |= {"build": _Build(place, uri, store), "images": _images(place, store), "leave": alone.leave}
        homes.tidy(place.profile_dirs[0])
        server = await asyncio.start_unix_server(serving.accept, alone.sock, backlog=1000)
        alone.sock.chmod(0o600)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, alone.left.set)
        greeting.answer({"socket": str(alone.sock), "abilities": abilities_of(backends)})
        try:
            await _until(reader, alone.left)
        finally:
            server.close()
            await serving.close()
    return 0


async def _stdin() -> asyncio.StreamReader:
    kind = os.fstat(0).st_mode
    if not stat.S_ISFIFO(kind) and not stat.S_ISSOCK(kind):
        raise greeting.not_for_hands()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _hello(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(_SILENT):
            line = await reader.readuntil(b"\n")
    except (TimeoutError, EOFError, asyncio.LimitOverrunError):
        raise greeting.not_for_hands() from None
    return line[:_MOST_HELLO]


async def _until(reader: asyncio.StreamReader, left: asyncio.Event) -> None:
    """Until the controller is not there any more, or another of its connections is in this one's place."""

    async def silent() -> None:
        with contextlib.suppress(TimeoutError, OSError):
            while True:
                async with asyncio.timeout(_SILENT):
                    if not await reader.read(4096):
                        return

    tasks = [asyncio.create_task(silent(), name="signs of life"), asyncio.create_task(left.wait(), name="told to go")]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Alone:
    """One process serves a fleet here: the kernel gives the lock back when one dies. In it stands where one listens."""

    def __init__(self, own: Path, sock: Path) -> None:
        self.own, self.sock = own, sock
        self.left = asyncio.Event()
        self._fd = -1
        self._taking = asyncio.Lock()
        self._held = False

    def __enter__(self) -> "Alone":
        self.own.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(self.own / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    async def leave(self, talk: Talk, asked: Words) -> None:
        del talk, asked
        self.left.set()

    async def reached(self) -> None:
        """Return when this process is the one; the one before is told to leave, and waited for."""
        async with self._taking:
            if self._held:
                return
            try:
                async with asyncio.timeout(_SECONDS_TO_LEAVE):
                    while not self._taken():
                        await self._tell()
                        await asyncio.sleep(0.1)
            except TimeoutError:
                raise UnavailableError(
                    f"somebody else serves this fleet, and does not leave (its lock is {self.own / 'lock'})",
                    remedy="see who: fuser -v on that lock",
                    code="host_busy",
                ) from None
            self._held = True

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        before = self._holder()
        if before != self.sock and before.parent.name.startswith("cu-fleet-machines-"):
            drop(before.parent)  # whoever died had no time for it
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(self.sock).encode(), 0)
        return True

    def _holder(self) -> Path:
        return Path(os.pread(self._fd, 4096, 0).decode("utf-8", "replace") or "/")

    async def _tell(self) -> None:
        with contextlib.suppress(OSError, FleetError):
            reader, writer = await asyncio.open_unix_connection(self._holder())
            async with Talk(reader, writer, "whoever serves") as talk:
                await talk.say({"do": "leave"})
                await talk.over()


# images


def _images(place: Place, store: Path) -> Any:
    async def listing(talk: Talk, asked: Words) -> object:
        del talk, asked
        return await asyncio.to_thread(building.listing, place, store)

    return listing


class _Build:
    def __init__(self, place: Place, uri: str, store: Path) -> None:
        self.place, self.uri, self.store = place, uri, store

    async def __call__(self, talk: Talk, asked: Words) -> object:
        loop, said = asyncio.get_running_loop(), asyncio.Queue[str]()

        def say(line: str) -> None:
            loop.call_soon_threadsafe(said.put_nowait, line)

        profiles, name, fresh = words.profiles_of(asked["profiles"]), str(asked["name"]), bool(asked["fresh"])
        work = building.build(self.place, name, say, profiles, fresh=fresh, uri=self.uri, store=self.store)
        telling = asyncio.create_task(_told(talk, said), name="progress")
        try:
            made = await work
            await said.join()
            return made
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)


async def _told(talk: Talk, lines: "asyncio.Queue[str]") -> None:
    async for line in _coming(lines):
        await talk.say({"progress": line})


async def _coming(lines: "asyncio.Queue[str]") -> AsyncIterator[str]:
    while True:
        line = await lines.get()
        try:
            yield line
        finally:
            lines.task_done()
