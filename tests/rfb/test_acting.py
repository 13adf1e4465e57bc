"""The acting suite on TigerVNC, on Xvfb with x11vnc, on QEMU's own server, and on a desktop of the real controller."""

import contextlib
import itertools
from collections.abc import AsyncIterator

import pytest

from cu_fleet.model.errors import FleetError
from cu_fleet.testing.screen_acting import MEDIA, PRINTABLE, DeliveredContract, ScreenActingContract
from cu_fleet.testing.screen_stage import Hall, Stage
from tests.rfb.stages import ANA, bare, leased, machine
from tests.rfb.x11vnc import x11vnc
from tests.rfb.xvnc import xvnc
from tests.support import run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]


SWITCHING = {f"keys ctrl+alt+{keys}": "these switch X's terminals" for keys in ("F5", "F12", "super+F5", "super+F12")}
TIGERVNC = {
    **{f"keypad KP_{n}": "while NumLock is off it presses the digit above the letters instead" for n in range(10)},
    **{gap: f"{why}: it adds shift to make function keys of them" for gap, why in SWITCHING.items()},
}
X11VNC = {
    **{f"keypad KP_{n}": "it heeds no NumLock, and presses the key's other meaning" for n in range(10)},
    **{
        f"keys {'+'.join(('shift', *others, key))}": "to make the keysym it lifts shift, though it changes nothing here"
        for count in range(4)
        for others in itertools.combinations(("ctrl", "alt", "super"), count)
        for key in ("F5", "F12", "BackSpace")
    },
    **SWITCHING,
    **{f"wheel {way}": "it maps five buttons" for way in ("left", "right")},
    "a_place_is_met_again_after_a_program_has_moved_the_pointer": "it passes on no place that is the one before",
    "the_clipboard_both_ways": "it claims the extended clipboard and hands nothing of it on, and looks at X's seldom",
}
NOBODY_INSIDE = {
    "button back": "RFB's mask ends at eight buttons, of which servers heed seven",
    "button forward": "RFB's mask ends at eight buttons",
    "any_text_arrives": "what the server's keyboard lacks is refused",
    "a_long_text_of_any_kind_arrives_whole_and_in_order": "what the server's keyboard lacks is refused",
}
QEMU_ITSELF = {
    "named ISO_Level3_Shift": "it arrives as the right Alt key, which it is on a US keyboard too",
    **{
        f"keypad KP_{key}": "while NumLock is off the key above the letters is pressed instead"
        for key in (*range(10), "Decimal")
    },
    **{f"function F{n}": "its keymaps end at F12, and it is refused" for n in range(13, 25)},
    **{
        f"media {name}": "it cuts keysyms to 16 bits, which are another key's, so it is refused"
        for name in MEDIA.split()
    },
    **{
        f"keys {'+'.join(filter(None, (*names, '1')))}": "it keeps ctrl+alt and a digit for itself"
        for names in itertools.product(("", "shift"), ("ctrl",), ("alt",), ("", "super"))
    },
}
QEMU = {
    **QEMU_ITSELF,
    **{f"wheel {way}": "it maps five buttons, so it is refused" for way in ("left", "right")},
    **NOBODY_INSIDE,
}


class TestTigerVnc(ScreenActingContract):
    gaps = {**TIGERVNC, **NOBODY_INSIDE}

    @classmethod
    @contextlib.asynccontextmanager
    async def stage(cls) -> AsyncIterator[Stage]:
        with xvnc() as server:
            async with bare(server) as stage:
                yield stage


class TestLocalDesktop(ScreenActingContract):
    gaps = {**TIGERVNC}

    @classmethod
    @contextlib.asynccontextmanager
    async def stage(cls) -> AsyncIterator[Stage]:
        async with leased() as stage:
            yield stage

    def test_a_text_that_nobody_takes_is_told(self, hall: Hall) -> None:
        hall.events()  # this window has the keyboard and pastes nothing
        with pytest.raises(FleetError, match="no program took the text") as e:
            hall.do({"type": "key_down", "key": "ctrl"}, {"type": "type", "text": "世"})
        assert e.value.code == "not_taken"
        assert hall.held() == {"keys": 0, "mask": 0}


