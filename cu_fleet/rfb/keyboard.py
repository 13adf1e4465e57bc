"""Keys and text into key events.

TigerVNC and x11vnc make whatever keysym they are sent, pressing shift by themselves where they must; QEMU needs it
pressed. TigerVNC keeps room for some twenty keysyms that its keyboard lacks, for as long as it runs, and then drops
further ones without a word: so a line with anything beyond ASCII goes over the clipboard if there is a hook for it (its
end and its tabs remain keys), and otherwise, within Latin-1, a few distinct ones are sent as keys and the rest refused
before the first key. Without a hook `paste` uses the server's own clipboard, where fences tell that it is a TigerVNC.
"""

import re
from collections.abc import Awaitable, Callable, Sequence

from cu_fleet.model.action import HoldKey, Key, KeyDown, KeyUp, Paste, Type
from cu_fleet.model.errors import UnsupportedError
from cu_fleet.model.keys import NAMES, char_keysym, combo, keysym, name_of, needs_shift
from cu_fleet.rfb.fingers import Fingers

BEFORE_SYNC = 32  # keys or notches sent before the server has to catch up
_AS_KEYS = re.compile(r"([\n\r\t]+)")  # also in a text that is pasted: they submit, and go to the next field
_FOREIGN = 12  # distinct characters beyond ASCII that are sent as keys to one server
_QEMU = """Return Escape Tab BackSpace Delete Insert Home End Left Right Up Down Page_Up Page_Down Menu Print Sys_Req
    Pause Scroll_Lock Num_Lock Caps_Lock Shift_L Shift_R Control_L Control_R Alt_L Alt_R Meta_L Meta_R Super_L Super_R
    ISO_Level3_Shift Mode_switch Henkan Muhenkan KP_Enter KP_Add KP_Subtract KP_Multiply KP_Divide KP_Equal KP_Decimal
    KP_Home KP_Up KP_Page_Up KP_Left KP_Begin KP_Right KP_End KP_Down KP_Page_Down KP_Insert KP_Delete"""
_QEMU_NAMES = (*_QEMU.split(), *(f"F{n}" for n in range(1, 13)), *(f"KP_{n}" for n in range(10)))
_QEMU_KEYS = frozenset((*range(0x20, 0x7F), *range(0xA0, 0x100), *(NAMES[name] for name in _QEMU_NAMES)))
_SHIFT = NAMES["Shift_L"]
_SHIFTS = (_SHIFT, NAMES["Shift_R"])
PasteText = Callable[[str, Callable[[], None]], Awaitable[None]]


class Keyboard:
    def __init__(self, fingers: Fingers, paste_text: PasteText | None, foreign: set[str]) -> None:
        self.fingers = fingers
        self.paste_text = paste_text
        self.paste_keys = "ctrl+v"
        self._foreign = foreign

    async def hold(self, action: Key | KeyDown | HoldKey) -> list[int]:
        """Press its keys; returns those that were not down already. What is to stay down is one key, without shift."""
        if isinstance(action, KeyDown):
            return self.fingers.press(self.known((keysym(action.key),)))
        syms = self._shifted(self.known(combo(action.keys)))
        self.fingers.check_together(syms)
        return self.fingers.press(syms)

    def lift(self, action: KeyUp) -> None:
        self.fingers.release((self._held_as(keysym(action.key)),))

    async def type(self, action: Type) -> None:
        text = action.text.replace("\r\n", "\n")
        if (odd := self._odd(text)) and self.paste_text is None:
            raise self._untypable(odd)
        for piece in _AS_KEYS.split(text) if odd else [text]:
            await (self._paste(piece) if self._odd(piece) else self._write(piece))

    async def paste(self, action: Paste) -> None:
        await self._paste(action.text)

    async def _write(self, text: str) -> None:
        fingers = self.fingers
        for number, char in enumerate(text, 1):
            sym = char_keysym(char)
            if ord(char) > 0x7E:
                self._foreign.add(char)
            with_shift = fingers.press(self._shifted((sym,))[:-1])
            fingers.key(sym, down=True)
            fingers.key(sym, down=False)
            fingers.release(with_shift)
            await fingers.passage.room()
            if number % BEFORE_SYNC == 0:
                await fingers.delivered()

    async def _paste(self, text: str) -> None:
        if self.paste_text is not None:
            await self.paste_text(text, self._press_paste)
            return
        screen = self.fingers.screen
        if (await screen.frame()).within:  # x11vnc and QEMU alone pass on nothing, though they claim to
            raise UnsupportedError(
                "the screen's server does not tell whether it hands a clipboard on",
                remedy="use the type action; it takes ASCII, and a few characters more",
                code="no_clipboard",
            )
        await screen.set_clipboard(text)
        self._press_paste()

    def _press_paste(self) -> None:
        self.fingers.release(self.fingers.press(self._shifted(combo(self.paste_keys))))

    def _shifted(self, syms: Sequence[int]) -> Sequence[int]:
        """With shift before a key that needs it, where the server does not press it."""
        if not self.fingers.qemu or any(sym in (*syms, *self.fingers.keys) for sym in _SHIFTS):
            return syms
        return (_SHIFT, *syms) if any(map(needs_shift, syms)) else syms

    def _untypable(self, char: str) -> UnsupportedError:
        return UnsupportedError(
            f"the character {char!r} (U+{ord(char):04X}) cannot be typed on this desktop's keyboard",
            remedy="use the paste action",
            code="cannot_type",
            character=char,
        )

    def _odd(self, text: str) -> str:
        """The first character that has no key, or nothing."""
        known = set(self._foreign)
        for char in dict.fromkeys(text):
            if " " <= char <= "~" or char in "\n\r\t":
                continue
            full = len(known) >= self._room and char not in known
            if self.paste_text is not None or full or not "\xa0" <= char <= "\xff":
                return char
            known.add(char)
        return ""

    def known(self, syms: Sequence[int]) -> Sequence[int]:
        """Refuse what the server would drop without a word, or take for something else."""
        for sym in syms:
            if self.fingers.qemu and sym not in _QEMU_KEYS:
                raise UnsupportedError(
                    f"the screen's server, QEMU, has no key {name_of(sym)}", code="no_such_key", key=name_of(sym)
                )
            char = chr(sym & 0xFFFFFF)
            if (0xA0 <= sym <= 0xFF or sym >> 24 == 1) and char not in self._foreign:
                if len(self._foreign) >= self._room:
                    raise UnsupportedError(
                        f"the key {char!r} is not on this desktop's keyboard, which takes {self._room} foreign ones",
                        remedy="use the type action",
                        code="cannot_type",
                        character=char,
                    )
                self._foreign.add(char)
        return syms

    @property
    def _room(self) -> int:
        return 0 if self.fingers.qemu else _FOREIGN

    def _held_as(self, sym: int) -> int:
        """`A` and `a` are one key: lift it as it was pressed."""
        held = self.fingers.keys
        twins = [other for other in held if other != sym and _letter(other) == _letter(sym) != ""]
        return twins[0] if twins and sym not in held else sym


def _letter(sym: int) -> str:
    """The letter that a keysym stands for, in lower case, or nothing."""
    char = chr(sym & 0xFFFFFF) if 0x20 <= sym <= 0xFF or sym >> 24 == 1 else ""
    return char.lower() if char.isalpha() else ""
