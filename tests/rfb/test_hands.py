"""What hands send for each action, when the guard stops them, and that nothing stays down."""

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from cu_fleet.model.action import parse_actions
from cu_fleet.model.errors import InvalidError, LeasePausedError, UnsupportedError
from cu_fleet.model.keys import NAMES
from cu_fleet.rfb.fingers import Extra
from cu_fleet.rfb.hands import Hands, no_button
from cu_fleet.rfb.screen import Screen
from tests.rfb.wire import Server
from tests.support import run, until

CTRL, SHIFT, RETURN, TAB = (NAMES[name] for name in ("Control_L", "Shift_L", "Return", "Tab"))


def done(
    *actions: dict[str, Any],
    guard: Callable[[], None] = lambda: None,
    paste_text: Any = None,
    extra: Extra | None = None,
    heard_by: Any = None,
    server_name: bytes = b"fake",
    after: Callable[[Hands, Server], Any] | None = None,
) -> list[tuple[int, ...]]:
    """The events that a server with a screen of 64x48 hears."""

    async def work() -> list[tuple[int, ...]]:
        async with Server(name=server_name) as server:
            screen = await Screen.open(server.ours)
            hands = Hands(screen, lambda: None, paste_text, extra, heard_by)
            await hands.claim_pointer()
            server.heard.clear()
            hands.fingers.guard = guard
            try:
                for action in parse_actions(list(actions)):
                    await hands.do(action)
                if after:
                    await after(hands, server)
                return server.heard
            finally:
                if not screen.lost_because:
                    await screen.sync()
                heard.extend(server.heard)
                await screen.close()

    heard: list[tuple[int, ...]] = []
    last.heard = heard
    return run(work())


class last:  # noqa: N801 - read after an action that failed
    heard: list[tuple[int, ...]]


def key(sym: int | str, *, down: bool) -> tuple[int, int, int]:
    return (4, int(down), ord(sym) if isinstance(sym, str) else sym)


def tap(*syms: int | str) -> list[tuple[int, ...]]:
    return [*(key(sym, down=True) for sym in syms), *(key(sym, down=False) for sym in reversed(syms))]


def test_a_click_goes_there_first_and_counts_with_modifiers_around() -> None:
    assert done({"type": "click", "x": 3, "y": 4}) == [(5, 0, 3, 4), (5, 1, 3, 4), (5, 0, 3, 4)]
    heard = done({"type": "click", "x": 3, "y": 4, "button": "right", "count": 2, "modifiers": ["ctrl", "SHIFT"]})
    assert heard == [
        key(CTRL, down=True),
        key(SHIFT, down=True),
        (5, 0, 3, 4),
        *[(5, 4, 3, 4), (5, 0, 3, 4)] * 2,
        key(SHIFT, down=False),
        key(CTRL, down=False),
    ]


def test_keys_wait_until_the_presses_before_them_were_heard_and_nothing_else_does() -> None:
    asked: list[int] = []

    async def heard_by(presses: int) -> bool:
        asked.append(presses)
        return True

    click: dict[str, Any] = {"type": "click", "x": 3, "y": 4}
    key_a = {"type": "key", "keys": "a"}
    done(
        key_a,
        {"type": "move", "x": 1, "y": 1},
        key_a,
        {"type": "scroll", "x": 1, "y": 1, "dy": 1},
        key_a,
        heard_by=heard_by,
    )
    assert asked == []
    done(
        click,
        {**click, "x": 50, "count": 2},
        key_a,
        key_a,
        {**click, "x": 30},
        {"type": "type", "text": "b"},
        heard_by=heard_by,
    )
    assert asked == [3, 1]


def test_new_hands_lift_the_buttons_of_whoever_was_there_before() -> None:
    async def work() -> None:
        for release in (False, True):
            async with Server() as server:
                screen = await Screen.open(server.ours)
                hands = Hands(screen, lambda: None)
                if release:
                    await hands.release_all()
                    assert server.heard == [(5, 0, 32, 24)]
                else:
                    await hands.do(parse_actions([{"type": "key", "keys": "a"}])[0])
                    assert server.heard == [(5, 0, 31, 24), (5, 0, 32, 24), *tap("a")]
                await screen.close()

    run(work())


