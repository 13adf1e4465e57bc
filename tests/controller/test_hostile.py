"""A desktop whose server turns on us, under a real controller: its lease hears why, it is replaced, and nobody else
notices. Coming back to a screen is automatic, and bounded."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.backends.base import Backend, Endpoint
from cu_fleet.controller.helper import Helper
from cu_fleet.model.action import parse_actions
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import BrokenError, FleetError
from cu_fleet.model.lease import LeaseState
from cu_fleet.model.request import Shot
from cu_fleet.model.view import LeaseView
from tests.controller.fleet import ANA, Fleet, profile, running
from tests.guest.test_helper_outside import Scripted, reply, with_helper
from tests.rfb.hostile import SIZE, hello
from tests.rfb.wire import Server, fence, rect, update
from tests.support import run, until

WIDTH, HEIGHT = 200, 120
PRESS = parse_actions([{"type": "key", "keys": "a"}])


class Turncoat(Server):
    """Lets us in and answers, until it has been asked so often; then it says its piece, for ever if it likes."""

    def __init__(self, honest: int, piece: bytes, *, again: bool = False, width: int = WIDTH) -> None:
        super().__init__(fences=False)
        self.hello = hello(width, HEIGHT)
        self.honest, self.piece, self.again = honest, piece, again

    async def _message(self, kind: int) -> None:
        if kind == 3 and len(self.requests) >= self.honest:
            while True:
                self.send(self.piece)
                await self.writer.drain()
                if not self.again:
                    break
        await super()._message(kind)


class Liar(Server):
    """Says something else than a greeting, and no more."""

    def __init__(self, said: bytes) -> None:
        super().__init__()
        self.said = said

    async def _serve(self) -> None:
        self.send(self.said)
        await self.reader.read()


HOSTILE: dict[str, tuple[Callable[[], Server], str]] = {
    "another protocol": (lambda: Liar(b"HTTP/1.1 200 OK\r\n"), "no VNC server"),
    "silence": (lambda: Liar(b""), "did not finish its greeting"),
    "a screen without end": (lambda: Liar(hello(65535, 65535)), "a screen of 65535x65535"),
    "a screen larger than any desktop of its profile": (lambda: Liar(hello(7680, 4320)), "a screen of 7680x4320"),
    "another size": (lambda: Turncoat(99, b"", width=WIDTH + 1), "is 201x120, but its profile says 200x120"),
    "no answers after the greeting": (lambda: Liar(hello(WIDTH, HEIGHT)), "did not finish its greeting"),
    "a breach": (lambda: Turncoat(2, b"\x99"), "unknown kind 153"),
    "a breach at once": (lambda: Turncoat(1, b"\x99"), "unknown kind 153"),
    "fences": (lambda: Turncoat(2, fence(b"x") * 5000, again=True), "nobody asked for"),
    "growth": (
        lambda: Turncoat(2, update(rect(0, 0, 4 * WIDTH, 2 * HEIGHT, SIZE))),
        "a screen of 800x240",
    ),
    "pictures": (lambda: Turncoat(2, update() * 1000, again=True), "nobody asked for"),
}

QUICK = ("a screen larger than any desktop of its profile", "a breach")


class Turning:
    """A backend of which single desktops come to be served by others."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name, self.abilities = backend.name, backend.abilities
        self.start, self.stop, self.found, self.check = backend.start, backend.stop, backend.found, backend.check
        self.by: dict[str, Callable[[], Server]] = {}
        self.connections = 0
        self.servers = contextlib.AsyncExitStack()

    async def endpoint(self, handle: Handle) -> Endpoint | None:
        true = await self.backend.endpoint(handle)
        make = self.by.get(str(handle.get("desktop")))
        if true is None or make is None:
            return true

        async def connect() -> socket.socket:
            self.connections += 1
            server = await self.servers.enter_async_context(make())
            return server.ours

        return replace(true, connect=connect)


@contextlib.asynccontextmanager
async def turning(home: Path, **settings: object) -> AsyncIterator[tuple[Fleet, Turning]]:
    async with running(home, profile(), wrap=Turning, **settings) as fleet:
        backend = fleet.controller.core.backends["memory"]
        assert isinstance(backend, Turning)
        async with backend.servers:
            yield fleet, backend


async def works(fleet: Fleet, lease: str) -> None:
    who = await fleet.controller.caller(fleet.lease_token(lease))
    assert (await fleet.controller.act(who, lease, PRESS, shot=Shot())).done[0].ok


def cut(fleet: Fleet, lease: LeaseView) -> None:
    """Break off whatever is connected to the lease's desktop."""
    for viewer in list(fleet.backend.desktop(lease.desktop or "").screen._viewers):  # noqa: SLF001
        viewer.cut()


