"""The scenes of one desktop's screen: looking and acting, beside others who do the same on the same desktop.

What is compared is measured in turns, round after round, so that whatever else the machine does meets all alike. Each
picture is a fresh one: a key has changed the screen since the last, and has been seen to. `limit` is what nobody gets
below: for pictures a copy of the framebuffer plus the encoder alone, for input a bare connection to the desktop's own
server.
"""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Self

from cu_fleet.bench.figures import Figure, Series, milliseconds
from cu_fleet.bench.house import House, house
from cu_fleet.bench.others import Others, others
from cu_fleet.bench.plain import Plain
from cu_fleet.bench.stage import Stage, click, spot, terminal, timed, with_page
from cu_fleet.client import Desktop
from cu_fleet.client.http import v1
from cu_fleet.model.errors import BrokenError
from cu_fleet.rfb.canvas import Frame
from cu_fleet.rfb.picture import encode
from cu_fleet.rfb.screen import Screen

_WINDOW = {1280: (120, 36), 1920: (190, 54)}  # a terminal's columns and lines, by the width of the screen
_PROSE = "The quick brown fox jumps over the lazy dog; 12 (twelve) of them? No: #13, @once! "
_TEXT = (_PROSE * 13)[:1000]
_KEY: dict[str, Any] = {"type": "key", "keys": "a"}
_AT_ONCE = {"settle_ms": 0}  # what is measured waits for the change itself
_WARM = 6  # the limit is the best of so many in a row: done once, after a pause, it would flatter us
_TYPES = 3  # how often a text of 1,000 characters is typed: xdotool takes its time
_WAYS = {"http": "over HTTP", "client": "through the Python client"}
_FRESH = {"scrot": "scrot", "vncdotool": "capture"}


