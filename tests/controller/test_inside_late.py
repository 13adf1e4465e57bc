"""Files on their way while the desktop changes hands: nothing arrives at the next, and nothing of theirs is told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cu_fleet.backends.memory_inside import MemoryFile
from cu_fleet.model.access import Caller
from cu_fleet.model.errors import FleetError
from tests.controller.fleet import ANA, Fleet, running
from tests.support import run


async def _revoked(fleet: Fleet, lease: str) -> Caller:
    """The next agent's token, once it has the desktop."""
    await fleet.controller.revoke(ANA, lease)
    after = await fleet.granted("b")
    return await fleet.controller.caller(fleet.lease_token(after.lease))


async def _handed_over(fleet: Fleet, lease: str) -> Caller:
    after = await fleet.controller.reassign(ANA, lease, to="b", clean=False)
    return await fleet.controller.caller(fleet.lease_token(after.lease))


ENDS = pytest.mark.parametrize(("end", "code"), [(_revoked, "lease_revoked"), (_handed_over, "lease_reassigned")])
End = Callable[[Fleet, str], Awaitable[Caller]]


@ENDS
def test_an_upload_does_not_reach_the_next_agents_desktop(tmp_path: Path, end: End, code: str) -> None:
    async def body() -> None:
        async with running(tmp_path, max_desktops=1) as fleet:
            lease = await fleet.granted("a")
            who = await fleet.controller.caller(fleet.lease_token(lease.lease))
            begun, go_on = asyncio.Event(), asyncio.Event()

            async def data() -> AsyncIterator[bytes]:
                yield b"begun"
                begun.set()
                await go_on.wait()

            put = fleet.controller.put_file(who, lease.lease, "left", data(), 0o644)
            putting = asyncio.create_task(put, name="test: put")
            await begun.wait()
            after = await end(fleet, lease.lease)
            go_on.set()
            with pytest.raises(FleetError) as refused:
                await putting
            assert refused.value.code == code
            assert await fleet.controller.files(after, after.lease or "", "") == []

    run(body())


@ENDS
def test_a_download_ends_with_its_lease(tmp_path: Path, end: End, code: str) -> None:
    async def body() -> None:
        async with running(tmp_path, max_desktops=1) as fleet:
            lease = await fleet.granted("a")
            who = await fleet.controller.caller(fleet.lease_token(lease.lease))
            fleet.backend.desktop(lease.desktop or "").slot["big"] = MemoryFile(b"x" * (4 << 20))
            chunks = await fleet.controller.get_file(who, lease.lease, "big")
            assert await anext(chunks)
            await end(fleet, lease.lease)
            with pytest.raises(FleetError) as refused:
                async for _ in chunks:
                    pass
            assert refused.value.code == code

    run(body())
