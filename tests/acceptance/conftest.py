"""One running home for all tests that leave it as they found it."""

from collections.abc import Iterator

import pytest

from tests.acceptance.home import Home, at_rest, home
from tests.support import run

SMALL = """
backend: local
screen: {width: 640, height: 480}
gates: none
per_agent: 2
launch:
  terminal: {command: [xterm, -fa, "DejaVu Sans Mono", -fs, "10"]}
"""


@pytest.fixture(scope="session")
def running_home() -> Iterator[Home]:
    with home() as one:
        one.write_profile("small", SMALL)
        one.cli("lease", "list")  # the first command that needs a controller starts one
        yield one


@pytest.fixture
def house(running_home: Home) -> Iterator[Home]:
    """The running home: nothing is leased or kept in it, before and after."""
    yield running_home
    print(running_home.warnings())  # pytest shows it where the test failed
    run(_cleared(running_home), timeout=90)


async def _cleared(one: Home) -> None:
    async with one.client() as fleet:
        for lease in await fleet.leases():
            await fleet.release(lease.lease)
        for agent in await fleet.agents():
            if agent.barred_until:
                await fleet.unbar_agent(agent.agent)
        await at_rest(fleet)
        for desktop in await fleet.desktops():
            if desktop.name or desktop.profile == "small":
                await fleet.remove_desktop(desktop.desktop)
        for snapshot in await fleet.snapshots():
            await fleet.delete_snapshot(snapshot.id)
