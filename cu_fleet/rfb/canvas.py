"""The picture as the server has drawn it so far, and what of it has changed.

Pixels are 32 bits wide, B G R and one byte that means nothing. `serial` grows only when a pixel really got another
value, so equal serials mean equal pictures, whatever the server chose to send again.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

Rect = tuple[int, int, int, int]  # x, y, width, height
BYTES = 4  # of one pixel
_KEPT_DAMAGE = 512


@dataclass(frozen=True, slots=True)
class Cursor:
    """What the pointer looks like; `pixels` are R G B A, colours already multiplied by A."""

    width: int
    height: int
    hot_x: int
    hot_y: int
    pixels: bytes


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


class Canvas:
    def __init__(self, width: int, height: int) -> None:
        self.serial = 0
        self.data = bytearray()
        self._damage: deque[tuple[int, Rect]] = deque(maxlen=_KEPT_DAMAGE)
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.stride = width * BYTES
        self.data = bytearray(self.stride * height)
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
        _, _, width, height = rect
        rows = self.data[source_y * self.stride : (source_y + height) * self.stride]
        if width == self.width:
            self.put(rect, rows)
            return
        begin, size = source_x * BYTES, width * BYTES
        self.put(rect, b"".join(rows[at : at + size] for at in range(begin, len(rows), self.stride)))

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


class Coverage:
    """Which pixels of the screen a number of rectangles cover: a row is one integer, a pixel one bit."""

    def __init__(self, width: int, height: int) -> None:
        self._whole = (1 << width) - 1
        self._rows = [0] * height
        self._open = height

    def add(self, rect: Rect) -> bool:
        """Returns whether all is covered now."""
        x, y, width, height = rect
        bits = ((1 << width) - 1) << x
        for row in range(y, y + height):
            before = self._rows[row]
            self._rows[row] = before | bits
            self._open -= before != self._whole and before | bits == self._whole
        return self._open == 0


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
    size = width * height
    out = bytearray(size * BYTES)
    mask, pitch = block[size * BYTES :], (width + 7) // 8
    for at in range(size):
        x, y = at % width, at // width
        if mask[y * pitch + x // 8] & (0x80 >> x % 8):
            blue, green, red = block[at * BYTES : at * BYTES + 3]
            out[at * BYTES : at * BYTES + BYTES] = bytes((red, green, blue, 255))
    return bytes(out)
