"""What is kept of a desktop whose test failed: its last frame, a film of its last actions, its record and its log."""

import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image, ImageDraw

from cu_fleet.model.errors import FleetError
from cu_fleet.testing.leased import Leased, Shot

Found = list[tuple[str, Path]]
_WIDTH, _CAPTION, _ACROSS, _GAP = 320, 16, 4, 4
_MOST_WORDS = 52  # characters of a caption


def collect(leased: Leased, top: Path, test: str) -> tuple[Found, list[str]]:
    """Files with what they are, in a folder of the test's own; and what could not be had, in words."""
    folder = top / _folder(test)
    found: Found = []
    lacking: list[str] = []
    works: list[tuple[str, str, Callable[[], bytes]]] = [
        ("last frame", "last.png", lambda: leased.screenshot(allow_blank=True, pointer=True).frame.data),
        ("film", "film.png", lambda: strip(leased.film)),
        ("record", "record.jsonl", lambda: _record(leased)),
        ("log", "desktop.log", lambda: leased.fleet.logs(leased.lease.desktop or "").encode()),
    ]
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
    for what, name, work in works:
        try:
            data = work()
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        except (FleetError, OSError) as error:
            lacking.append(f"no {what}: {error}")
        else:
            found.append((what, folder / name))
    return found, lacking


def _folder(test: str) -> str:
    """A name that says which test it is, and is no other's."""
    file, _, rest = test.partition("::")
    words = re.sub(r"[^\w.-]+", "_", f"{Path(file).name}::{rest}")[:100]
    return f"{words}-{hashlib.sha256(test.encode()).hexdigest()[:8]}"


def _record(leased: Leased) -> bytes:
    lines, after = [], leased.since
    while page := leased.fleet.audit(lease=leased.id, after=after):
        lines += [entry.model_dump_json(exclude_defaults=True) for entry in page]
        after = page[-1].seq
    return "".join(f"{line}\n" for line in lines).encode()


def strip(film: Iterable[Shot]) -> bytes:
    """The film as one picture, to be read like a page."""
    shots = [(shot.of, Image.open(io.BytesIO(shot.data))) for shot in film]
    small = [(words, image.resize((_WIDTH, round(image.height * _WIDTH / image.width)))) for words, image in shots]
    row = max((image.height for _, image in small), default=0) + _CAPTION + _GAP
    across = max(1, min(_ACROSS, len(small)))
    size = (across * (_WIDTH + _GAP) + _GAP, max(1, -(-len(small) // across)) * row + _GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, (words, image) in enumerate(small):
        x, y = _GAP + number % across * (_WIDTH + _GAP), _GAP + number // across * row
        pen.text((x, y), f"{number + 1}: {words}"[:_MOST_WORDS].encode("latin-1", "replace").decode("latin-1"), "black")
        sheet.paste(image, (x, y + _CAPTION))
    if not small:
        pen.text((_GAP, _GAP), "nothing was done", "black")
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()
