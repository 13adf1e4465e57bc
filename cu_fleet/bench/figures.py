"""One row of the result: what was measured, how it came out, and what it was meant to be."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Series:
    """What was measured, in one unit. For rates, more is better."""

    unit: str
    values: tuple[float, ...]
    what: str = ""
    more_is_better: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        """19 of 20 were at least as good as this."""
        ranked = sorted(self.values, reverse=self.more_is_better)
        return ranked[math.ceil(0.95 * len(ranked)) - 1]

    def json(self) -> dict[str, Any]:
        numbers = {"median": round(self.median, 3), "p95": round(self.p95, 3), "rounds": len(self.values)}
        return {"what": self.what, "unit": self.unit, **numbers}


def milliseconds(values: Sequence[float], what: str = "") -> Series:
    """From seconds."""
    return Series("ms", tuple(1000 * value for value in values), what)


def megabytes(values: Sequence[float], what: str = "") -> Series:
    """From bytes."""
    return Series("MB", tuple(value / 1e6 for value in values), what)


@dataclass(frozen=True)
class Figure:
    row: str
    series: Series
    against: Series | None = None  # the bare thing, measured in turns with ours
    most: float | None = None  # the aim: at most so many, or so many times what it is measured against
    facts: Mapping[str, Any] = field(default_factory=dict)  # what it is made of

    @property
    def ratio(self) -> float | None:
        return self.series.median / self.against.median if self.against else None

    @property
    def met(self) -> bool | None:
        reached = self.series.median if self.ratio is None else self.ratio
        return None if self.most is None else reached <= self.most

    def json(self) -> dict[str, Any]:
        kind = "times" if self.against else self.series.unit
        return {
            "row": self.row,
            **self.series.json(),
            "against": self.against.json() if self.against else None,
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "aim": None if self.most is None else {"at_most": self.most, "unit": kind},
            "met": self.met,
            "facts": dict(self.facts),
        }

    def cells(self) -> list[str | None]:
        """For the table of `COLUMNS`."""
        against, aim = self.against, None
        if self.most is not None:
            aim = f"≤ {self.most:g}×" if against else f"≤ {self.most:g} {self.series.unit}"
        return [
            self.row,
            _amount(self.series.median, self.series.unit),
            _amount(self.series.p95, self.series.unit) if len(self.series.values) > 1 else None,
            _amount(against.median, against.unit) if against else None,
            None if self.ratio is None else f"{self.ratio:.2f}×",
            aim,
            None if self.met is None else "met" if self.met else "missed",
            self.series.what + (f"; against {against.what}" if against else ""),
        ]


COLUMNS = ("row", "median", "p95", "against", "ratio", "aim", "", "what")


def _amount(value: float, unit: str) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
