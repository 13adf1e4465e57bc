"""Runs inside a desktop: a window over all of it that takes the keyboard and notes each event X delivers."""

import json
import sys

from Xlib import XK, X, display

answers, sys.stdout = sys.stdout, sys.stderr  # Xlib prints its remarks
for group in ("xf86", "latin1", "miscellany", "xkb"):
    XK.load_keysym_group(group)
NAMES = {getattr(XK, name): name[3:] for name in sorted(dir(XK)) if name.startswith("XK_")}

d = display.Display()
screen = d.screen()
window = screen.root.create_window(
    0,
    0,
    screen.width_in_pixels,
    screen.height_in_pixels,
    0,
    screen.root_depth,
    override_redirect=True,
    background_pixel=0x336699,
    event_mask=X.KeyPressMask
    | X.KeyReleaseMask
    | X.ButtonPressMask
    | X.ButtonReleaseMask
    | X.PointerMotionMask
    | X.ExposureMask,
)
window.map()
while d.next_event().type != X.Expose:
    pass
window.set_input_focus(X.RevertToPointerRoot, X.CurrentTime)
d.sync()


def drain():
    d.sync()
    seen = []
    while d.pending_events():
        event = d.next_event()
        if event.type == X.MappingNotify:
            d.refresh_keyboard_mapping(event)
        elif event.type in (X.KeyPress, X.KeyRelease):
            sym = d.keycode_to_keysym(event.detail, event.state & X.ShiftMask)
            sym = sym or d.keycode_to_keysym(event.detail, 0)
            kind = "key" if event.type == X.KeyPress else "keyup"
            seen.append([kind, NAMES.get(sym, hex(sym)), event.state, sym])
        elif event.type in (X.ButtonPress, X.ButtonRelease):
            kind = "button" if event.type == X.ButtonPress else "buttonup"
            seen.append([kind, event.detail, event.state, event.event_x, event.event_y, event.time])
        elif event.type == X.MotionNotify:
            seen.append(["motion", event.event_x, event.event_y, event.state])
    return seen


def held():
    keys = d.query_keymap()
    return {"keys": sum(byte.bit_count() for byte in keys), "mask": screen.root.query_pointer().mask}


print(json.dumps("ready"), file=answers, flush=True)
for line in sys.stdin:
    question = json.loads(line)
    print(json.dumps(drain() if question == "events" else held()), file=answers, flush=True)
