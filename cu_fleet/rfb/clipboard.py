"""The extended clipboard: messages in UTF-8 inside RFB's plain cut text, told apart by a negative length.

Whoever owns the clipboard only *notifies*; the other side *requests* what it wants to paste, and is *provided* with
it. Text travels with CR LF and a final NUL, deflated; what it inflates to is bounded before it is inflated.
"""

import struct
import zlib

MOST_BYTES = 1 << 20  # of text, inflated
TEXT = 1 << 0
CAPS, REQUEST, PEEK, NOTIFY, PROVIDE = (1 << bit for bit in range(24, 29))


def caps() -> bytes:
    """We take text, and want to be told of it rather than sent it."""
    return _message(CAPS | REQUEST | PEEK | NOTIFY | PROVIDE | TEXT, struct.pack("!I", 0))


def request() -> bytes:
    return _message(REQUEST | TEXT)


def peek() -> bytes:
    """Asks whether there is something; a server that has nothing to say does nothing."""
    return _message(PEEK)


def notify(has_text: bool) -> bytes:
    return _message(NOTIFY | (TEXT if has_text else 0))


def provide(text: str) -> bytes:
    data = text.replace("\r\n", "\n").replace("\n", "\r\n").encode() + b"\0"
    return _message(PROVIDE | TEXT, zlib.compress(struct.pack("!I", len(data)) + data))


def plain(text: bytes) -> bytes:
    """The old message, in Latin-1."""
    return struct.pack("!BxxxI", 6, len(text)) + text


def provided(payload: bytes) -> str | None:
    """The text in a PROVIDE message; None if it is more than we take. Raises ValueError if it is not one."""
    try:
        data = zlib.decompressobj().decompress(payload, MOST_BYTES + 5)
    except zlib.error as e:
        raise ValueError(f"clipboard data that does not inflate: {e}") from None
    if len(data) < 4:
        raise ValueError("clipboard data without a length")
    (size,) = struct.unpack_from("!I", data)
    if size > MOST_BYTES:
        return None
    if size > len(data) - 4:
        raise ValueError(f"clipboard data of {len(data) - 4} bytes where {size} were announced")
    return data[4 : 4 + size].rstrip(b"\0").decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")


def _message(flags: int, data: bytes = b"") -> bytes:
    return struct.pack("!BxxxiI", 6, -(4 + len(data)), flags) + data
