"""Who may do what through which door."""

import getpass
from pathlib import Path

from cu_fleet.model.access import Role
from tests.api.door import open_door, problem
from tests.support import run

GRANTED = {"agent": "a", "profile": "local", "wait": None}


def test_the_socket_needs_no_token_and_acts_under_the_os_user(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            assert (await http.get("/v1/operators")).status_code == 200
            await http.post("/v1/operators", json={"operator": "bea", "role": "observer"})
            entries = (await http.get("/v1/audit", params={"what": "operator.added"})).json()["entries"]
            assert entries[-1]["who"] == f"operator {getpass.getuser()}"

    run(body())


def test_a_token_on_the_socket_wins_over_its_owner(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client(await door.operator("observer")) as http:
            assert (await http.get("/v1/desktops")).status_code == 200
            problem(await http.post("/v1/operators", json={"operator": "x"}), 403, "needs_operator")

    run(body())


def test_no_header_makes_a_tcp_caller_the_sockets_owner(tmp_path: Path) -> None:
    async def body() -> None:
        forged = {"cu_fleet.socket_owner": "root", "Cu-Fleet-Socket-Owner": "root", "X-Forwarded-For": "127.0.0.1"}
        async with open_door(tmp_path) as door, door.tcp_client(**forged) as http:
            answer = await http.get("/v1/status")
            problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"

    run(body())


def test_what_is_no_token_of_ours_opens_nothing_on_either_door(tmp_path: Path) -> None:
    async def body() -> None:
        wrong = ["Basic cm9vdDo=", "Bearer", "Bearer cfo_ana_1_00", "cfo_ana_1_00", "Bearer " + "x" * 5000]
        async with open_door(tmp_path) as door, door.tcp_client() as tcp, door.socket_client() as unix:
            for header in wrong:
                for http in (tcp, unix):
                    answer = await http.get("/v1/status", headers={"Authorization": header})
                    assert answer.status_code == 401
                    assert all(word == "Bearer" or word not in answer.text for word in header.split())

    run(body())


WAYS: list[tuple[str, str, object, set[str]]] = [
    # what it takes at least, of: nobody, an agent, an observer, an operator, an admin
    ("GET", "/healthz", None, {"nobody", "agent", "observer", "operator", "admin"}),
    ("GET", "/openapi.json", None, {"nobody", "agent", "observer", "operator", "admin"}),
    ("GET", "/v1/status", None, {"observer", "operator", "admin"}),
    ("GET", "/metrics", None, {"observer", "operator", "admin"}),
    ("GET", "/v1/desktops", None, {"observer", "operator", "admin"}),
    ("GET", "/v1/audit", None, {"observer", "operator", "admin"}),
    ("GET", "/v1/audit/verify", None, {"observer", "operator", "admin"}),
    ("GET", "/v1/agents", None, {"observer", "operator", "admin"}),
    ("POST", "/v1/leases", {"agent": "z", "profile": "local", "wait": None}, {"operator", "admin"}),
    ("POST", "/v1/agents", {"agent": "b"}, {"operator", "admin"}),
    ("POST", "/v1/operators", {"operator": "eve", "role": "admin"}, {"admin"}),
    ("POST", "/v1/shutdown", None, {"admin"}),
]


def test_every_way_is_open_to_those_it_is_for_and_closed_to_the_rest(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path, max_desktops=5) as door:
            tokens = {role: await door.operator(role) for role in ("observer", "operator", "admin")}
            callers: dict[str, str | None] = {"nobody": None, "agent": await door.agent("a"), **tokens}
            for who, token in callers.items():
                async with door.tcp_client(token) as http:
                    for method, path, words, allowed in WAYS:
                        answer = await http.request(method, path, json=words)
                        refused = {401 if who == "nobody" else 403}
                        expected = {200, 201, 202} if who in allowed else refused
                        assert answer.status_code in expected, (who, method, path, answer.text)

    run(body())


def test_an_events_stream_is_refused_before_it_begins(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.tcp_client(await door.agent("a")) as http:
            problem(await http.get("/v1/events"), 403, "needs_operator")

    run(body())


def test_a_leases_token_opens_that_lease_and_nothing_else(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            mine, other = await door.fleet.granted("a"), await door.fleet.granted("b")
            async with door.tcp_client(door.fleet.lease_token(mine.lease)) as http:
                assert (await http.get(f"/v1/leases/{mine.lease}/screenshot")).status_code == 200
                for path in ("screenshot", "files", "clipboard", "windows"):
                    problem(await http.get(f"/v1/leases/{other.lease}/{path}"), 403, "other_lease")
                problem(await http.get("/v1/desktops"), 403, "needs_operator")
                assert (await http.post("/v1/leases", json={"profile": "local"})).status_code == 403

    run(body())


def test_the_token_of_a_revoked_lease_opens_nothing_and_hears_why(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a")
            token = door.fleet.lease_token(lease.lease)
            async with door.socket_client() as ana:
                said = {"reason": "wrong site", "bar": "none"}
                assert (await ana.post(f"/v1/leases/{lease.lease}/revoke", json=said)).status_code == 200
            async with door.tcp_client(token) as http:
                for path in ("screenshot", "clipboard"):
                    said = problem(await http.get(f"/v1/leases/{lease.lease}/{path}"), 410, "lease_revoked")
                    assert "wrong site" in said["detail"]
                click = {"actions": [{"type": "click", "x": 1, "y": 1}]}
                problem(await http.post(f"/v1/leases/{lease.lease}/actions", json=click), 410, "lease_revoked")

    run(body())


def test_a_rotated_token_opens_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as ana:
            old = await door.operator("admin", "bea")
            new = (await ana.post("/v1/operators/bea/rotate")).json()["token"]
            async with door.tcp_client(old) as http:
                assert (await http.get("/v1/status")).status_code == 401
            async with door.tcp_client(new) as http:
                assert (await http.get("/v1/status")).status_code == 200
            assert Role.ADMIN.value in (await ana.get("/v1/operators")).text

    run(body())


def _token_free(text: str) -> None:
    assert "cfo_" not in text
    assert "cfl_" not in text


def test_lists_never_show_a_token(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as ana:
            await door.agent("a")
            await door.operator("observer")
            await door.fleet.granted("a")
            for path in ("agents", "operators", "desktops", "audit", "status"):
                _token_free((await ana.get(f"/v1/{path}")).text)

    run(body())