def test_a_press_holds_across_other_actions() -> None:
    heard = done(
        {"type": "press", "x": 1, "y": 1},
        {"type": "move", "x": 5, "y": 5},
        {"type": "click", "x": 6, "y": 6, "button": "middle"},
        {"type": "release"},
    )
    assert heard == [
        (5, 0, 1, 1),
        (5, 1, 1, 1),
        (5, 1, 5, 5),
        (5, 1, 6, 6),
        (5, 3, 6, 6),
        (5, 1, 6, 6),
        *[(5, 1, 6, 6), (5, 0, 6, 6)],
    ]


def test_a_drag_passes_points_between_and_ends_where_it_should() -> None:
    heard = done({"type": "drag", "path": [[0, 0], [60, 0], [60, 40]]})
    assert heard[:2] == [(5, 0, 0, 0), (5, 1, 0, 0)]
    assert heard[-2:] == [(5, 1, 60, 40), (5, 0, 60, 40)]
    assert (5, 1, 60, 0) in heard
    steps = [(b[2] - a[2], b[3] - a[3]) for a, b in itertools.pairwise(heard[1:-1])]
    assert max(abs(dx) + abs(dy) for dx, dy in steps) <= 12


def test_the_wheel_has_four_ways() -> None:
    heard = done(
        {"type": "scroll", "x": 1, "y": 1, "dx": 1, "dy": -2}, {"type": "scroll", "x": 1, "y": 1, "dx": -1, "dy": 1}
    )
    assert [mask for _, mask, *_ in heard if mask] == [8, 8, 64, 16, 32]
    assert len(done({"type": "scroll", "x": 1, "y": 1, "dy": 1000})) == 2001


def test_keys_go_down_in_order_and_up_in_reverse() -> None:
    assert done({"type": "key", "keys": "CTRL+shift+t"}) == tap(CTRL, SHIFT, "T")
    assert done({"type": "key", "keys": "A"}) == tap("A")
    held = done(
        {"type": "key_down", "key": "shift"}, {"type": "key", "keys": "shift+a"}, {"type": "key_up", "key": "shift"}
    )
    assert held == [key(SHIFT, down=True), *tap("A"), key(SHIFT, down=False)]
    assert done({"type": "hold_key", "keys": "a", "seconds": 0.01}) == tap("a")


@pytest.mark.parametrize(("down", "up"), [("a", "A"), ("A", "a"), ("é", "É"), ("x", "x")])
def test_a_held_key_is_lifted_by_either_spelling(down: str, up: str) -> None:
    assert done({"type": "key_down", "key": down}, {"type": "key_up", "key": up}) == tap(down)


def test_a_key_that_is_not_down_is_lifted_as_it_is_named() -> None:
    assert done({"type": "key_down", "key": "b"}, {"type": "key_up", "key": "A"})[1:] == [key("A", down=False)]


def test_text_is_typed_key_by_key() -> None:
    heard = done({"type": "type", "text": "aB!\r\n\té"})
    assert heard == [event for char in ("a", "B", "!", RETURN, TAB, "é") for event in tap(char)]
    assert len(done({"type": "type", "text": "x" * 5000})) == 10_000


@pytest.mark.parametrize("text", ["abc 世界", "a\N{GRINNING FACE}", "e\u0301", "".join(map(chr, range(0xC0, 0x100)))])
def test_what_cannot_be_typed_is_refused_before_the_first_key(text: str) -> None:
    with pytest.raises(UnsupportedError, match=r"U\+[0-9A-F]{4,5}\) cannot be typed") as e:
        done({"type": "type", "text": text})
    assert str(e.value.facts["character"]) in text
    assert last.heard == []


