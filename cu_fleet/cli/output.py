"""What people and programs read: one JSON document, or lines and tables.

Standard output carries the answer and nothing else; progress and notes go to standard error. On a terminal a table is
Rich's, with colour; anywhere else it is plain columns in full width, so that ids can be cut out of it. What agents
and desktops say is shown without its control characters: no text of theirs may drive the operator's terminal.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import Any

Cell = str | int | float | None

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

STYLES = {
    "active": "green",
    "agent": "green",
    "ready": "green",
    "held": "cyan",
    "ok": "green",
    "met": "green",
    "waiting": "yellow",
    "asking": "bold yellow",
    "approved": "green",
    "denied": "red",
    "void": "red",
    "paused": "yellow",
    "human": "magenta",
    "starting": "yellow",
    "cleaning": "yellow",
    "frozen": "blue",
    "optional": "yellow",
    "missing": "bold red",
    "missed": "red",
    "revoked": "red",
    "lost": "red",
    "expired": "red",
    "quarantined": "bold red",
    "broken": "bold red",
}


def clean(text: object) -> str:
    """`text` on one line, with nothing in it that a terminal would obey."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text).replace("\n", " "))


def document(value: object) -> None:
    """The one JSON document of a command."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def say(text: str = "") -> None:
    sys.stdout.write("\n".join(clean(line) for line in text.split("\n")) + "\n")


def note(text: str) -> None:
    sys.stderr.write("\n".join(clean(line) for line in text.split("\n")) + "\n")
    sys.stderr.flush()


def flush() -> None:
    sys.stdout.flush()


@contextmanager
def patience(text: str, after: float = 2.0) -> Iterator[None]:
    """A note, if what follows takes longer than that."""
    timer = Timer(after, note, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def complain(what: str, remedy: str = "") -> None:
    """A refusal: the sentence, and below it what to do."""
    red, plain = ("\x1b[31m", "\x1b[0m") if colours(sys.stderr) else ("", "")
    for line in filter(None, what.split("\n")):
        sys.stderr.write(f"{red}{clean(line)}{plain}\n")
    if remedy:
        note(f"  {remedy}")


def colours(stream: Any) -> bool:
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, empty: str) -> None:
    """Columns in full width; the last one may wrap on a terminal. Without rows, the sentence `empty`."""
    cells = [["" if cell is None else clean(cell) for cell in row] for row in rows]
    if not cells:
        say(empty)
    elif sys.stdout.isatty():
        _rich(columns, cells)
    else:
        _plain(columns, cells)


def _plain(columns: Sequence[str], rows: list[list[str]]) -> None:
    lines = [[name.upper() for name in columns], *[[cell or "-" for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        sys.stdout.write("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() + "\n")


def _rich(columns: Sequence[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        last = name == columns[-1]
        grid.add_column(name.upper(), no_wrap=not last, overflow="fold")
    for row in rows:
        grid.add_row(*[Text(cell or "-", style=STYLES.get(cell.split("/")[-1], "")) for cell in row])
    widths = [max(len(name), *(len(row[i]) for row in rows)) + 2 for i, name in enumerate(columns)]
    console.width = max(console.width, sum(widths[:-1]) + min(widths[-1], 24))
    console.print(grid)


def facts(pairs: Mapping[str, Cell]) -> None:
    """`name  value` lines, for one thing; what is not known is left out."""
    known = {name: value for name, value in pairs.items() if value not in (None, "")}
    width = max(map(len, known), default=0)
    for name, value in known.items():
        say(f"{name.ljust(width)}  {value}")


class Live:
    """One line on standard error that changes: rewritten in place on a terminal, else a line for each new text."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._last = ""

    def show(self, text: str) -> None:
        text = clean(text)
        if text == self._last:
            return
        self._last = text
        if self._tty:
            sys.stderr.write(f"\r\x1b[2K{text[: _terminal_width() - 1]}")
            sys.stderr.flush()
        else:
            note(text)

    def passing(self, text: str) -> None:
        """Progress that only a terminal is told of."""
        if self._tty:
            self.show(text)

    def clear(self) -> None:
        if self._tty and self._last:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        self._last = ""


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 80


def size(number: float) -> str:
    """`3.4 MB`"""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"


def span(seconds: float | None) -> str:
    """`14m 05s`"""
    if seconds is None:
        return ""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02}m"


def clock(iso: str | None) -> str:
    """`12:00:00Z` of `2026-01-01T12:00:00Z`; the date stays when it is not today's."""
    if not iso:
        return ""
    from datetime import UTC, datetime

    today = datetime.now(UTC).strftime("%Y-%m-%dT")
    return iso.removeprefix(today)
