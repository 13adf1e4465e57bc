"""What a viewer says, without any I/O: bytes go in by `feed`, events come out; what is to be sent gathers in `out`.

A viewer is not to be trusted before it has shown its ticket, and not much after. Nothing is waited for that is longer
than it may be, so what is kept of a message is bounded; and what one byte can cause is little work and few bytes. It
is the caller who reads no further while `out` has not gone.

Whoever has entered is known by a VNC password; no other way in is offered, and none of the old viewers lacks it.
"""

import struct
from collections.abc import Callable, Generator
from dataclasses import dataclass

from cu_fleet.rfb import clipboard
from cu_fleet.rfb.canvas import Rect
from cu_fleet.rfb.handshake import readable
from cu_fleet.watch.breach import BreachError
from cu_fleet.watch.encodings import CONTINUOUS, EXTENDED_CLIPBOARD, FENCE
from cu_fleet.watch.pixels import NATIVE, Format

MOST_ENCODINGS = 1024
MOST_CUT_TEXT = 64 << 20  # longer is a breach; shorter, but more than the clipboard takes, is passed over
_STEP = 64 << 10
_VNC = 2  # the one kind of login
_FENCE_REQUEST = 1 << 31
_END_OF_STREAM = b"\x96"
_FENCE_FLAGS = 0b111  # what a fence may ask for: all that is done here in order anyway


@dataclass(frozen=True, slots=True)
class Answered:
    """The viewer's answer to the challenge; nothing more is read until it is let in or refused."""

    response: bytes


@dataclass(frozen=True, slots=True)
class Entered:
    """It wants to be told what there is to see."""


@dataclass(frozen=True, slots=True)
class Asked:
    rect: Rect
    incremental: bool


@dataclass(frozen=True, slots=True)
class Streams:
    """From now on it wants this rectangle without asking, or nothing any more."""

    rect: Rect | None


@dataclass(frozen=True, slots=True)
class Told:
    """It has changed its pixels or its encodings."""


@dataclass(frozen=True, slots=True)
class Keyed:
    keysym: int
    down: bool


@dataclass(frozen=True, slots=True)
class Pointed:
    x: int
    y: int
    buttons: int


@dataclass(frozen=True, slots=True)
class FenceBack:
    payload: bytes


@dataclass(frozen=True, slots=True)
class Offers:
    """It has a text in its clipboard, which may be requested."""


@dataclass(frozen=True, slots=True)
class Wants:
    """It wants the desktop's clipboard."""


@dataclass(frozen=True, slots=True)
class Peeks:
    """It wants to know whether there is anything in the desktop's clipboard."""


@dataclass(frozen=True, slots=True)
class Brought:
    """A text from its clipboard."""

    text: str


Event = Answered | Entered | Asked | Streams | Told | Keyed | Pointed | FenceBack | Offers | Wants | Peeks | Brought
_Reading = Generator[int, bytes, None]


