"""Opening and closing the door."""

import asyncio
import os
import socket
import stat
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from cu_fleet.model.errors import InvalidError, UnavailableError
from tests.api.door import served
from tests.controller.fleet import ANA, Fleet, running
from tests.support import run, until


def test_the_socket_is_the_owners_alone_and_replaces_a_stale_one(tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "controller.sock"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        before = os.umask(0)
        try:
            async with running(tmp_path) as fleet, served(fleet) as door, door.socket_client() as http:
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                assert (await http.get("/healthz")).json()["fleet"] == "f1"
        finally:
            os.umask(before)
        assert not path.exists()

    run(body())


def test_a_home_with_a_long_path_has_its_socket_too(tmp_path: Path) -> None:
    async def body() -> None:
        folder = tmp_path / ("a long name " * 15)
        folder.mkdir()
        async with running(tmp_path) as fleet, served(fleet, folder / "controller.sock"):
            assert stat.S_ISSOCK((folder / "controller.sock").stat().st_mode)
            descriptor = os.open(folder, os.O_PATH)
            try:
                transport = httpx.AsyncHTTPTransport(uds=f"/proc/self/fd/{descriptor}/controller.sock")
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                    assert (await http.get("/v1/status")).status_code == 200
            finally:
                os.close(descriptor)
        assert not (folder / "controller.sock").exists()

    run(body())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_else_is_not_heard_on_the_socket_even_if_they_can_reach_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet, served(fleet):
            for path, mode in ((tmp_path, 0o711), (tmp_path / "controller.sock", 0o666)):
                os.chmod(path, mode)  # noqa: PTH101 - one call on a local file blocks nobody
            folder = os.open(tmp_path, os.O_PATH)
            script = f"""import socket
s = socket.socket(socket.AF_UNIX)
s.connect("/proc/self/fd/{folder}/controller.sock")
try:
    s.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    print(s.recv(100))
except ConnectionError:
    print(b"")
"""
            said = {}
            for user in (0, 65534):
                process = await asyncio.create_subprocess_exec(
                    "/usr/bin/env", "python3", "-c", script, user=user, pass_fds=[folder], stdout=subprocess.PIPE
                )
                said[user], _ = await process.communicate()
            os.close(folder)
            assert said[0].startswith(b"b'HTTP/1.1 200")
            assert said[65534] == b"b''\n"

    run(body())


def test_connections_that_say_nothing_are_ended_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        monkeypatch.setattr("cu_fleet.api.serve.HEAD_WITHIN", 0.3)
        monkeypatch.setattr("cu_fleet.api.serve.MAX_CONNECTIONS", 3)
        async with running(tmp_path) as fleet, served(fleet) as door, door.socket_client() as http:
            host, port = door.url.removeprefix("http://").split(":")
            streams = [await asyncio.open_connection(host, int(port)) for _ in range(4)]
            streams[0][1].write(b"GET /healthz HT")
            assert await streams[3][0].read() == b"" if not streams[3][0].exception() else True
            assert (await http.get("/healthz")).status_code == 200
            for reader, writer in streams[:3]:
                assert await reader.read() == b""
                writer.close()
            streams[3][1].close()
            async with door.tcp_client() as tcp:
                assert (await tcp.get("/healthz")).status_code == 200

    run(body())


def test_a_port_in_use_is_told_with_its_holder_and_the_remedy(tmp_path: Path) -> None:
    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            async with running(tmp_path) as fleet:
                with pytest.raises(UnavailableError) as caught:
                    async with served(fleet, port=port):
                        raise AssertionError("it was served")
                assert caught.value.code == "port_in_use"
                assert (caught.value.facts["port"], caught.value.facts["pid"]) == (port, os.getpid())
                assert "--port" in str(caught.value)
                assert not (tmp_path / "controller.sock").exists()
                async with served(fleet, port=port, port_fallback=True) as door:
                    assert door.url != f"http://127.0.0.1:{port}"
                    assert fleet.controller.url == door.url

    run(body())


def test_a_host_that_is_none_of_ours_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            for host, kind in (("no.such.host.invalid", InvalidError), ("192.0.2.1", UnavailableError)):
                with pytest.raises(kind, match=host):
                    async with served(fleet, host=host):
                        raise AssertionError("it was served")

    run(body())


def test_whatever_waits_ends_when_the_door_closes(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a", desktop="one")
            inside = fleet.backend.desktop(lease.desktop or "")
            asked = {"agent": "b", "profile": "local", "desktop": "one", "wait": None}
            async with served(fleet) as door, door.socket_client() as http, door.tcp_client() as idle:
                await idle.get("/healthz")
                poll = asyncio.create_task(http.post("/v1/leases", json=asked, params={"hold": 50}))
                events = asyncio.create_task(http.get("/v1/events"))
                exec_ = {"argv": ["sleep", "600"]}
                command = asyncio.create_task(http.post(f"/v1/desktops/{lease.desktop}/exec", json=exec_))
                await until(lambda: inside.processes)
                await until(lambda: _waits(fleet))
                began = time.monotonic()
                door.stop.set()
                answers = await asyncio.gather(poll, events, command)
                assert time.monotonic() - began < 3
                assert answers[0].status_code == 503
                assert answers[0].json()["code"] == "stopping"
                assert answers[1].text.endswith("\n\n")
                assert '"code":"stopping"' in answers[2].text
            assert not inside.processes
            assert [x.state for x in await fleet.controller.leases(ANA, everything=False, agent="b")] == ["waiting"]

    async def _waits(fleet: Fleet) -> bool:
        return bool(await fleet.controller.leases(ANA, everything=False, agent="b"))

    run(body())


def test_what_does_not_end_by_itself_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        monkeypatch.setattr("cu_fleet.api.serve.GRACE", 0.1)
        async with running(tmp_path) as fleet:
            begun, cut = asyncio.Event(), asyncio.Event()

            async def endless(who: object) -> list[object]:
                begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    cut.set()
                return []

            fleet.controller.desktops = endless  # type: ignore[method-assign, assignment]
            async with served(fleet) as door, door.socket_client() as http:
                asking = asyncio.create_task(http.get("/v1/desktops"))
                await until(begun.is_set)
                door.stop.set()
                assert (await asking).json()["code"] == "stopping"
            assert cut.is_set()

    run(body())


def test_shutdown_is_answered_before_the_door_closes(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet, served(fleet) as door, door.socket_client() as http:
            answer = await http.post("/v1/shutdown")
            assert (answer.status_code, answer.json()) == (202, {"stopping": True, "pid": os.getpid()})
            assert door.shutdowns == ["asked"]

    run(body())
