"""What counts as a change of the picture: in a region, outside of what is ignored, and of so many pixels at least.

A wait compares with the picture it began with, pixel by pixel, so a cursor that blinks or a clock that ticks never
adds up to more than it covers, and what grows little by little is noticed when it has grown enough. Only rows that
differ are looked at closely, a band at a time, until the answer is known.
"""

from dataclasses import dataclass

from PIL import Image, ImageChops

from cu_fleet.rfb.canvas import BYTES, Canvas, Rect

_BAND = 16  # rows


@dataclass(frozen=True, slots=True)
class Focus:
    region: Rect | None = None
    ignore: tuple[Rect, ...] = ()
    below: int = 0  # a change of fewer pixels does not count

    @property
    def whole(self) -> bool:
        """Whether every single pixel counts, so that serials tell all."""
        return self.region is None and not self.ignore and self.below <= 1


@dataclass(frozen=True, slots=True)
class Still:
    """The picture at one moment, or those of its rows that matter."""

    serial: int
    width: int
    height: int
    top: int  # the first row that is kept
    pixels: bytes

    @classmethod
    def of(cls, canvas: Canvas, focus: Focus | None = None) -> "Still":
        """All of it, or what a look at `focus` will be compared with."""
        top, rows = 0, canvas.height
        if focus and focus.whole:
            rows = 0
        elif focus and focus.region:
            _, top, _, rows = focus.region
        kept = memoryview(canvas.data)[top * canvas.stride : (top + rows) * canvas.stride]
        with kept:
            return cls(canvas.serial, canvas.width, canvas.height, top, bytes(kept))

    def rows(self, y: int, count: int) -> bytes:
        stride = self.width * BYTES
        return self.pixels[(y - self.top) * stride : (y - self.top + count) * stride]


def differs(before: Still, now: Canvas, focus: Focus) -> bool:
    """Whether the canvas shows something else by now, as far as it is in focus."""
    if now.serial == before.serial:
        return False
    if focus.whole or (now.width, now.height) != (before.width, before.height):
        return True
    return _count(before, now, focus) >= max(1, focus.below)


def _count(before: Still, now: Canvas, focus: Focus) -> int:
    """Pixels that differ and count; no further than it matters."""
    x, top, width, height = focus.region or (0, 0, now.width, now.height)
    right, bottom = min(x + width, now.width), min(top + height, now.height)  # it may have become smaller
    count = 0
    for y in range(top, bottom, _BAND):
        rows = min(_BAND, bottom - y)
        old, new = before.rows(y, rows), bytes(now.data[y * now.stride : (y + rows) * now.stride])
        if old != new:
            mask = _mask(old, new, now.width, rows).crop((x, 0, max(x, right), rows))
            for left, up, across, down in focus.ignore:
                mask.paste(0, (left - x, up - y, left - x + across, up - y + down))
            count += mask.width * rows - mask.histogram()[0]
            if count >= focus.below:
                break
    return count


def _mask(old: bytes, new: bytes, width: int, rows: int) -> Image.Image:
    """Not 0 where a pixel has another colour."""
    one, two = (Image.frombuffer("RGBX", (width, rows), data, "raw", "RGBX", 0, 1) for data in (old, new))
    blue, green, red, _ = ImageChops.difference(one, two).split()
    return ImageChops.lighter(ImageChops.lighter(blue, green), red)
