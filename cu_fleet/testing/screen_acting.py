"""What any screen's server must carry from an agent to its programs, as tests.

    class TestMine(ScreenActingContract):
        gaps = {"button back": "RFB's mask ends at eight buttons, and nobody inside helps"}

        @contextlib.asynccontextmanager
        async def stage(self):
            yield MyStage(...)  # see `screen_stage`; `screen_leased` has one for a desktop of any backend

`DeliveredContract` asks what the X server delivered, or a kernel; `ScreenActingContract` asks an application too. What
a server lacks stands in its `gaps`, with the reason: a test's name without "test_", or one item of a test. It is
refused by name then where that can be known beforehand; and a gap that is none any more fails the suite.
"""

import itertools
from typing import Any, ClassVar

import pytest

from cu_fleet.model.errors import FleetError, TooLongError, UnsupportedError
from cu_fleet.model.keys import char_keysym, keysym
from cu_fleet.testing.screen_stage import Event, Hall, ScreenActing

PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))
NAMED = "Return Escape Tab BackSpace Delete Insert Home End Left Right Up Down Page_Up Page_Down space Menu Print Pause"
NAMED += " Scroll_Lock Shift_L Shift_R Control_L Control_R Alt_L Alt_R Super_L Super_R ISO_Level3_Shift"
NAMED += " Caps_Lock Caps_Lock Num_Lock Num_Lock"  # twice: on and off
FUNCTION = " ".join(f"F{number}" for number in range(1, 25))
KEYPAD = "KP_Enter KP_Add KP_Subtract KP_Multiply KP_Divide KP_Decimal " + " ".join(f"KP_{n}" for n in range(10))
MEDIA = "XF86AudioMute XF86AudioLowerVolume XF86AudioRaiseVolume XF86AudioPlay XF86AudioNext XF86AudioPrev XF86Back"
MEDIA += " XF86Forward XF86Refresh XF86HomePage XF86Search XF86Mail XF86Calculator"
COMBINED = "Left F5 F12 Delete Return space Home Page_Up KP_Enter Escape BackSpace Insert Menu"
MODIFIERS = {"shift": 1, "ctrl": 4, "alt": 8, "super": 64}
SHIFTS = {keysym(name) for name in ("Shift_L", "Shift_R", "ISO_Level3_Shift")}
ALT, META = keysym("alt"), keysym("meta")
BUTTONS = {"left": 1, "middle": 2, "right": 3, "back": 8, "forward": 9}
WHEEL = {"up": ((0, -3), 4), "down": ((0, 3), 5), "left": ((-3, 0), 6), "right": ((3, 0), 7)}
STATE = 0x1FFF & ~0x12  # modifiers and buttons, without the locks
SCRIPTS = {
    "latin": "Grüße aus Łódź, naïve façade, ÿ",
    "greek": "Καλημέρα κόσμε",
    "cyrillic": "Съешь ещё этих мягких французских булок",
    "han": "我能吞下玻璃而不伤身体。",
    "kana": "いろはにほへと カタカナ",
    "hangul": "안녕하세요 세계",
    "arabic": "السلام عليكم",
    "hebrew": "שלום עולם",
    "devanagari": "नमस्ते दुनिया",
    "thai": "สวัสดีชาวโลก",
    "combining": "e\u0301 a\u0308\u0323 n\u0303",
    "emoji": "😀 👍🏽 👩\u200d👩\u200d👧 🇪🇺 ❤\ufe0f",
    "signs": "€ → ∑ “quoted” – … ½ \u00a0 ﬁ",
    "beyond": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
}

CLIPBOARDS = {"plain": "plain", "signs": "".join(SCRIPTS.values()), "long": "x y" * 60_000}


def written(events: list[Event]) -> str:
    """What an application would have read."""
    syms = [event[1] for event in events if event[0] == "key" and event[1] not in SHIFTS]
    return "".join({0xFF0D: "\n", 0xFF09: "\t"}.get(sym) or chr(sym & 0xFFFFFF) for sym in syms)


def down(events: list[Event], kind: str = "key") -> list[int]:
    return [event[1] for event in events if event[0] == kind]


