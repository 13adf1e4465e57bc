"""Records what real servers say, for tests that need none: what they sent, byte for byte, while this drew on them.

    python -m tests.rfb.record            # all; or some of: tigervnc x11vnc qemu

Each server shows a screen of 64x48 (QEMU one of 64x64, and 128x64 in the end) on which `SCENE` is drawn, so that a test
knows the last picture without having seen it. Names and passwords are ours; nothing of this machine gets in.
"""

import select
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from tests.rfb.qemu import qemu
from tests.rfb.told import Told
from tests.rfb.x11vnc import x11vnc
from tests.rfb.xvnc import Client, xvnc

HERE = Path(__file__).parent / "recorded"
WIDTH, HEIGHT = 64, 48
PASSWORD = "recorded"  # noqa: S105 - of a server that nobody can reach
NUMBER = 200_007
SCENE: list[list[object] | int] = [
    0x204060,
    ["rect", 0xFF8001, 3, 2, 20, 10],
    ["rect", 0x01FF7F, 40, 30, 9, 9],
    ["copy", 3, 2, 20, 10, 30, 1],
    ["copy", 30, 0, 30, 40, 32, 3],
    ["cursor"],
    ["warp", 5, 6],
    ["bell"],
]


def shown() -> bytes:
    """The scene's last picture: B G R 0."""
    picture = bytearray(WIDTH * HEIGHT * 4)
    for what in SCENE:
        match what:
            case int(colour):
                _fill(picture, colour, 0, 0, WIDTH, HEIGHT)
            case ["rect", int(colour), int(x), int(y), int(width), int(height)]:
                _fill(picture, colour, x, y, width, height)
            case ["copy", int(left), int(top), int(width), int(height), int(x), int(y)]:
                before = bytes(picture)
                for row in range(height):
                    old, new = (top + row) * WIDTH + left, (y + row) * WIDTH + x
                    picture[new * 4 : (new + width) * 4] = before[old * 4 : (old + width) * 4]
    return bytes(picture)


def _fill(picture: bytearray, colour: int, x: int, y: int, width: int, height: int) -> None:
    for row in range(y, y + height):
        at = (row * WIDTH + x) * 4
        picture[at : at + width * 4] = colour.to_bytes(4, "little") * width


def seen(told: Told) -> bytes:
    """What has come, without the byte that means nothing."""
    picture = bytearray(told.engine.canvas.data)
    picture[3::4] = bytes(len(picture) // 4)
    return bytes(picture)


class Tape:
    def __init__(self, sock: socket.socket, password: str | None = None) -> None:
        self.sock, self.told, self.data = sock, Told(password), b""

    def run_until(self, done: Callable[[Told], object]) -> None:
        while not done(self.told):
            self.sock.sendall(bytes(self.told.sent))
            self.told.sent.clear()
            assert select.select([self.sock], [], [], 20)[0], "the server says no more"
            data = self.sock.recv(1 << 16)
            assert data, "the server has gone"
            self.data += data
            self.told.feed(data)
            assert not self.told.errors, self.told.errors

    def save(self, name: str) -> None:
        (HERE / f"{name}.rfb").write_bytes(self.data)
        print(f"{name}: {len(self.data):,} bytes, {self.told.updates} updates")


def _scene(tape: Tape, painter: Client, *, heard: Callable[[Told], object]) -> None:
    tape.run_until(lambda told: told.updates)
    for what in SCENE:
        updates = tape.told.updates
        painter.ask(what)
        if what == 0x204060:
            tape.run_until(lambda told: told.updates > updates)  # noqa: B023 - called at once
    tape.run_until(heard)
    tape.told.engine.pointerEvent(4, 6)  # TigerVNC draws the pointer as long as another than we moved it
    tape.run_until(lambda told: seen(told) == shown() and told.engine.cursor)


def tigervnc() -> None:
    with xvnc("-geometry", f"{WIDTH}x{HEIGHT}", "-desktop", "recorded") as server:
        with server.connect() as sock, server.client("painter.py") as painter:
            tape = Tape(sock)
            _scene(tape, painter, heard=lambda told: told.engine.pointer == (5, 6) and told.engine.bells)
        tape.save("tigervnc")


def of_x11vnc() -> None:
    with x11vnc("-desktop", "recorded", password=PASSWORD, size=f"{WIDTH}x{HEIGHT}") as server:
        with server.connect() as sock, server.client("painter.py") as painter:
            tape = Tape(sock, PASSWORD)
            _scene(tape, painter, heard=lambda told: told.engine.cursor and told.engine.bells)
        tape.save("x11vnc")


def of_qemu() -> None:
    with qemu() as machine:
        machine.mode(64, 64)
        machine.draw(1)
        with machine.connect() as sock:
            tape = Tape(sock)
            tape.run_until(lambda told: told.updates)
            machine.mode(128, 64)
            machine.draw(NUMBER)
            tape.run_until(lambda told: told.engine.canvas.width == 128 and shows(seen(told), NUMBER))
        tape.save("qemu")


def shows(pixels: bytes, number: int) -> bool:
    """Whether a machine's screen shows this number and nothing else, as `tests.rfb.qemu.drawn` reads it."""
    letters = bytes(0x40 | number >> shift & 63 for shift in (12, 6, 0))
    return pixels == (letters + b"\0@@@\0") * (len(pixels) // 8)


if __name__ == "__main__":
    makers = {"tigervnc": tigervnc, "x11vnc": of_x11vnc, "qemu": of_qemu}
    for name in sys.argv[1:] or makers:
        makers[name]()
