"""A real Xvnc, and X clients in it: what is down is lifted whatever happens, frames are never stale."""

import asyncio
import gc
import os
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from cu_fleet.model.action import parse_actions
from cu_fleet.model.errors import LeasePausedError, TooLongError
from cu_fleet.rfb.hands import Hands
from cu_fleet.rfb.handshake import RfbError
from cu_fleet.rfb.picture import image
from cu_fleet.rfb.screen import Screen
from tests.rfb.xvnc import Client, Xvnc, xvnc
from tests.support import run, until

pytestmark = pytest.mark.real
WIDTH, HEIGHT = 1280, 800
SINK = str(files("cu_fleet.testing.sinks").joinpath("x.py"))


@pytest.fixture(scope="module")
def server() -> Iterator[Xvnc]:
    with xvnc() as server:
        yield server


@pytest.fixture
def sink(server: Xvnc) -> Iterator[Client]:
    with server.client(SINK) as client:
        yield client


@pytest.fixture
def painter(server: Xvnc) -> Iterator[Client]:
    with server.client("painter.py") as client:
        yield client


def test_a_press_lasts_across_actions_and_a_new_connection_lifts_what_an_old_one_held(
    server: Xvnc, sink: Client
) -> None:
    async def work() -> None:
        screen = await server.screen()
        hands = Hands(screen, lambda: None)
        for action in parse_actions(
            [
                {"type": "press", "x": 5, "y": 5},
                {"type": "key_down", "key": "ctrl"},
                {"type": "move", "x": 50, "y": 50},
                {"type": "key", "keys": "x"},
            ]
        ):
            await hands.do(action)
        assert sink.ask("held") == {"keys": 1, "mask": 0x104}
        await hands.release_all()
        assert sink.ask("held") == {"keys": 0, "mask": 0}
        for action in parse_actions([{"type": "press"}, {"type": "key_down", "key": "alt"}]):
            await hands.do(action)
        assert sink.ask("held") == {"keys": 1, "mask": 0x108}
        await screen.close()
        await until(lambda: sink.ask("held") == {"keys": 0, "mask": 0x100})  # TigerVNC lifts the keys only
        screen = await server.screen()
        await Hands(screen, lambda: None).release_all()
        assert sink.ask("held") == {"keys": 0, "mask": 0}
        await screen.close()

    run(work())


def test_the_guard_stops_typing_in_the_middle_and_no_key_arrives_after(server: Xvnc, sink: Client) -> None:
    async def work() -> None:
        paused = False

        def guard() -> None:
            if paused:
                raise LeasePausedError("paused by ana")

        screen = await server.screen()
        hands = Hands(screen, guard)
        [action] = parse_actions([{"type": "type", "text": "A" * 50_000}])
        task = asyncio.create_task(hands.do(action))
        await until(lambda: sink.ask("events"))
        paused = True
        await hands.release_all()
        sink.ask("events")
        with pytest.raises(LeasePausedError, match="paused by ana"):
            await task
        await screen.sync()
        assert sink.ask("events") == []
        assert sink.ask("held") == {"keys": 0, "mask": 0}
        await screen.close()

    run(work())


# Seeing


def colours(pixels: bytes) -> set[bytes]:
    return {pixels[at : at + 3] for at in range(0, len(pixels), 4 * 331)}