def test_what_cannot_be_typed_goes_over_the_clipboard_where_there_is_a_hook() -> None:
    pasted: list[str] = []

    async def paste(text: str, press: Callable[[], None]) -> None:
        pasted.append(text)
        press()

    heard = done({"type": "type", "text": "Grüße 世界"}, {"type": "paste", "text": "more\n"}, paste_text=paste)
    assert pasted == ["Grüße 世界", "more\n"]
    assert heard == tap(CTRL, "v") * 2


def test_in_a_text_that_is_pasted_the_ends_of_lines_are_keys() -> None:
    pasted: list[str] = []

    async def paste(text: str, press: Callable[[], None]) -> None:
        pasted.append(text)
        press()

    heard = done({"type": "type", "text": "世\tx\r\nGrüße\n"}, paste_text=paste)
    assert pasted == ["世", "Grüße"]
    assert heard == [*tap(CTRL, "v"), *tap(TAB), *tap("x"), *tap(RETURN), *tap(CTRL, "v"), *tap(RETURN)]


def test_a_hook_that_fails_sends_nothing() -> None:
    async def paste(text: str, press: Callable[[], None]) -> None:
        raise UnsupportedError("no clipboard here")

    with pytest.raises(UnsupportedError, match="no clipboard here"):
        done({"type": "type", "text": "世界"}, paste_text=paste)
    assert last.heard == []


@pytest.mark.parametrize("button", ["back", "forward"])
@pytest.mark.parametrize("kind", ["click", "press", "release", "drag"])
def test_buttons_that_vnc_lacks_are_refused_by_name(kind: str, button: str) -> None:
    where: dict[str, Any] = {"path": [[1, 1], [2, 2]]} if kind == "drag" else {"x": 1, "y": 1}
    with pytest.raises(UnsupportedError, match=f"no {button} button") as e:
        done({"type": kind, "button": button, **where})
    assert e.value.code == "no_such_button"
    assert last.heard == []


class Within:
    """Somebody inside who presses buttons, or fails to."""

    def __init__(self) -> None:
        self.did: list[tuple[object, ...]] = []
        self.fails = False
        self.extra = Extra(self.press, self.lift)

    async def press(self, name: str, down: bool, x: int, y: int) -> None:
        self._do(name, down, x, y)

    async def lift(self) -> None:
        self._do("lift")

    def _do(self, *what: object) -> None:
        if self.fails:
            raise UnsupportedError("the helper is gone")
        self.did.append(what)


def test_somebody_inside_presses_the_buttons_that_vnc_lacks_where_the_pointer_is() -> None:
    within = Within()
    click = {"type": "click", "x": 3, "y": 4, "button": "back", "count": 2, "modifiers": ["ctrl"]}
    heard = done(click, extra=within.extra)
    assert heard == [key(CTRL, down=True), (5, 0, 3, 4), key(CTRL, down=False)]
    assert within.did == [("back", True, 3, 4), ("back", False, 3, 4)] * 2
    assert not within.extra.down


def test_a_button_that_is_held_inside_is_lifted_by_release_all_and_by_new_hands() -> None:
    async def after(hands: Hands, server: Server) -> None:
        assert hands.down
        await hands.release_all()
        assert not hands.down
        await hands.do(parse_actions([{"type": "press", "button": "forward"}])[0])
        await Hands(hands.screen, lambda: None, extra=within.extra).release_all()

    within = Within()
    done({"type": "press", "x": 1, "y": 1, "button": "back"}, extra=within.extra, after=after)
    assert within.did == [("back", True, 1, 1), ("lift",), ("forward", True, 1, 1), ("lift",)]
    assert not within.extra.down


def test_the_guard_stops_buttons_that_are_pressed_inside_and_a_failure_lifts_them() -> None:
    drag = {"type": "drag", "path": [[1, 1], [40, 40]], "button": "back"}
    for events in range(6):
        within = Within()
        with pytest.raises(LeasePausedError):
            done(drag, guard=Pausing(events), extra=within.extra)
        assert within.did in ([], [("back", True, 1, 1), ("lift",)]), events
        assert not within.extra.down


