"""Bodies that come as they are made: commands, files, the record, events."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from cu_fleet.api import record
from cu_fleet.backends.memory_inside import Call
from tests.api.door import Door, next_events, open_door, problem
from tests.support import run, until


def _lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


async def _wordy(call: Call) -> int:
    await call.out(b"one\n")
    await call.err("two")
    await call.out(bytes(range(256)))
    return 7


def test_a_command_says_all_it_says_and_then_its_exit_code(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            door.fleet.backend.commands["wordy"] = _wordy
            desktop = (await door.fleet.granted("a")).desktop
            answer = await http.post(f"/v1/desktops/{desktop}/exec", json={"argv": ["wordy"]})
            assert answer.headers["content-type"] == "application/x-ndjson"
            *said, last = _lines(answer.text)
            assert last == {"exit": 7}
            out = b"".join(base64.b64decode(str(x["data"]), validate=True) for x in said if x["stream"] == 1)
            err = b"".join(base64.b64decode(str(x["data"]), validate=True) for x in said if x["stream"] == 2)
            assert (out, err) == (b"one\n" + bytes(range(256)), b"wordy: two\n")

    run(body())


def test_a_command_is_fed_its_input_and_environment(tmp_path: Path) -> None:
    async def body() -> None:
        async def env(call: Call) -> int:
            await call.out(f"{call.env['GREETING']} {call.cwd}".encode())
            return 0

        async with open_door(tmp_path) as door, door.socket_client() as http:
            door.fleet.backend.commands["env"] = env
            desktop = (await door.fleet.granted("a")).desktop
            words = {"argv": ["cat"], "stdin": base64.b64encode(b"\0fed").decode()}
            lines = _lines((await http.post(f"/v1/desktops/{desktop}/exec", json=words)).text)
            assert base64.b64decode(str(lines[0]["data"])) == b"\0fed"
            words = {"argv": ["env"], "env": {"GREETING": "hi"}, "cwd": "/srv"}
            lines = _lines((await http.post(f"/v1/desktops/{desktop}/exec", json=words)).text)
            assert base64.b64decode(str(lines[0]["data"])) == b"hi /srv"
            problem(await http.post("/v1/desktops/dk_x/exec", json={"argv": ["true"]}), 404, "no_desktop")

    run(body())


def test_a_command_that_takes_too_long_is_ended_and_said_so(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            lease = await door.fleet.granted("a")
            words = {"argv": ["sleep", "600"], "timeout": 0.1}
            [last] = _lines((await http.post(f"/v1/desktops/{lease.desktop}/exec", json=words)).text)
            assert last["error"]["code"] == "exec_timeout"  # type: ignore[index]
            assert not door.fleet.backend.desktop(lease.desktop or "").processes

    run(body())


def test_a_command_ends_when_its_listener_leaves(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a")
            inside = door.fleet.backend.desktop(lease.desktop or "")
            async with door.socket_client() as http:
                words = {"argv": ["sleep", "600"]}
                async with http.stream("POST", f"/v1/desktops/{lease.desktop}/exec", json=words) as answer:
                    assert answer.status_code == 200
                    await until(lambda: inside.processes)
            await until(lambda: not inside.processes)

    run(body())


def test_a_commands_input_may_come_while_it_runs(tmp_path: Path) -> None:
    async def body() -> None:
        async def echoing(call: Call) -> int:
            while data := await call.read():
                await call.out(data.upper())
            return 5

        async with open_door(tmp_path) as door, door.socket_client() as http:
            door.fleet.backend.commands["echoing"] = echoing
            where = f"/v1/desktops/{(await door.fleet.granted('a')).desktop}/exec"
            more: asyncio.Queue[bytes] = asyncio.Queue()

            async def typed() -> AsyncIterator[bytes]:
                while data := await more.get():
                    yield data

            async with http.stream("POST", where, json={"argv": ["echoing"], "input": True}) as answer:
                said = aiter(answer.aiter_lines())
                command = json.loads(await anext(said))["command"]
                token = await door.operator("operator")
                async with door.tcp_client(token) as other:  # nobody else's to feed
                    problem(await other.put(f"{where}/{command}/input", content=b"x"), 404, "no_command")
                feeding = asyncio.create_task(http.put(f"{where}/{command}/input", content=typed()))
                for word in (b"one", b"two"):  # the answer to each comes before the next is sent
                    await more.put(word)
                    assert base64.b64decode(json.loads(await anext(said))["data"]) == word.upper()
                await more.put(b"")
                assert json.loads(await anext(said)) == {"exit": 5}
                assert (await feeding).status_code == 200
                problem(await http.put(f"{where}/{command}/input", content=b"x"), 404, "no_command")

    run(body())


def test_what_a_command_left_running_may_linger_but_not_hold_it_up(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            where = f"/v1/desktops/{(await door.fleet.granted('a')).desktop}/exec"
            words = {"argv": ["left-behind"], "linger": 0.05}
            held: list[Held] = []

            async def fake(*args: object, **more: object) -> Held:
                held.append(Held())
                return held[0]

            door.fleet.controller.exec = fake  # type: ignore[method-assign, assignment]
            lines = _lines((await http.post(where, json=words)).text)
            assert [base64.b64decode(str(x["data"])) for x in lines[:-1]] == [b"before", b"after"]
            assert lines[-1] == {"exit": 3}
            assert held[0].killed

    run(body())


class Held:
    """A command that has ended, while a child of it goes on holding its output and says one thing more."""

    killed = False

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        yield 1, b"before"
        yield 1, b"after"
        await asyncio.Event().wait()

    async def wait(self) -> int:
        return 3

    async def write(self, data: bytes) -> None: ...

    async def close_stdin(self) -> None: ...

    async def kill(self) -> None:
        self.killed = True


def test_files_go_in_and_out_whole(tmp_path: Path) -> None:
    async def body() -> None:
        data = bytes(range(256)) * 8192  # 2 MiB

        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(data), 100_000):
                yield data[at : at + 100_000]

        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a")
            where = f"/v1/leases/{lease.lease}/files"
            async with door.tcp_client(door.fleet.lease_token(lease.lease)) as http:
                answer = await http.put(f"{where}/in/a%20b%3F.bin", content=chunks(), params={"mode": "0755"})
                assert (answer.status_code, answer.json()) == (201, {"path": "in/a b?.bin", "size": len(data)})
                assert (await http.get(f"{where}/in/a%20b%3F.bin")).content == data
                [file] = (await http.get(where, params={"path": "in"})).json()["files"]
                assert (file["path"], file["size"], file["mode"], file["kind"]) == (
                    "in/a b?.bin", len(data), 0o755, "file",
                )  # fmt: skip
                assert (await http.delete(f"{where}/in/a%20b%3F.bin")).status_code == 200
                problem(await http.get(f"{where}/in/a%20b%3F.bin"), 404, "no_file")
                assert (await http.put(f"{where}/..%2f..%2fx", content=b"x")).status_code == 422
                assert (await http.put(f"{where}/x", content=b"x", params={"mode": "9"})).status_code == 422
                assert (await http.put(f"{where}/empty", content=b"")).json()["size"] == 0
                assert (await http.get(f"{where}/empty")).content == b""

    run(body())


def test_half_a_file_does_not_arrive(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            lease = await door.fleet.granted("a")
            _, writer = await asyncio.open_unix_connection(str(door.socket))
            head = f"PUT /v1/leases/{lease.lease}/files/half HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
            writer.write(head.encode() + b"only this")
            await writer.drain()
            writer.close()
            assert (await http.get(f"/v1/leases/{lease.lease}/files")).json()["files"] == []

    run(body())


def test_a_file_that_cannot_be_read_to_its_end_breaks_off(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            lease = await door.fleet.granted("a")

            async def torn(*_: object) -> AsyncIterator[bytes]:
                async def chunks() -> AsyncIterator[bytes]:
                    yield b"first"
                    raise OSError("the disk is gone")

                return chunks()

            door.fleet.controller.get_file = torn  # type: ignore[method-assign, assignment]
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get(f"/v1/leases/{lease.lease}/files/x")

    run(body())


async def _head(door: Door) -> int:
    head = await door.fleet.controller.core.read(lambda tx: tx.head())
    return head.seq if head else 0


async def _audited(door: Door, count: int) -> None:
    while await _head(door) < count:
        await door.operator("observer")


def test_the_record_is_paged_and_exported_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        monkeypatch.setattr(record, "_PAGE", 10)
        async with open_door(tmp_path) as door, door.socket_client() as http:
            await _audited(door, 35)
            page = (await http.get("/v1/audit", params={"after": 3, "limit": 4})).json()["entries"]
            assert [entry["seq"] for entry in page] == [4, 5, 6, 7]
            assert page[0]["at_iso"].endswith("Z")
            whole = _lines((await http.get("/v1/audit", headers={"Accept": "application/x-ndjson"})).text)
            assert [entry["seq"] for entry in whole] == list(range(1, len(whole) + 1))
            assert len(whole) >= 35
            assert (await http.get("/v1/audit/verify")).json() == {"ok": True, "entries": len(whole)}
            only = (await http.get("/v1/audit", params={"what": "nothing.like.it"})).json()["entries"]
            assert only == []

    run(body())


def test_events_come_as_they_happen_and_go_on_after_a_break(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            async with http.stream("GET", "/v1/events", params={"after": await _head(door)}) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                lines = answer.aiter_lines()
                await door.operator("observer", "first")
                await door.operator("observer", "second")
                seen = await next_events(lines, 2)
            assert [data["facts"]["operator"] for _, _, data in seen] == ["first", "second"]
            assert {what for _, what, _ in seen} == {"operator.added"}
            last, _, data = seen[0]
            assert data["seq"] == last
            await door.operator("observer", "third")
            async with http.stream("GET", "/v1/events", headers={"Last-Event-ID": str(last)}) as answer:
                again = await next_events(answer.aiter_lines(), 2)
            assert [data["facts"]["operator"] for _, _, data in again] == ["second", "third"]
            assert [number for number, _, _ in again] == [last + 1, last + 2]

    run(body())


def test_a_silent_stream_of_events_is_kept_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        monkeypatch.setattr(record, "KEEP_ALIVE", 0.05)
        async with (
            open_door(tmp_path) as door,
            door.socket_client() as http,
            http.stream("GET", "/v1/events") as answer,
        ):
            comments = 0
            async for line in answer.aiter_lines():
                comments += line.startswith(":")
                if comments == 3:
                    await door.operator("observer", "late")
                if line.startswith("data:"):
                    assert "late" in line
                    break

    run(body())