class Desk:
    """One desktop with a page of text on it, and all the ways to reach it. `took` keeps the seconds, by row."""

    def __init__(self, at: House, desktop: Desktop, others: Others) -> None:
        self.at, self.desktop, self.others = at, desktop, others
        assert at.wire.url
        self.plain = Plain(at.wire.url, str(desktop.lease.token))
        self.took: dict[str, list[float]] = {}
        self._pictures: dict[str, bytes] = {}

    def path(self, *steps: str) -> str:
        return v1("leases", self.desktop.id, *steps)

    def note(self, row: str, seconds: float) -> None:
        self.took.setdefault(row, []).append(seconds)

    def series(self, row: str, what: str) -> Series:
        """Without the first round, in which caches fill and code is loaded."""
        return milliseconds(self.took[row][1:], what)

    async def stir(self) -> None:
        """Change the screen a little, and see it change."""
        await self.desktop.act([_KEY, {"type": "wait_change"}])
        await asyncio.sleep(0.01)

    def fresh(self, kind: str, picture: bytes) -> None:
        if self._pictures.get(kind) == picture:
            raise BrokenError("a picture that should be a fresh one is the one before")
        self._pictures[kind] = picture

    async def by_http(self, *words: Any, **more: Any) -> tuple[float, bytes, str]:
        return await asyncio.to_thread(self.plain.ask, *words, **more)

    async def screen(self) -> Screen:
        """A connection of our own to the desktop's server, past the controller."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(self.at.screen_of(str(self.desktop.lease.desktop))))
        return await Screen.open(sock)


@asynccontextmanager
async def _desk(stage: Stage, width: int, height: int) -> AsyncIterator[Desk]:
    recipe = {"launch": terminal(*_WINDOW[width]), "screen": {"width": width, "height": height}}
    async with AsyncExitStack() as stack:
        at = await stack.enter_async_context(house(stage.top, recipe, most=2))
        desktop = await with_page(at)
        desk = Desk(at, desktop, await stack.enter_async_context(others(at, desktop)))
        stack.callback(desk.plain.close)
        yield desk


# looking


def looking(width: int, height: int) -> Callable[[Stage], AsyncGenerator[Figure, None]]:
    """Fresh pictures of a screen of this size, and unchanged ones."""
    size = f"{width}x{height}"

    async def scene(stage: Stage) -> AsyncGenerator[Figure, None]:
        async with _desk(stage, width, height) as desk:
            for number in range(stage.plan.rounds + 1):
                stage.tell(f"pictures of {size}: {number} of {stage.plan.rounds}")
                await _fresh(desk)
            for figure in _pictures(desk, size):
                yield figure

    return scene


async def _fresh(desk: Desk) -> None:
    where = desk.path("screenshot")
    for kind in ("png", "jpeg"):
        await desk.stir()
        seconds, data, _ = await desk.by_http("GET", f"{where}?format={kind}")
        desk.fresh(kind, data)
        desk.note(f"{kind}-http", seconds)
        await desk.stir()
        seconds, picture = await timed(desk.desktop.screenshot(format=kind))
        desk.fresh(kind, picture.frame.data)
        desk.note(f"{kind}-client", seconds)
    await _limit(desk)
    for name, what in _FRESH.items():
        await desk.stir()
        await desk.others.go(name, what)


async def _limit(desk: Desk) -> None:
    screen = await desk.screen()
    try:
        frame = await screen.frame()
    finally:
        await screen.close()
    framebuffer = bytearray(frame.pixels)
    for kind in ("png", "jpeg"):
        desk.note(f"{kind}-limit", min(_encoded(framebuffer, frame, kind) for _ in range(_WARM)))


def _encoded(framebuffer: bytearray, frame: Frame, kind: str) -> float:
    began = time.perf_counter()
    bytes(framebuffer)
    encode(replace(frame, deflated={}), format=kind)  # with nothing kept of an earlier one
    return time.perf_counter() - began


def _pictures(desk: Desk, size: str) -> list[Figure]:
    limit = "a copy of the framebuffer plus the encoder alone"
    figures = []
    for kind, name in (("png", "lossless PNG"), ("jpeg", "JPEG of quality 80")):
        for way, words in _WAYS.items():
            aimed = (kind, way) == ("png", "http")
            figure = Figure(
                f"{kind}-{size}-{way}",
                desk.series(f"{kind}-{way}", f"a fresh {name} of a terminal full of text, {words}"),
                desk.series(f"{kind}-limit", limit),
                most=3 if aimed else None,
                others=desk.others.series(**_FRESH) if kind == "png" else {},
                times_faster=dict.fromkeys(_FRESH, 8.0) if aimed else {},
            )
            figures.append(figure)
    return figures


def resting(width: int, height: int) -> Callable[[Stage], AsyncGenerator[Figure, None]]:
    """The same screen again, while nothing changes."""
    size = f"{width}x{height}"

    async def scene(stage: Stage) -> AsyncGenerator[Figure, None]:
        async with _desk(stage, width, height) as desk:
            for number in range(stage.plan.rounds + 1):
                stage.tell(f"an unchanged screen of {size}: {number} of {stage.plan.rounds}")
                await _unchanged(desk)
                for name, what in _FRESH.items():
                    await desk.others.go(name, what)
        for way, words in _WAYS.items():
            what = f"the same screen again, with if_changed_since, {words}; others take another picture"
            series, beside = desk.series(f"unchanged-{way}", what), desk.others.series(**_FRESH)
            yield Figure(f"unchanged-{size}-{way}", series, most=1.5 if way == "http" else None, others=beside)

    return scene


async def _unchanged(desk: Desk) -> None:
    where = desk.path("screenshot")
    _, _, frame = await desk.by_http("GET", where)
    seconds, data, _ = await desk.by_http("GET", f"{where}?if_changed_since={frame}", expect=304)
    assert not data
    desk.note("unchanged-http", seconds)
    seconds, image = await timed(desk.desktop.screenshot(if_changed_since=frame))
    if image is not None:
        raise BrokenError("nothing has changed, and yet a picture was handed out")
    desk.note("unchanged-client", seconds)


# acting


async def acting(stage: Stage) -> AsyncGenerator[Figure, None]:
    """One agent at work, one call after another."""
    async with _desk(stage, 1280, 800) as desk:
        bare = await _Bare.of(desk)
        rates, batches = list[float](), list[float]()
        for number in range(stage.plan.rounds + 1):
            stage.tell(f"an agent at work: {number} of {stage.plan.rounds}")
            await _clicks(desk, bare, stage.plan.calls)
            rate, batch = await _rates(desk, stage.plan.calls)
            rates += [rate][:number]
            batches += [batch][:number]
            await _keys(desk, bare)
            if number <= _TYPES:
                await _texts(desk, bare)
        await bare.screen.close()
    for figure in _acted(desk, stage.plan.calls, rates, batches):
        yield figure


class _Bare:
    """Keys and clicks on the desktop's own server, and nothing between."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen

    @classmethod
    async def of(cls, desk: Desk) -> Self:
        return cls(await desk.screen())

    async def click(self, x: int, y: int) -> None:
        for buttons in (0, 1, 0):
            self.screen.pointer_event(x, y, buttons)
        await self.screen.sync()

    async def write(self, text: str) -> None:
        for char in text:
            self.screen.key_event(ord(char), down=True)
            self.screen.key_event(ord(char), down=False)
        await self.screen.sync()

    async def key_to_frame(self) -> None:
        encode(await self.screen.frame())  # so that encoding is as warm as the controller's
        since = await self.screen.refresh()
        began = time.perf_counter()
        await self.write("a")
        await self.screen.wait_change(since, 10.0)
        encode(await self.screen.frame())
        self.seconds = time.perf_counter() - began


