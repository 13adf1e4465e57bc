"""A container on Xvfb with x11vnc, as its profile starts it: seen, typed into, and lost with either of the two.

What that pair lacks, and what it keeps, `tests/rfb` shows with the contracts of screens, without a container.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from cu_fleet.client import Desktop, Fleet
from cu_fleet.model.errors import UnavailableError
from cu_fleet.testing.dockerd import PrivateDocker
from tests.acceptance.home import Home, home
from tests.rfb.x11vnc import WITHIN
from tests.support import run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
TEXT = "keys, and ünï → 漢字"


@pytest.fixture
def house(with_xvfb: PrivateDocker) -> Iterator[Home]:
    with home() as one:
        one.env["DOCKER_HOST"] = with_xvfb.host
        yield one


@contextlib.asynccontextmanager
async def leased(house: Home) -> AsyncIterator[tuple[Fleet, Desktop, str]]:
    lease = house.cli("lease", "acquire", "--agent", "a", "--profile", "docker-xvfb")
    async with house.client() as fleet:
        yield fleet, await fleet.open(lease["lease"]), lease["desktop"]


def test_it_is_seen_clicked_and_typed_into_and_says_how_old_its_pictures_may_be(house: Home) -> None:
    async def body() -> None:
        async with leased(house) as (fleet, desktop, where):
            before = await desktop.screenshot()
            assert (before.size, before.frame.within) == ((1280, 800), WITHIN)
            await desktop.launch("terminal")

            async def there() -> dict[str, object] | None:
                return next((x for x in await desktop.windows() if x["focused"]), None)

            await until(there, timeout=60)
            await desktop.type(f"echo '{TEXT}' > said\n")

            async def said() -> bool:
                return (await fleet.run(where, ["cat", "said"])).stdout.decode() == f"{TEXT}\n"

            await until(said, timeout=60)
            await desktop.clipboard_set(TEXT)
            assert await desktop.clipboard_get() == TEXT
            await asyncio.sleep(WITHIN)  # by so much a picture may be older than the question
            assert (await desktop.screenshot()).frame.sha256 != before.frame.sha256

    run(body(), timeout=150)


@pytest.mark.parametrize("program", ["Xvfb", "x11vnc"])
def test_without_either_the_desktop_is_lost_and_its_agent_hears_why(house: Home, program: str) -> None:
    async def body() -> None:
        async with leased(house) as (fleet, desktop, where):
            find = f'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = {program} ] && kill -9 ${{p#/proc/}}; done; true'
            with contextlib.suppress(UnavailableError):  # the command may be lost with its desktop
                await fleet.run(where, ["sh", "-c", find])

            async def over() -> str | None:
                view = await fleet.show(desktop.id)
                return view.reason if view.state not in ("active", "waiting") else None

            assert "its screen died" in await until(over, timeout=60)

    run(body(), timeout=150)
