"""The way in: the handshake of a VNC server that is not to be trusted.

vncdotool's parser drives it; what is replaced here are the places where it would believe a length, fall silent, or ask
a person at a terminal. A breach ends the connection with an RfbError that says what it was.

Where a password is set, no server is entered that does not ask for it: it is another one than was meant.

Few bytes can mean much work: sixteen of them have a whole screen copied. So reading takes turns: when one has lasted
`TURN`, the rest stays where it is, the wire is asked to `rest`, and feeding goes on with `dataReceived(b"")`. Honest
servers never notice; a hostile one gets a part of our time, and everybody else theirs.
"""

import struct
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Protocol

import vncdotool.rfb  # type: ignore[import-untyped]
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.modes import ECB
from vncdotool.const import AuthTypes  # type: ignore[import-untyped]
from vncdotool.rfb import RFBClient

from cu_fleet.model.errors import UnavailableError
from cu_fleet.rfb.canvas import BYTES

# No reactor ever begins Twisted's logging, so its handshake lines would pile up in a buffer for ever.
vncdotool.rfb.log = SimpleNamespace(msg=lambda *_: None)

MOST_EDGE = 16384
MOST_PIXELS = (128 << 20) // BYTES  # 7680x4320 is the most that a profile asks for
MOST_WORDS = 4096  # bytes of a name or of a reason
TURN = 0.01  # seconds of reading without a rest
_KINDS = {AuthTypes.NONE, AuthTypes.VNC_AUTHENTICATION}


class RfbError(UnavailableError):
    """The screen's server refused us, broke the protocol or went away."""

    default_code = "screen_broken"


class Wire(Protocol):
    def write(self, data: bytes) -> None: ...

    def loseConnection(self) -> None: ...  # noqa: N802 - Twisted's name

    def rest(self) -> None:
        """Bring no more bytes for a while, then go on with `dataReceived(b"")`."""


