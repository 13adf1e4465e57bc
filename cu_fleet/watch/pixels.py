"""Pixels as a viewer wants them: any true colour of 8, 16 or 32 bits.

The usual 32-bit formats are an order of whole bytes, which Pillow packs by itself. Of any other, each byte of a pixel
is the sum of what red, green and blue put into it, and what each puts there is one table look-up.
"""

import struct
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Self

from PIL import Image, ImageChops

from cu_fleet.watch.breach import BreachError

_FORMAT = struct.Struct("!BBBBHHHBBB3x")


@dataclass(frozen=True)
class Format:
    bits: int
    depth: int
    big: bool
    maxima: tuple[int, int, int]  # of red, green, blue
    shifts: tuple[int, int, int]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        bits, depth, big, true, *rest = _FORMAT.unpack(data)
        (red, green, blue), (r, g, b) = rest[:3], rest[3:]
        found = cls(bits, depth, bool(big), (red, green, blue), (r, g, b))
        if not true:
            raise BreachError("the viewer asks for colours by number; only true colour is sent", code="no_palette")
        if bits not in (8, 16, 32) or not all(map(found._fits, found.maxima, found.shifts)):
            raise BreachError(f"the viewer asks for pixels that cannot be: {bits} bits, {found.maxima} << {(r, g, b)}")
        return found

    def packed(self) -> bytes:
        return _FORMAT.pack(self.bits, self.depth, self.big, 1, *self.maxima, *self.shifts)

    def _fits(self, maximum: int, shift: int) -> bool:
        return maximum > 0 and maximum & (maximum + 1) == 0 and maximum << shift < 1 << self.bits

    def pixels(self, image: Image.Image) -> bytes:
        if self._order:
            return image.tobytes("raw", self._order)
        return _woven(self._planes(image))

    def compact(self, image: Image.Image) -> bytes:
        """ZRLE's pixels, which leave out a byte that is always nought."""
        spare = self._spare
        if spare is None:
            return self.pixels(image)
        if self._order:
            return image.tobytes("raw", self._order.replace("X", ""))
        return _woven([plane for number, plane in enumerate(self._planes(image)) if number != spare])

    def tight(self, image: Image.Image) -> bytes:
        """Tight's pixels: red, green, blue, if they are bytes at all."""
        whole = self.bits == 32 and self.depth == 24 and self.maxima == (255, 255, 255)
        return image.tobytes() if whole else self.pixels(image)

    @cached_property
    def _order(self) -> str:
        """As Pillow calls it; nothing if the colours are not three of four whole bytes."""
        whole = self.bits == 32 and self.maxima == (255, 255, 255) and not any(shift % 8 for shift in self.shifts)
        letters = ["X"] * 4
        for letter, shift in zip("RGB", self.shifts, strict=True):
            if whole:
                letters[3 - shift // 8 if self.big else shift // 8] = letter
        order = "".join(letters)
        return order if order in ("BGRX", "RGBX", "XBGR", "XRGB") else ""

    @cached_property
    def _spare(self) -> int | None:
        """Which of four bytes ZRLE leaves out."""
        if self.bits != 32 or self.depth > 24:
            return None
        if all(maximum << shift < 1 << 24 for maximum, shift in zip(self.maxima, self.shifts, strict=True)):
            return 0 if self.big else 3
        return None if any(shift < 8 for shift in self.shifts) else 3 if self.big else 0

    def _planes(self, image: Image.Image) -> list[Image.Image]:
        """A pixel's bytes, each as a picture of its own."""
        size = self.bits // 8
        order = range(size - 1, -1, -1) if self.big else range(size)
        channels = image.split()
        return [
            reduce(
                ImageChops.add,
                (channel.point(table[byte]) for channel, table in zip(channels, self._tables, strict=True)),
            )
            for byte in order
        ]

    @cached_property
    def _tables(self) -> list[list[list[int]]]:
        """For red, green, blue, and each byte from the lowest: what each of 256 shades puts into it."""
        tables = []
        for maximum, shift in zip(self.maxima, self.shifts, strict=True):
            values = [(shade * maximum + 127) // 255 << shift for shade in range(256)]
            tables.append([[value >> 8 * byte & 255 for value in values] for byte in range(self.bits // 8)])
        return tables


NATIVE = Format(32, 24, False, (255, 255, 255), (16, 8, 0))


def _woven(planes: list[Image.Image]) -> bytes:
    if len(planes) == 1:
        return planes[0].tobytes()
    return Image.merge({2: "LA", 3: "RGB", 4: "RGBA"}[len(planes)], planes).tobytes()
