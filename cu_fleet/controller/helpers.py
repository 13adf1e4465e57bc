"""Programs of ours inside desktops, one for each desktop: started when first needed, and again when it or its desktop
began anew."""

import asyncio

from cu_fleet.backends.base import Exec, Process
from cu_fleet.controller.core import Core
from cu_fleet.controller.helper import Helper
from cu_fleet.model.desktop import Desktop
from cu_fleet.model.errors import UnsupportedError


class Helpers:
    def __init__(self, core: Core, source: str) -> None:
        self.core, self._source = core, source
        self._running: dict[str, tuple[str, Helper]] = {}
        self._starting: dict[str, asyncio.Lock] = {}

    async def of(self, desktop: Desktop) -> Helper:
        async with self._starting.setdefault(desktop.id, asyncio.Lock()):
            boot, helper = self._running.get(desktop.id, ("", None))
            if helper and boot == desktop.boot and helper.alive:
                return helper
            if helper:
                await helper.close()
            if (abilities := self.core.abilities(desktop)).exec is None or not abilities.helper:
                raise cannot(desktop, "helper")
            process = await self.core.bounded(self._begun(desktop), "start the helper")
            helper = Helper(process, desktop.id)
            self._running[desktop.id] = (desktop.boot, helper)
            return helper

    async def _begun(self, desktop: Desktop) -> Process:
        standing = self.core.abilities(desktop).standing
        if standing and (ready := await standing.take(desktop.handle, self._source)):
            return ready
        argv = ["/usr/bin/python3", "-I", "-c", self._source]
        return await exec_of(self.core, desktop).exec(desktop.handle, argv)

    async def forget(self, desktop_id: str) -> None:
        _, helper = self._running.pop(desktop_id, ("", None))
        self._starting.pop(desktop_id, None)
        if helper:
            await helper.close()

    async def close(self) -> None:
        for desktop in list(self._running):
            await self.forget(desktop)


def exec_of(core: Core, desktop: Desktop) -> Exec:
    ability = core.abilities(desktop).exec
    if ability is None:
        raise cannot(desktop, "exec")
    return ability


def cannot(desktop: Desktop, ability: str) -> UnsupportedError:
    return UnsupportedError(
        f"desktop {desktop.id} of profile {desktop.profile}, backend {desktop.backend}, has no {ability}",
        code=f"no_{ability}",
        backend=desktop.backend,
    )
