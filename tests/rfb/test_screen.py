"""A screen over a socket, with a server that is slow, silent, blind to fences, resizing, deaf or gone."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cu_fleet.model.errors import TooLongError
from cu_fleet.rfb.handshake import RfbError
from cu_fleet.rfb.screen import POLLED, Screen
from tests.rfb.wire import HELLO, Server, raw, rect, update
from tests.support import run, until

PIXEL, WHOLE = (0, 0, 0, 1, 1), (0, 0, 0, 64, 48)  # requests


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[tuple[Server, Screen]]:
    async with Server(**options) as server:
        screen = await Screen.open(server.ours)
        try:
            yield server, screen
        finally:
            await screen.close()


@pytest.mark.parametrize("fences", [True, False])
def test_a_frame_is_whole_and_says_whether_it_is_exact(fences: bool) -> None:
    async def work() -> None:
        async with opened(fences=fences) as (server, screen):
            assert (screen.width, screen.height, screen.name) == (64, 48, "fake")
            if not fences:
                frame = await screen.frame()
                assert frame.pixels == server.colour * (64 * 48)
                assert frame.within == POLLED
                server.colour = b"\7\7\7\0"
                assert (await screen.frame()).pixels == b"\7\7\7\0" * (64 * 48)
                await screen.sync()
            else:
                frame = await screen.frame()
                assert frame.within == 0.0
                assert frame.pixels == server.colour * (64 * 48)
                await screen.sync()

    run(work())


def test_an_answer_from_before_the_question_is_not_taken_for_the_frame() -> None:
    async def work() -> None:
        async with opened() as (server, screen):
            await screen.frame()
            server.answers = False
            server.requests.clear()
            asked = asyncio.create_task(screen.frame(timeout=5))
            await until(lambda: len(server.requests) >= 3)
            token = screen._asking._look.fence  # type: ignore[union-attr]  # noqa: SLF001 - what our server must send back
            server.send(update(raw(0, 0, 64, 48, b"\1\1\1\0")))
            await until(lambda: screen.serial and bytes(screen._engine.canvas.data[:1]) == b"\1")  # noqa: SLF001
            assert not asked.done()
            server.send(struct.pack("!BxxxIB", 248, 0, len(token)) + token)
            server.send(update(raw(8, 8, 4, 4, b"\2\2\2\0")))
            server.send(update(raw(0, 0, 1, 1, b"\3\3\3\0")) + update(raw(0, 0, 64, 48, b"\4\4\4\0")))
            frame = await asked
            assert frame.pixels[:8] == b"\3\3\3\0\1\1\1\0"  # up to the pixel asked for, and nothing after it
            assert frame.pixels[(8 * 64 + 8) * 4] == 2

    run(work())


def test_without_fences_an_older_request_costs_a_second_look() -> None:
    async def work() -> None:
        async with opened(fences=False) as (server, screen):
            await screen.frame()
            server.answers = False
            watch = asyncio.create_task(screen.wait_change(screen.serial, timeout=20))
            await until(lambda: server.requests[-1][0] == 1)
            asked = asyncio.create_task(screen.frame(timeout=5))
            await until(lambda: server.requests[-1][0] == 0)
            server.send(update(raw(0, 0, 64, 48, b"\1\1\1\0")))  # to the older request
            server.answers = True
            server.colour = b"\2\2\2\0"
            server.send(update(raw(0, 0, 64, 48, server.colour)))
            assert (await asked).pixels == b"\2\2\2\0" * (64 * 48)
            await watch

    run(work())


def test_answers_that_are_still_on_their_way_are_drained_as_long_as_they_may_come() -> None:
    async def work() -> None:
        async with opened(fences=False) as (server, screen):
            await screen.frame()
            server.answers = False
            watch = asyncio.create_task(screen.wait_change(screen.serial, timeout=20))
            await until(lambda: server.requests[-1][0] == 1)
            asked = asyncio.create_task(screen.frame(timeout=5))
            await until(lambda: server.requests[-1] == PIXEL)
            old, new = raw(0, 0, 64, 48, b"\1\1\1\0"), raw(0, 0, 64, 48, b"\2\2\2\0")
            server.send(update(old))  # to what was asked for by the wait
            await until(lambda: server.requests[-1] == WHOLE)
            server.send(update(new))  # to the pixel, and to all in one
            assert (await asked).pixels == b"\2\2\2\0" * (64 * 48)
            await watch
            asked = asyncio.create_task(screen.frame(timeout=5))
            await until(lambda: server.requests[-1] == PIXEL)
            assert not asked.done()
            server.answers = True
            server.colour = b"\3\3\3\0"
            server.send(update(raw(0, 0, 64, 48, server.colour)))
            assert (await asked).pixels == b"\3\3\3\0" * (64 * 48)

    run(work())


def test_qemu_is_asked_for_a_pixel_and_sends_all_that_has_changed() -> None:
    async def work() -> None:
        async with opened(fences=False, name=b"QEMU (one)") as (server, screen):
            assert (await screen.frame()).within == 0.0
            assert server.requests[-1] == WHOLE
            server.answers = False
            asked = asyncio.create_task(screen.frame(timeout=5))
            await until(lambda: server.requests[-1] == PIXEL)
            server.send(update())  # of lamps or a cursor, unasked
            server.send(update(raw(8, 8, 4, 4, b"\2\2\2\0")))
            await until(lambda: screen.serial and screen._engine.canvas.data[(8 * 64 + 8) * 4] == 2)  # noqa: SLF001
            assert not asked.done()
            server.send(update(raw(0, 0, 16, 1, b"\3\3\3\0"), raw(20, 20, 4, 4, b"\4\4\4\0")))
            frame = await asked
            assert [frame.pixels[(y * 64 + x) * 4] for x, y in ((0, 0), (8, 8), (20, 20))] == [3, 2, 4]
            assert server.requests[-1] == PIXEL, "nothing more was asked for"

    run(work())


def test_a_resize_in_the_middle_gives_a_whole_frame_of_the_new_size() -> None:
    async def work() -> None:
        async with opened(fences=False) as (server, screen):
            await screen.frame()
            server.answers = False
            server.requests.clear()
            asked = asyncio.create_task(screen.frame(timeout=5))
            await until(lambda: server.requests)
            server.answers = True
            server.send(update(raw(0, 0, 64, 24), rect(0, 0, 32, 16, -223)))
            frame = await asked
            assert (frame.width, frame.height) == (screen.width, screen.height) == (32, 16)
            assert frame.pixels == server.colour * (32 * 16)

    run(work())


def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    async def work() -> None:
        async with Server() as server:
            server._task.cancel()  # noqa: SLF001
            with pytest.raises(TooLongError, match=r"did not finish its greeting within 0\.2 s"):
                await Screen.open(server.ours, timeout=0.2)
        async with opened() as (server, screen):
            server.answers = False
            with pytest.raises(TooLongError, match="did not send the picture"):
                await screen.frame(timeout=0.1)
            with pytest.raises(TooLongError, match="did not answer"):
                await screen.sync(timeout=0.1)
            server.answers = True
            assert (await screen.frame()).pixels == server.colour * (64 * 48)

    run(work())


@pytest.mark.parametrize("end", [0, 7, 40, len(HELLO) - 3])
def test_a_server_that_leaves_in_the_greeting_is_reported(end: int) -> None:
    async def work() -> None:
        async with Server() as server:
            server._task.cancel()  # noqa: SLF001
            await asyncio.wait({server._task})  # noqa: SLF001
            opening = asyncio.create_task(Screen.open(server.ours))
            server.send(HELLO[:end])
            server.writer.close()
            with pytest.raises(RfbError, match="closed the connection") as e:
                await opening
            assert e.value.code == "screen_lost"

    run(work())


def test_all_who_wait_hear_of_a_disconnect_in_mid_frame() -> None:
    async def work() -> None:
        async with opened() as (server, screen):
            server.answers = False
            waiting = [
                asyncio.create_task(wait)
                for wait in (
                    screen.frame(),
                    screen.sync(),
                    screen.wait_change(screen.serial, 20),
                    screen.wait_stable(1, 20),
                    screen.refresh(),
                )
            ]
            await until(lambda: len(server.requests) >= 3)
            server.send(update(raw(0, 0, 64, 48))[:500])
            server.writer.close()
            for error in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(error, RfbError)
                assert error.code == "screen_lost"
            assert (await screen.lost).code == "screen_lost"
            with pytest.raises(RfbError):
                await screen.frame()
            with pytest.raises(RfbError):
                screen.key_event(97, down=True)

    run(work())


def test_closing_tells_why_and_may_be_repeated() -> None:
    async def work() -> None:
        async with opened() as (_, screen):
            asked = asyncio.create_task(screen.wait_change(screen.serial, 20))
            await asyncio.sleep(0)
            await screen.close()
            await screen.close()
            with pytest.raises(RfbError, match="was closed"):
                await asked
            assert screen.lost.result().code == "screen_closed"

    run(work())


def test_a_server_that_does_not_read_cannot_fill_our_memory() -> None:
    async def work() -> None:
        async with opened() as (server, screen):
            server._task.cancel()  # noqa: SLF001
            setting = [asyncio.create_task(screen.set_clipboard("x" * (1 << 20))) for _ in range(20)]
            for error in await asyncio.gather(*setting, return_exceptions=True):
                assert isinstance(error, RfbError)
                assert "does not read" in str(error)
            await screen.lost

    run(work())


def test_waiting_for_change_and_stillness() -> None:
    async def work() -> None:
        async with opened(fences=False) as (server, screen):
            await screen.refresh()
            server.answers = False
            before = screen.serial
            with pytest.raises(TooLongError, match=r"the screen did not change within 0\.1 s") as e:
                await screen.wait_change(before, 0.1)
            assert e.value.code == "no_change"
            asked = asyncio.create_task(screen.wait_change(before, 10, region=(10, 10, 5, 5)))
            await until(lambda: server.requests[-1][0] == 1)
            server.send(update(raw(20, 20, 3, 3, b"\5\5\5\0")))
            await until(lambda: screen.serial != before)
            assert not asked.done()
            server.send(update(raw(12, 12, 1, 1, b"\5\5\5\0")))
            await asked
            server.answers = True
            await screen.wait_stable(0.05, 5)

    run(work())


def test_a_restless_screen_is_not_called_stable() -> None:
    async def work() -> None:
        async with opened(fences=False) as (server, screen):

            async def flicker() -> None:
                while True:
                    server.colour = bytes([server.colour[0] ^ 1, 2, 3, 0])
                    await asyncio.sleep(0.01)

            task = asyncio.create_task(flicker())
            with pytest.raises(TooLongError, match="keep still") as e:
                await screen.wait_stable(0.2, 0.6)
            assert e.value.code == "not_stable"
            task.cancel()
            await screen.wait_stable(0.05, 5)

    run(work())


def test_a_cancelled_look_leaves_the_screen_usable() -> None:
    async def work() -> None:
        async with opened() as (server, screen):
            server.answers = False
            asked = asyncio.create_task(screen.frame())
            await until(lambda: len(server.requests) >= 3)
            asked.cancel()
            await asyncio.wait({asked})
            server.answers = True
            for number in range(20):
                server.colour = bytes([number, 0, 0, 0])
                frame = await screen.frame()
                assert frame.pixels[0] == number

    run(work())
