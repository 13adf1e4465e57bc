"""When a machine that nobody of ours is inside is up: when it has come to rest."""

import asyncio
import time

from cu_fleet.backends import door
from cu_fleet.backends.libvirt import machines
from cu_fleet.backends.libvirt.hypervisor import Hypervisor
from cu_fleet.backends.libvirt.layout import Desk
from cu_fleet.model.errors import BrokenError

_REST = 10.0  # seconds of rest after which a machine is taken to be up
_WRONG = 60.0  # seconds of rest with a screen of another size, after which it will not change any more
_BUSY = 0.5  # of any of its processors' time; one that rests still hears its timers, and may have to wait for a turn
_NAP = 1.0


class Rest:
    """Whether a machine has come to rest: its processors idle, its screen of the size it shall have."""

    def __init__(self, hypervisor: Hypervisor, desk: Desk, size: tuple[int, int], uid: int) -> None:
        self.hypervisor, self.desk, self.size, self.uid = hypervisor, desk, size, uid
        self.said = "it showed nothing"

    async def reached(self, after: float | None) -> None:
        if after is not None:
            await asyncio.sleep(after)
            await self.hypervisor.do(lambda api: machines.must_run(api, self.desk))
            return
        at = since = time.monotonic()
        wanted = await self._wanted()
        while True:
            await asyncio.sleep(_NAP)
            before, wanted = wanted, await self._wanted()
            last, at = at, time.monotonic()
            if max(now - then for then, now in zip(before, wanted, strict=True)) > _BUSY * (at - last):
                since = at
            if at - since >= _REST and await self._shows(at - since):
                return

    async def _wanted(self) -> list[float]:
        return await self.hypervisor.do(lambda api: machines.wanted(api, machines.must_run(api, self.desk)))

    async def _shows(self, rested: float) -> bool:
        with door.connect(self.desk, self.desk.screen.name, self.uid) as sock:
            found = await door.screen_size(sock)
        self.said = f"its screen is {found[0]}x{found[1]}, not {self.size[0]}x{self.size[1]} as its profile says"
        if found != self.size and rested > _WRONG:
            raise BrokenError(
                f"the image is up, but {self.said}",
                remedy=f"say screen: {{width: {found[0]}, height: {found[1]}}}",
                code="wrong_geometry",
            )
        return found == self.size
