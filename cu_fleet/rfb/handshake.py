"""The way in: the handshake of a VNC server that is not to be trusted.

vncdotool's parser drives it; what is replaced here are the places where it would believe a length, fall silent, or ask
a person at a terminal. A breach ends the connection with an RfbError that says what it was.
"""

import struct
from collections.abc import Callable
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
MOST_PIXELS = (256 << 20) // BYTES
MOST_WORDS = 4096  # bytes of a name or of a reason
_KINDS = {AuthTypes.NONE, AuthTypes.VNC_AUTHENTICATION}


class RfbError(UnavailableError):
    """The screen's server refused us, broke the protocol or went away."""

    default_code = "screen_broken"


class Wire(Protocol):
    def write(self, data: bytes) -> None: ...

    def loseConnection(self) -> None: ...  # noqa: N802 - Twisted's name


class Handshake(RFBClient):  # type: ignore[misc]
    def __init__(self, wire: Wire, password: str | None) -> None:
        super().__init__()
        self.transport = wire
        self.error: RfbError | None = None
        self.name = ""
        self._password = password

    def welcomed(self, width: int, height: int) -> None:
        """The server has let us in and named its screen."""

    def failed(self, error: RfbError) -> None:
        """The connection is over."""

    # Bytes in

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 - Twisted's name
        if self.error:
            return
        self._packet += data
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
            end = start + self._expected_len
            with memoryview(packet) as view:
                block = bytes(view[start:end])
            start = end
            self._expected_handler(block, *self._expected_args, **self._expected_kwargs)
        del packet[:start]
        self._already_expecting = False

    # Handshake

    def _handleSecurityTypes(self, block: bytes) -> None:  # noqa: N802
        offered = _KINDS.intersection(block)
        if not offered:
            raise RfbError(
                f"the screen's server wants a kind of login that is not known here ({', '.join(map(str, block))})",
                remedy="let it ask for none or for a VNC password",
                code="screen_refused",
            )
        wanted = AuthTypes.NONE if self._password is None else AuthTypes.VNC_AUTHENTICATION
        chosen = wanted if wanted in offered else offered.pop()
        self.transport.write(bytes([chosen]))
        if chosen == AuthTypes.VNC_AUTHENTICATION:
            self.expect(self._handleVNCAuth, 16)
        elif self._version < (3, 8):
            self._doClientInitialization()
        else:
            self.expect(self._handleVNCAuthResult, 4)

    def vncRequestPassword(self) -> None:  # noqa: N802
        if self._password is None:
            raise RfbError("the screen's server wants a password, and none is known", code="screen_refused")
        key = self._password.encode()[:8].ljust(8, b"\0")
        mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in key)
        encryptor = Cipher(TripleDES(mirrored * 3), ECB()).encryptor()  # noqa: S305 - three times one key is RFB's DES
        self.transport.write(encryptor.update(self._challenge) + encryptor.finalize())

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
        words = reason.decode("utf-8", "replace")
        raise RfbError(f"the screen's server refused us: {words}", code="screen_refused")

    def vncProtocolError(self, reason: str) -> None:  # noqa: N802
        raise RfbError(f"the screen's server broke the protocol: {reason}")

    def _doClientInitialization(self) -> None:  # noqa: N802
        self.transport.write(b"\1")  # shared
        self.expect(self._handleServerInit, 24)

    def _handleServerInit(self, block: bytes) -> None:  # noqa: N802
        self.width, self.height = struct.unpack_from("!HH", block)
        check_size(self.width, self.height)
        self.expect_words(block[20:], self._handleServerName)

    def _handleServerName(self, block: bytes) -> None:  # noqa: N802
        self.name = block.decode("utf-8", "replace")
        self.welcomed(self.width, self.height)

    def expect_words(self, length: bytes, handler: Callable[[bytes], None]) -> None:
        size = int.from_bytes(length, "big")
        if size > MOST_WORDS:
            raise RfbError(
                f"the screen's server announced a name or reason of {size:,} bytes; {MOST_WORDS} is the most"
            )
        self.expect(handler, size)


def check_size(width: int, height: int) -> None:
    if not (0 < width <= MOST_EDGE and 0 < height <= MOST_EDGE and width * height <= MOST_PIXELS):
        raise RfbError(
            f"the screen's server announced a screen of {width}x{height}; up to {MOST_EDGE}x{MOST_EDGE} and "
            f"{MOST_PIXELS * BYTES >> 20} MB are taken",
            code="wrong_size",
        )