class Protocol:
    """`challenge` is sixteen bytes of chance."""

    def __init__(self, challenge: bytes) -> None:
        self.out = bytearray()
        self.format: Format = NATIVE
        self.encodings: tuple[int, ...] = ()
        self.held = False  # nothing is read until the viewer is let in
        self._known: set[int] = set()  # encodings that were answered once
        self.challenge = challenge
        self._version = 8
        self._events: list[Event] = []
        self._packet = bytearray()
        self._reading = self._conversation()
        self._wanted = next(self._reading)

    def feed(self, data: bytes) -> list[Event]:
        """What these bytes say. Raises BreachError at the first that may not be; then nothing follows."""
        self._packet += data
        start = 0
        try:
            while not self.held and len(self._packet) - start >= self._wanted:
                end = start + self._wanted
                with memoryview(self._packet) as view:
                    block = bytes(view[start:end])
                start = end
                self._wanted = self._reading.send(block)
        finally:
            del self._packet[:start]
        if self.held and len(self._packet) > _STEP:
            raise BreachError("the viewer sends on without having been let in")
        events, self._events = self._events, []
        return events

    def has(self, encoding: int) -> bool:
        return encoding in self.encodings

    # Entering

    def _conversation(self) -> _Reading:
        self.out += b"RFB 003.008\n"
        yield from self._agree(version=(yield 12))
        self.out += self.challenge
        response = yield 16
        self._events.append(Answered(response))
        self.held = True
        yield 1  # whether the screen is shared: it always is
        self._events.append(Entered())
        while True:
            (kind,) = yield 1
            read = self._READERS.get(kind)
            if read is None:
                raise BreachError(f"the viewer sent a message of unknown kind {kind}")
            yield from read(self)

    def _agree(self, version: bytes) -> _Reading:
        number = version[8:11]
        if version[:8] != b"RFB 003." or version[11:] != b"\n" or not number.isdigit() or int(number) < 3:
            raise BreachError("what connected is no VNC viewer")
        self._version = min(int(number), 8) if int(number) >= 7 else 3
        if self._version == 3:
            self.out += struct.pack("!I", _VNC)
            return
        self.out += bytes((1, _VNC))
        (chosen,) = yield 1
        if chosen != _VNC:
            raise BreachError(f"the viewer chose a login of kind {chosen} that was not offered")

    def let_in(self) -> None:
        self.held = False
        self.out += struct.pack("!I", 0)

    def refuse(self, why: str) -> None:
        """The viewer's answer was wrong; the caller hangs up."""
        self.out += struct.pack("!I", 1)
        if self._version >= 8:
            reason = why.encode()
            self.out += struct.pack("!I", len(reason)) + reason

    def welcome(self, width: int, height: int, name: str) -> None:
        title = readable(name).encode()
        self.out += struct.pack("!HH", width, height) + NATIVE.packed() + struct.pack("!I", len(title)) + title

    # Messages

    def _set_format(self) -> _Reading:
        self.format = Format.parse((yield 19)[3:])
        self._events.append(Told())

    def _set_encodings(self) -> _Reading:
        (count,) = struct.unpack("!xH", (yield 3))
        if count > MOST_ENCODINGS:
            raise BreachError(f"the viewer announced {count} encodings; {MOST_ENCODINGS} is the most")
        self.encodings = struct.unpack(f"!{count}i", (yield 4 * count)) if count else ()
        for encoding, answer in self._ANSWERS.items():
            if encoding in self.encodings and encoding not in self._known:
                self._known.add(encoding)
                self.out += answer()
        self._events.append(Told())

    def _request(self) -> _Reading:
        incremental, *rect = struct.unpack("!BHHHH", (yield 9))
        self._events.append(Asked((rect[0], rect[1], rect[2], rect[3]), bool(incremental)))

    def _key(self) -> _Reading:
        down, keysym = struct.unpack("!BxxI", (yield 7))
        self._events.append(Keyed(keysym, bool(down)))

    def _pointer(self) -> _Reading:
        buttons, x, y = struct.unpack("!BHH", (yield 5))
        self._events.append(Pointed(x, y, buttons))

    def _stream(self) -> _Reading:
        on, *rect = struct.unpack("!BHHHH", (yield 9))
        self._events.append(Streams((rect[0], rect[1], rect[2], rect[3]) if on else None))
        if not on:
            self.out += _END_OF_STREAM

    def _fence(self) -> _Reading:
        flags, size = struct.unpack("!xxxIB", (yield 8))
        if size > 64:
            raise BreachError(f"the viewer sent a fence with {size} bytes; 64 is the most")
        payload = (yield size) if size else b""
        if flags & _FENCE_REQUEST:
            self.out += _fence_message(flags & _FENCE_FLAGS, payload)
        else:
            self._events.append(FenceBack(payload))

    # Clipboard

    def _cut_text(self) -> _Reading:
        (size,) = struct.unpack("!xxxi", (yield 7))
        if abs(size) > MOST_CUT_TEXT:
            raise BreachError(f"the viewer announced a clipboard of {abs(size):,} bytes")
        if abs(size) > clipboard.MOST_BYTES:
            yield from self._pass_over(abs(size))
        elif size < 0:
            self._extended((yield -size))
        else:
            text = ((yield size) if size else b"").decode("latin-1")
            self._events.append(Brought(text.replace("\r\n", "\n")))

    def _pass_over(self, size: int) -> _Reading:
        while size:
            step = min(size, _STEP)
            yield step
            size -= step

    def _extended(self, block: bytes) -> None:
        if len(block) < 4:
            raise BreachError("the viewer sent a clipboard message without its flags")
        (flags,) = struct.unpack_from("!I", block)
        text = flags & clipboard.TEXT
        if flags & clipboard.CAPS:
            return
        if flags & clipboard.NOTIFY and text:
            self._events.append(Offers())
        elif flags & clipboard.REQUEST and text:
            self._events.append(Wants())
        elif flags & clipboard.PEEK:
            self._events.append(Peeks())
        elif flags & clipboard.PROVIDE and text:
            try:
                brought = clipboard.provided(block[4:])
            except ValueError as e:
                raise BreachError(f"the viewer sent {e}") from None
            if brought is not None:
                self._events.append(Brought(brought))

    # What is sent beside pictures

    def fence(self, payload: bytes) -> None:
        self.out += _fence_message(_FENCE_REQUEST | 1, payload)

    def bell(self) -> None:
        self.out += b"\x02"

    def offer_text(self, there_is: bool) -> None:
        self.out += _from_server(clipboard.notify(there_is))

    def request_text(self) -> None:
        self.out += _from_server(clipboard.request())

    def send_text(self, text: str) -> None:
        """By the extended clipboard what was requested; in Latin-1, where there is no other, what it can say."""
        if self.has(EXTENDED_CLIPBOARD):
            self.out += _from_server(clipboard.provide(text))
        else:
            self.out += _from_server(clipboard.plain(text.encode("latin-1", "replace")))

    _READERS: dict[int, Callable[["Protocol"], _Reading]] = {
        0: _set_format,
        2: _set_encodings,
        3: _request,
        4: _key,
        5: _pointer,
        6: _cut_text,
        150: _stream,
        248: _fence,
    }
    _ANSWERS: dict[int, Callable[[], bytes]] = {  # once, when a viewer says that it knows them
        FENCE: lambda: _fence_message(_FENCE_REQUEST, b""),
        CONTINUOUS: lambda: _END_OF_STREAM,
        EXTENDED_CLIPBOARD: lambda: _from_server(clipboard.caps()),
    }


def _fence_message(flags: int, payload: bytes) -> bytes:
    return struct.pack("!BxxxIB", 248, flags, len(payload)) + payload


def _from_server(message: bytes) -> bytes:
    """The same message in the other direction: only its kind differs."""
    return b"\x03" + message[1:]
