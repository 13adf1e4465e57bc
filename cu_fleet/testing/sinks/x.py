"""A window over the whole screen that takes the keyboard and notes each event that the X server delivers.

`"events"`: those since it was asked last: `["key", keysym, state]`, `["keyup", keysym, state]`, `["button", number,
state, x, y, time]`, `["buttonup", …]`, `["motion", x, y, state]`. `"held"`: how many keys are down, and the mask of
modifiers and buttons; `"pointer"`: where that is; `["warp", x, y]`: have it there. It answers a line of JSON with one.
"""

import json
import sys
from typing import Any

from Xlib import X, display  # type: ignore[import-untyped]

answers, sys.stdout = sys.stdout, sys.stderr  # Xlib prints its remarks
GROUP, LEVEL3, NUM_LOCK = 1 << 13, X.Mod5Mask, X.Mod2Mask
MOTION = X.PointerMotionMask | X.ButtonMotionMask
MASK = X.KeyPressMask | X.KeyReleaseMask | X.ButtonPressMask | X.ButtonReleaseMask | MOTION | X.ExposureMask

d = display.Display()
screen = d.screen()


def keysym(code: int, state: int) -> int:
    """What the key means with these modifiers."""
    first = 2 * bool(state & GROUP) + 4 * bool(state & LEVEL3)
    shift = bool(state & X.ShiftMask)
    if 0xFF80 <= d.keycode_to_keysym(code, 1) <= 0xFFB9 and state & NUM_LOCK:
        shift = not shift
    found = d.keycode_to_keysym(code, first + shift) or d.keycode_to_keysym(code, first)
    found = found or d.keycode_to_keysym(code, 0)
    locked = state & X.LockMask and chr(found & 0xFF).isalpha() and found < 0x100
    return int(d.keycode_to_keysym(code, first + (not shift)) if locked else found)


def told(event: Any) -> list[Any]:
    if event.type in (X.KeyPress, X.KeyRelease):
        kind = "key" if event.type == X.KeyPress else "keyup"
        return [kind, keysym(event.detail, event.state), event.state]
    if event.type == X.MotionNotify:
        return ["motion", event.event_x, event.event_y, event.state]
    kind = "button" if event.type == X.ButtonPress else "buttonup"
    return [kind, event.detail, event.state, event.event_x, event.event_y, event.time]


def drain() -> list[list[Any]]:
    d.sync()
    seen = []
    while d.pending_events():
        event = d.next_event()
        if event.type == X.MappingNotify:
            d.refresh_keyboard_mapping(event)
        elif event.type in (X.KeyPress, X.KeyRelease, X.ButtonPress, X.ButtonRelease, X.MotionNotify):
            seen.append(told(event))
    return seen


def held() -> dict[str, int]:
    return {"keys": sum(byte.bit_count() for byte in d.query_keymap()), "mask": screen.root.query_pointer().mask}


def pointer() -> list[int]:
    found = screen.root.query_pointer()
    return [found.root_x, found.root_y]


def warp(x: int, y: int) -> list[int]:
    screen.root.warp_pointer(x, y)
    return pointer()


ANSWERS: dict[str, Any] = {"events": drain, "held": held, "pointer": pointer, "warp": warp}


def main() -> None:
    size = (screen.width_in_pixels, screen.height_in_pixels)
    more = {"override_redirect": True, "background_pixel": 0x336699, "event_mask": MASK}
    window = screen.root.create_window(0, 0, *size, 0, screen.root_depth, **more)
    window.map()
    while d.next_event().type != X.Expose:
        pass
    window.set_input_focus(X.RevertToPointerRoot, X.CurrentTime)
    d.sync()
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        asked: Any = json.loads(line)
        name, *place = [asked] if isinstance(asked, str) else asked
        print(json.dumps(ANSWERS[name](*place)), file=answers, flush=True)


main()
