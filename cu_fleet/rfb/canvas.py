"""The picture as the server has drawn it so far, and what of it has changed.

Pixels are 32 bits wide, B G R and one byte that means nothing. `serial` grows only when a pixel really got another
value, so equal serials mean equal pictures, whatever the server chose to send again. The same is known of each strip of
rows, so that a picture's encoder need not do again what it did for an earlier frame.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from PIL import Image

Rect = tuple[int, int, int, int]  # x, y, width, height
BYTES = 4  # of one pixel
STRIP = 64  # rows
_KEPT_DAMAGE = 512
_BAND = 256 << 10


@dataclass(frozen=True, slots=True)
class Cursor:
    """What the pointer looks like; `pixels` are R G B A, colours already multiplied by A."""

    width: int
    height: int
    hot_x: int
    hot_y: int
    pixels: bytes


@dataclass(frozen=True, slots=True)
class Deflated:
    """A strip of rows as it is in a PNG."""

    data: bytes
    checksum: int  # of what was deflated
    length: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole picture of the screen."""

    width: int
    height: int
    pixels: bytes  # B G R x, row after row
    at: float  # time.monotonic() when the last of it had come, in answer to a question
    serial: int  # two frames of one screen with the same number are equal
    within: float  # seconds by which it may be older than that; 0: the server has proved it
    pointer: tuple[int, int]  # where it points
    cursor: Cursor | None  # None: hidden, not asked for, or drawn into the picture
    drawn: bool  # the server may have drawn the pointer into the picture, as long as another than we moved it last
    strips: tuple[int, ...] = ()  # the serial at which each strip of rows has changed last
    # What the encoder made of a screen's strips, and of which serial: for all its frames.
    deflated: dict[int, tuple[int, Deflated]] = field(default_factory=dict, compare=False, repr=False)


class Canvas:
    def __init__(self, width: int, height: int) -> None:
        self.serial = 0
        self.data = bytearray()
        self._damage: deque[tuple[int, Rect]] = deque(maxlen=_KEPT_DAMAGE)
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.stride = width * BYTES
        self.data = bytearray()  # the old picture makes room before the new one takes it
        self.data = bytearray(self.stride * height)
        self.strips = [0] * -(-height // STRIP)
        self.deflated: dict[int, tuple[int, Deflated]] = {}
        self._changed((0, 0, width, height))

    def holds(self, rect: Rect) -> bool:
        x, y, width, height = rect
        return x + width <= self.width and y + height <= self.height

    def put(self, rect: Rect, pixels: bytes | bytearray) -> None:
        """Draw a rectangle that lies on the canvas."""
        x, y, width, _ = rect
        start = y * self.stride + x * BYTES
        if width == self.width:
            end = start + len(pixels)
            changed = self.data[start:end] != pixels
            if changed:
                self.data[start:end] = pixels
        else:
            changed = self._put_rows(start, width * BYTES, pixels)
        if changed:
            self._changed(rect)

    def copy(self, source_x: int, source_y: int, rect: Rect) -> None:
        """Move what is there, a band at a time, in the order that overwrites nothing before it has been read."""
        x, y, width, height = rect
        step = max(1, _BAND // max(1, width * BYTES))
        tops = range(0, height, step)
        for top in tops if y <= source_y else reversed(tops):
            rows = min(step, height - top)
            self.put((x, y + top, width, rows), self._part(source_x, source_y + top, width, rows))

    def _part(self, x: int, y: int, width: int, height: int) -> bytes | bytearray:
        if width == self.width:
            return self.data[y * self.stride : (y + height) * self.stride]
        whole = Image.frombuffer("RGBX", (self.width, self.height), self.data, "raw", "RGBX", 0, 1)
        return whole.crop((x, y, x + width, y + height)).tobytes()

    def changed_since(
        self, serial: int, region: Rect | None = None, ignore: Sequence[Rect] = (), below: int = 0
    ) -> bool:
        """Whether something may be another than at that serial, judged by the rectangles that came since.

        One that lies in an ignored one or has fewer pixels does not count.
        """
        if self.serial == serial:
            return False
        if self._damage[0][0] > serial + 1:
            return True  # longer ago than is remembered
        return any(number > serial and _counts(rect, region, ignore, below) for number, rect in self._damage)

    def damage_since(self, serial: int) -> list[Rect] | None:
        """The rectangles that came since then; None if that is longer ago than is remembered."""
        if self.serial != serial and self._damage[0][0] > serial + 1:
            return None
        return [rect for number, rect in self._damage if number > serial]

    def _put_rows(self, start: int, size: int, pixels: bytes | bytearray) -> bool:
        data, changed = self.data, False
        for at in range(0, len(pixels), size):
            row = pixels[at : at + size]
            if data[start : start + size] != row:
                data[start : start + size] = row
                changed = True
            start += self.stride
        return changed

    def _changed(self, rect: Rect) -> None:
        self.serial += 1
        self._damage.append((self.serial, rect))
        _, y, _, height = rect
        for strip in range(y // STRIP, (y + height - 1) // STRIP + 1):
            self.strips[strip] = self.serial


class Coverage:
    """Which pixels of the screen have come."""

    def __init__(self, width: int, height: int) -> None:
        self._mask = Image.new("L", (width, height))
        self._missing = width * height  # as far as nothing came twice

    def add(self, rects: Iterable[Rect]) -> bool:
        """Returns whether all has come now."""
        for x, y, width, height in rects:
            self._mask.paste(1, (x, y, x + width, y + height))
            self._missing -= width * height
        return self._missing <= 0 and self._mask.getextrema()[0] == 1


def _counts(rect: Rect, region: Rect | None, ignore: Sequence[Rect], below: int) -> bool:
    if (region and not _meet(rect, region)) or rect[2] * rect[3] < below:
        return False
    return not any(_within(rect, ignored) for ignored in ignore)


def _within(a: Rect, b: Rect) -> bool:
    return b[0] <= a[0] and a[0] + a[2] <= b[0] + b[2] and b[1] <= a[1] and a[1] + a[3] <= b[1] + b[3]


def _meet(a: Rect, b: Rect) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def unmasked(block: bytes, width: int, height: int) -> bytes:
    """R G B A from B G R x and a bit mask."""
    if not (width and height):
        return b""
    colours, mask = block[: width * height * BYTES], block[width * height * BYTES :]
    opaque = Image.frombuffer("RGB", (width, height), colours, "raw", "BGRX", 0, 1).convert("RGBA")
    shape = Image.frombuffer("1", (width, height), mask, "raw", "1", 0, 1)
    return Image.composite(opaque, Image.new("RGBA", (width, height)), shape).tobytes()
