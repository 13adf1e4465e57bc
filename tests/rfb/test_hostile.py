"""Bad servers through the real `Screen.open`: each costs bounded time and memory, and ends in words.

Time is not measured but proved: a neighbour in the same event loop goes on being served, and all is over within the
test's deadline. Memory is limited in a process of its own.
"""

import asyncio
import gc
import itertools
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cu_fleet.model.errors import FleetError, TooLongError
from cu_fleet.rfb import updates
from cu_fleet.rfb.handshake import TURN, RfbError
from cu_fleet.rfb.screen import Screen
from tests.rfb.hostile import (
    BREACHES,
    ENDLESS,
    IN_GREETING,
    NAME,
    SIZE,
    Stream,
    hello,
    neighbour,
    rubbish,
    serving,
    slowed,
)
from tests.rfb.told import Told
from tests.rfb.wire import HELLO, Server, raw, rect, update
from tests.support import run, until

MOST_MEMORY = 70 << 20  # more than a process begins with; the largest screen here has 36 MB, so never two at a time
LITTLE = 2000  # messages, so that what ends after 10,000 ends sooner


async def met(stream: Stream, *, listens: bool = True, hangs_up: bool = False) -> FleetError:
    """What a screen says of this server in the end, whatever is asked of it."""
    async with serving(stream, listens=listens, hangs_up=hangs_up) as ours:
        try:
            screen = await Screen.open(ours)
        except FleetError as e:
            return e
        looking = asyncio.gather(*[screen.frame(timeout=1) for _ in range(3)], return_exceptions=True)
        said = await screen.lost
        await looking
        return said


@pytest.fixture
def little_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "MOST_NOISE", LITTLE)


@pytest.mark.parametrize("case", IN_GREETING)
def test_nobody_bad_is_let_in(case: str) -> None:
    stream, words = IN_GREETING[case]

    async def body() -> None:
        async with serving(stream, hangs_up=True) as ours:
            with pytest.raises(RfbError) as e:
                await Screen.open(ours)
            assert words in str(e.value)
            assert len(str(e.value)) < 300
            assert str(e.value).isprintable()

    run(body())


@pytest.mark.parametrize("case", BREACHES)
def test_a_breach_ends_the_connection_and_says_what_it_was(case: str) -> None:
    stream, words = BREACHES[case]
    said = run(met(stream, hangs_up=case.startswith("gone")))
    assert words in str(said)
    assert said.code in ("screen_broken", "screen_lost", "wrong_size")


async def _with_neighbour(stream: Stream) -> str:
    served = asyncio.create_task(neighbour(10))
    said = await met(stream)
    await served
    return str(said)


def main() -> None:
    """What each endless server ends with, in a process that may have `MOST_MEMORY` more than it begins with."""
    updates.MOST_NOISE = LITTLE
    before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (before + MOST_MEMORY,) * 2)
    for case, (stream, _) in ENDLESS.items():
        gc.collect()  # the screen of the case before
        print(json.dumps([case, run(_with_neighbour(stream))]), flush=True)


