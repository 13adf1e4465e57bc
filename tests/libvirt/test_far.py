"""Machines on another host."""

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from cu_fleet.backends.base import Backend, Place
from cu_fleet.backends.libvirt.far.host import Host
from cu_fleet.backends.libvirt.far.near import FarBackend
from cu_fleet.backends.libvirt.far.serving import Serving
from cu_fleet.backends.libvirt.far.talk import Reader, Writer
from cu_fleet.backends.memory import MemoryBackend, MemoryWorld
from cu_fleet.model.profile import Profile
from cu_fleet.testing.backend_contract import PlainBackendContract

T = TypeVar("T")


class Beside(Host):
    """A far side in this process, on a socket."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        super().__init__("user@there")
        self.path = folder / "sock"
        self.serving = Serving({backend.name: backend}, folder / "homes")
        self.server: asyncio.Server

    async def open(self) -> Self:
        self.server = await asyncio.start_unix_server(self.serving.accept, self.path)
        return self

    async def stream(self) -> tuple[Reader, Writer]:
        return await asyncio.open_unix_connection(self.path)

    async def close(self) -> None:
        self.server.close()
        await self.serving.close()


class TestFar(PlainBackendContract):
    """All that the fake can do, asked for from elsewhere."""

    gaps: ClassVar = {"lending": "no folder of this machine can lie in a desktop elsewhere"}

    def new_place(self, folder: Path) -> Place:
        self.world, self.hosts = MemoryWorld(), list[Beside]()
        self.there = Place(folder / "there", "there")
        (folder / "home").mkdir()
        return super().new_place(folder)

    async def make(self) -> Backend:
        backend = MemoryBackend(self.there, self.world)
        self.hosts.append(await Beside(backend, Path(tempfile.mkdtemp(dir=self.place.home))).open())
        return FarBackend(backend, self.hosts[-1], self.place)

    def run(self, body: Callable[[Backend], Coroutine[Any, Any, T]]) -> T:
        async def then_closed(backend: Backend) -> T:
            try:
                return await body(backend)
            finally:
                while self.hosts:
                    await self.hosts.pop().close()

        return super().run(then_closed)

    def profile(self) -> Profile:
        return Profile(name="contract", backend="memory")
