"""The same story with its record in PostgreSQL: killed and started again, and one controller at a time."""

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from cu_fleet.model.errors import FleetError
from tests.acceptance.eyes import events, held, inside, sink
from tests.acceptance.home import check_grants, home, serving
from tests.support import run, until

if TYPE_CHECKING:
    from cu_fleet.testing.postgres import PrivatePostgres

pytestmark = pytest.mark.real


def test_killed_in_the_middle_of_typing_it_goes_on_where_it_was(postgres: "PrivatePostgres") -> None:
    url = postgres.new_database()
    with home(database=url) as one, home() as second:
        controller = one.up()
        run(serving(one))
        view = one.cli("lease", "acquire", "--agent", "a", "--profile", "local", "--resource", "bank", "--ttl", "10m")
        assert one.cli("status")["database"] == "postgresql"
        assert not (one.fleet_home / "fleet.db").exists()

        async def killed() -> str:
            async with one.client() as fleet:
                desktop = await fleet.open(view["lease"])
                await inside(fleet, desktop.id, "echo before > ~/note")
                await sink(fleet, desktop.id)
                waiting = await fleet.ask(
                    "POST",
                    "/v1/leases",
                    {"agent": "b", "profile": "local", "resources": ["bank"], "wait": None},
                    hold=0,
                )
                assert waiting["place"] == 1
                batch = [{"type": "key_down", "key": "shift"}, {"type": "type", "text": "x" * 50_000}]
                typing = asyncio.create_task(desktop.act(batch), name="type")

                async def under_way() -> bool:
                    seen = await fleet.run(desktop.id, ["grep", "-c", "^key 120", "/home/agent/events"])
                    return int(seen.stdout) > 20

                await until(under_way)
                await asyncio.to_thread(one.kill, controller)
                with contextlib.suppress(FleetError):
                    await typing
                return str(waiting["lease"])

        waiting = run(killed(), timeout=60)
        again = one.up()
        run(serving(one))

        async def goes_on() -> None:
            async with one.client() as fleet:
                after = await fleet.show(view["lease"])
                assert (after.state, after.desktop, after.generation) == ("active", view["desktop"], view["generation"])
                assert (after.remaining or 0) > 500
                assert (await fleet.show(waiting)).place == 1
                desktop = await fleet.open(view["lease"])
                assert desktop.lease.token == view["token"]
                assert await inside(fleet, desktop.id, "cat ~/note") == "before\n"
                await desktop.key("b")
                seen = await events(fleet, desktop.id, 1)
                assert held(seen) == set()
                assert seen[-2:] == ["key 98", "keyup 98"]
                assert seen.count("key 120") < 50_000
                assert "interrupted" in [x.result for x in await fleet.audit(what="act.done")]
                await fleet.release(view["lease"])

                async def granted() -> bool:
                    return (await fleet.show(waiting)).state == "active"

                await until(granted)

        run(goes_on(), timeout=60)
        assert one.cli("audit", "verify")["ok"] is True
        refused = second.cli("up", "--port", "0", exit_code=3, CU_FLEET_DATABASE=url)
        assert refused["error"] == "database_in_use"
        assert f"process {again.pid}" in refused["message"]
        assert one.cli("lease", "show", waiting)["state"] == "active"
        one.cli("down")
        again.wait(30)
        other_key = second.cli("up", "--port", "0", exit_code=1, CU_FLEET_DATABASE=url)
        assert other_key["error"] == "wrong_audit_key"
        entries = run(one.record())
        assert check_grants(entries) == 2
        assert [x.seq for x in entries] == list(range(1, len(entries) + 1))
