"""Asking, waiting, supervising over HTTP."""

import asyncio
from pathlib import Path

import pytest

from tests.api.door import open_door, problem
from tests.controller.fleet import profile
from tests.support import run, until


def test_a_granted_lease_is_201_with_all_that_the_agent_needs(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            answer = await http.post("/v1/leases", json={"agent": "a", "profile": "local", "wait": None})
            view = answer.json()
            assert (answer.status_code, view["state"], view["agent"]) == (201, "active", "a")
            assert (view["width"], view["height"], view["generation"]) == (200, 120, 1)
            assert view["url"] == door.url
            async with door.tcp_client(view["token"]) as agent:
                click = {"actions": [{"type": "click", "x": 3, "y": 4}], "intent": "try"}
                done = (await agent.post(f"/v1/leases/{view['lease']}/actions", json=click)).json()
            assert done["done"] == [{"ok": True}]
            assert done["screenshot"] is None
            assert ("pointer", 3, 4, 1) in door.fleet.backend.desktop(view["desktop"]).events

    run(body())


def test_who_must_wait_is_202_and_hears_when_it_is_their_turn(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            asked = {"profile": "local", "desktop": "finance", "wait": None}
            first = (await http.post("/v1/leases", json={"agent": "a", **asked})).json()
            answer = await http.post("/v1/leases", json={"agent": "b", **asked}, params={"hold": 0})
            second = answer.json()
            assert (answer.status_code, second["state"], second["place"]) == (202, "waiting", 1)
            assert second["holder"]["agent"] == "a"
            assert "agent a holds it" in second["message"]
            poll = {"hold": 20, "while": "waiting"}
            asking = asyncio.create_task(http.get(f"/v1/leases/{second['lease']}", params=poll))
            await http.post(f"/v1/leases/{first['lease']}/release")
            assert (await asking).json()["state"] == "active"

    run(body())


def test_who_will_not_wait_is_409_with_the_holder_in_words_and_fields(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            asked = {"profile": "local", "desktop": "finance"}
            first = (await http.post("/v1/leases", json={"agent": "a", "wait": None, **asked})).json()
            said = problem(await http.post("/v1/leases", json={"agent": "b", "wait": 0, **asked}), 409, "taken")
            words = f'agent b asked for desktop "finance", but agent a holds it (lease {first["lease"]}) until it is'
            assert said["detail"].startswith(f"lease denied: {words}")
            assert said["holder"]["lease"] == first["lease"]
            assert said["agent"] == "b"

    run(body())


def test_the_same_request_id_is_the_same_lease(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            asked = {"agent": "a", "profile": "local", "wait": None, "request_id": "r1"}
            views = [(await http.post("/v1/leases", json=asked)).json() for _ in range(3)]
            assert len({view["lease"] for view in views}) == 1
            assert len((await http.get("/v1/leases")).json()["leases"]) == 1

    run(body())


def test_pause_resume_take_and_revoke(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            lease = (await door.fleet.granted("a")).lease
            where = f"/v1/leases/{lease}"
            click = {"actions": [{"type": "click", "x": 1, "y": 1}]}
            async with door.tcp_client(door.fleet.lease_token(lease)) as agent:
                paused = (await http.post(f"{where}/pause", json={"reason": "lunch", "looking": False})).json()
                assert (paused["control"], paused["expires_at"]) == ("paused", None)
                said = problem(await agent.post(f"{where}/actions", json=click), 423, "lease_paused")
                assert "lunch" in said["detail"]
                problem(await agent.get(f"{where}/screenshot"), 423, "lease_paused")
                assert (await http.post(f"{where}/resume")).json()["control"] == "agent"
                assert (await agent.post(f"{where}/actions", json=click)).status_code == 200
                assert (await http.post(f"{where}/take", json={"reason": "login"})).json()["control"] == "human"
                problem(await agent.post(f"{where}/actions", json=click), 423, "lease_human")
                assert (await agent.get(f"{where}/screenshot")).status_code == 200
                gone = (await http.post(f"{where}/revoke", json={"bar": "forever"})).json()
                assert gone["state"] == "revoked"
                problem(await agent.post(f"{where}/actions", json=click), 410, "lease_revoked")
            again = {"agent": "a", "profile": "local"}
            problem(await http.post("/v1/leases", json=again), 403, "barred")
            assert (await http.post("/v1/agents/a/unbar")).status_code == 200
            assert (await http.post("/v1/leases", json={**again, "wait": None})).status_code == 201

    run(body())


@pytest.mark.parametrize(("bar", "barred"), [("none", False), (60, True), ("10m", True)])
def test_revoke_bars_for_as_long_as_it_says(tmp_path: Path, bar: object, barred: bool) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            lease = (await door.fleet.granted("a")).lease
            await http.post(f"/v1/leases/{lease}/revoke", json={"bar": bar})
            [agent] = (await http.get("/v1/agents")).json()["agents"]
            assert (agent["barred_until"] is not None) == barred

    run(body())


def test_reassign_answers_with_the_new_lease_and_its_token(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            old = await door.fleet.granted("a")
            words = {"to": "b", "mode": "as-is"}
            new = (await http.post(f"/v1/leases/{old.lease}/reassign", json=words)).json()
            assert (new["agent"], new["state"], new["desktop"]) == ("b", "active", old.desktop)
            assert new["generation"] > (old.generation or 0)
            async with door.tcp_client(new["token"]) as agent:
                assert (await agent.get(f"/v1/leases/{new['lease']}/screenshot")).status_code == 200
            problem(await http.post(f"/v1/leases/{new['lease']}/reassign", json={"to": "c"}), 422, "invalid")

    run(body())


def test_renew_gives_a_full_term_from_now(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a", ttl=100)
            await door.fleet.clock.advance(60)
            async with door.tcp_client(door.fleet.lease_token(lease.lease)) as agent:
                assert (await agent.get(f"/v1/leases/{lease.lease}")).json()["remaining"] == 40
                assert (await agent.post(f"/v1/leases/{lease.lease}/renew")).json()["remaining"] == 100
                assert (await agent.post(f"/v1/leases/{lease.lease}/renew", json={"ttl": "5m"})).json()["ttl"] == 300

    run(body())


def test_a_client_that_leaves_while_it_waits_keeps_its_place(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            first = await door.fleet.granted("a", desktop="one")
            asked = {"agent": "b", "profile": "local", "desktop": "one", "wait": None}
            async with door.socket_client() as leaver:
                asking = asyncio.create_task(leaver.post("/v1/leases", json=asked, params={"hold": 50}))

                async def waiting() -> object:
                    return [x for x in (await http.get("/v1/leases")).json()["leases"] if x["state"] == "waiting"]

                [view] = await until(waiting)
                asking.cancel()
                await asyncio.wait([asking])
            await http.post(f"/v1/leases/{first.lease}/release")
            await until(lambda: _state(http, view["lease"], "active"))

    async def _state(http: object, lease: str, state: str) -> bool:
        view = (await http.get(f"/v1/leases/{lease}")).json()  # type: ignore[attr-defined]
        return bool(view["state"] == state)

    run(body())


def test_profiles_agents_desktops_and_snapshots_are_shown(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path, profile("local"), profile("big")) as door, door.socket_client() as http:
            assert [x["name"] for x in (await http.get("/v1/profiles")).json()["profiles"]] == ["local", "big"]
            assert (await http.get("/v1/profiles/big")).json()["source"] == "test"
            problem(await http.get("/v1/profiles/none"), 404, "no_profile")
            lease = await door.fleet.granted("a")
            view = (await http.get(f"/v1/desktops/{lease.desktop}")).json()
            assert (view["lease"], view["stage"]) == (lease.lease, "held")
            problem(await http.delete(f"/v1/desktops/{lease.desktop}"), 409, "desktop_held")
            answer = await http.post(f"/v1/desktops/{lease.desktop}/snapshots", json={"note": "n"})
            assert (answer.status_code, answer.json()["note"]) == (201, "n")
            saved = answer.json()["id"]
            assert [x["id"] for x in (await http.get("/v1/snapshots")).json()["snapshots"]] == [saved]
            restored = (await http.post(f"/v1/snapshots/{saved}/restore")).json()
            assert (restored["snapshot"], restored["desktop"]["desktop"]) == (saved, lease.desktop)
            assert (await http.delete(f"/v1/snapshots/{saved}")).status_code == 200
            assert (await http.post(f"/v1/desktops/{lease.desktop}/freeze")).json()["frozen"] is True
            assert (await http.post(f"/v1/desktops/{lease.desktop}/thaw")).json()["frozen"] is False
            assert "boot" in (await http.get(f"/v1/desktops/{lease.desktop}/logs")).text
            assert (await http.get("/metrics")).headers["content-type"].startswith("text/plain; version=0.0.4")

    run(body())
