"""A fuzzer of our reader of RFB: streams made of messages right and wrong, flawed further byte by byte.

    python -m tests.rfb.fuzz --seconds 60 [--seed N]

Each stream is read whole, and again in pieces; `flaws` says what must hold then. Some are said to a whole `Screen` of
which all is asked meanwhile. What does not hold is written to `recorded/found`, where the tests read it ever after. A
stream that had the reader do something new, by what it said in the end and how far it got, joins those that are flawed
further.
"""

import argparse
import asyncio
import hashlib
import random
import re
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

from cu_fleet.model.errors import FleetError
from cu_fleet.rfb import clipboard
from cu_fleet.rfb.canvas import Frame
from cu_fleet.rfb.handshake import MOST_WORDS
from cu_fleet.rfb.screen import Screen
from tests.rfb import record
from tests.rfb.hostile import PIXEL, serving
from tests.rfb.told import Told, state
from tests.rfb.wire import HELLO, INIT, cut_text, fence, rect, update

FOUND = Path(__file__).parent / "recorded" / "found"
PASSWORD = record.PASSWORD
MOST_PIXELS = 1 << 18  # so that a stream costs little
SLOW = 20.0  # seconds of our own time for one stream are too many, however slow the machine
_LONGEST = 100_000
_ODD = [0, 1, 2, 3, 4, 8, 47, 48, 63, 64, 65, 127, 255, 256, 511, 512, 513, 4096, 16384, 16385, 32767, 32768, 65535]
_VERSIONS = [b"003.003", b"003.007", b"003.008", b"003.889", b"004.001", b"005.000", b"000.000", b"999.999"]
_HUGE = [0, 1, 4, 64, 65, 4096, 4097, 1 << 20, (1 << 20) + 1, 64 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
_ENCODINGS = [0, 0, 0, 1, 1, 1, -239, -314, -223, -224, -307, -261, 0x574D5666]
_UNKNOWN = [5, 16, -308, -312, -313, -316, 1 << 31 >> 1]

_ASKED: list[tuple[Any, ...]] = [
    ("frame",),
    ("frame", True),
    ("refresh",),
    ("sync",),
    ("mark",),
    ("clipboard",),
    ("set_clipboard", "Gr\u00fc\u00dfe"),
    ("wait_change", 0),
    ("wait_stable", 0.01),
]
Chance = random.Random


def greeting(chance: Chance) -> bytes:
    if chance.random() < 0.8:
        return HELLO
    version = chance.choice(_VERSIONS)
    kinds = bytes(chance.choices([0, 1, 2, 5, 16, 30], k=chance.randint(0, 4)))
    login = chance.choice([bytes([len(kinds)]) + kinds, struct.pack("!I", chance.choice([0, 1, 2, 3, 30]))])
    result = struct.pack("!I", chance.choice([0, 0, 0, 1, 2, 1 << 31]))
    size = struct.pack("!HH", chance.choice(_ODD), chance.choice(_ODD)) if chance.random() < 0.5 else INIT[:4]
    words = chance.randbytes(chance.randint(0, 30))
    name = struct.pack("!I", chance.choice([len(words), len(words), chance.choice(_HUGE)])) + words
    parts = [b"RFB " + version + b"\n", login, bytes(16) * chance.randint(0, 1), result, size + INIT[4:20] + name]
    return b"".join(part for part in parts if chance.random() < 0.97)


def message(chance: Chance) -> bytes:
    makers = [_update, _update, _update, _update, _bell, _text, _extended, _extended, _colours, _fence]
    return (chance.choice(makers) if chance.random() < 0.99 else _any)(chance)


def _update(chance: Chance) -> bytes:
    rects = [_rect(chance) for _ in range(chance.choice([0, 1, 1, 2, 3, 20]))]
    return update(*rects, count=chance.choice([None, None, None, None, 65535, len(rects) + 1]))


def _rect(chance: Chance) -> bytes:
    encoding = chance.choice(_ENCODINGS if chance.random() < 0.99 else _UNKNOWN)
    edge = (lambda: chance.randint(0, 70)) if chance.random() < 0.98 else (lambda: chance.choice(_ODD))
    x, y, width, height = edge(), edge(), edge(), edge()
    if encoding in (0, 1) and chance.random() < 0.98:
        width, height = min(width, 64), min(height, 48)
        x, y = min(x, 64 - width), min(y, 48 - height)
    area = width * height if width * height < 1 << 14 else 7
    data = {
        0: lambda: chance.randbytes(4) * area,
        1: lambda: struct.pack("!HH", chance.randint(0, 64 - min(width, 64)), chance.randint(0, 48 - min(height, 48))),
        -239: lambda: chance.randbytes(area * 4 + (width + 7) // 8 * height % 65536),
        -314: lambda: struct.pack("!I", chance.choice([0, 0, 0, 7])) + chance.randbytes(area * 4),
        -307: lambda: _counted(chance),
        -261: lambda: chance.randbytes(1),
    }.get(encoding, lambda: b"")
    return rect(x, y, width, height, encoding, data())


def _counted(chance: Chance) -> bytes:
    words = chance.randbytes(chance.randint(0, 40))
    return struct.pack("!I", len(words) if chance.random() < 0.9 else chance.choice(_HUGE)) + words


def _bell(chance: Chance) -> bytes:
    return b"\2" * chance.choice([1, 2, 100])


def _text(chance: Chance) -> bytes:
    words = chance.randbytes(chance.choice([0, 1, 3, 4, 50, 5000]))
    return cut_text(words, len(words) if chance.random() < 0.9 else struct.unpack("!i", _word(chance))[0])


def _word(chance: Chance) -> bytes:
    return struct.pack("!I", chance.choice(_HUGE))


def _extended(chance: Chance) -> bytes:
    flags = sum(1 << bit for bit in chance.sample([0, 1, 2, 3, 24, 25, 26, 27, 28], chance.randint(0, 4)))
    text = chance.randbytes(chance.choice([0, 3, 2000])) * chance.choice([1, 1, 600])
    inner = struct.pack("!I", len(text) if chance.random() < 0.8 else chance.choice(_HUGE)) + text
    packed = zlib.compress(inner)
    body = chance.choice([packed, packed, packed[:-3], inner[:500], b"", clipboard.provide("é")[12:]])
    return cut_text(struct.pack("!I", flags) + body, -4 - len(body))


def _colours(chance: Chance) -> bytes:
    count = chance.choice([0, 1, 256])
    return struct.pack("!BxHH", 1, 0, count) + bytes(6 * count)


def _fence(chance: Chance) -> bytes:
    flags = sum(1 << bit for bit in chance.sample([0, 1, 2, 31], chance.randint(0, 4)))
    return fence(chance.randbytes(chance.choice([*[0, 1, 8, 64] * 9, 65])), flags)


def _any(chance: Chance) -> bytes:
    kind = chance.choice([150, 248, 255, 1, 3, chance.randint(0, 255)])
    return bytes([kind]) + chance.randbytes(chance.randint(0, 20))


def flawed(data: bytes, chance: Chance, others: list[bytes]) -> bytes:
    """The same with some bytes changed, gone, come, doubled, or from another stream."""
    stream = bytearray(data)
    for _ in range(chance.choice([0, 1, 1, 2, 4, 16])):
        at = chance.randint(min(len(stream), chance.choice([0, *[len(HELLO)] * 9])), len(stream))
        end = min(len(stream), at + chance.choice([1, 2, 4, 12, 100]))
        match chance.randint(0, 6):
            case 0:
                stream[at:end] = chance.randbytes(end - at)
            case 1:
                stream[at : at + 2] = struct.pack("!H", chance.choice(_ODD))
            case 2:
                stream[at : at + 4] = _word(chance)
            case 3:
                del stream[at:end]
            case 4:
                stream[at:at] = stream[at:end] * chance.choice([1, 3, 50])
            case 5:
                stream[at:at] = message(chance)
            case 6:
                other = chance.choice(others)
                start = chance.randint(0, len(other))
                stream[at:] = other[start : start + 20_000]
    return bytes(stream[:_LONGEST])


class Keen(Told):
    """Has a clipboard to offer, and asks for the desktop's each time it hears of one."""

    def ready(self) -> None:
        super().ready()
        self.engine.offer("Gr\u00fc\u00dfe")

    def offered(self) -> None:
        super().offered()
        self.engine.request_clipboard()


def read(data: bytes, sizes: Iterable[int], password: str | None) -> Keen:
    """Read by an engine, in pieces of these sizes."""
    told, at = Keen(password, MOST_PIXELS), 0
    for size in sizes:
        told.feed(data[at : at + size])
        at += size
        if at >= len(data):
            break
    return told


def outcome(told: Told) -> tuple[object, ...]:
    """All that may not depend on how the bytes were cut."""
    said = [str(error) for error in told.errors]
    return *state(told), said, told.texts, told.offers, told.engine.bells, told.closed


def flaws(data: bytes, password: str | None, chance: Chance) -> Iterator[str]:
    """What does not hold, of all that must whatever a server says."""
    began = time.thread_time()
    told = read(data, [len(data)], password)
    spent = time.thread_time() - began
    if spent > SLOW:
        yield f"it took {spent:.1f} s"
    yield from _breaches(told)
    pieces = (chance.choice([1, 2, 3, 12, 100, 5000]) for _ in repeat(None))
    if outcome(read(data, pieces, password)) != outcome(told):
        yield "in pieces it reads otherwise"
    before = outcome(told)
    if told.errors:
        told.feed(HELLO)
        if outcome(told) != before:
            yield "it read on after the end"


def _breaches(told: Told) -> Iterator[str]:
    engine, canvas, cursor = told.engine, told.engine.canvas, told.engine.cursor
    said = [str(error) for error in told.errors]
    if len(said) != told.closed or len(said) > 1:
        yield f"it ended {len(said)} times and hung up {told.closed} times"
    if any(not words.isprintable() or len(words) > MOST_WORDS + 200 for words in said):
        yield f"it says {said!r}"
    if any("rubbish" in words for words in said):
        yield f"nobody foresaw it: {said[0]}"
    if len(canvas.data) != canvas.width * canvas.height * 4 or canvas.width * canvas.height > MOST_PIXELS:
        yield f"a picture of {canvas.width}x{canvas.height} has {len(canvas.data)} bytes"
    if not (0 <= engine.pointer[0] < canvas.width and 0 <= engine.pointer[1] < canvas.height):
        yield f"the pointer is at {engine.pointer} of {canvas.width}x{canvas.height}"
    if cursor and len(cursor.pixels) != cursor.width * cursor.height * 4:
        yield f"a cursor of {cursor.width}x{cursor.height} has {len(cursor.pixels)} bytes"
    if any(text is not None and len(text) > clipboard.MOST_BYTES for text in told.texts):
        yield "a text is longer than any may be"
    if not engine.name.isprintable():
        yield f"it is called {engine.name!r}"


def end(told: Told) -> str:
    """Why it ended, without what differs from stream to stream."""
    words = str(told.errors[0]) if told.errors else "waits for more"
    return re.sub(r"[\d,]+", "N", re.sub(r"(refused us|speaks RFB|not inflate|not known here).*", r"\1", words))


async def misuse(said: bytes, chance: Chance) -> list[str]:
    """What goes wrong with a screen whose server lets us in and then says this, while all is asked of it."""
    wrong: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(f"unseen: {context}"))
    async with serving(lambda: iter((HELLO, PIXEL, said)), hangs_up=chance.random() < 0.5) as ours:
        try:
            screen = await Screen.open(ours, timeout=5, most_pixels=MOST_PIXELS)
        except FleetError as e:
            return [str(e)] if "rubbish" in str(e) else []
        asked = [getattr(screen, name)(*args, timeout=0.05) for name, *args in chance.choices(_ASKED, k=5)]
        answers: list[object] = list(await asyncio.gather(*asked, return_exceptions=True))
        await screen.close()
        wrong += [f"{answer!r}" for answer in (*answers, await screen.lost) if _unforeseen(answer)]
    return wrong


def _unforeseen(answer: object) -> bool:
    if isinstance(answer, Frame):
        return len(answer.pixels) != answer.width * answer.height * 4
    return isinstance(answer, BaseException) and (not isinstance(answer, FleetError) or "rubbish" in str(answer))


def shape(told: Told) -> tuple[object, ...]:
    """Roughly what became of a stream: two of one shape teach the same."""
    engine = told.engine
    counts = (told.updates, engine.bells, len(told.texts), told.offers, int(engine.noise), len(told.sent))
    return (
        end(told),
        *(count.bit_length() for count in counts),
        engine.cursor is None,
        engine.canvas.width == record.WIDTH,
    )


class Fuzzer:
    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.pool = [(record.HERE / f"{name}.rfb").read_bytes()[:20_000] for name in ("tigervnc", "x11vnc", "qemu")]
        self.pool += [path.read_bytes() for path in sorted(FOUND.glob("*.rfb"))]
        self.shapes: set[tuple[object, ...]] = set()
        self.ends: Counter[str] = Counter()

    def stream(self) -> bytes:
        chance = self.chance
        if chance.random() < 0.4:
            return b"".join([greeting(chance), *(message(chance) for _ in range(chance.choice([1, 3, 10, 40])))])
        return flawed(chance.choice(self.pool), chance, self.pool)

    def talk(self) -> bytes:
        """What is said to a whole screen, after its greeting."""
        said = b"".join(message(self.chance) for _ in range(self.chance.choice([1, 3, 10, 40])))
        return flawed(said, self.chance, self.pool) if self.chance.random() < 0.5 else said

    def step(self) -> Iterator[tuple[bytes, str]]:
        """One stream; it and what is wrong with it, if something is."""
        if self.chance.random() < 0.02:
            said = self.talk()
            for flaw in asyncio.run(misuse(said, self.chance)):
                yield HELLO + PIXEL + said, flaw
        data, password = self.stream(), self.chance.choice([*[None] * 9, PASSWORD])
        for flaw in flaws(data, password, self.chance):
            yield data, flaw
        told = read(data, [len(data)], password)
        self.ends[end(told)] += 1
        if shape(told) not in self.shapes:
            self.shapes.add(shape(told))
            self.pool.append(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    options = parser.parse_args()
    fuzzer, over, streams, found = Fuzzer(options.seed), time.monotonic() + options.seconds, 0, 0
    while time.monotonic() < over:
        for data, flaw in fuzzer.step():
            FOUND.mkdir(exist_ok=True)
            path = FOUND / f"{hashlib.sha256(data).hexdigest()[:12]}.rfb"
            path.write_bytes(data)
            print(f"{path}: {flaw}", flush=True)
            found += 1
        streams += 1
    print(f"seed {options.seed}: {streams:,} streams, {len(fuzzer.shapes)} shapes, {found} flaws")
    for words, count in fuzzer.ends.most_common():
        print(f"{count:8,}  {words[:100]}")
    return min(found, 1)


if __name__ == "__main__":
    raise SystemExit(main())
