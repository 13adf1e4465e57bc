"""Whether a machine has come to rest, as its processors tell: none of them has anything to do."""

import asyncio
import time
from collections.abc import AsyncGenerator

from cu_fleet.backends.libvirt import machines
from cu_fleet.backends.libvirt.hypervisor import Hypervisor
from cu_fleet.backends.libvirt.layout import Desk

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
