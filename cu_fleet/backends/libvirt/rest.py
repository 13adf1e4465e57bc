"""Whether a machine has come to rest, as its processors tell: none of them has anything to do.

Of a machine that nobody of ours is inside that is all there is to tell that it is up, besides its screen.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

from cu_fleet.backends import door
from cu_fleet.backends.libvirt import machines
from cu_fleet.backends.libvirt.hypervisor import Hypervisor
from cu_fleet.backends.libvirt.layout import Desk
from cu_fleet.model.errors import BrokenError

_REST = 10.0  # seconds of rest after which a machine is taken to be up
_WRONG = 60.0  # seconds of rest with a screen of another size, after which it will not change any more
_BUSY = 0.5  # of any of its processors' time
_NAP = 1.0


async def resting(hypervisor: Hypervisor, desk: Desk, busy: float) -> AsyncGenerator[float, None]:
    """Tell, every second, for how long none of its processors has wanted more than this share of its time.

    One that rests still hears its timers, and one that works may have to wait for its turn.
    """

    async def wanted() -> list[float]:
        return await hypervisor.do(lambda api: machines.wanted(api, machines.must_run(api, desk)))

    at = since = time.monotonic()
    now = await wanted()
    while True:
        await asyncio.sleep(_NAP)
        before, now = now, await wanted()
        last, at = at, time.monotonic()
        if max(one - then for then, one in zip(before, now, strict=True)) > busy * (at - last):
            since = at
        yield at - since


class Rest:
    """Whether a machine has come to rest, with its screen of the size it shall have."""

    def __init__(self, hypervisor: Hypervisor, desk: Desk, size: tuple[int, int], uid: int) -> None:
        self.hypervisor, self.desk, self.size, self.uid = hypervisor, desk, size, uid
        self.said = "it showed nothing"

    async def reached(self, after: float | None) -> None:
        if after is not None:
            await asyncio.sleep(after)
            await self.hypervisor.do(lambda api: machines.must_run(api, self.desk))
            return
        async with contextlib.aclosing(resting(self.hypervisor, self.desk, _BUSY)) as rests:
            async for rested in rests:
                if rested >= _REST and await self._shows(rested):
                    return

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
