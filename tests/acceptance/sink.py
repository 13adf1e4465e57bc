"""Runs inside a desktop: a window over all of it that takes the keyboard, and writes down what X delivers to it.

`sink.py FILE` is the window; `sink.py FILE MARK` puts a mark among its events: what is written before the mark had
been delivered by then.
"""

import os
import re
import sys
from pathlib import Path

from Xlib import X, display, protocol

answers, sys.stdout = sys.stdout, sys.stderr  # Xlib prints its remarks
path, *mark = sys.argv[1:]
d = display.Display()
screen = d.screen()
atom = d.intern_atom("CU_FLEET_TEST_MARK")


def put_mark():
    window = int(re.match(r"window (\d+)\n", Path(path).read_text())[1])
    message = protocol.event.ClientMessage(window=window, client_type=atom, data=(32, [int(mark[0]), 0, 0, 0, 0]))
    d.send_event(window, message)
    d.sync()


def take_events():
    window = screen.root.create_window(
        0, 0, screen.width_in_pixels, screen.height_in_pixels, 0, screen.root_depth,
        override_redirect=True, background_pixel=0x336699,
        event_mask=X.KeyPressMask | X.KeyReleaseMask | X.ButtonPressMask | X.ButtonReleaseMask | X.ExposureMask,
    )  # fmt: skip
    window.map()
    while d.next_event().type != X.Expose:
        pass
    window.set_input_focus(X.RevertToPointerRoot, X.CurrentTime)
    d.sync()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(log, f"window {window.id}\n".encode())
    names = {X.KeyPress: "key", X.KeyRelease: "keyup", X.ButtonPress: "button", X.ButtonRelease: "buttonup"}
    while True:
        event = d.next_event()
        if event.type in names:
            sym = d.keycode_to_keysym(event.detail, 0) if "key" in names[event.type] else event.detail
            os.write(log, f"{names[event.type]} {sym}\n".encode())
        elif event.type == X.ClientMessage:
            os.write(log, f"mark {event.data[1][0]}\n".encode())
        elif event.type == X.MappingNotify:
            d.refresh_keyboard_mapping(event)


put_mark() if mark else take_events()