@pytest.fixture(scope="module")
def ended() -> dict[str, str]:
    command = [sys.executable, "-c", "from tests.rfb.test_hostile import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("case", ENDLESS)
def test_what_never_ends_is_ended_in_little_memory_and_disturbs_nobody(case: str, ended: dict[str, str]) -> None:
    assert ENDLESS[case][1] in ended[case]


@pytest.mark.usefixtures("little_noise")
@pytest.mark.parametrize("case", ["fences to be answered", "clipboard abilities", "pictures"])
def test_a_server_that_asks_and_does_not_listen_is_given_up(case: str) -> None:
    said = run(met(ENDLESS[case][0], listens=False))
    assert said.code in ("screen_broken", "screen_lost")


@pytest.mark.parametrize("seed", range(20))
def test_rubbish_ends_in_words(seed: int) -> None:
    assert run(met(rubbish(seed))).code in ("screen_broken", "wrong_size")


@pytest.mark.parametrize("said", [b"", b"RFB", b"RFB 003.008\n", HELLO[:20], HELLO])
def test_a_server_that_falls_silent_is_given_up(said: bytes) -> None:
    async def body() -> None:
        async with serving(lambda: iter((said,))) as ours:
            with pytest.raises(TooLongError, match=r"did not finish its greeting within 0\.2 s") as e:
                await Screen.open(ours, timeout=0.2)
            assert e.value.code == "screen_slow"

    run(body())


def test_a_greeting_that_drips_for_ever_is_given_up() -> None:
    async def body() -> None:
        async with (
            serving(
                lambda: iter((b"RFB 003.008\n\xff" + b"\1" * 255 + b"\0\0\0\1\0\0\x0f\xff" + b"x" * 4000,)),
            ) as far,
            slowed(far) as ours,
        ):
            with pytest.raises(TooLongError):
                await Screen.open(ours, timeout=0.1)

    run(body())


@pytest.mark.parametrize("fences", [True, False])
def test_a_slow_server_is_read_byte_by_byte(fences: bool) -> None:
    async def body() -> None:
        async with Server(fences=fences) as server, slowed(server.ours) as ours:
            screen = await Screen.open(ours)
            for number in range(3):
                if not fences:
                    server.colour = bytes([number, 9, 9, 0])
                frame = await screen.frame()
                assert frame.pixels == server.colour * (64 * 48)
            await screen.close()

    run(body())


class Resizing(Server):
    """Changes the size of its screen at moments told beforehand, one at each question."""

    def __init__(self, moments: list[tuple[str, int, int]], *, fences: bool) -> None:
        super().__init__(fences=fences)
        self.moments = moments
        self.size = (64, 48)

    async def _message(self, kind: int) -> None:
        if kind not in (3, 248) or not self.moments:
            await super()._message(kind)
            return
        moment, *size = self.moments.pop(0)
        new = rect(0, 0, *size, SIZE)
        old_picture = raw(0, 0, *self.size, self.colour)
        self.size = (size[0], size[1])
        picture = raw(0, 0, *self.size, self.colour)
        said = {
            "instead": update(new),
            "before": update(new, picture),
            "after": update(old_picture, new),
            "amid": update(old_picture, new, raw(0, 0, 1, 1, self.colour)),
            "twice": update(new, rect(0, 0, 7, 7, SIZE), new),
        }[moment]
        self.send(said)
        await super()._message(kind)

    def answer(self, x: int, y: int, width: int, height: int) -> bytes:
        right, bottom = min(x + width, self.size[0]), min(y + height, self.size[1])
        return raw(x, y, max(0, right - x), max(0, bottom - y), self.colour)


MOMENTS = st.tuples(
    st.sampled_from(["instead", "before", "after", "amid", "twice"]), st.integers(1, 90), st.integers(1, 90)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(MOMENTS, max_size=6), st.booleans())
def test_a_screen_may_change_its_size_at_any_moment(moments: list[tuple[str, int, int]], fences: bool) -> None:
    async def body() -> None:
        async with Resizing(moments, fences=fences) as server:
            screen = await Screen.open(server.ours)
            for number in range(4):
                if not fences:
                    server.colour = bytes([number, 7, 7, 0])
                frame = await screen.frame()
                assert frame.pixels == server.colour * (frame.width * frame.height)
            assert not server.moments or not fences
            await screen.refresh()
            assert (screen.width, screen.height) == server.size
            await screen.close()

    run(body())


def test_a_screen_grows_no_further_than_it_may() -> None:
    async def body() -> None:
        async with serving(lambda: iter((hello(1280, 800),))) as ours:
            with pytest.raises(RfbError, match=r"1280x800; .* 12,288 in all") as e:
                await Screen.open(ours, most_pixels=4 * 64 * 48)
            assert e.value.code == "wrong_size"
        async with Server() as server:
            screen = await Screen.open(server.ours, most_pixels=4 * 64 * 48)
            server.send(update(rect(0, 0, 128, 96, SIZE)))
            await until(lambda: screen.width == 128)
            server.send(update(rect(0, 0, 128, 97, SIZE)))
            assert "a screen of 128x97" in str(await screen.lost)

    run(body())


@pytest.mark.parametrize(
    "greeting",
    [b"RFB 003.008\n\x01\x01", b"RFB 003.008\n\x02\x01\x05", b"RFB 003.007\n\x01\x01", b"RFB 003.003\n\0\0\0\1"],
)
def test_a_server_that_wants_no_password_is_not_entered_with_one(greeting: bytes) -> None:
    told = Told(password="secret")  # noqa: S106
    told.feed(greeting)
    assert "asks for no password though one is set" in str(told.errors[0])
    assert told.errors[0].code == "screen_refused"
    assert told.sent == b"RFB " + greeting[4:11] + b"\n", "nothing was chosen"


def test_the_password_is_preferred_where_there_is_a_choice() -> None:
    told = Told(password="secret")  # noqa: S106
    told.feed(b"RFB 003.008\n\x02\x01\x02")
    assert told.sent.endswith(b"\x02")


def test_reading_takes_turns() -> None:
    """By a clock that ticks with every block read, however fast the machine is."""

    class Ticking(Told):
        def __init__(self) -> None:
            super().__init__()
            self.now = 0.0
            self.engine.clock = self.tick

        def tick(self) -> float:
            self.now += TURN / 10
            return self.now

    told = Ticking()
    told.engine.dataReceived(HELLO + update(raw(0, 0, 64, 48)) + b"\2" * 35)
    rests = 0
    while told.rests > rests:
        rests = told.rests
        bells = told.engine.bells
        told.engine.dataReceived(b"")
        assert told.engine.bells - bells <= 11
    assert told.engine.bells == 35
    assert rests >= 3


@pytest.mark.parametrize("fences", [True, False])
def test_a_server_that_keeps_us_busy_is_read_to_the_end_all_the_same(fences: bool) -> None:
    async def body() -> None:
        async with Server(fences=fences) as server:
            screen = await Screen.open(server.ours)
            turns = itertools.count()
            screen._engine.clock = lambda: next(turns) * 2 * TURN  # noqa: SLF001 - every block takes as long as two turns
            server.send(b"\2" * 20 + update(rect(0, 0, 0, 0, NAME, b"\0\0\0\5tired")))
            frame = await screen.frame()
            assert frame.pixels == server.colour * (64 * 48)
            await until(lambda: screen.name == "tired")
            assert screen._engine.bells == 20  # noqa: SLF001
            await screen.close()

    run(body())


def test_noise_is_forgiven_with_time() -> None:
    async def body() -> None:
        async with Server() as server:
            screen = await Screen.open(server.ours)
            for number in range(1, 4):
                server.send(b"\2" * (updates.MOST_NOISE - 100))
                await until(lambda number=number: screen._engine.bells == number * (updates.MOST_NOISE - 100))  # type: ignore[misc]  # noqa: SLF001
                screen._forgiven_at -= 60  # noqa: SLF001 - a minute passes
            await screen.frame()
            await screen.close()

    run(body())
