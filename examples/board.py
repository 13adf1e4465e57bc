"""How the demo is shown: a line for each step, in a terminal a live table below them, and a contact sheet."""

import math
import time
from pathlib import Path
from typing import Self

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

COLOURS = {"ada": "cyan", "ben": "magenta", "cleo": "green", "dan": "yellow", "operator": "bold"}


class Board:
    """What everyone is doing right now."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()
        self._doing: dict[str, tuple[str, str]] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._live.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def title(self, text: str) -> None:
        self.console.print(f"\n[bold]{escape(text)}[/bold]", soft_wrap=True)

    def say(self, who: str, text: str, desktop: str = "") -> None:
        colour = COLOURS.get(who, "white")
        self.console.print(
            f"[dim]{self.seconds:5.1f} s[/dim]  [{colour}]{who:9}[/{colour}] {escape(text)}", soft_wrap=True
        )
        if who != "operator":
            self._doing[who] = (desktop or self._doing.get(who, ("",))[0], text)
            self._live.update(self._table(), refresh=self.console.is_terminal)

    def quote(self, text: str) -> None:
        """What a program said, as it said it."""
        for line in text.rstrip().splitlines():
            self.console.print(f"         {line}", markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table("agent", "desktop", "doing", expand=True)
        for who, (desktop, text) in self._doing.items():
            table.add_row(who, desktop, escape(text), style=COLOURS.get(who))
        return table


def contact_sheet(shots: list[tuple[str, Image.Image]], file: Path, *, columns: int = 3, width: int = 520) -> None:
    """Pictures side by side, each with its caption."""
    font = ImageFont.load_default(size=17)
    gap, title = 14, 34
    height = title + max(image.height * width // image.width for _, image in shots)
    rows = math.ceil(len(shots) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "#20242c")
    draw = ImageDraw.Draw(sheet)
    for number, (caption, image) in enumerate(shots):
        left, top = gap + number % columns * (width + gap), gap + number // columns * (height + gap)
        draw.text((left, top + 5), caption, fill="#f2f2f2", font=font)
        sheet.paste(image.convert("RGB").resize((width, image.height * width // image.width)), (left, top + title))
    sheet.save(file)