async def _clicks(desk: Desk, bare: _Bare, calls: int) -> None:
    for number in range(calls):
        body = {"actions": [{"type": "click", "x": spot(2 * number), "y": 792}]}
        desk.note("click-http", (await desk.by_http("POST", desk.path("actions"), body))[0])
        desk.note("click-client", await click(desk.desktop, 2 * number + 1))
        desk.note("click-limit", (await timed(bare.click(8 + number, 790)))[0])
    await desk.others.go("vncdotool", "click", 20, 792)
    await desk.others.go("xdotool", "click", 30, 792)


async def _rates(desk: Desk, calls: int) -> tuple[float, float]:
    """Calls a second one after another, and actions a second in one call."""
    alone = sum([await click(desk.desktop, number) for number in range(calls)])
    batch, _ = await timed(desk.desktop.act([{"type": "move", "x": 10 + each, "y": 10} for each in range(calls)]))
    return calls / alone, calls / batch


async def _keys(desk: Desk, bare: _Bare) -> None:
    """A key, then a picture in which something has changed."""
    batch = [_KEY, {"type": "wait_change"}]
    body = {"actions": batch, "screenshot": _AT_ONCE}
    await desk.stir()
    seconds, data, _ = await desk.by_http("POST", desk.path("actions"), body)
    desk.fresh("key", data)
    desk.note("key-http", seconds)
    await desk.stir()
    seconds, result = await timed(desk.desktop.act(batch, screenshot=_AT_ONCE))
    assert result.image is not None
    desk.fresh("key", result.image.frame.data)
    desk.note("key-client", seconds)
    await bare.key_to_frame()
    desk.note("key-limit", bare.seconds)
    for name in ("vncdotool", "xdotool"):
        await desk.stir()
        await desk.others.go(name, "key")


async def _texts(desk: Desk, bare: _Bare) -> None:
    desk.note("type-client", (await timed(desk.desktop.type(_TEXT)))[0])
    desk.note("type-limit", (await timed(bare.write(_TEXT)))[0])
    for name in ("vncdotool", "xdotool"):
        await desk.others.go(name, "type", _TEXT)


def _acted(desk: Desk, calls: int, rates: list[float], batches: list[float]) -> list[Figure]:
    def figure(row: str, measured: str, what: str, *, most: float | None = None) -> Figure:
        did = measured.partition("-")[0]
        beside = desk.others.series(vncdotool=did, xdotool=did)
        limit = desk.series(f"{did}-limit", "a bare connection to the desktop's own server")
        return Figure(row, desk.series(measured, what), limit, most_ms=most, others=beside)

    to_frame = "a key press until a lossless PNG of 1280x800 that shows it is in hand"
    return [
        figure(
            "click-http",
            "click-http",
            "a click until it is acknowledged, over HTTP; vncdotool's is sent, and not waited for",
            most=3,
        ),
        figure("click-client", "click-client", "the same through the Python client"),
        Figure("actions", _rate(rates, "clicks one after another, each a call of its own")),
        Figure("actions-batch", _rate(batches, f"moves, {calls} in one call")),
        figure("key-to-frame-http", "key-http", f"{to_frame}, in one call over HTTP; xdotool with scrot", most=10),
        figure("key-to-frame-client", "key-client", "the same through the Python client"),
        figure(
            "type-1000",
            "type-client",
            "1,000 characters until they are acknowledged; vncdotool's are only sent; xdotool with --delay 0",
        ),
    ]


def _rate(values: list[float], what: str) -> Series:
    return Series("/s", tuple(values), what, more_is_better=True)
