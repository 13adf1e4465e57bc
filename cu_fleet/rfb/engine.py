"""RFB's client side without any I/O: bytes go in by `dataReceived`, events come out at a `Listener`.

A desktop's server is not to be trusted: whatever runs inside the desktop may have taken its place. So every length is
bounded before it is waited for, and what came is read in turns (`handshake`), drawn within bounds (`updates`), and
counted where nobody asked for it.

The cursor is kept apart from the picture. Continuous updates are not used: they would have an animated desktop send
all day what nobody looks at. Nor is the *extended* desktop size: it is for clients that choose the size, and costs
an update without pixels at every full request. Nor are *extended mouse buttons* (TigerVNC 1.15 and later): back and
forward are pressed by the helper inside, on any server.
"""

import struct
from collections.abc import Callable

from vncdotool.const import Encoding, MsgS2C  # type: ignore[import-untyped]
from vncdotool.rfb import PixelFormat  # type: ignore[import-untyped]

from cu_fleet.model.errors import UnsupportedError
from cu_fleet.rfb import clipboard
from cu_fleet.rfb.canvas import Canvas
from cu_fleet.rfb.handshake import MOST_PIXELS, RfbError, Wire
from cu_fleet.rfb.updates import LABOUR, NOISE, Listener, Updates

MOST_CUT_TEXT = 64 << 20  # longer is a breach; shorter, but more than the clipboard takes, is passed over
_PASS_OVER = 256 << 10
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


class Engine(Updates):
    def __init__(
        self, wire: Wire, listener: Listener, password: str | None = None, most_pixels: int = MOST_PIXELS
    ) -> None:
        super().__init__(wire, listener, password, most_pixels)
        self.fences = False
        self.extended_clipboard = False
        self.bells = 0
        self._offer: str | None = None  # our clipboard, until the server wants it
        self._texts_asked = 0
        self._provision = b""  # the same, ready to be sent

    def welcomed(self, width: int, height: int) -> None:
        self.canvas = Canvas(width, height)
        self.pointer = (width // 2, height // 2)  # where X puts it; a server tells only of later jumps
        self.setPixelFormat(_OUR_FORMAT)
        self.tell_encodings()
        self._next_message()
        self.listener.ready()

    def tell_encodings(self) -> None:
        """What we take; TigerVNC then looks again whether it must draw the pointer itself."""
        self.transport.write(struct.pack(f"!BxH{len(_ENCODINGS)}i", 2, len(_ENCODINGS), *_ENCODINGS))

    def failed(self, error: RfbError) -> None:
        self.listener.failed(error)

    # Messages

    def _handleConnection(self, block: bytes) -> None:  # noqa: N802
        kind = block[0]
        if kind == MsgS2C.FRAMEBUFFER_UPDATE:
            self.expect(self._handleFramebufferUpdate, 3)
            return
        self.heard_noise()
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

    def fence(self, payload: bytes) -> None:
        self.noise -= 1  # its answer is asked for
        self.transport.write(struct.pack("!BxxxIB", 248, _FENCE_REQUEST | 1, len(payload)) + payload)

    def _next_message(self) -> None:
        self.expect(self._handleConnection, 1)

    def _pass_over(self, size: int, then: Callable[[], None]) -> None:
        """Read and forget."""
        self.heard_noise(min(size, _PASS_OVER) / NOISE)
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
            self.heard_noise(abs(size) / NOISE)
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
            self.heard_noise(0 if self._texts_asked else LABOUR)
            self._texts_asked = 0
            self.listener.provided(_provided(block[4:]))
        elif flags & clipboard.REQUEST and self._offer is not None:
            self._provision = self._provision or clipboard.provide(self._offer)
            self.heard_noise(len(self._provision) / NOISE)
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
