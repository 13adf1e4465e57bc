"""How the wire into a machine is cut into frames: a channel's number, a letter, data, and a byte that ends it.

That byte occurs nowhere else, so whoever comes in the middle, or after another was cut off, finds the next frame.
"""

import struct

END, ESCAPE = b"\x7e", b"\x7d"
WINDOW = 256 << 10  # bytes of one stream that may be under way
MOST = 32 << 10  # bytes of data in a frame
_MOST_FRAME = 4 * MOST


def frame(channel: int, kind: str, data: bytes = b"") -> bytes:
    body = struct.pack(">H", channel) + kind.encode() + data
    return body.replace(ESCAPE, b"\x7d\x5d").replace(END, b"\x7d\x5e") + END


class Frames:
    """Frames out of a stream. What is broken, as at the first bytes of a connection, is left out."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, data: bytes) -> list[tuple[int, str, bytes]]:
        *whole, left = (self._left + data).split(END)
        self._left = left if len(left) <= _MOST_FRAME else b""
        bodies = [one.replace(b"\x7d\x5e", END).replace(b"\x7d\x5d", ESCAPE) for one in whole]
        return [(int.from_bytes(one[:2], "big"), chr(one[2]), one[3:]) for one in bodies if len(one) >= 3]
