"""Real programs on real servers: waits while a cursor blinks and a clock ticks, and servers that change or die."""

import asyncio
import itertools
import os
import shlex
import signal
import subprocess
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from importlib.resources import files
from typing import Any

import pytest

from cu_fleet.model.action import parse_actions
from cu_fleet.model.errors import LeasePausedError, TooLongError
from cu_fleet.rfb.hands import Hands
from cu_fleet.rfb.handshake import RfbError
from cu_fleet.rfb.picture import image
from cu_fleet.rfb.screen import Screen
from cu_fleet.testing.screen_seeing import ScreenSight
from tests.rfb.qemu import drawn, qemu
from tests.rfb.sights import seen_on
from tests.rfb.x11vnc import x11vnc
from tests.rfb.xvnc import Xvnc, xvnc
from tests.support import run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
X_SERVERS = {"tigervnc": xvnc, "x11vnc": x11vnc}
SINK = str(files("cu_fleet.testing.sinks").joinpath("x.py"))
CLOCK = (700, 0, 580, 800)  # the part of the screen that it has to itself
BLINKING = ["xterm", "-bc", "-bcf", "50", "-bcn", "50", "-geometry", "60x20+0+0"]
CLOCKWORK = ["xterm", "-geometry", "20x10+720+10", "-e", "sh", "-c", "while :; do date +%N; sleep 0.05; done"]
CELL = 400  # pixels; a terminal's cursor is smaller
SIZES = ((1280, 800), (1024, 768), (800, 600))


@asynccontextmanager
async def eyes(server: Any) -> AsyncIterator[Screen]:
    screen = await server.screen()
    try:
        yield screen
    finally:
        await screen.close()


