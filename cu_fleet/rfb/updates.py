"""The pictures a server sends: updates of rectangles, drawn on the canvas as they come; cursors and names among them.

Pictures come only when asked for, every rectangle lies on the screen, and as RAW and CopyRect they bring no more than
the screen holds. Whatever brings no picture, be it a message, an update or a rectangle, is *noise*: some is normal, and
is forgiven with time (by who feeds this); endless noise ends the connection. What takes few bytes to say and much work
to do is louder.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from vncdotool.const import Encoding  # type: ignore[import-untyped]

from cu_fleet.rfb.canvas import BYTES, Canvas, Cursor, Rect, unmasked
from cu_fleet.rfb.handshake import MOST_PIXELS, Handshake, RfbError, Wire, readable

MOST_CURSOR = 512 * 512
MOST_UPDATES = 64  # that may be owed to us
MOST_NOISE = 10_000
NOISE = 1 << 16  # bytes of it that count like one message more
LABOUR = 200  # what milliseconds of work count: another size, a text to inflate
_PIXELS = 1 << 14  # of another size of the screen, made anew, that count like one message
_ROWS = 256  # copied within the screen, likewise
_BAND = 64 << 10
_QUIET = {Encoding.RAW, Encoding.COPY_RECTANGLE, Encoding.PSEUDO_LAST_RECT}  # the others bring no picture


class Listener(Protocol):
    def ready(self) -> None:
        """The handshake is done; the canvas is there."""

    def updated(self, update: "Update") -> None:
        """A whole update has been drawn."""

    def fenced(self, payload: bytes) -> None:
        """Our fence has come back."""

    def offered(self) -> None:
        """The desktop has a text in its clipboard that can be requested."""

    def provided(self, text: str | None) -> None:
        """The desktop's clipboard; None: no text, or too much of it."""

    def failed(self, error: RfbError) -> None:
        """The connection is over."""


@dataclass(slots=True)
class Update:
    rects: list[Rect] = field(default_factory=list)  # that carried pixels
    pixels: int = 0
    resized: bool = False


