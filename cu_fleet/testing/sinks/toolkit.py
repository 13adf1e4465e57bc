"""A GTK application over the whole screen: a text above, a plain area below; it tells what it made of its input.

`"events"`: what it was told since it was asked last: `["press", button, x, y, state]`, `"double"`, `"triple"` and
`"release"` like it, `["motion", 0, x, y, state]`, `["scroll", direction, x, y, state]`, `["key", name, state]`.
`"text"`: what was written; `"selected"`: what of it is selected; `["show", text]`: begin again with this text.
`"clipboard"`: what is in the clipboard; `["copy", text]`: put this there; `"pointer"`: where that is. It answers a line
of JSON with one.
"""

# ruff: noqa: E402 - the versions have to be said before the import

import json
import sys
from typing import Any

import gi  # type: ignore[import-not-found]

gi.require_version("Gtk", "3.0")
gi.require_version("Gdk", "3.0")
from gi.repository import Gdk, GLib, Gtk  # type: ignore[import-not-found]

KINDS = {
    Gdk.EventType.BUTTON_PRESS: "press",
    Gdk.EventType.DOUBLE_BUTTON_PRESS: "double",
    Gdk.EventType.TRIPLE_BUTTON_PRESS: "triple",
    Gdk.EventType.BUTTON_RELEASE: "release",
}
MASK = Gdk.EventMask.BUTTON_PRESS_MASK | Gdk.EventMask.BUTTON_RELEASE_MASK
MASK |= Gdk.EventMask.POINTER_MOTION_MASK | Gdk.EventMask.SCROLL_MASK


class Application:
    def __init__(self) -> None:
        self.seen: list[list[Any]] = []
        self.ready = False
        self.window = Gtk.Window()
        self.area = Gtk.DrawingArea(can_focus=False, hexpand=True, vexpand=True)
        self.writing = Gtk.TextView(hexpand=True, vexpand=True, wrap_mode=Gtk.WrapMode.NONE, monospace=True)
        self.text = self.writing.get_buffer()
        self.clipboard = Gtk.Clipboard.get(Gdk.SELECTION_CLIPBOARD)
        box = Gtk.Box(orientation=Gtk.Orientation.VERTICAL, homogeneous=True)
        scrolled = Gtk.ScrolledWindow()  # else the window grows with its text
        scrolled.add(self.writing)
        box.add(scrolled)
        box.add(self.area)
        self.window.add(box)
        self.listen()
        self.show()

    def listen(self) -> None:
        self.area.add_events(MASK)
        self.window.connect("key-press-event", self.on_key)
        self.window.connect("focus-in-event", self.on_focus)
        self.window.connect("delete-event", Gtk.main_quit)
        for name in ("button-press-event", "button-release-event"):
            self.area.connect(name, self.on_button)
        self.area.connect("motion-notify-event", self.on_motion)
        self.area.connect("scroll-event", self.on_scroll)
        GLib.io_add_watch(sys.stdin.fileno(), GLib.IO_IN | GLib.IO_HUP, self.on_question)

    def show(self) -> None:
        root = Gdk.Screen.get_default().get_root_window()
        self.window.set_default_size(root.get_width(), root.get_height())
        self.window.set_decorated(False)
        self.window.fullscreen()
        self.window.show_all()
        self.window.move(0, 0)
        self.window.get_window().focus(Gdk.CURRENT_TIME)
        self.writing.grab_focus()

    def on_key(self, widget: object, event: Any) -> bool:
        self.seen.append(["key", Gdk.keyval_name(event.keyval), int(event.state)])
        return False

    def on_button(self, widget: object, event: Any) -> bool:
        self.seen.append([KINDS[event.type], event.button, *self.place(event)])
        return True

    def on_motion(self, widget: object, event: Any) -> bool:
        self.seen.append(["motion", 0, *self.place(event)])
        return True

    def on_scroll(self, widget: object, event: Any) -> bool:
        self.seen.append(["scroll", event.direction.value_nick, *self.place(event)])
        return True

    def place(self, event: Any) -> list[int]:
        return [int(event.x_root), int(event.y_root), int(event.state)]

    def on_focus(self, widget: object, event: object) -> bool:
        if not self.ready:
            self.ready = True
            say("ready")
        return False

    def on_question(self, channel: object, condition: object) -> bool:
        line = sys.stdin.readline()
        if not line:
            Gtk.main_quit()
            return False
        Gdk.Display.get_default().sync()
        while Gtk.events_pending():  # all that the X server has sent until now
            Gtk.main_iteration()
        say(self.answer(json.loads(line)))
        return True

    def answer(self, question: Any) -> object:
        if question == "events":
            told, self.seen = self.seen, []
            return told
        if question == "text":
            return self.text.get_text(*self.text.get_bounds(), True)
        if question == "selected":
            ends = self.text.get_selection_bounds()
            return self.text.get_text(*ends, True) if ends else ""
        if question == "pointer":
            return Gdk.Display.get_default().get_default_seat().get_pointer().get_position()[1:]
        if question == "clipboard":
            return self.clipboard.wait_for_text() or ""
        kind, text = question
        if kind == "copy":
            self.clipboard.set_text(text, -1)
        else:
            self.text.set_text(text)
            self.writing.grab_focus()
            self.seen = []
        return "done"


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


application = Application()
Gtk.main()