def test_a_screen_that_breaks_off_now_and_then_is_connected_again_each_time(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            actor = fleet.controller.actors.of(lease.desktop or "")
            for _ in range(8):
                before = actor.screen
                cut(fleet, lease)
                await until(lambda before=before: actor.screen not in (None, before))  # type: ignore[misc]
                await works(fleet, lease.lease)
                await fleet.clock.advance(20)
            assert (await fleet.controller.lease(ANA, lease.lease)).state == LeaseState.ACTIVE.value

    run(body(), timeout=60)


def test_who_finds_a_screen_broken_off_at_the_same_time_shares_one_new_connection(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            who = await fleet.controller.caller(fleet.lease_token(lease.lease))
            actor = fleet.controller.actors.of(lease.desktop or "")
            before = actor.screen
            cut(fleet, lease)
            await until(lambda: actor.screen is not before, every=0)
            acts = [fleet.controller.act(who, lease.lease, PRESS) for _ in range(5)]
            assert all(acted.done[0].ok for acted in await asyncio.gather(*acts))
            await until(lambda: len(fleet.backend.desktop(lease.desktop or "").screen._viewers) == 1)  # noqa: SLF001

    run(body(), timeout=60)


@pytest.mark.parametrize("case", [pytest.param(x, marks=[] if x in QUICK else [pytest.mark.slow]) for x in HOSTILE])
def test_a_desktop_that_turns_hostile_is_replaced_and_nobody_else_notices(tmp_path: Path, case: str) -> None:
    make, words = HOSTILE[case]
    patience = {"backend_timeout": 1.0} if words == "did not finish its greeting" else {}

    async def body() -> None:
        async with turning(tmp_path, **patience) as (fleet, backend):
            bad, good = await fleet.granted("a"), await fleet.granted("b")
            backend.by[bad.desktop or ""] = make
            cut(fleet, bad)
            await until(lambda: backend.connections)
            await works(fleet, good.lease)
            view = bad
            while view.state == LeaseState.ACTIVE.value:
                with contextlib.suppress(FleetError):
                    await works(fleet, bad.lease)
                await works(fleet, good.lease)
                view = await fleet.controller.lease(ANA, bad.lease)
            assert view.state == LeaseState.LOST.value
            assert words in view.reason
            assert backend.connections <= 20
            backend.by.clear()
            await works(fleet, (await fleet.granted("a")).lease)
            await works(fleet, good.lease)
            assert bad.desktop not in [x.desktop for x in await fleet.controller.desktops(ANA) if x.stage != "gone"]
            await fleet.check()

    run(body(), timeout=60)


FLOODS: dict[str, tuple[bytes, str]] = {
    "answers to nobody": (b'{"id": 0, "ok": {}}\n' * 1000, "more than anybody asked for"),
    "large answers to nobody": (b'{"id": 0, "ok": {"text": "' + b"x" * (7 << 20) + b'"}}\n', "more than anybody"),
    "a line without end": (b"x" * (1 << 20), "a line of more than"),
    "lists in lists": (b'{"id": 0, "ok": [' + b"[]," * 700_000 + b"[]]}\n", "bytes that are no text"),
    "empty strings": (b'{"id": 0, "ok": [' + b'"",' * 1_500_000 + b'""]}\n', "bytes that are no text"),
}


@pytest.mark.parametrize("case", FLOODS)
def test_a_helper_that_floods_is_ended(case: str) -> None:
    said, words = FLOODS[case]

    async def flood(process: Scripted, request: dict[str, Any]) -> None:
        for _ in range(400):
            process.say(said)

    async def body(helper: Helper, process: Scripted) -> None:
        with pytest.raises(BrokenError, match=words):
            await helper.call("windows", timeout=20)
        await until(lambda: process.killed)

    with_helper(flood, body)


def test_a_clipboard_of_quotes_and_backslashes_is_no_flood() -> None:
    text = '"\\' * (1 << 19)

    async def hand_over(process: Scripted, request: dict[str, Any]) -> None:
        process.say(reply(request, ok={"text": text}))

    async def body(helper: Helper, process: Scripted) -> None:
        for _ in range(3):
            assert await helper.call("clipboard_get", timeout=20) == {"text": text}

    with_helper(hand_over, body)


def test_what_a_helper_complains_of_commands_no_terminal() -> None:
    async def refuse(process: Scripted, request: dict[str, Any]) -> None:
        process.say(reply(request, error={"code": "\x1b[2J", "text": "no\x1b[2J\n"}))

    async def body(helper: Helper, process: Scripted) -> None:
        with pytest.raises(FleetError) as e:
            await helper.call("windows")
        assert str(e.value).isprintable()
        assert e.value.code == "helper_refused"

    with_helper(refuse, body)
