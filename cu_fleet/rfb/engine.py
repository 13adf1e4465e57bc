"""RFB's client side without any I/O: bytes go in by `dataReceived`, events come out at a `Listener`.

A desktop's server is not to be trusted: whatever runs inside the desktop may have taken its place. So every length is
bounded before it is waited for, every rectangle lies on the screen, pictures come only when asked for, and only as RAW
and CopyRect, which bring no more than the screen holds. Whatever brings no picture, be it a message, an update or a
rectangle, is *noise*: some is normal, and is forgiven with time; endless noise ends the connection.

The cursor is kept apart from the picture. Continuous updates are not used: they would have an animated desktop send
all day what nobody looks at. Nor is the *extended* desktop size: it is for clients that choose the size, and costs
an update without pixels at every full request. Nor are *extended mouse buttons* (TigerVNC 1.15 and later): back and
forward are pressed by the helper inside, on any server.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from vncdotool.const import Encoding, MsgS2C  # type: ignore[import-untyped]
from vncdotool.rfb import PixelFormat  # type: ignore[import-untyped]

from cu_fleet.model.errors import UnsupportedError
from cu_fleet.rfb import clipboard
from cu_fleet.rfb.canvas import BYTES, Canvas, Cursor, Rect, unmasked
from cu_fleet.rfb.handshake import MOST_PIXELS, Handshake, RfbError, Wire, readable

MOST_CURSOR = 512 * 512
MOST_CUT_TEXT = 64 << 20  # longer is a breach; shorter, but more than the clipboard takes, is passed over
MOST_NOISE = 10_000  # messages and rectangles that bring no picture, forgiven with time
_NOISE = 1 << 16  # bytes of it that count like one message more
_PIXELS = 1 << 14  # of another size of the screen, made anew
_ROWS = 256  # copied within the screen; few bytes ask for many
_LABOUR = 200  # as much noise as what takes few bytes to say and milliseconds to do: another size, a text to inflate
MOST_UPDATES = 64  # that may be owed to us
_BAND = 64 << 10
_PASS_OVER = 256 << 10
_QUIET = {Encoding.RAW, Encoding.COPY_RECTANGLE, Encoding.PSEUDO_LAST_RECT}  # the others bring no picture
_FENCE_REQUEST = 1 << 31
_OUR_FORMAT = PixelFormat(32, 24, False, True, 255, 255, 255, 16, 8, 0)
_ENCODINGS = (
    Encoding.RAW,
    Encoding.COPY_RECTANGLE,
    Encoding.PSEUDO_CURSOR_WITH_ALPHA,
    Encoding.PSEUDO_CURSOR,
    Encoding.PSEUDO_VMWARE_CURSOR_POSITION,
    Encoding.PSEUDO_DESKTOP_SIZE,
    Encoding.PSEUDO_DESKTOP_NAME,
    Encoding.PSEUDO_LAST_RECT,
    Encoding.PSEUDO_QEMU_LED_STATE,  # else TigerVNC takes an unshifted "A" for a client's caps lock, and presses it
    Encoding.PSEUDO_FENCE,
    Encoding.PSEUDO_EXTENDED_CLIPBOARD,
)


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


class Engine(Handshake):
    def __init__(
        self, wire: Wire, listener: Listener, password: str | None = None, most_pixels: int = MOST_PIXELS
    ) -> None:
        super().__init__(wire, password, most_pixels)
        self.listener = listener
        self.canvas = Canvas(1, 1)
        self.cursor: Cursor | None = None
        self.pointer = (0, 0)
        self.fences = False
        self.extended_clipboard = False
        self.leds = 0  # 1: scroll lock, 2: num lock, 4: caps lock
        self.bells = 0
        self.noise = 0.0
        self.owed = 0  # updates that may still come for what was requested
        self._offer: str | None = None  # our clipboard, until the server wants it
        self._texts_asked = 0
        self._provision = b""  # the same, ready to be sent
        self._update = Update()

    def welcomed(self, width: int, height: int) -> None:
        self.canvas = Canvas(width, height)
        self.pointer = (width // 2, height // 2)  # where X puts it; a server tells only of later jumps
        self.setPixelFormat(_OUR_FORMAT)
        self.transport.write(struct.pack(f"!BxH{len(_ENCODINGS)}i", 2, len(_ENCODINGS), *_ENCODINGS))
        self._next_message()
        self.listener.ready()

    def failed(self, error: RfbError) -> None:
        self.listener.failed(error)

    # Messages

    def _handleConnection(self, block: bytes) -> None:  # noqa: N802
        kind = block[0]
        if kind == MsgS2C.FRAMEBUFFER_UPDATE:
            self.expect(self._handleFramebufferUpdate, 3)
            return
        self._heard_noise()
        if kind == MsgS2C.BELL:
            self.bells += 1
            self.expect(self._handleConnection, 1)
        elif kind == MsgS2C.SERVER_CUT_TEXT:
            self.expect(self._handleServerCutText, 7)
        elif kind == MsgS2C.SET_COLOUR_MAP_ENTRIES:
            self.expect(self._colour_map, 5)
        elif kind == MsgS2C.SERVER_FENCE:
            self.expect(self._fence, 8)
        else:
            raise RfbError(f"the screen's server sent a message of unknown kind {kind}")

    def _heard_noise(self, much: float = 1) -> None:
        self.noise += much
        if self.noise > MOST_NOISE:
            raise RfbError(f"the screen's server sent {MOST_NOISE:,} messages or rectangles that nobody asked for")

    def _colour_map(self, block: bytes) -> None:
        self._pass_over(6 * int.from_bytes(block[3:], "big"), self._next_message)

    def _fence(self, block: bytes) -> None:
        flags, size = struct.unpack("!xxxIB", block)
        if size > 64:
            raise RfbError(f"the screen's server sent a fence with {size} bytes; 64 is the most")
        self.expect(self._fence_payload, size, flags)

    def _fence_payload(self, block: bytes, flags: int) -> None:
        self.fences = True
        if flags & _FENCE_REQUEST:
            self.transport.write(struct.pack("!BxxxIB", 248, flags & 3, len(block)) + block)
        else:
            self.listener.fenced(block)
        self.expect(self._handleConnection, 1)

    def _next_message(self) -> None:
        self.expect(self._handleConnection, 1)

    def _pass_over(self, size: int, then: Callable[[], None]) -> None:
        """Read and forget."""
        self._heard_noise(min(size, _PASS_OVER) / _NOISE)
        if size == 0:
            then()
        else:
            step = min(size, _PASS_OVER)
            self.expect(lambda _: self._pass_over(size - step, then), step)

    # Clipboard

    def _handleServerCutText(self, block: bytes) -> None:  # noqa: N802
        (size,) = struct.unpack("!xxxi", block)
        extended = size < 0
        if abs(size) > MOST_CUT_TEXT:
            raise RfbError(f"the screen's server announced a clipboard of {abs(size):,} bytes")
        if abs(size) > clipboard.MOST_BYTES:
            self._pass_over(abs(size), self._too_much_text)
        else:
            self._heard_noise(abs(size) / _NOISE)
            self.expect(self._extended_text if extended else self._plain_text, abs(size))

    def _too_much_text(self) -> None:
        self.listener.provided(None)
        self._next_message()

    def _plain_text(self, block: bytes) -> None:
        self.listener.provided(block.decode("latin-1"))
        self._next_message()

    def _extended_text(self, block: bytes) -> None:
        if len(block) < 4:
            raise RfbError("the screen's server sent a clipboard message without its flags")
        (flags,) = struct.unpack_from("!I", block)
        if flags & clipboard.CAPS:
            self.extended_clipboard = True
            self.transport.write(clipboard.caps())
        elif flags & clipboard.NOTIFY:
            self.listener.offered() if flags & clipboard.TEXT else self.listener.provided(None)
        elif flags & clipboard.PROVIDE and flags & clipboard.TEXT:
            self._heard_noise(0 if self._texts_asked else _LABOUR)
            self._texts_asked = 0
            self.listener.provided(_provided(block[4:]))
        elif flags & clipboard.REQUEST and self._offer is not None:
            self._provision = self._provision or clipboard.provide(self._offer)
            self._heard_noise(len(self._provision) / _NOISE)
            self.transport.write(self._provision)
        elif flags & clipboard.PEEK:
            self.transport.write(clipboard.notify(self._offer is not None))
        self._next_message()

    def offer(self, text: str) -> None:
        """Make `text` the desktop's clipboard."""
        message = clipboard.notify(has_text=True) if self.extended_clipboard else clipboard.plain(_latin1(text))
        self._offer, self._provision = text, b""
        self.transport.write(message)

    def request_clipboard(self) -> None:
        self._texts_asked += 1
        self.transport.write(clipboard.request())

    # Updates

    def request(self, rect: Rect | None = None, *, incremental: bool) -> None:
        """Ask for what has changed on the screen, or for all of a rectangle."""
        x, y, width, height = rect or (0, 0, self.canvas.width, self.canvas.height)
        self.owed = min(self.owed + 4, MOST_UPDATES)  # servers may answer in parts
        self.framebufferUpdateRequest(x, y, width, height, incremental)

    def fence(self, payload: bytes) -> None:
        self.noise -= 1  # its answer is asked for
        self.transport.write(struct.pack("!BxxxIB", 248, _FENCE_REQUEST | 1, len(payload)) + payload)

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
            self._heard_noise()
        self.listener.updated(self._update)

    def _handleRectangle(self, block: bytes) -> None:  # noqa: N802
        x, y, width, height, encoding = struct.unpack("!HHHHi", block)
        self.rectangles -= 1
        read = self._READERS.get(encoding)
        if read is None:
            raise RfbError(f"the screen's server sent a rectangle in an encoding nobody asked for ({encoding})")
        if encoding not in _QUIET:
            self._heard_noise()
        read(self, (x, y, width, height))

    def _count(self, rect: Rect) -> None:
        if not self.canvas.holds(rect):
            raise RfbError(f"the screen's server sent a rectangle {rect} off its screen of {self._size()}")
        if not (rect[2] and rect[3]):
            self._heard_noise()
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
        self._heard_noise(rect[3] / _ROWS)
        if rect[2] and rect[3]:
            self.canvas.copy(x, y, rect)
        self._doConnection()

    def _last_rect(self, rect: Rect) -> None:
        self.rectangles = 0
        self._doConnection()

    def _resize(self, rect: Rect) -> None:
        self.check_size(rect[2], rect[3])
        if (rect[2], rect[3]) != (self.canvas.width, self.canvas.height):
            self._heard_noise(_LABOUR + rect[2] * rect[3] / _PIXELS)
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
        self._heard_noise(width * height * BYTES / _NOISE)

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


def _provided(payload: bytes) -> str | None:
    try:
        return clipboard.provided(payload)
    except ValueError as e:
        raise RfbError(f"the screen's server sent {e}") from None


def _latin1(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as e:
        raise UnsupportedError(
            f"the clipboard of this screen's server takes Latin-1 only, not {text[e.start]!r}", code="latin1_only"
        ) from None
