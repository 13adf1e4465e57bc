"""Runs inside a desktop: fills the whole screen with a colour that carries a number, and says so after X's sync."""

import json
import sys

from Xlib import display

answers, sys.stdout = sys.stdout, sys.stderr  # Xlib prints its remarks
d = display.Display()
screen = d.screen()
window = screen.root.create_window(
    0, 0, screen.width_in_pixels, screen.height_in_pixels, 0, screen.root_depth, override_redirect=True
)
window.map()
gc = window.create_gc()
d.sync()
print(json.dumps("ready"), file=answers, flush=True)
for line in sys.stdin:
    what = json.loads(line)
    if isinstance(what, int):
        gc.change(foreground=what)
        window.fill_rectangle(gc, 0, 0, screen.width_in_pixels, screen.height_in_pixels)
    elif what[0] == "rect":
        gc.change(foreground=what[1])
        window.fill_rectangle(gc, *what[2:])
    elif what[0] == "copy":
        window.copy_area(gc, window, *what[1:])
    elif what[0] == "warp":
        screen.root.warp_pointer(what[1], what[2])
    elif what[0] == "bell":
        d.bell(0)
    elif what[0] == "cursor":
        font = d.open_font("cursor")
        for place in (window, screen.root):
            place.change_attributes(cursor=font.create_glyph_cursor(font, 34, 35, (65535, 0, 0), (0, 0, 0)))
    d.sync()
    print(json.dumps("drawn"), file=answers, flush=True)
