"""What every desktop in a container can do, whoever's image it is: the engine does it."""

from typing import Generic, Protocol, TypeVar

from cu_fleet.backends.base import Found, Usage
from cu_fleet.backends.docker.house import House
from cu_fleet.backends.docker.layout import Desk
from cu_fleet.model.desktop import Handle


class OnEngine(Protocol):
    @property
    def house(self) -> House: ...

    def desk(self, handle: Handle) -> Desk: ...

    async def log(self, desk: Desk) -> str: ...


B = TypeVar("B", bound=OnEngine)


class Ability(Generic[B]):
    def __init__(self, backend: B) -> None:
        self.backend = backend
        self.house = backend.house
        self.do = backend.house.engine.do


class Freeze(Ability[OnEngine]):
    async def freeze(self, handle: Handle) -> None:
        desk = self.backend.desk(handle)
        await self.do(lambda api: self.house.freeze(api, desk))

    async def thaw(self, handle: Handle) -> None:
        desk = self.backend.desk(handle)
        await self.do(lambda api: self.house.thaw(api, desk))


class Network:
    modes = frozenset({"none", "full"})


class Logs(Ability[OnEngine]):
    async def logs(self, handle: Handle) -> str:
        return await self.backend.log(self.backend.desk(handle))


class Meter(Ability[OnEngine]):
    async def usage(self, handle: Handle) -> Usage:
        desk = self.backend.desk(handle)
        return await self.do(lambda api: self.house.usage(api, desk))


async def said_to_the_engine(house: House, desk: Desk) -> str:
    """The end of what its container has said."""
    said: bytes = await house.engine.do(lambda api: api.logs(desk.name, tail=1000))
    return said.decode("utf-8", "replace")[-(64 << 10) :]


async def found_at(house: House) -> list[Found]:
    """Each desktop that has left anything, and what."""
    if not house.layout.used:
        return []
    there = await house.engine.do(house.found)
    return [Found(desktop, {"desktop": desktop}, " and ".join(kinds)) for desktop, kinds in there.items()]