def test_a_button_that_could_not_be_lifted_is_lifted_before_anything_else_is_done() -> None:
    async def after(hands: Hands, server: Server) -> None:
        within.fails = True
        hands.fingers.guard = Failing()
        with pytest.raises(InvalidError, match="nothing") as e:
            await hands.do(parse_actions([{"type": "key", "keys": "a"}])[0])
        assert e.value.__notes__ == ["a button could not be lifted: the helper is gone"]
        hands.fingers.guard = lambda: None
        server.heard.clear()
        with pytest.raises(UnsupportedError, match="the helper is gone"):
            await hands.do(parse_actions([{"type": "key", "keys": "a"}])[0])
        assert server.heard == []
        within.fails = False
        await hands.do(parse_actions([{"type": "key", "keys": "a"}])[0])
        assert within.did[-1] == ("lift",)

    within = Within()
    done({"type": "press", "x": 1, "y": 1, "button": "back"}, extra=within.extra, after=after)


def test_where_nobody_inside_can_press_a_button_what_comes_after_is_done() -> None:
    async def nobody(*_: object) -> None:
        raise no_button("back")

    async def after(hands: Hands, server: Server) -> None:
        with pytest.raises(UnsupportedError, match="no back button"):
            await hands.do(parse_actions([{"type": "click", "x": 3, "y": 4, "button": "back"}])[0])
        server.heard.clear()
        await hands.do(parse_actions([{"type": "key", "keys": "a"}])[0])
        assert server.heard == [key(ord("a"), down=True), key(ord("a"), down=False)]

    done({"type": "move", "x": 1, "y": 1}, extra=Extra(nobody, nobody), after=after)


class Failing:
    """Lets one event pass, the question before the first."""

    asked = 0

    def __call__(self) -> None:
        self.asked += 1
        if self.asked > 1:
            raise InvalidError("nothing")


CLICK = {"type": "click", "x": 10, "y": 10}
PRESS, RELEASE = {"type": "press", "x": 10, "y": 10}, {"type": "release"}
DRAG = {"type": "drag", "path": [[12, 12], [13, 13]]}