class Updates(Handshake):
    def __init__(self, wire: Wire, listener: Listener, password: str | None, most_pixels: int = MOST_PIXELS) -> None:
        super().__init__(wire, password, most_pixels)
        self.listener = listener
        self.canvas = Canvas(1, 1)
        self.cursor: Cursor | None = None
        self.pointer = (0, 0)
        self.leds = 0  # 1: scroll lock, 2: num lock, 4: caps lock
        self.noise = 0.0
        self.owed = 0  # updates that may still come for what was requested
        self._update = Update()

    def heard_noise(self, much: float = 1) -> None:
        self.noise += much
        if self.noise > MOST_NOISE:
            raise RfbError(f"the screen's server sent {MOST_NOISE:,} messages or rectangles that nobody asked for")

    def request(self, rect: Rect | None = None, *, incremental: bool) -> None:
        """Ask for what has changed on the screen, or for all of a rectangle."""
        x, y, width, height = rect or (0, 0, self.canvas.width, self.canvas.height)
        self.owed = min(self.owed + 4, MOST_UPDATES)  # servers may answer in parts
        self.framebufferUpdateRequest(x, y, width, height, incremental)

    def _handleFramebufferUpdate(self, block: bytes) -> None:  # noqa: N802
        self.owed -= 1
        if self.owed < 0:
            raise RfbError("the screen's server sends pictures that nobody asked for")
        (self.rectangles,) = struct.unpack("!xH", block)
        self._update = Update()
        self._doConnection()

    def _doConnection(self) -> None:  # noqa: N802
        """The next rectangle, or the end of the update."""
        if self.rectangles:
            self.expect(self._handleRectangle, 12)
            return
        self.expect(self._handleConnection, 1)
        if not self._update.rects:
            self.heard_noise()
        self.listener.updated(self._update)

    def _handleRectangle(self, block: bytes) -> None:  # noqa: N802
        x, y, width, height, encoding = struct.unpack("!HHHHi", block)
        self.rectangles -= 1
        read = self._READERS.get(encoding)
        if read is None:
            raise RfbError(f"the screen's server sent a rectangle in an encoding nobody asked for ({encoding})")
        if encoding not in _QUIET:
            self.heard_noise()
        read(self, (x, y, width, height))

    def _count(self, rect: Rect) -> None:
        if not self.canvas.holds(rect):
            raise RfbError(f"the screen's server sent a rectangle {rect} off its screen of {self._size()}")
        if not (rect[2] and rect[3]):
            self.heard_noise()
            return
        self._update.pixels += rect[2] * rect[3]
        if self._update.pixels > 2 * self.canvas.width * self.canvas.height + 4096:
            raise RfbError("the screen's server sent more than twice the screen in one update")
        self._update.rects.append(rect)

    def _size(self) -> str:
        return f"{self.canvas.width}x{self.canvas.height}"

    def _raw(self, rect: Rect) -> None:
        self._count(rect)
        self._next_band(rect)

    def _next_band(self, rest: Rect) -> None:
        """Rows are drawn as they come, some at a time, so that a big rectangle is never kept as a whole."""
        x, y, width, height = rest
        rows = min(height, max(1, _BAND // (width * BYTES))) if width else 0
        if rows:
            self.expect(self._band, rows * width * BYTES, (x, y, width, rows), (x, y + rows, width, height - rows))
        else:
            self._doConnection()

    def _band(self, block: bytes, rect: Rect, rest: Rect) -> None:
        self.canvas.put(rect, block)
        self._next_band(rest)

    def _copy_rect(self, rect: Rect) -> None:
        self._count(rect)
        self.expect(self._copied, 4, rect)

    def _copied(self, block: bytes, rect: Rect) -> None:
        x, y = struct.unpack("!HH", block)
        if not self.canvas.holds((x, y, rect[2], rect[3])):
            raise RfbError(f"the screen's server copies from {x},{y}, which is off its screen of {self._size()}")
        self.heard_noise(rect[3] / _ROWS)
        if rect[2] and rect[3]:
            self.canvas.copy(x, y, rect)
        self._doConnection()

    def _last_rect(self, rect: Rect) -> None:
        self.rectangles = 0
        self._doConnection()

    def _resize(self, rect: Rect) -> None:
        self.check_size(rect[2], rect[3])
        if (rect[2], rect[3]) != (self.canvas.width, self.canvas.height):
            self.heard_noise(LABOUR + rect[2] * rect[3] / _PIXELS)
            self._update = Update(resized=True)
            self.canvas.resize(rect[2], rect[3])
            self._point(*self.pointer)
        self._doConnection()

    def _rename(self, rect: Rect) -> None:
        self.expect(lambda length: self.expect_words(length, self._renamed), 4)

    def _renamed(self, block: bytes) -> None:
        self.name = readable(block)
        self._doConnection()

    def _moved(self, rect: Rect) -> None:
        self._point(rect[0], rect[1])
        self._doConnection()

    def _point(self, x: int, y: int) -> None:
        self.pointer = (min(x, self.canvas.width - 1), min(y, self.canvas.height - 1))

    def _led_rect(self, rect: Rect) -> None:
        self.expect(self._led_state, 1)

    def _led_state(self, block: bytes) -> None:
        self.leds = block[0]
        self._doConnection()

    # Cursor

    def _check_cursor(self, width: int, height: int) -> None:
        if width * height > MOST_CURSOR:
            raise RfbError(f"the screen's server sent a cursor of {width}x{height} pixels")
        self.heard_noise(width * height * BYTES / NOISE)

    def _cursor_rect(self, rect: Rect) -> None:
        _, _, width, height = rect
        self._check_cursor(width, height)
        self.expect(self._cursor_masked, width * height * BYTES + (width + 7) // 8 * height, rect)

    def _cursor_masked(self, block: bytes, rect: Rect) -> None:
        hot_x, hot_y, width, height = rect
        self.cursor = Cursor(width, height, hot_x, hot_y, unmasked(block, width, height)) if width and height else None
        self._doConnection()

    def _cursor_alpha_rect(self, rect: Rect) -> None:
        self._check_cursor(rect[2], rect[3])
        self.expect(self._cursor_alpha, 4 + rect[2] * rect[3] * BYTES, rect)

    def _cursor_alpha(self, block: bytes, rect: Rect) -> None:
        hot_x, hot_y, width, height = rect
        if block[:4] != b"\0\0\0\0":
            raise RfbError("the screen's server sent a cursor in an encoding nobody asked for")
        self.cursor = Cursor(width, height, hot_x, hot_y, block[4:]) if width and height else None
        self._doConnection()

    _READERS: dict[int, Callable[[Any, Rect], None]] = {
        Encoding.RAW: _raw,
        Encoding.COPY_RECTANGLE: _copy_rect,
        Encoding.PSEUDO_LAST_RECT: _last_rect,
        Encoding.PSEUDO_DESKTOP_SIZE: _resize,
        Encoding.PSEUDO_DESKTOP_NAME: _rename,
        Encoding.PSEUDO_CURSOR: _cursor_rect,
        Encoding.PSEUDO_CURSOR_WITH_ALPHA: _cursor_alpha_rect,
        Encoding.PSEUDO_VMWARE_CURSOR_POSITION: _moved,
        Encoding.PSEUDO_QEMU_LED_STATE: _led_rect,
    }