def test_hundreds_of_frames_show_what_was_drawn_before_they_were_asked_for(server: Xvnc, painter: Client) -> None:
    async def work() -> None:
        screen = await server.screen()
        await Hands(screen, lambda: None).claim_pointer()
        for number in range(1, 301):
            colour = number * 54_321 & 0xFFFFFF
            painter.ask(colour)
            frame = await screen.frame()
            assert frame.within == 0.0
            assert colours(frame.pixels) == {colour.to_bytes(3, "little")}, number
        for number in range(1, 301):
            x, y, colour = number * 37 % 1200, number * 53 % 700, number * 54_321 & 0xFFFFFF
            painter.ask(["rect", colour, x, y, 60, 50])
            if number % 3 == 0:
                painter.ask(["copy", x, y, 60, 50, x // 2, y // 2])
                x, y = x // 2, y // 2
            frame = await screen.frame()
            corners = [(x, y), (x + 59, y), (x, y + 49), (x + 59, y + 49)]
            seen = {frame.pixels[(v * WIDTH + u) * 4 :][:3] for u, v in corners}
            assert seen == {colour.to_bytes(3, "little")}, number
        await screen.close()

    run(work(), timeout=120)


def test_frames_stay_true_while_others_watch_and_the_screen_is_busy(server: Xvnc, painter: Client) -> None:
    """Every frame equals one drawn between the question and the answer, and its whole area has one colour."""

    async def work() -> None:
        screen, other = await server.screen(), await server.screen()
        await Hands(screen, lambda: None).claim_pointer()
        watch = asyncio.create_task(other.wait_stable(5, 60), name="watch")
        stop = False
        drawn = 1

        async def draw() -> None:
            nonlocal drawn
            while not stop:
                await asyncio.to_thread(painter.ask, (drawn + 1) * 977 & 0xFFFFFF)
                drawn += 1

        painter.ask(977)
        painter.ask(drawn * 977)
        drawing = asyncio.create_task(draw(), name="draw")
        for _ in range(200):
            before = drawn
            frame, again = await asyncio.gather(screen.frame(), screen.frame())
            for one in (frame, again):
                [colour] = colours(one.pixels)
                number = int.from_bytes(colour, "little") // 977
                assert before <= number <= drawn + 1
        stop = True
        await drawing
        watch.cancel()
        await asyncio.wait({watch})
        await screen.close()
        await other.close()

    run(work(), timeout=120)


def test_the_same_picture_has_the_same_serial(server: Xvnc, painter: Client) -> None:
    async def work() -> None:
        screen = await server.screen()
        await Hands(screen, lambda: None).claim_pointer()
        painter.ask(0x123456)
        first = await screen.frame()
        painter.ask(0x123456)
        assert (await screen.frame()).serial == first.serial == await screen.refresh()
        painter.ask(["rect", 0x123457, 700, 700, 1, 1])
        assert (await screen.frame()).serial > first.serial
        await screen.close()

    run(work())


def test_the_pointer_is_kept_out_of_the_picture_and_painted_when_asked(server: Xvnc, painter: Client) -> None:
    async def work() -> None:
        screen = await server.screen()
        hands = Hands(screen, lambda: None)
        painter.ask(["cursor"])
        painter.ask(0x112233)
        await hands.claim_pointer()
        await hands.do(parse_actions([{"type": "move", "x": 300, "y": 200}])[0])
        frame = await screen.frame(pointer=True)
        assert frame.pointer == (300, 200)
        assert not frame.drawn
        assert image(frame).getcolors(maxcolors=1)
        assert not image(frame, pointer=True).getcolors(maxcolors=1)
        assert (await screen.frame()).cursor is None
        painter.ask(["warp", 400, 300])
        assert (await screen.frame()).pointer == (400, 300)
        await screen.close()

    run(work())


def test_change_and_stillness_are_noticed(server: Xvnc, painter: Client) -> None:
    async def work() -> None:
        screen = await server.screen()
        hands = Hands(screen, lambda: None)
        await hands.claim_pointer()
        painter.ask(1)
        wait_change, wait_stable = parse_actions(
            [
                {"type": "wait_change", "timeout_ms": 10_000},
                {"type": "wait_stable", "quiet_ms": 60, "timeout_ms": 10_000},
            ]
        )
        await hands.mark()
        move = parse_actions([{"type": "move", "x": 3, "y": 3}])[0]
        await hands.do(move)
        painter.ask(2)
        await hands.do(wait_change)  # it happened before we began to wait, and after the action
        await hands.mark()
        await hands.do(move)
        with pytest.raises(TooLongError):
            await screen.wait_change(screen.serial, 0.2)
        waiting = asyncio.create_task(hands.do(wait_change))
        await asyncio.sleep(0)
        painter.ask(["rect", 3, 5, 5, 1, 1])
        await waiting
        await hands.do(wait_stable)
        await screen.close()

    run(work())


def test_the_clipboard_goes_both_ways_in_utf8(server: Xvnc) -> None:
    text = "Grüße, 世界 🌍\nzwei"
    env = {"DISPLAY": server.display, "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}

    async def xclip(*args: str, data: bytes | None = None) -> bytes:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            "xclip", "-selection", "clipboard", *args, env=env, stdin=pipe, stdout=pipe if data is None else None
        )
        out, _ = await process.communicate(data)
        return out or b""

    async def work() -> None:
        screen = await server.screen()
        await screen.set_clipboard(text)
        assert (await xclip("-o", "-t", "UTF8_STRING")).decode() == text
        await xclip("-i", data="zurück: ñ ✓".encode())
        await until(lambda: _is(screen, "zurück: ñ ✓"))
        await screen.set_clipboard("x" * 200_000)
        assert await xclip("-o", "-t", "UTF8_STRING") == b"x" * 200_000
        await screen.close()

    async def _is(screen: Screen, wanted: str) -> bool:
        return await screen.clipboard() == wanted

    run(work(), timeout=60)


def test_passwords() -> None:
    async def work(server: Xvnc) -> None:
        screen = await server.screen(password="secret12")  # noqa: S106
        assert (await screen.frame()).width == WIDTH
        await screen.close()
        with pytest.raises(RfbError, match="refused us"):
            await server.screen(password="wrong")  # noqa: S106
        with pytest.raises(RfbError, match="wants a password, and none is known"):
            await server.screen()

    with xvnc(password="secret12") as server:  # noqa: S106
        run(work(server))


def test_a_screen_that_dies_is_reported_at_once() -> None:
    async def work(server: Xvnc) -> None:
        screen = await server.screen()
        server.process.kill()
        assert (await asyncio.wait_for(screen.lost, 10)).code == "screen_lost"
        with pytest.raises(RfbError, match="closed the connection"):
            await screen.frame()

    with xvnc() as server:
        run(work(server))


def test_many_frames_and_actions_leave_nothing_behind(server: Xvnc, painter: Client) -> None:
    async def work() -> None:
        screen = await server.screen()
        hands = Hands(screen, lambda: None)
        actions = parse_actions(
            [{"type": "move", "x": 1, "y": 1}, {"type": "key", "keys": "shift"}, {"type": "type", "text": "ab"}]
        )

        async def some(count: int) -> None:
            for number in range(count):
                await hands.do(actions[number % 3])
                await screen.frame()

        await some(200)
        gc.collect()
        files, tasks, memory = _files(), len(asyncio.all_tasks()), _memory()
        await some(1500)
        gc.collect()
        assert (_files(), len(asyncio.all_tasks())) == (files, tasks)
        assert _memory() - memory < 16 << 20
        await screen.close()

    run(work(), timeout=120)


def test_no_reactor_is_loaded_and_uvloop_will_do(server: Xvnc) -> None:
    uvloop = pytest.importorskip("uvloop")
    import sys

    async def work() -> None:
        screen = await server.screen()
        began = time.monotonic()
        assert (await screen.frame()).at >= began
        await screen.sync()
        await screen.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())
    assert "twisted.internet.reactor" not in sys.modules


def _files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
