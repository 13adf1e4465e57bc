"""Approvals over HTTP: a lease asks, a person answers, and the stream tells of both."""

import asyncio
from pathlib import Path
from typing import Any

import httpx

from tests.api.door import next_events, open_door, problem
from tests.support import run

CLICK = {"type": "click", "x": 5, "y": 6}
ASK = {"actions": [CLICK], "reason": "pay", "checks": [{"id": "c1", "message": "it looks like a bank"}], "within": "5m"}


async def acted(http: httpx.AsyncClient, lease: str, approval: str, *actions: dict[str, Any]) -> httpx.Response:
    return await http.post(f"/v1/leases/{lease}/actions", json={"actions": [*actions], "approval": approval})


def test_a_lease_asks_and_acts_when_a_person_has_agreed(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as person:
            lease = (await door.fleet.granted("a")).lease
            async with door.tcp_client(door.fleet.lease_token(lease)) as agent:
                answer = await agent.post(f"/v1/leases/{lease}/approvals", json=ASK)
                asked = answer.json()
                assert (answer.status_code, asked["state"], asked["remaining"]) == (201, "waiting", 300)
                name = asked["approval"]
                said = problem(await acted(agent, lease, name, CLICK), 409, "approval_waiting")
                assert said["approval"] == name
                assert "then send the very same actions with it again" in said["remedy"]
                assert [x["approval"] for x in (await person.get("/v1/approvals")).json()["approvals"]] == [name]
                shown = (await person.get(f"/v1/leases/{lease}")).json()
                assert (shown["approvals"], shown["expires_at"]) == ([name], None)
                waiting = asyncio.create_task(
                    agent.get(f"/v1/approvals/{name}", params={"wait": 50}), name="test: wait"
                )
                problem(await agent.post(f"/v1/approvals/{name}/approve"), 403, "needs_operator")
                problem(await agent.post(f"/v1/approvals/{name}/deny", json={}), 403, "needs_operator")
                done = await person.post(f"/v1/approvals/{name}/approve", json={"reason": "go on"})
                assert (done.status_code, done.json()["state"]) == (200, "approved")
                assert ((await waiting).json()["state"], (await waiting).json()["answer"]) == ("approved", "go on")
                problem(await person.post(f"/v1/approvals/{name}/deny"), 409, "approval_approved")
                problem(await acted(agent, lease, name, CLICK, CLICK), 409, "other_actions")
                assert (await acted(agent, lease, name, CLICK)).json()["done"] == [{"ok": True}]
                problem(await acted(agent, lease, name, CLICK), 409, "approval_used")
            every = (await person.get("/v1/approvals", params={"all": "true", "lease": lease})).json()["approvals"]
            assert [x["state"] for x in every] == ["used"]
            assert (await person.get("/v1/approvals")).json() == {"approvals": []}

    run(body())


def test_who_may_see_and_answer(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease, other = (await door.fleet.granted("a")).lease, (await door.fleet.granted("b")).lease
            mine, theirs = door.fleet.lease_token(lease), door.fleet.lease_token(other)
            async with door.tcp_client(mine) as http:
                name = (await http.post(f"/v1/leases/{lease}/approvals", json=ASK)).json()["approval"]
                problem(await http.post(f"/v1/leases/{other}/approvals", json=ASK), 403, "other_lease")
                problem(await http.get("/v1/approvals/ap_0000000000"), 404, "no_approval")
            async with door.tcp_client(theirs) as http:
                problem(await http.get(f"/v1/approvals/{name}"), 403, "not_yours")
                problem(await acted(http, other, name, CLICK), 403, "other_lease")
                assert (await http.get("/v1/approvals")).json() == {"approvals": []}
            async with door.tcp_client(await door.operator("observer")) as http:
                assert (await http.get(f"/v1/approvals/{name}")).json()["reason"] == "pay"
                problem(await http.post(f"/v1/approvals/{name}/approve"), 403, "needs_operator")
            async with door.tcp_client(await door.agent("parent", children=1)) as http:
                problem(await http.post(f"/v1/approvals/{name}/approve"), 403, "needs_operator")
            async with door.tcp_client(await door.operator("operator")) as http:
                denied = await http.post(f"/v1/approvals/{name}/deny", json={"reason": "no"})
                assert denied.json()["by"] == "operator an-operator"
            async with door.tcp_client(mine) as http:
                said = problem(await acted(http, lease, name, CLICK), 403, "approval_denied")
                assert (said["by"], said["reason"]) == ("operator an-operator", "no")

    run(body())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"actions": [{"type": "click", "x": "1", "y": 2}]}, "bad_action"),
    ({"actions": [{"type": "click", "x": 5000, "y": 2}]}, "off_screen"),
    ({"reason": "no actions"}, "invalid"),
    ({**ASK, "within": 0}, "invalid"),
    ({**ASK, "within": "2d"}, "invalid"),
    ({**ASK, "checks": [{"severity": 3}]}, "invalid"),
    ({**ASK, "frame": "fr_nobody"}, "no_frame"),
]


def test_what_is_asked_wrongly_is_refused_and_asks_nobody(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            lease = (await door.fleet.granted("a")).lease
            for words, code in WRONG:
                answer = await http.post(f"/v1/leases/{lease}/approvals", json=words)
                assert answer.json()["code"] == code, answer.text
            answer = await http.get("/v1/approvals/ap_1", params={"wait": 51})
            assert (answer.status_code, answer.json()["key"]) == (422, "wait")
            assert (await http.get("/v1/approvals", params={"all": "true"})).json() == {"approvals": []}

    run(body())


def test_the_stream_tells_of_questions_and_answers(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            lease = (await door.fleet.granted("a")).lease
            async with http.stream("GET", "/v1/events") as events:
                lines = events.aiter_lines()
                name = (await http.post(f"/v1/leases/{lease}/approvals", json=ASK)).json()["approval"]
                await http.post(f"/v1/approvals/{name}/deny", json={"reason": "no"})
                (_, asked, entry), (_, denied, _) = await next_events(lines, 2)
                assert (asked, denied) == ("approval.asked", "approval.denied")
                assert entry["facts"]["approval"] == name
                assert entry["facts"]["checks"][0]["message"] == "it looks like a bank"
                assert len(entry["frames"]) == 1

    run(body())
