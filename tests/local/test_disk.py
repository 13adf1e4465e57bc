"""What a desktop has written is counted, whatever it does to hide it; its shared memory ends somewhere."""

import pytest

from cu_fleet.model.desktop import Handle
from tests.local.support import WHO, Fleet, in_fleet
from tests.support import until

pytestmark = pytest.mark.real
_MB = 1 << 20


async def used(fleet: Fleet, handle: Handle) -> int:
    disk = fleet.backend.abilities.disk
    assert disk
    return await disk.used(handle)


async def must(fleet: Fleet, handle: Handle, script: str) -> None:
    code, said = await fleet.sh(handle, script)
    assert code == 0, said


@WHO
def test_all_that_is_written_is_counted(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        at_first = await used(fleet, handle)
        assert at_first < _MB
        await must(
            fleet, handle, "mkdir -p ~/deep/er; head -c 3000000 /dev/urandom >~/deep/er/f; ln ~/deep/er/f ~/twin"
        )
        assert 3_000_000 < await used(fleet, handle) - at_first < 4_000_000, "once, however often it is linked"
        await must(fleet, handle, "chmod 0 ~/deep/er ~/deep")
        assert await used(fleet, handle) - at_first > 3_000_000, "also where its owner may not look"
        await must(fleet, handle, "head -c 2000000 /dev/urandom >/tmp/f; head -c 2000000 /dev/urandom >~/Shared/f")
        assert await used(fleet, handle) - at_first > 7_000_000, "in /tmp and the slot as well"
        await must(
            fleet, handle, "setsid sh -c 'exec 5</tmp/f; rm /tmp/f; exec sleep 300' </dev/null >/dev/null 2>&1 &"
        )

        async def removed() -> bool:
            return (await fleet.sh(handle, "test -e /tmp/f"))[0] != 0

        await until(removed)
        assert await used(fleet, handle) - at_first > 7_000_000, "also what has no name any more"
        before = await used(fleet, handle)
        await must(fleet, handle, "cd; mkdir many; cd many; seq 5000 | xargs touch")
        assert await used(fleet, handle) - before > 5000 * 512, "names have their price"

    in_fleet(who, body)


@WHO
def test_shared_memory_ends_at_half_the_memory(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start(limits={"memory": "256M"})
        _, said = await fleet.sh(handle, "stat -f -c '%b %S' /dev/shm; stat -c %a /dev/shm; touch /dev/x 2>&1")
        size, mode, refused = said.splitlines()
        blocks, each = map(int, size.split())
        assert blocks * each == 128 * _MB
        assert mode == "1777"
        assert "Read-only" in refused

    in_fleet(who, body)
