"""Pictures and pointers as RFB carries them.

A viewer's deflated data is one stream as long as the connection lives, so that what was made for one viewer would be
noise to another. Here each rectangle is deflated by itself, refers to nothing before it, and ends on a byte: it fits
into any stream at any place, and is made once for all viewers. Tight has a bit for it (the stream begins anew); ZRLE's
stream only needs its header before the first.

Nothing is sent with loss: what a person decides by must be what is there. ISA-L deflates a whole screen in the time
that a copy of it takes.
"""

import struct
from collections.abc import Callable

from isal import isal_zlib
from PIL import Image

from cu_fleet.rfb.canvas import Cursor, Rect
from cu_fleet.watch.grid import TILE
from cu_fleet.watch.pixels import Format

RAW, TIGHT, ZRLE = 0, 7, 16
POINTER, POINTER_WITH_ALPHA = -239, -314
DESKTOP_SIZE, DESKTOP_NAME, LAST_RECT = -223, -307, -224
FENCE, CONTINUOUS, EXTENDED_CLIPBOARD = -312, -313, -1063131698
ZRLE_BEGIN = b"\x78\x01"
_ANEW = b"\x01"  # Tight: stream 0, and it is reset before
_LEAST = 12  # bytes that Tight deflates
_LONGEST = 22  # bits of a length in Tight


def raw(image: Image.Image, pixels: Format) -> bytes:
    return pixels.pixels(image)


def tight(image: Image.Image, pixels: Format) -> bytes:
    data = pixels.tight(image)
    if len(data) < _LEAST:
        return b"\x00" + data
    deflated = _deflated(data, 15)
    return _ANEW + _length(len(deflated)) + deflated


def zrle(image: Image.Image, pixels: Format) -> bytes:
    """Without its length, and without the stream's header."""
    width, height = image.size
    tiles = [_tile(image.crop((x, 0, min(x + TILE, width), height)), pixels) for x in range(0, width, TILE)]
    return _deflated(b"".join(tiles), -15)


def _tile(tile: Image.Image, pixels: Format) -> bytes:
    if all(low == high for low, high in tile.getextrema()):  # type: ignore[misc]  # pairs, since it has three bands
        return b"\x01" + pixels.compact(tile.crop((0, 0, 1, 1)))
    return b"\x00" + pixels.compact(tile)


def _deflated(data: bytes, window: int) -> bytes:
    deflate = isal_zlib.compressobj(1, isal_zlib.DEFLATED, window)
    return deflate.compress(data) + deflate.flush(isal_zlib.Z_SYNC_FLUSH)


def _length(size: int) -> bytes:
    if size < 1 << 7:
        return bytes((size,))
    if size < 1 << 14:
        return bytes((size & 127 | 128, size >> 7))
    assert size < 1 << _LONGEST
    return bytes((size & 127 | 128, size >> 7 & 127 | 128, size >> 14))


ENCODERS: dict[int, Callable[[Image.Image, Format], bytes]] = {RAW: raw, TIGHT: tight, ZRLE: zrle}


def rect(where: Rect, encoding: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHHHi", *where, encoding) + payload


def update(rects: list[bytes]) -> bytes:
    return struct.pack("!BxH", 0, len(rects)) + b"".join(rects)


def desktop_name(name: str) -> bytes:
    data = name.encode()
    return rect((0, 0, 0, 0), DESKTOP_NAME, struct.pack("!I", len(data)) + data)


def pointer(cursor: Cursor | None, pixels: Format, *, alpha: bool) -> bytes:
    """What the viewer shall show where its own pointer is; None: nothing."""
    if cursor is None:
        return rect((0, 0, 0, 0), POINTER_WITH_ALPHA, struct.pack("!i", RAW)) if alpha else rect((0, 0, 0, 0), POINTER)
    where = (cursor.hot_x, cursor.hot_y, cursor.width, cursor.height)
    if alpha:
        return rect(where, POINTER_WITH_ALPHA, struct.pack("!i", RAW) + cursor.pixels)
    picture = arrow(cursor)
    mask = picture.getchannel("A").point([0] * 128 + [255] * 128).convert("1", dither=Image.Dither.NONE)
    return rect(where, POINTER, pixels.pixels(picture.convert("RGB")) + mask.tobytes())


def arrow(cursor: Cursor) -> Image.Image:
    return Image.frombytes("RGBa", (cursor.width, cursor.height), cursor.pixels).convert("RGBA")