def whole(events: list[Event], modifiers: list[int], sym: int, mask: int) -> bool:
    """Whether a combination was pressed and lifted in order with nothing more, and the key met just these modifiers."""
    order = [*modifiers, sym]
    events = [[kind, ALT if key == META else key, *more] for kind, key, *more in events]  # its key's name with shift
    at = next((event[2] & STATE for event in events if event[:2] == ["key", sym]), -1)
    return down(events) == order and down(events, "keyup") == order[::-1] and at == mask


def long_text(size: int) -> str:
    """So mixed that a part that is lost, doubled or out of its order shows."""
    return "".join(PRINTABLE[(n * 7 + n // 95) % len(PRINTABLE)] for n in range(size))


class DeliveredContract(ScreenActing):
    long: ClassVar[int] = 100_000  # characters that are typed in one action
    exact: ClassVar[int] = 0  # pixels that a place may be off
    timeless: ClassVar[bool] = False  # whether events come without their time

    # the keyboard

    def test_every_printable_key_typed(self, hall: Hall) -> None:
        assert written(hall.pressed({"type": "type", "text": PRINTABLE + "\n\t"})) == PRINTABLE + "\n\t"
        assert hall.held()["keys"] == 0, "no lock was set on our behalf"

    def test_every_printable_key_pressed_singly(self, hall: Hall) -> None:
        assert written(hall.pressed(*({"type": "key", "keys": char} for char in PRINTABLE))) == PRINTABLE

    @pytest.mark.parametrize("kind", ["named", "function", "keypad", "media"])
    def test_every_key_with_a_name(self, hall: Hall, kind: str) -> None:
        wrong: dict[str, object] = {}
        for name in {"named": NAMED, "function": FUNCTION, "keypad": KEYPAD, "media": MEDIA}[kind].split():
            try:
                events = [event[:2] for event in hall.pressed({"type": "key", "keys": name})]
            except UnsupportedError as e:
                wrong[name] = (e.code, name in str(e), hall.events())
                continue
            if events != [["key", keysym(name)], ["keyup", keysym(name)]]:
                wrong[name] = events
        self.judge(kind, wrong)

    def test_every_combination_of_modifiers(self, hall: Hall) -> None:
        wrong = {}
        chars = {"t": "tT", "1": "1!", "slash": "/?"}
        for names in (names for n in range(1, 5) for names in itertools.combinations(MODIFIERS, n)):
            for key in (*chars, *COMBINED.split()):
                sym = char_keysym(chars[key]["shift" in names]) if key in chars else keysym(key)
                try:
                    events = hall.pressed({"type": "key", "keys": "+".join((*names, key))})
                except UnsupportedError:
                    events = hall.events()
                if not whole(events, [keysym(name) for name in names], sym, sum(MODIFIERS[name] for name in names)):
                    wrong["+".join((*names, key))] = events
        self.judge("keys", wrong)

    def test_keys_are_held_across_other_actions(self, hall: Hall) -> None:
        ctrl, shift = keysym("ctrl"), keysym("shift")
        hold = [{"type": "key_down", "key": "ctrl"}, {"type": "key_down", "key": "shift"}]
        events = hall.pressed(*hold, {"type": "click", "x": 9, "y": 9}, {"type": "key", "keys": "Left"})
        assert [event[:3] for event in events if event[0] == "button"] == [["button", 1, 5]]
        assert down(events) == [ctrl, shift, keysym("Left")]
        assert hall.held() == {"keys": 2, "mask": 5}
        lift = [{"type": "key_up", "key": "CTRL"}, {"type": "key_up", "key": "shift"}]
        assert down(hall.pressed(*lift), "keyup") == [ctrl, shift]
        assert hall.held() == {"keys": 0, "mask": 0}

    def test_a_letter_is_lifted_by_either_spelling(self, hall: Hall) -> None:
        for pressed, lifted in (("a", "A"), ("A", "a"), ("w", "w")):
            hall.do({"type": "key_down", "key": pressed}, {"type": "key_up", "key": lifted})
            assert hall.held() == {"keys": 0, "mask": 0}

    def test_keys_stay_down_for_as_long_as_they_are_held(self, hall: Hall) -> None:
        events = hall.pressed({"type": "hold_key", "keys": "ctrl+alt+w", "seconds": 0.2})
        assert down(events) == [keysym("ctrl"), keysym("alt"), keysym("w")]
        assert down(events, "keyup") == down(events)[::-1]
        assert hall.held() == {"keys": 0, "mask": 0}

    def test_a_long_text_arrives_whole_and_in_order(self, hall: Hall) -> None:
        text, seen = long_text(self.long), ""
        for at in range(0, len(text), 10_000):
            seen += written(hall.pressed({"type": "type", "text": text[at : at + 10_000]}))
        assert seen == text
        assert hall.held() == {"keys": 0, "mask": 0}

    # the pointer

    def test_every_place_is_met(self, hall: Hall) -> None:
        width, height = hall.width, hall.height
        places = [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1), (width // 3, height // 7)]
        events = hall.pressed(*({"type": "click", "x": x, "y": y, "button": "right"} for x, y in places))
        self._at([event for event in events if event[0] == "button"], places)

    def test_every_button(self, hall: Hall) -> None:
        wrong: dict[str, object] = {}
        for name, number in BUTTONS.items():
            try:
                events = hall.pressed({"type": "click", "x": 30, "y": 40, "button": name})
            except UnsupportedError as e:
                wrong[name] = (e.code, name in str(e), hall.events())
                continue
            if [event[:3] for event in events] != [["button", number, 0], ["buttonup", number, events[-1][2]]]:
                wrong[name] = events
        self.judge("button", wrong)
        assert all(how == ("no_such_button", True, []) for how in wrong.values()), "refused by name, and nothing sent"

    def test_every_button_is_held_across_other_actions_and_lifted(self, hall: Hall) -> None:
        for name in (name for name in BUTTONS if f"button {name}" not in self.gaps):
            press = {"type": "press", "x": 50, "y": 60, "button": name}
            events = hall.pressed(press, {"type": "move", "x": 90, "y": 95}, {"type": "key", "keys": "Left"})
            assert down(events, "button") == [BUTTONS[name]]
            assert down(events, "buttonup") == []
            events = hall.pressed({"type": "release", "button": name})
            assert down(events, "buttonup") == [BUTTONS[name]]
            self._at(events, [(90, 95)])
            hall.do(press)
            hall.run(hall.stage.release())
            assert down(hall.events(), "buttonup") == [BUTTONS[name]], "a pause lifts it too"

    def test_clicks_count_and_have_modifiers(self, hall: Hall) -> None:
        for names in (("ctrl",), ("shift", "alt"), ("ctrl", "shift", "super")):
            click = {"type": "click", "x": 300, "y": 200, "count": 3, "modifiers": names}
            events = hall.pressed(click)
            presses = [event for event in events if event[0] == "button"]
            mask = sum(MODIFIERS[name] for name in names)
            assert [(event[1], event[2] & STATE) for event in presses] == [(1, mask)] * 3
            assert len({event[5] for event in presses}) == (1 if self.timeless else 3), "Chromium counts by the time"
            assert hall.held() == {"keys": 0, "mask": 0}

    @pytest.mark.parametrize("button", ["left", "right"])
    def test_a_drag_passes_points_between_with_the_button_down(self, hall: Hall, button: str) -> None:
        hall.events()
        path = [[100, 100], [400, 100], [400, 300]]
        hall.do({"type": "drag", "path": path, "button": button, "modifiers": ["ctrl"]})
        events = hall.events(motions=True)
        seen = [event for event in events if not event[0].startswith("key")]
        seen = seen[down_at(seen) : [event[0] for event in seen].index("buttonup") + 1]
        assert seen[0][:2] == ["button", BUTTONS[button]]
        assert seen[-1][:2] == ["buttonup", BUTTONS[button]]
        self._at([seen[0], seen[-1]], [(100, 100), (400, 300)])
        moves = seen[1:-1]
        assert len(moves) > 30
        assert {event[0] for event in moves} == {"motion"}
        assert {event[3] & STATE for event in moves} == {4 | 0x80 << BUTTONS[button]}
        assert any(abs(x - 400) <= self.exact and abs(y - 100) <= self.exact for _, x, y, _ in moves), "the corner"

    def test_the_wheel_in_four_directions(self, hall: Hall) -> None:
        wrong: dict[str, list[Any]] = {}
        for way, ((dx, dy), number) in WHEEL.items():
            scroll = {"type": "scroll", "x": 9, "y": 9, "dx": dx, "dy": dy, "modifiers": ["ctrl", "shift"]}
            try:
                presses = [event[1:3] for event in hall.pressed(scroll) if event[0] == "button"]
            except UnsupportedError as e:
                wrong[way] = [e.code, *hall.events()]
                continue
            if presses != [[number, 5]] * 3:
                wrong[way] = presses
        self.judge("wheel", wrong)

    def test_many_notches_arrive(self, hall: Hall) -> None:
        assert down(hall.pressed({"type": "scroll", "x": 9, "y": 9, "dy": 300}), "button") == [5] * 300

    # what goes wrong

    def test_a_failure_lifts_all(self, hall: Hall) -> None:
        fails = {"type": "wait_change", "timeout_ms": 1, "region": [0, 0, 1, 1]}
        extra = [{"type": "press", "button": "back"}] if "button back" not in self.gaps else []
        hold = [{"type": "key_down", "key": "ctrl"}, {"type": "key_down", "key": "w"}, {"type": "press"}, *extra]
        hall.events()
        with pytest.raises(TooLongError):
            hall.do(*hold, fails)
        events = hall.lifted(len(hold))
        assert sorted(down(events, "keyup")) == sorted([keysym("ctrl"), keysym("w")])
        assert sorted(down(events, "buttonup")) == [1, 8] if extra else [1]
        assert hall.held() == {"keys": 0, "mask": 0}

    def test_what_cannot_be_typed_is_refused_before_the_first_key(self, hall: Hall) -> None:
        """Or it arrives, which `ScreenActingContract` sees."""
        if "any_text_arrives" not in self.gaps:
            return
        hall.events()
        with pytest.raises(UnsupportedError, match=r"'世' \(U\+4E16\)") as e:
            hall.do({"type": "type", "text": "abc 世"})
        assert e.value.code == "cannot_type"
        assert hall.events() == []

    def test_off_the_screen_nothing_is_sent(self, hall: Hall) -> None:
        hall.events()
        with pytest.raises(FleetError, match="off the screen"):
            hall.do({"type": "click", "x": hall.width, "y": 1})
        assert hall.events() == []

    def _at(self, events: list[Event], places: list[tuple[int, int]]) -> None:
        assert len(events) == len(places), events
        for event, (x, y) in zip(events, places, strict=True):
            assert max(abs(event[3] - x), abs(event[4] - y)) <= self.exact, (event, x, y)


def down_at(events: list[Event]) -> int:
    """Where the first press of a button is."""
    return next(at for at, event in enumerate(events) if event[0] == "button")


class ScreenActingContract(DeliveredContract):
    """And what an application, made with GTK, understood of it."""

    # the keyboard

    def test_text_arrives_in_an_application(self, hall: Hall) -> None:
        assert self._typed(hall, PRINTABLE + "\n\tand more\n") == PRINTABLE + "\n\tand more\n"

    def test_any_text_arrives(self, hall: Hall) -> None:
        for name, text in SCRIPTS.items():
            assert self._typed(hall, text) == text, name
        text = "".join(f"{name}\t{text}\n" for name, text in SCRIPTS.items())
        assert self._typed(hall, text) == text, "one after the other, with what is typed by keys between"

    def test_a_long_text_of_any_kind_arrives_whole_and_in_order(self, hall: Hall) -> None:
        lines = [f"{number} {'съешь ещё булок ' * 50}\n" for number in range(63)]
        text = "".join(lines)
        assert len(text.encode()) > 90_000
        assert self._typed(hall, text) == text

    def test_editing_keys_are_understood(self, hall: Hall) -> None:
        hall.ask(["show", "one two three"])
        keys = ["ctrl+End", "ctrl+shift+Left", "Delete", "Home", "X", "ctrl+a", "ctrl+c", "End", "ctrl+v"]
        hall.do(*({"type": "key", "keys": each} for each in keys))
        assert hall.shown("Xone two Xone two ") == "Xone two Xone two "

    # the pointer

    def test_a_place_is_met_again_after_a_program_has_moved_the_pointer(self, hall: Hall) -> None:
        click = {"type": "click", "x": 300, "y": 200}
        hall.pressed(click)
        assert hall.ask(["warp", 700, 500], "x") == [700, 500]
        self._at([event for event in hall.pressed(click) if event[0] == "button"], [(300, 200)])

    def test_double_and_triple_clicks_are_understood(self, hall: Hall) -> None:
        assert self._clicks(hall, (700, 600, 1)) == ["press", "release"]
        two = ["press", "release", "press", "double", "release"]
        assert self._clicks(hall, (300, 600, 2)) == two
        assert self._clicks(hall, (300, 600, 2), (500, 700, 2)) == two * 2, "again, and at once at another place"
        assert self._clicks(hall, (700, 650, 3)) == [*two, "press", "triple", "release"]

    def test_single_clicks_stay_single(self, hall: Hall) -> None:
        single = ["press", "release"]
        assert self._clicks(hall, (300, 650, 1), (300, 650, 1), (303, 652, 1)) == single * 3
        assert self._clicks(hall, (300, 650, 1), (600, 650, 1)) == single * 2
        assert self._clicks(hall, (300, 650, 1), (300, 650, 2)) == [*single, *single, "press", "double", "release"]

    def test_a_drag_selects_text(self, hall: Hall) -> None:
        hall.ask(["show", "abcdefghijklmnopqrstuvwxyz " * 5])
        hall.ask("events")
        hall.do({"type": "click", "x": 200, "y": 8})
        hall.do({"type": "drag", "path": [[200, 8], [400, 8]]}, {"type": "click", "x": 300, "y": 600})
        hall.told("release", 1)
        selected = hall.ask("selected")
        assert 10 < len(selected) < 50, "not a word, which a double click and drag would select"
        assert selected in "abcdefghijklmnopqrstuvwxyz " * 5

    def test_every_button_and_the_wheel_are_understood(self, hall: Hall) -> None:
        hall.ask("events")
        for name, number in BUTTONS.items():
            if f"button {name}" not in self.gaps:
                hall.do({"type": "click", "x": 300, "y": 600, "button": name})
                told = [event[:4] for event in hall.told("release", 1)]
                assert told == [["press", number, 300, 600], ["release", number, 300, 600]], name
        for way, ((dx, dy), _) in WHEEL.items():
            if f"wheel {way}" in self.gaps:
                continue
            hall.do({"type": "scroll", "x": 300, "y": 600, "dx": dx, "dy": dy})
            assert [event[1] for event in hall.told("scroll", 3)] == [way] * 3

    # the clipboard

    @pytest.mark.parametrize("name", CLIPBOARDS)
    def test_the_clipboard_both_ways(self, hall: Hall, name: str) -> None:
        text = CLIPBOARDS[name]
        hall.ask(["copy", f"before {name}"])
        hall.run(hall.stage.copy(text))
        assert hall.ask("clipboard") == text
        hall.ask(["copy", text + "!"])
        assert hall.copied(text + "!") == text + "!"

    def test_a_text_is_pasted_or_refused(self, hall: Hall) -> None:
        hall.ask(["show", ""])
        paste = {"type": "paste", "text": "one\ntwo\tthree"}
        if "the_clipboard_both_ways" in self.gaps:
            with pytest.raises(UnsupportedError, match="clipboard"):
                hall.do(paste)
            assert "key" not in [event[0] for event in hall.ask("events")]
        else:
            hall.do(paste)
            assert hall.shown(paste["text"]) == paste["text"]

    def _typed(self, hall: Hall, text: str) -> Any:
        hall.ask(["show", ""])
        hall.do({"type": "type", "text": text})
        return hall.shown(text)

    def _clicks(self, hall: Hall, *clicks: tuple[int, int, int]) -> list[str]:
        hall.ask("events")
        hall.do(*({"type": "click", "x": x, "y": y, "count": count} for x, y, count in clicks))
        return [event[0] for event in hall.told("release", sum(count for _, _, count in clicks))]
