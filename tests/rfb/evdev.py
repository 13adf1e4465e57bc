"""What a kernel delivered, in the words of the sink `x`: as an X server with a US keyboard would have told it."""

from typing import Any

from cu_fleet.model.keys import NAMES

_ROWS = {
    2: ("1234567890-=", "!@#$%^&*()_+"),
    16: ("qwertyuiop[]", "QWERTYUIOP{}"),
    30: ("asdfghjkl;'`", 'ASDFGHJKL:"~'),
    43: ("\\zxcvbnm,./", "|ZXCVBNM<>?"),
}
_NAMED = """1 Escape 14 BackSpace 15 Tab 28 Return 29 Control_L 42 Shift_L 54 Shift_R 55 KP_Multiply 56 Alt_L 57 space
    58 Caps_Lock 69 Num_Lock 70 Scroll_Lock 71 KP_7 72 KP_8 73 KP_9 74 KP_Subtract 75 KP_4 76 KP_5 77 KP_6 78 KP_Add
    79 KP_1 80 KP_2 81 KP_3 82 KP_0 83 KP_Decimal 87 F11 88 F12 96 KP_Enter 97 Control_R 98 KP_Divide 99 Print 100 Alt_R
    102 Home 103 Up 104 Page_Up 105 Left 106 Right 107 End 108 Down 109 Page_Down 110 Insert 111 Delete 119 Pause
    113 XF86AudioMute 114 XF86AudioLowerVolume 115 XF86AudioRaiseVolume 125 Super_L 126 Super_R 127 Menu
    158 XF86Back 159 XF86Forward 163 XF86AudioNext 164 XF86AudioPlay 165 XF86AudioPrev"""
_SYMS = {int(code): NAMES[name] for code, name in zip(_NAMED.split()[::2], _NAMED.split()[1::2], strict=True)}
_SYMS |= {59 + n: NAMES[f"F{n + 1}"] for n in range(10)} | {183 + n: NAMES[f"F{n + 13}"] for n in range(12)}
_CHARS = {first + n: pair for first, rows in _ROWS.items() for n, pair in enumerate(zip(*rows, strict=True))}
_MODIFIERS = {42: 1, 54: 1, 29: 4, 97: 4, 56: 8, 100: 8, 125: 64, 126: 64}
_BUTTONS = {272: 1, 274: 2, 273: 3}
_WHEELS = {(8, 1): 4, (8, -1): 5, (6, -1): 6, (6, 1): 7}
_PLACES = 0x8000


class Translator:
    def __init__(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._place = [width // 2, height // 2]
        self._keys: set[int] = set()
        self._buttons: set[int] = set()

    def held(self) -> dict[str, int]:
        return {"keys": len(self._keys), "mask": self._state()}

    def told(self, kind: str, code: int, value: int) -> list[list[Any]]:
        """The events that one of the kernel's stands for."""
        if kind == "abs":
            self._place[code] = value * self._size[code] // _PLACES  # as X does
            return [["motion", *self._place, self._state()]]
        if kind == "rel":
            number = _WHEELS.get((code, 1 if value > 0 else -1))
            both = [["button", number, self._state(), *self._place, 0], ["buttonup", number, 0, *self._place, 0]]
            return both * abs(value) if number else []
        if code in _BUTTONS:
            return [self._button(_BUTTONS[code], value)]
        event = ["key" if value else "keyup", self._sym(code), self._state()]
        (self._keys.add if value else self._keys.discard)(code)
        return [event]

    def _button(self, number: int, value: int) -> list[Any]:
        event = ["button" if value else "buttonup", number, self._state(), *self._place, 0]
        (self._buttons.add if value else self._buttons.discard)(number)
        return event

    def _sym(self, code: int) -> int:
        if code in _CHARS:
            return ord(_CHARS[code][bool(self._state() & 1)])
        return _SYMS.get(code, -code)

    def _state(self) -> int:
        keys = sum({_MODIFIERS.get(code, 0) for code in self._keys})
        return keys | sum(0x80 << number for number in self._buttons)