@contextmanager
def desktop(display: str, *programs: Sequence[str]) -> Iterator[None]:
    """Programs with a window manager: xterm's cursor blinks where there is a focus. They end with their X server."""
    env = {"DISPLAY": display, "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": "/nowhere"}
    script = shlex.join(["sh", "-c", "".join(f"{shlex.join(words)} & " for words in programs)])
    process = subprocess.Popen(["openbox", "--startup", script], env=env, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def randr(server: Any, width: int, height: int) -> None:
    env = {"DISPLAY": server.display, "PATH": os.environ["PATH"]}
    subprocess.run(["xrandr", "-s", f"{width}x{height}"], env=env, check=True, capture_output=True, timeout=20)


@pytest.mark.parametrize("server", X_SERVERS)
def test_waits_look_past_a_blinking_cursor_and_a_ticking_clock(server: str) -> None:
    async def body(one: Any) -> None:
        async with eyes(one) as screen:
            hands = Hands(screen, lambda: None)
            click, words = parse_actions([{"type": "click", "x": 99, "y": 99}, {"type": "type", "text": "seq 300\n"}])
            await until(lambda: _shows(screen, CLOCK))
            await until(lambda: _shows(screen, (0, 0, 300, 200)))
            await hands.do(click)
            focus: dict[str, Any] = {"ignore": [CLOCK], "ignore_below": CELL}
            with pytest.raises(TooLongError, match="did not keep still"):
                await screen.wait_stable(0.5, 2)
            with pytest.raises(TooLongError, match="did not keep still"):
                await screen.wait_stable(0.5, 2, ignore_below=CELL, region=CLOCK)
            await screen.wait_stable(0.5, 20, **focus)
            await screen.wait_stable(0.5, 20, region=(0, 400, 600, 400))
            mark = await screen.mark()
            await screen.wait_change(mark, 20, region=CLOCK)
            await screen.wait_change(mark, 20, ignore=[CLOCK])  # the cursor
            with pytest.raises(TooLongError, match="did not change"):
                await screen.wait_change(mark, 0.7, **focus)
            mark = await screen.mark()
            await hands.do(words)
            await screen.wait_change(mark, 20, **focus)

    with ExitStack() as stack:
        one = stack.enter_context(X_SERVERS[server]())
        stack.enter_context(desktop(one.display, [*BLINKING, "-e", "sh"], CLOCKWORK))
        run(body(one), timeout=100)


async def _shows(screen: Any, region: tuple[int, int, int, int]) -> bool:
    x, y, width, height = region
    part = image(await screen.frame()).crop((x, y, x + width, y + height))
    return part.getcolors(maxcolors=1) is None


def test_the_pointer_stays_out_of_pictures_after_a_program_has_moved_it_and_nothing_is_moved_for_that() -> None:
    barred = False

    def guard() -> None:
        if barred:
            raise LeasePausedError("paused by ana")

    async def body(one: Xvnc, painter: Any, sink: Any) -> None:
        async with eyes(one) as screen:
            hands = Hands(screen, guard)
            await hands.claim_pointer()
            clean = image(await screen.frame()).tobytes()
            for _ in range(3):
                place = await _displaced(screen, painter)
                sink.ask("events")
                assert image(await screen.frame()).tobytes() == clean
                seen = await screen.frame(pointer=True)
                assert (seen.pointer, seen.drawn) == (place, False)
                assert image(seen, pointer=True).tobytes() != clean
                assert sink.ask("events") == []
            await _displaced(screen, painter)
            nonlocal barred
            barred = True
            frame = await screen.frame()
            assert frame.drawn, "who may send nothing gets it as it is, and is told"

    with xvnc() as one, one.client("painter.py") as painter, one.client(SINK) as sink:
        painter.ask(["cursor"])
        run(body(one, painter, sink), timeout=60)


async def _displaced(screen: Screen, painter: Any) -> tuple[int, int]:
    """Have a program move the pointer until TigerVNC draws it; for a second after a client's own event it does not."""
    places = itertools.count(300)

    async def drawn_by_server() -> tuple[int, int] | None:
        painter.ask(["warp", next(places), 300])
        seen = await screen.frame(pointer=True)
        return seen.pointer if seen.drawn else None

    place: tuple[int, int] = await until(drawn_by_server)
    return place


def test_a_change_is_noticed_on_a_still_machine_whose_refresh_has_slowed_down() -> None:
    async def body(vm: Any) -> None:
        async with eyes(vm) as screen:
            await screen.wait_stable(4.0, 20)  # a refresh every three seconds by now
            for number in (1, 2):
                mark = await screen.mark()
                waiting = asyncio.create_task(screen.wait_change(mark, 30))
                await asyncio.to_thread(vm.draw, number)
                await waiting
                assert drawn((await screen.frame()).pixels) == number

    with qemu() as vm:
        run(body(vm), timeout=150)


async def checked(screen: Screen) -> tuple[int, int]:
    frame = await screen.frame()
    assert (frame.width, frame.height) in SIZES
    assert len(frame.pixels) == frame.width * frame.height * 4
    return frame.width, frame.height


def test_every_picture_is_whole_while_x_changes_its_size() -> None:
    async def body(one: Xvnc) -> None:
        async with eyes(one) as screen:
            for size in (SIZES[1:] + SIZES[:1]) * 3:
                resizing = asyncio.create_task(asyncio.to_thread(randr, one, *size))
                while (await checked(screen) != size) or not resizing.done():
                    await screen.wait_stable(0.0, 10, region=(0, 0, 700, 500))
                await resizing
            with one.client("painter.py") as painter:
                painter.ask(0x123456)
                assert image(await screen.frame()).getcolors(maxcolors=1) == [(1280 * 800, (0x12, 0x34, 0x56))]

    with xvnc() as one:
        run(body(one), timeout=100)


def test_every_picture_is_whole_while_a_machine_changes_its_size() -> None:
    async def body(vm: Any) -> None:
        async with eyes(vm) as screen:
            for size in (SIZES[1:] + SIZES[:1]) * 2:
                changing = asyncio.create_task(asyncio.to_thread(vm.mode, *size))
                while not changing.done():
                    await checked(screen)
                await changing
                await asyncio.to_thread(vm.draw, sum(size))
                frame = await screen.frame()
                assert (frame.width, frame.height, drawn(frame.pixels)) == (*size, sum(size))

    with qemu() as vm:
        run(body(vm), timeout=150)


def test_a_server_killed_in_mid_frame_has_handed_out_whole_pictures_only() -> None:
    async def looks_on(sight: ScreenSight, one: Xvnc) -> None:
        for number in itertools.count():
            asked = asyncio.create_task(sight.look(pointer=False))
            if number == 5:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                one.process.send_signal(signal.SIGKILL)
            assert sight.whole((await asked).picture)

    async def body(one: Xvnc, after: int) -> None:
        async with seen_on(one) as sight:
            await sight.said.beyond(after)
            with pytest.raises(RfbError) as e:
                await looks_on(sight, one)
            assert e.value.code == "screen_lost"

    for after in (1, 5, 9):
        with xvnc("-geometry", "1920x1080") as one:
            run(body(one, after), timeout=60)


def test_looking_takes_no_more_memory_than_the_picture_and_one_copy() -> None:
    async def body(one: Xvnc, painter: Any) -> None:
        tracemalloc.start()
        try:
            async with eyes(one) as screen:
                await looks(screen, painter)
        finally:
            tracemalloc.stop()

    async def looks(screen: Screen, painter: Any) -> None:
        size = 1920 * 1080 * 4
        for number in range(6):
            painter.ask(number * 999)
            await screen.refresh()
        assert tracemalloc.get_traced_memory()[1] < size + (1 << 20)
        for number in range(6):
            painter.ask(number * 999)
            await screen.frame()
            await screen.wait_stable(0.0, 10)
            await screen.wait_change(0, 10)
            await screen.wait_stable(0.0, 10, ignore_below=5)
        assert tracemalloc.get_traced_memory()[1] < 2 * size + (1 << 20)

    with xvnc("-geometry", "1920x1080") as one, one.client("painter.py") as painter:
        run(body(one, painter), timeout=60)
