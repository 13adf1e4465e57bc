"""`cu-fleet mcp` beneath its pipes: a lease of its own, asked for when it is needed and given back at the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.mcp.desk import Desk, Way
from cu_fleet.model.access import Grants
from cu_fleet.model.errors import DeniedError, FleetError
from tests.api.door import Door
from tests.controller.fleet import ANA
from tests.mcp.house import failed, house, images, text
from tests.support import run, until

pytestmark = pytest.mark.slow

CLICK = {"x": 5, "y": 5}


@asynccontextmanager
async def desk(door: Door, agent: str = "a", token: str | None = None) -> AsyncIterator[Desk]:
    way = await Way.open(None, token, door.fleet.home, agent)
    one = Desk(way, "local")
    try:
        yield one
    finally:
        await one.close()
        await way.close()


async def _leases(door: Door, **more: Any) -> list[tuple[str, str]]:
    return [(x.agent, x.state) for x in await door.fleet.controller.leases(ANA, everything=True, **more)]


def test_the_first_call_leases_and_the_end_gives_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            async with desk(door) as one:
                assert "click" in {tool["name"] for tool in (await one.listing())["tools"]}
                assert "no desktop now" in text(await one.call("lease_status", {}))
                assert "no desktop now" in text(await one.call("release", {}))
                assert await _leases(door) == []
                assert len(images(await one.call("screenshot", {}))) == 1
                assert text(await one.call("click", CLICK)) == "Done."
                assert await _leases(door) == [("a", "active")]
                assert '"agent":"a"' in text(await one.call("lease_status", {}))
            assert await _leases(door) == [("a", "released")]

    run(body())


def test_after_release_the_next_call_leases_anew(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door, desk(door) as one:
            await one.call("click", CLICK)
            assert "released" in text(await one.call("release", {}))
            assert text(await one.call("click", CLICK)) == "Done."
            assert await _leases(door) == [("a", "released"), ("a", "active")]

    run(body())


def test_each_process_of_an_agent_has_a_name_and_a_desktop_of_its_own(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door, desk(door) as one, desk(door) as two, desk(door) as three:
            await asyncio.gather(*(x.call("click", CLICK) for x in (one, two, three)))
            held = await door.fleet.controller.leases(ANA)
            assert {x.agent for x in held} == {"a", "a-2", "a-3"}
            assert len({x.desktop for x in held}) == 3
            assert {x.parent for x in await door.fleet.controller.agents(ANA) if x.agent != "a"} == {"a"}

    run(body())


def test_an_agent_without_children_is_told_what_it_has(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            token = await door.agent("a")
            async with desk(door, token=token) as one, desk(door, token=token) as two:
                await one.call("click", CLICK)
                words = failed(await two.call("click", CLICK), "too_many_leases")
                assert "agent a has 1 of the 1 leases" in words
                await one.call("release", {})
                assert text(await two.call("click", CLICK)) == "Done."

    run(body())


def test_a_call_tells_the_place_in_line_instead_of_blocking(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path, max_desktops=1) as door, desk(door, "a") as one, desk(door, "b") as two:
            await one.call("click", CLICK)
            words = failed(await two.call("click", CLICK), "lease_waiting")
            assert "number 1 in line" in words
            assert "agent a" in words
            assert "you keep your place" in words
            assert "number 1 in line" in failed(await two.call("lease_status", {}), "lease_waiting")
            await one.call("release", {})
            assert text(await two.call("click", CLICK)) == "Done."
            assert await _leases(door, agent="b") == [("b", "active")]

    run(body())


def test_who_ends_while_waiting_leaves_the_queue(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path, max_desktops=1) as door, desk(door, "a") as one:
            await one.call("click", CLICK)
            async with desk(door, "b") as two:
                failed(await two.call("click", CLICK), "lease_waiting")
            async with desk(door, "c") as three:
                failed(await three.call("click", CLICK), "lease_waiting")
                assert text(await three.call("release", {})) == "You have left the queue."
            assert await _leases(door) == [("a", "active"), ("b", "cancelled"), ("c", "cancelled")]

    run(body())


def test_what_was_revoked_is_never_leased_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door, desk(door) as one:
            await one.call("click", CLICK)
            (held,) = await door.fleet.controller.leases(ANA)
            await door.fleet.controller.revoke(ANA, held.lease, reason="wrong site", bar=None, snapshot=False)
            for tool in ("click", "screenshot", "lease_status", "release", "click"):
                words = failed(await one.call(tool, CLICK if tool == "click" else {}), "lease_revoked")
                assert "revoked by operator ana: wrong site" in words
            assert await _leases(door) == [("a", "revoked")]

    run(body())


def test_a_bar_holds_for_the_agents_next_process_too(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            async with desk(door) as one:
                await one.call("click", CLICK)
                (held,) = await door.fleet.controller.leases(ANA)
                await door.fleet.controller.revoke(ANA, held.lease, reason="no", bar=600.0, snapshot=False)
            async with desk(door) as two:
                assert "barred from leasing" in failed(await two.call("click", CLICK), "barred")
            assert await _leases(door) == [("a", "revoked")]

    run(body())


def test_a_lease_that_ran_out_is_told_and_the_next_call_leases_a_clean_desktop(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door, desk(door) as one:
            await one.call("click", CLICK)
            await door.fleet.clock.advance(400)
            await until(lambda: _all_over(door))
            words = failed(await one.call("click", CLICK), "lease_expired")
            assert "ran out of time" in words
            assert "The next call leases a new, clean desktop" in words
            assert text(await one.call("click", CLICK)) == "Done."
            assert await _leases(door) == [("a", "expired"), ("a", "active")]

    run(body())


async def _all_over(door: Door) -> bool:
    return not await door.fleet.controller.leases(ANA)


def test_a_lease_in_use_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cu_fleet.mcp.desk.TTL", 0.6)

    async def body() -> None:
        async with house(tmp_path) as door, desk(door) as one:
            await one.call("click", CLICK)
            (held,) = await door.fleet.controller.leases(ANA)

            async def renewals() -> bool:
                entries = await door.fleet.controller.audit(ANA, limit=1000)
                return sum(x.what == "lease.renewed" and x.lease == held.lease for x in entries) > 1

            await until(renewals)

    run(body())


def test_it_holds_no_more_than_the_agents_right(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            operator = await door.operator("operator")
            for token in (None, operator):
                way = await Way.open(None, token, tmp_path, "a")
                try:
                    with pytest.raises(DeniedError):
                        await way.wire.call("GET", "/v1/desktops")
                finally:
                    await way.close()
            entries = await door.fleet.controller.audit(ANA, limit=1000)
            assert [x.who for x in entries if x.what == "agent.token"][-1] == "operator an-operator"

    run(body())


def test_a_lease_that_was_given_is_used_and_not_given_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            view = await door.fleet.granted("x")
            async with desk(door, token=door.fleet.lease_token(view.lease)) as one:
                assert (await one.listing())["tools"]
                assert text(await one.call("click", CLICK)) == "Done."
            assert await _leases(door) == [("x", "active")]

    run(body())


def test_who_ends_while_asking_leaves_no_lease_behind(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            for wait in range(6):
                async with desk(door) as one:
                    calling = asyncio.create_task(one.call("click", CLICK))
                    for _ in range(wait * 5):
                        await asyncio.sleep(0)
                    calling.cancel()
                    await asyncio.gather(calling, return_exceptions=True)
            await until(lambda: _all_over(door))

    run(body())


def test_a_controller_that_is_gone_is_told_and_not_started_behind_its_operators_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path):
            way = await Way.open(None, None, tmp_path, "a")
            one = Desk(way, "local")
            await one.call("click", CLICK)
        words = failed(await one.call("click", CLICK), "not_running")
        assert "start one: cu-fleet up" in words
        with pytest.raises(FleetError):
            await one.close()
        await way.close()
        assert not (tmp_path / "controller.log").exists()

    run(body())


def test_a_controller_that_stops_in_the_middle_of_a_call_is_told_in_words(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            way = await Way.open(None, None, tmp_path, "a")
            one = Desk(way, "local")
            await one.call("click", CLICK)
            calling = asyncio.create_task(one.call("wait", {"seconds": 30}))
            await until(lambda: any(task.get_name().startswith("act wait") for task in asyncio.all_tasks()))
            door.stop.set()
            answer = await calling
            assert answer.is_error
            assert any(word in text(answer) for word in ("stopping", "broke off", "not running", "terminated")), text(
                answer
            )
        await way.close()

    run(body())


def test_a_name_that_somebody_else_has_is_passed_over(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            await door.fleet.controller.add_agent(ANA, "a-2", Grants())
            async with desk(door) as one, desk(door) as two:
                await one.call("click", CLICK)
                assert text(await two.call("click", CLICK)) == "Done."
                assert await _leases(door) == [("a", "active"), ("a-3", "active")]

    run(body())


def test_a_call_given_up_while_it_asks_for_the_lease_does_not_make_the_next_ask_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with house(tmp_path) as door, desk(door) as one:
            wire, honest = one._way.wire, one._way.wire.call  # noqa: SLF001
            asked: list[str] = []
            answers = asyncio.Event()

            async def slow(method: str, path: str, **more: Any) -> Any:
                answer = await honest(method, path, **more)
                if path == "/v1/leases":
                    asked.append(path)
                    await answers.wait()
                return answer

            monkeypatch.setattr(wire, "call", slow)
            given_up = asyncio.create_task(one.call("click", CLICK), name="test: given up")
            await until(lambda: asked)
            given_up.cancel()
            await asyncio.wait({given_up})
            again = asyncio.create_task(one.call("click", CLICK), name="test: again")
            await asyncio.sleep(0)
            answers.set()
            assert text(await again) == "Done."
            assert await _leases(door) == [("a", "active")]

    run(body())


def test_a_profile_that_is_not_there_is_named_when_tools_are_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            way = await Way.open(None, None, door.fleet.home, "a")
            try:
                with pytest.raises(FleetError) as refused:
                    await Desk(way, "nosuch").listing()
            finally:
                await way.close()
            assert refused.value.what.startswith('there is no profile "nosuch"; there are: local')

    run(body())
    assert not [x for x in caplog.records if x.exc_info], "nobody else's mistake fills the log"
