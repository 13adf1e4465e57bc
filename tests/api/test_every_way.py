"""Every way in the document, walked with tokens that must not open it: told why, and nothing is changed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.door import Door, problem
from tests.controller.fleet import ANA
from tests.mcp.house import house
from tests.support import run

OPEN = {"/healthz"}
OWN = {  # what a lease that is over is still told of itself, and what it may say once more
    ("get", "/v1/leases/{lease}"),
    ("post", "/v1/leases/{lease}/release"),
}
TICKET = {("get", "/v1/leases/{lease}/watch")}  # opened by a ticket in place of a token

pytestmark = pytest.mark.slow


@asynccontextmanager
async def ways(door: Door) -> AsyncIterator[list[tuple[str, str, str, bool]]]:
    """Method, path as documented, path with ids that exist, and whether there is a body."""
    lease = await door.fleet.granted("a")
    snapshot = await door.fleet.controller.save(ANA, lease.lease, "")
    await door.operator("observer", "ops")
    ids = {"lease": lease.lease, "desktop": lease.desktop, "snapshot": snapshot.id, "name": "ops", "path": "f"}
    async with door.tcp_client() as http:
        document = (await http.get("/openapi.json")).json()
    yield [
        (method, path, path.format_map(_Ids(ids)), "requestBody" in operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if path not in OPEN and (method, path) not in TICKET
    ]


class _Ids(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return f"{key}_unknown"


async def answers(http: httpx.AsyncClient, way: tuple[str, str, str, bool], **headers: str) -> httpx.Response:
    method, _, path, has_body = way
    async with asyncio.timeout(10):
        return await http.request(method, path, json={} if has_body else None, headers=headers)


async def _standing(door: Door) -> object:
    fleet = door.fleet.controller
    leases = [(x.lease, x.state, x.control, x.expires_at) for x in await fleet.leases(ANA, everything=True)]
    desktops = [(x.desktop, x.generation, x.stage) for x in await fleet.desktops(ANA)]
    people = [x.agent for x in await fleet.agents(ANA)] + [x.operator for x in await fleet.operators(ANA)]
    return leases, desktops, people, [x.id for x in await fleet.snapshots(ANA, None)]


def _opens_nothing(way: tuple[str, str, str, bool], answer: httpx.Response) -> None:
    """Refused; or a list, of one's own alone."""
    listed = way[0] == "get" and "{" not in way[1].replace("/v1/profiles/{name}", "")
    assert answer.status_code in ((200, 403, 404, 422) if listed else (403, 404, 422)), (way, answer.text)


def test_no_way_is_open_without_a_right_token(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door, ways(door) as found:
            lease = next(path.split("/")[3] for _, way, path, _ in found if way == "/v1/leases/{lease}")
            true = door.fleet.lease_token(lease)
            forged = f"{true[:-1]}{'0' if true[-1] != '0' else '1'}"
            wrong = [
                "",
                "Basic cm9vdDp4",
                "Bearer",
                f"Bearer {forged}",
                f"Bearer {'x' * 5000}",
                f"Bearer {true} {true}",
            ]
            before = await _standing(door)
            async with door.tcp_client() as http:
                for way in found:
                    for header in wrong:
                        answer = await answers(http, way, **({"Authorization": header} if header else {}))
                        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), (
                            way,
                            header,
                        )
                        assert forged not in answer.text
            assert await _standing(door) == before
            assert not [x for x in next(iter(door.fleet.world.desktops.values())).events if x[0] == "key" or x[3]]

    run(body(), timeout=60)


def test_a_page_from_elsewhere_reaches_no_way_even_with_a_right_token(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door, ways(door) as found:
            token, before = await door.operator("admin", "root"), await _standing(door)
            everywhere = [
                *found,
                *(("post", path, path, True) for path in ("/mcp", "/healthz", "/openapi.json", "/none")),
            ]
            for header, code in ({"Host": "evil.example"}, "wrong_host"), ({"Origin": "null"}, "foreign_origin"):
                async with door.tcp_client(token) as http:
                    for way in everywhere:
                        problem(await answers(http, way, **header), 403, code)
            assert await _standing(door) == before

    run(body(), timeout=60)


def test_a_leases_token_opens_nobody_elses_and_an_agents_no_desktop(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door, ways(door) as found:
            other = door.fleet.lease_token((await door.fleet.granted("b")).lease)
            agent = await door.agent("c", profiles=("local",), leases=1)
            (view,) = await door.fleet.controller.leases(ANA, agent="a")
            mine = {view.lease, view.desktop or ""}
            before = await _standing(door)
            for token in (other, agent):
                async with door.tcp_client(token) as http:
                    for way in found:
                        answer = await answers(http, way)
                        _opens_nothing(way, answer)
                        assert not any(name in answer.text for name in mine if name not in way[2]), (way, answer.text)
            assert await _standing(door) == before

    run(body(), timeout=60)


def test_a_token_whose_lease_is_over_hears_why_at_each_of_its_ways(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door, ways(door) as found:
            lease = next(path.split("/")[3] for _, way, path, _ in found if way == "/v1/leases/{lease}")
            token = door.fleet.lease_token(lease)
            await door.fleet.controller.revoke(ANA, lease, reason="wrong account", bar=None, snapshot=False)
            await door.fleet.settled()
            before = await _standing(door)
            async with door.tcp_client(token) as http:
                for way in found:
                    answer = await answers(http, way)
                    said = f"{way} {answer.status_code} {answer.text}"
                    assert "www-authenticate" not in answer.headers, f"it is taken for a failed login: {said}"
                    if answer.status_code == 410:
                        assert "wrong account" in answer.text, said
                    elif way[:2] in OWN:
                        assert answer.status_code == 200, said
                    else:
                        _opens_nothing(way, answer)
                told = [way for way in found if way[1].startswith("/v1/leases/{lease}/")]
                assert len(told) > 10
            assert await _standing(door) == before

    run(body(), timeout=60)
