"""Whether a desktop works, proved from inside: what is drawn is seen over VNC, and what VNC sends arrives.

`cu-fleet image build` runs it in a desktop of the new image before that image is used; it needs python3-xlib and xclip,
prints a line for each thing proved, and fails with the first that is not. With the word `inside` nothing is expected of
the server's clipboard: x11vnc takes what it is sent, but no program ever gets it; the guest helper sees to that there.
"""

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from Xlib import XK, X  # type: ignore[import-untyped]
from Xlib.display import Display  # type: ignore[import-untyped]

SOCKET = "/run/cu-fleet/rfb.sock"
SIDE, AT, COLOUR = 64, (200, 150), (0x33, 0x66, 0xCC)
SECONDS = 15.0
TEXT = "cu-fleet clipboard"


class Viewer:
    """As much of a VNC client as the proof needs: raw pictures of 32 bits a pixel."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SECONDS)
        self.sock.connect(SOCKET)
        self.sock.sendall(self.read(12))
        self.read(self.read(1)[0])
        self.sock.sendall(b"\x01")
        assert self.read(4) == bytes(4), "the screen lets nobody in"
        self.sock.sendall(b"\x01")
        self.width, self.height, _, length = struct.unpack(">HH16sI", self.read(24))
        self.read(length)
        self.sock.sendall(struct.pack(">B3xBBBBHHHBBB3x", 0, 32, 24, 0, 1, 255, 255, 255, 16, 8, 0))
        self.sock.sendall(struct.pack(">BxHi", 2, 1, 0))

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            assert more, "the screen hung up"
            data += more
        return data

    def pixel(self, x: int, y: int) -> tuple[int, int, int]:
        self.sock.sendall(struct.pack(">BBHHHH", 3, 0, x, y, 1, 1))
        while True:
            kind = self.read(1)[0]
            if kind == 0:
                (count,) = struct.unpack(">xH", self.read(3))
                for _ in range(count):
                    _, _, width, height, encoding = struct.unpack(">HHHHi", self.read(12))
                    assert encoding == 0, f"an encoding nobody asked for: {encoding}"
                    data = self.read(4 * width * height)
                return data[2], data[1], data[0]
            if kind == 3:
                self.read(struct.unpack(">3xI", self.read(7))[0])

    def point(self, buttons: int) -> None:
        self.sock.sendall(struct.pack(">BBHH", 5, buttons, AT[0] + SIDE // 2, AT[1] + SIDE // 2))

    def key(self, keysym: int) -> None:
        for down in (1, 0):
            self.sock.sendall(struct.pack(">BBxxI", 4, down, keysym))

    def cut(self, text: str) -> None:
        self.sock.sendall(struct.pack(">B3xI", 6, len(text)) + text.encode("latin-1"))


def until(what: str, look: Callable[[], Any]) -> Any:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := look():
            print(f"{what}: proved", flush=True)
            return found
        time.sleep(0.02)
    sys.exit(f"{what}: not proved within {SECONDS:.0f} s")


def event(display: Any, kind: int) -> Any:
    while display.pending_events():
        found = display.next_event()
        if found.type == kind:
            return found
    return None


def clipboard() -> str:
    read = ["xclip", "-o", "-selection", "clipboard"]
    return subprocess.run(read, capture_output=True, timeout=5, check=False).stdout.decode("utf-8", "replace")


def copy(text: str) -> None:
    write = ["xclip", "-i", "-selection", "clipboard"]
    subprocess.run(write, input=text.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def main() -> None:
    display, viewer = Display(), Viewer()
    screen = display.screen()
    red, green, blue = COLOUR
    window = screen.root.create_window(
        *AT, SIDE, SIDE, 0, screen.root_depth, background_pixel=red << 16 | green << 8 | blue,
        override_redirect=1, event_mask=X.ButtonPressMask | X.KeyPressMask,
    )  # fmt: skip
    window.map()
    display.sync()
    middle = (AT[0] + SIDE // 2, AT[1] + SIDE // 2)
    until("screen", lambda: viewer.pixel(*middle) == COLOUR)
    viewer.point(1)
    press = until("pointer", lambda: event(display, X.ButtonPress))
    viewer.point(0)
    if (press.root_x, press.root_y) != middle:
        sys.exit(f"pointer: at {press.root_x},{press.root_y} instead of {middle}")
    window.set_input_focus(X.RevertToPointerRoot, X.CurrentTime)
    display.sync()
    viewer.key(ord("a"))
    pressed = until("keyboard", lambda: event(display, X.KeyPress))
    if display.keycode_to_keysym(pressed.detail, 0) != XK.XK_a:
        sys.exit("keyboard: another key arrived")
    if sys.argv[1:] == ["inside"]:
        copy(TEXT)
    else:
        viewer.cut(TEXT)
    until("clipboard", lambda: clipboard() == TEXT)


main()