@pytest.mark.parametrize(
    ("actions", "seconds"),
    [
        ([CLICK, CLICK | {"x": 15}], 0.2),
        ([CLICK, DRAG], 0.2),
        ([DRAG, CLICK], 0.2),
        ([CLICK, PRESS], 0.2),
        ([PRESS, RELEASE, CLICK], 0.3),
        ([CLICK | {"count": 2}, CLICK], 0.3),
    ],
)
def test_clicks_that_are_meant_singly_keep_apart(
    actions: list[dict[str, Any]], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cu_fleet.rfb.hands._DOUBLE", 0.2)
    monkeypatch.setattr("cu_fleet.rfb.hands._TRIPLE", 0.3)
    began = time.monotonic()
    done(*actions)
    assert time.monotonic() - began >= seconds


def test_clicks_elsewhere_or_of_another_button_or_as_somebody_decided_do_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cu_fleet.rfb.hands._DOUBLE", 1000)
    monkeypatch.setattr("cu_fleet.rfb.hands._TRIPLE", 1000)
    done(CLICK, CLICK | {"x": 40}, CLICK | {"button": "right"}, CLICK)
    done(PRESS, RELEASE, PRESS, RELEASE)


def test_qemu_is_sent_shift_and_no_more_than_it_passes_on() -> None:
    began = time.monotonic()
    heard = done({"type": "type", "text": "aB?"}, {"type": "key", "keys": "ctrl+shift+t"}, server_name=b"QEMU (a)")
    shifted = [key(SHIFT, down=True), *tap("B"), key(SHIFT, down=False)]
    assert heard[: 2 + 4] == [*tap("a"), *shifted]
    assert heard[-6:] == tap(CTRL, SHIFT, "T")
    assert time.monotonic() - began >= 0.01 * len(heard)


@pytest.mark.parametrize("keys", ["F13", "XF86Search", "ctrl+alt+2", "ctrl+alt+shift+2", "é"])
def test_what_qemu_takes_for_something_else_is_refused(keys: str) -> None:
    with pytest.raises(UnsupportedError):
        done({"type": "key", "keys": keys}, server_name=b"QEMU")
    assert still_down(last.heard) == set()
    assert not {sym for kind, _, sym, *_ in last.heard if kind == 4} & {0x32, 0x40, 0x1008FF1B, 0xFFCA, 0xE9}


def test_qemu_is_sent_the_digits_above_the_letters_while_num_lock_is_off() -> None:
    assert done({"type": "key", "keys": "KP_1"}, {"type": "key", "keys": "KP_Decimal"}, server_name=b"QEMU") == [
        *tap("1"),
        *tap("."),
    ]
    held = [{"type": "key_down", "key": "KP_7"}, {"type": "key_up", "key": "KP_7"}, {"type": "key", "keys": "KP_Add"}]
    assert done(*held, server_name=b"QEMU") == [*tap("7"), *tap(NAMES["KP_Add"])]
    assert done({"type": "key", "keys": "KP_1"}) == tap(NAMES["KP_1"])


def test_qemu_hears_places_so_that_they_are_met_after_it_and_the_machine_have_rounded_down() -> None:
    assert done({"type": "move", "x": 3, "y": 4}, server_name=b"QEMU") == [(5, 0, 4, 5)]


def test_a_place_that_qemu_was_sent_before_is_sent_so_that_the_machine_hears_it() -> None:
    click = {"type": "click", "x": 3, "y": 4}
    assert done(click, click | {"button": "right"}, server_name=b"QEMU") == [
        *[(5, 0, 4, 5), (5, 1, 4, 5), (5, 0, 4, 5)],
        *[(5, 0, 3, 5), (5, 0, 4, 5), (5, 4, 4, 5), (5, 0, 4, 5)],
    ]


def test_a_wheel_is_turned_sideways_by_somebody_inside_or_refused() -> None:
    scroll = {"type": "scroll", "x": 3, "y": 4, "dx": -2, "dy": 0}
    with pytest.raises(UnsupportedError, match="sideways") as e:
        done(scroll, server_name=b"QEMU")
    assert e.value.code == "no_such_button"
    assert last.heard == []
    pressed: list[tuple[str, bool, int, int]] = []

    async def press(*how: Any) -> None:
        pressed.append(how)

    done(scroll, server_name=b"QEMU", extra=Extra(press, lambda: asyncio.sleep(0)))
    assert pressed == [("wheel_left", True, 3, 4), ("wheel_left", False, 3, 4)] * 2
    assert 32 in {buttons for kind, buttons, *_ in done(scroll) if kind == 5}, "others have it"


def test_what_took_room_in_the_keyboard_is_counted_for_all_hands_on_a_server() -> None:
    async def work() -> None:
        async with Server() as server:
            screen = await Screen.open(server.ours)
            foreign: set[str] = set()
            for text in ("àáâãäå", "çèéêëì"):
                await Hands(screen, lambda: None, foreign=foreign).do(
                    parse_actions([{"type": "type", "text": text}])[0]
                )
            hands = Hands(screen, lambda: None, foreign=foreign)
            with pytest.raises(UnsupportedError, match="'í'"):
                await hands.do(parse_actions([{"type": "type", "text": "àí"}])[0])
            await screen.close()

    run(work())


def test_off_the_screen_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(InvalidError, match="click at 64,0 is off the screen, which is 64x48"):
        done({"type": "click", "x": 64, "y": 0})
    with pytest.raises(InvalidError, match="drag at 5,48"):
        done({"type": "drag", "path": [[1, 1], [5, 48]]})
    assert last.heard == []


class Pausing:
    """Lets so many events pass."""

    def __init__(self, events: int) -> None:
        self.left = events

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise LeasePausedError("paused by ana")


EVERY = [
    {"type": "click", "x": 1, "y": 1, "count": 2, "modifiers": ["ctrl", "alt"]},
    {"type": "drag", "path": [[1, 1], [40, 40]], "modifiers": ["shift"]},
    {"type": "scroll", "x": 1, "y": 1, "dy": 3, "modifiers": ["ctrl"]},
    {"type": "key", "keys": "ctrl+shift+alt+t"},
    {"type": "hold_key", "keys": "w+a", "seconds": 0.01},
    {"type": "type", "text": "Hello"},
    {"type": "press", "x": 3, "y": 3},
    {"type": "key_down", "key": "shift"},
]


def still_down(heard: list[tuple[int, ...]]) -> set[object]:
    down: set[object] = set()
    for kind, first, *rest in heard:
        if kind == 4:
            (down.add if first else down.discard)(rest[0])
        else:
            down.discard("button")
            if first:
                down.add("button")
    return down


@pytest.mark.parametrize("action", EVERY, ids=lambda action: str(action["type"]))
def test_the_guard_stops_an_action_between_any_two_events_and_nothing_stays_down(action: dict[str, Any]) -> None:
    allowed = len(done(action))
    for events in range(allowed + 1):
        guard = Pausing(events + 1)  # one question is asked before the first event
        if events < allowed:
            with pytest.raises(LeasePausedError, match="paused by ana"):
                done(action, guard=guard)
            assert still_down(last.heard) == set(), (events, last.heard)
            assert len(last.heard) <= events + 5  # and what lifts
        else:
            done(action, guard=guard)


def test_a_cancelled_action_leaves_nothing_down_and_sends_no_more() -> None:
    async def work() -> None:
        async with Server() as server:
            screen = await Screen.open(server.ours)
            hands = Hands(screen, lambda: None)
            await hands.claim_pointer()
            for action in parse_actions(
                [
                    {"type": "hold_key", "keys": "ctrl+x", "seconds": 60},
                    {"type": "type", "text": "y" * 200_000},
                    {"type": "drag", "path": [[1, 1], [60, 40]] * 400, "modifiers": ["ctrl"]},
                ]
            ):
                server.heard.clear()
                task = asyncio.create_task(hands.do(action))
                await until(lambda: len(server.heard) >= 2, every=0)
                task.cancel()
                await asyncio.wait({task})
                assert task.cancelled()
                assert not hands.down
                await hands.release_all()
                heard = len(server.heard)
                assert still_down(server.heard) == set()
                await screen.sync()
                assert len(server.heard) == heard
            await screen.close()

    run(work())


def test_release_all_asks_no_guard_lifts_all_and_waits_for_the_server() -> None:
    barred = False

    def guard() -> None:
        if barred:
            raise LeasePausedError("no")

    async def after(hands: Hands, server: Server) -> None:
        nonlocal barred
        barred = True
        assert hands.down
        await hands.release_all()
        assert not hands.down
        assert server.heard[-3:] == [key("x", down=False), key(CTRL, down=False), (5, 0, 5, 5)]
        await hands.release_all()
        assert len(server.heard) == 7

    done(
        {"type": "press", "x": 5, "y": 5},
        {"type": "key_down", "key": "ctrl"},
        {"type": "key_down", "key": "x"},
        guard=guard,
        after=after,
    )


def test_a_failure_lifts_what_earlier_actions_hold() -> None:
    with pytest.raises(UnsupportedError):
        done({"type": "key_down", "key": "ctrl"}, {"type": "type", "text": "世"})
    assert still_down(last.heard) == set()


def test_a_lost_screen_ends_the_action_and_leaves_no_account_of_keys() -> None:
    async def after(hands: Hands, server: Server) -> None:
        server.writer.close()
        with pytest.raises(Exception, match="closed the connection"):
            await hands.do(parse_actions([{"type": "type", "text": "z" * 1000}])[0])
        assert not hands.down

    done({"type": "key_down", "key": "ctrl"}, after=after)


def test_waits_send_nothing() -> None:
    waits = [{"type": "wait", "seconds": 0}, {"type": "wait_stable", "quiet_ms": 5, "timeout_ms": 5000}]
    assert done(*waits) == []
