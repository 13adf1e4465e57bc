"""The few words of X that a desktop's init needs; libraries would cost more than all the rest of it."""

import _socket
import struct

_ABOVE, _BELOW = (0x3B, 0x55, 0x70), (0x1C, 0x2A, 0x39)  # the root window fades from this blue to that one
_TILE = 32  # how wide a strip of it the X server keeps


class Screen:
    """A connection to the X server. It is taken before the server answers: `greet` waits for that."""

    def __init__(self) -> None:
        self.x = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self.x.connect("/tmp/.X11-unix/X0")  # noqa: S108  # the desktop's own

    def greet(self) -> None:
        """Returns when the server has loaded, and says what it is like."""
        self.x.sendall(struct.pack("<BxHHHH2x", ord("l"), 11, 0, 0, 0))
        head = self._read(8)
        body = self._read(4 * struct.unpack("<H", head[6:])[0])
        if head[0] != 1:
            raise OSError("the X server refuses us: " + body.decode("latin-1"))
        vendor, formats = struct.unpack_from("<H", body, 16)[0], body[21]
        at = 32 + (vendor + 3) // 4 * 4 + 8 * formats
        (self.own,) = struct.unpack_from("<I", body, 4)  # ids from here on are ours to give
        (self.root,) = struct.unpack_from("<I", body, at)
        self.width, self.height = struct.unpack_from("<HH", body, at + 20)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.x.recv(size - len(data))
            if not more:
                raise OSError("the X server hung up")
            data += more
        return data

    def _answer(self) -> bytes:
        """The next reply, past any events."""
        while (answer := self._read(32))[0] != 1:
            if answer[0] == 0:
                raise OSError(f"the X server refuses request {answer[10]} with error {answer[1]}")
        return answer

    def atom(self, name: bytes) -> int:
        padded = name + bytes(-len(name) % 4)
        self.x.sendall(struct.pack("<BxHH2x", 16, 2 + len(padded) // 4, len(name)) + padded)
        return int(struct.unpack_from("<I", self._answer(), 8)[0])

    def dress(self, dpi: str) -> None:
        """Paint the root window, tell toolkits the DPI, and from now on tell us of the root's properties.

        Returns when it is done: what the server sends last is an answer that means nothing else.
        """
        resources = f"Xft.dpi:\t{dpi}\n".encode()
        padded = resources + bytes(-len(resources) % 4)
        self.x.sendall(
            self._fading()
            + struct.pack("<BxHIIII", 2, 5, self.root, 0x801, self.own, 0x400000)
            + struct.pack("<BxHIhhHH", 61, 4, self.root, 0, 0, 0, 0)
            + struct.pack("<BBHIIIB3xI", 18, 0, 6 + len(padded) // 4, self.root, 23, 31, 8, len(resources))
            + padded
            + struct.pack("<BxH", 43, 1)
        )
        self._answer()

    def _fading(self) -> bytes:
        """Requests that make a strip with one colour fading into another: flat enough to compress well."""
        pixmap, gc = self.own, self.own + 1
        requests = [
            struct.pack("<BBHIIHH", 53, 24, 4, pixmap, self.root, _TILE, self.height),
            struct.pack("<BxHIII", 55, 4, gc, pixmap, 0),
        ]
        colour = -1
        for y in range(self.height):
            red, green, blue = (a + (b - a) * y // self.height for a, b in zip(_ABOVE, _BELOW, strict=True))
            if colour != (colour := red << 16 | green << 8 | blue):
                requests.append(struct.pack("<BxHIII", 56, 4, gc, 0x4, colour))
                requests.append(struct.pack("<BxHIIhhHH", 70, 5, pixmap, gc, 0, y, _TILE, self.height - y))
        return b"".join(requests)

    def has(self, atom: int) -> bool:
        """Whether the root has this property. Whatever event we have not seen is about what happens after this."""
        self.x.sendall(struct.pack("<BxHIIIII", 20, 6, self.root, atom, 0, 0, 0))
        return bool(struct.unpack_from("<I", self._answer(), 8)[0])

    def hears_of(self, atom: int) -> bool:
        """Whether the next event says that this property of the root was set."""
        event = self._read(32)
        return event[0] & 0x7F == 28 and bool(struct.unpack_from("<I", event, 8)[0] == atom)