class TestX11vnc(ScreenActingContract):
    gaps = {**X11VNC, **NOBODY_INSIDE}
    long = 5_000  # it takes a hundred seconds for the whole

    @classmethod
    @contextlib.asynccontextmanager
    async def stage(cls) -> AsyncIterator[Stage]:
        with x11vnc() as server:
            async with bare(server) as stage:
                yield stage


class TestQemu(DeliveredContract):
    gaps = {**QEMU}
    long = 300  # it passes on fifty a second
    timeless = True

    @classmethod
    @contextlib.asynccontextmanager
    async def stage(cls) -> AsyncIterator[Stage]:
        async with machine() as stage:
            yield stage


@pytest.mark.parametrize("keyboard", ["ru", "gr", "il", "de(nodeadkeys)", "fr"])
def test_ascii_and_commands_arrive_whatever_the_layout(keyboard: str) -> None:
    async def body() -> None:
        async with leased(keyboard=keyboard) as stage:
            await stage.ask("toolkit", ["show", ""])
            await stage.do([{"type": "type", "text": PRINTABLE + " и é"}])
            assert await stage.ask("toolkit", "text") == PRINTABLE + " и é"
            await stage.do([{"type": "key", "keys": keys} for keys in ("ctrl+a", "ctrl+x", "z", "ctrl+v", "alt+q")])
            assert await stage.ask("toolkit", "text") == "z" + PRINTABLE + " и é"
            assert ["key", "q", 8] in await stage.ask("toolkit", "events")

    run(body(), timeout=120)


# Says in its title what it made of each click and turn of the wheel: `click0.1` is the left button, for the first time.
PAGE = b"""<body style="height: 100vh"><script>
const told = [], tell = (event, how) => { event.preventDefault(); told.push(event.type + how); document.title = told; };
for (const kind of ["click", "dblclick", "auxclick"])
  document.addEventListener(kind, event => tell(event, event.button + "." + event.detail));
document.addEventListener("wheel", event => tell(event, Math.sign(event.deltaX) + "." + Math.sign(event.deltaY)),
  {passive: false});
document.addEventListener("keydown", () => { told.length = 0; document.title = "begun"; });
</script>"""
BROWSER = "exec chromium --no-first-run --disable-gpu --user-data-dir=/tmp/c --kiosk file://$HOME/Shared/page.html"


def test_a_browser_understands_clicks_and_the_wheel() -> None:
    async def body() -> None:
        async with leased() as stage:
            await stage.controller.put_file(ANA, stage.lease.lease, "page.html", _chunks(PAGE), 0o644)
            browser = await stage.start(["sh", "-c", f"{BROWSER} >/tmp/log 2>&1"])

            async def expected(title: str) -> None:
                async def shown() -> bool:
                    windows = await stage.controller.windows(ANA, stage.lease.lease)
                    return any(str(window["title"]).removesuffix(" - Chromium") == title for window in windows)

                await until(shown, timeout=90)

            async def until_it_is_there() -> bool:
                with contextlib.suppress(FleetError):
                    await stage.do([{"type": "scroll", "x": 600, "y": 500, "dy": 1}, STABLE])
                windows = await stage.controller.windows(ANA, stage.lease.lease)
                return any("wheel" in str(window["title"]) for window in windows)

            await until(until_it_is_there, timeout=90, every=0.5)
            await stage.do([{"type": "key", "keys": "b"}])
            await expected("begun")
            click = {"type": "click", "x": 600, "y": 500}
            await stage.do(
                [click, click, click | {"x": 300, "count": 3}, click | {"button": "back"}, click | {"y": 300}]
            )
            one, two = "click0.1", "click0.2,dblclick0.2"
            clicks = f"{one},{one},{one},{two},click0.3,auxclick3.1,{one}"
            await expected(clicks)
            await stage.do(
                [{"type": "scroll", "x": 600, "y": 500, "dx": 1}, {"type": "scroll", "x": 600, "y": 500, "dy": -1}]
            )
            await expected(f"{clicks},wheel1.0,wheel0.-1")
            await browser.kill()

    run(body(), timeout=240)


STABLE = {"type": "wait_stable", "quiet_ms": 300, "timeout_ms": 5000}


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data