class Handshake(RFBClient):  # type: ignore[misc]
    def __init__(self, wire: Wire, password: str | None, most_pixels: int = MOST_PIXELS) -> None:
        super().__init__()
        self.transport = wire
        self.error: RfbError | None = None
        self.name = ""
        self.clock: Callable[[], float] = time.perf_counter
        self._password = password
        self._most_pixels = most_pixels
        self._turn_ends = 0.0
        self._entered = False  # a greeting is little work, and who refuses us hangs up at once

    def welcomed(self, width: int, height: int) -> None:
        """The server has let us in and named its screen."""

    def failed(self, error: RfbError) -> None:
        """The connection is over."""

    # Bytes in

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 - Twisted's name
        if self.error:
            return
        self._packet += data
        self._turn_ends = self.clock() + TURN
        try:
            self._handler()
        except RfbError as e:
            self.fail(e)
        except Exception as e:  # noqa: BLE001 - whatever rubbish provokes in a parser is the server's fault
            self.fail(RfbError(f"the screen's server sent rubbish: {type(e).__name__}: {e}"))

    def fail(self, error: RfbError) -> None:
        if self.error is None:
            self.error = error
            self._packet.clear()
            self.transport.loseConnection()
            self.failed(error)

    def _handleExpected(self) -> None:  # noqa: N802 - vncdotool's name
        """Hand each whole block to who waits for it, with one copy of its bytes."""
        self._already_expecting = True
        packet, start = self._packet, 0
        while self.error is None and len(packet) - start >= self._expected_len:
            if self._entered and start and self.clock() > self._turn_ends:
                self.transport.rest()
                break
            end = start + self._expected_len
            with memoryview(packet) as view:
                block = bytes(view[start:end])
            start = end
            self._expected_handler(block, *self._expected_args, **self._expected_kwargs)
        del packet[:start]
        self._already_expecting = False

    # Handshake

    def _handleInitial(self) -> None:  # noqa: N802
        head = bytes(self._packet[:12])
        if not self._HEADER.startswith(head.translate(self._HEADER_TRANSLATE)):
            raise RfbError("what answers is no VNC server: it does not begin with RFB's greeting")
        if len(head) == len(self._HEADER) and head < b"RFB 003.003\n":
            raise RfbError(f"the screen's server speaks RFB {readable(head[4:11])}; 003.003 is the oldest known here")
        super()._handleInitial()

    def _handleSecurityTypes(self, block: bytes) -> None:  # noqa: N802
        offered = _KINDS.intersection(block)
        if not offered:
            raise _unknown_login(block)
        wanted = AuthTypes.NONE if self._password is None else AuthTypes.VNC_AUTHENTICATION
        chosen = wanted if wanted in offered else offered.pop()
        self._enter_by(chosen)
        self.transport.write(bytes([chosen]))
        if chosen == AuthTypes.VNC_AUTHENTICATION:
            self.expect(self._handleVNCAuth, 16)
        elif self._version < (3, 8):
            self._doClientInitialization()
        else:
            self.expect(self._handleVNCAuthResult, 4)

    def _handleAuth(self, block: bytes) -> None:  # noqa: N802
        """RFB 3.3, where the server chooses."""
        kind = int.from_bytes(block, "big")
        if kind == AuthTypes.INVALID:
            self.expect(self._handleConnFailed, 4)
            return
        self._enter_by(kind)
        if kind == AuthTypes.VNC_AUTHENTICATION:
            self.expect(self._handleVNCAuth, 16)
        else:
            self._doClientInitialization()

    def _enter_by(self, kind: int) -> None:
        if kind not in _KINDS:
            raise _unknown_login([kind])
        if kind == AuthTypes.NONE and self._password is not None:
            raise RfbError(
                "the screen's server asks for no password though one is set for it, so it may be another server",
                remedy="have it ask for the password, or set none",
                code="screen_refused",
            )

    def vncRequestPassword(self) -> None:  # noqa: N802
        if self._password is None:
            raise RfbError("the screen's server wants a password, and none is known", code="screen_refused")
        self.transport.write(response(self._password, self._challenge))

    def _handleConnFailed(self, block: bytes) -> None:  # noqa: N802
        self.expect_words(block, self._refused)

    def _handleVNCAuthResult(self, block: bytes) -> None:  # noqa: N802
        if block == b"\0\0\0\0":
            self._doClientInitialization()
        elif self._version < (3, 8):
            self._refused(b"wrong password")
        else:
            self.expect(self._handleConnFailed, 4)

    def _refused(self, reason: bytes) -> None:
        raise RfbError(f"the screen's server refused us: {readable(reason)}", code="screen_refused")

    def vncProtocolError(self, reason: str) -> None:  # noqa: N802
        raise RfbError(f"the screen's server broke the protocol: {reason}")

    def _doClientInitialization(self) -> None:  # noqa: N802
        self.transport.write(b"\1")  # shared
        self.expect(self._handleServerInit, 24)

    def _handleServerInit(self, block: bytes) -> None:  # noqa: N802
        self.width, self.height = struct.unpack_from("!HH", block)
        self.check_size(self.width, self.height)
        self.expect_words(block[20:], self._handleServerName)

    def _handleServerName(self, block: bytes) -> None:  # noqa: N802
        self.name = readable(block)
        self._entered = True
        self.welcomed(self.width, self.height)

    def expect_words(self, length: bytes, handler: Callable[[bytes], None]) -> None:
        size = int.from_bytes(length, "big")
        if size > MOST_WORDS:
            raise RfbError(
                f"the screen's server announced a name or reason of {size:,} bytes; {MOST_WORDS} is the most"
            )
        self.expect(handler, size)

    def check_size(self, width: int, height: int) -> None:
        if not (0 < width <= MOST_EDGE and 0 < height <= MOST_EDGE and width * height <= self._most_pixels):
            raise RfbError(
                f"the screen's server announced a screen of {width}x{height}; up to {MOST_EDGE} pixels each way and "
                f"{self._most_pixels:,} in all are taken",
                code="wrong_size",
            )


def response(password: str, challenge: bytes) -> bytes:
    """What proves to a server that its client knows the password, of which eight bytes count."""
    key = password.encode()[:8].ljust(8, b"\0")
    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in key)
    encryptor = Cipher(TripleDES(mirrored * 3), ECB()).encryptor()  # noqa: S305 - three times one key is RFB's DES
    return encryptor.update(challenge) + encryptor.finalize()


def readable(words: bytes | bytearray | str) -> str:
    """What a desktop calls itself or complains of, fit to be shown: nothing in it commands a terminal."""
    text = words if isinstance(words, str) else words.decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _unknown_login(kinds: Sequence[int]) -> RfbError:
    return RfbError(
        f"the screen's server wants a kind of login that is not known here ({', '.join(map(str, kinds[:8]))})",
        remedy="let it ask for none or for a VNC password",
        code="screen_refused",
    )
