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
    most_ms: float | None = None  # the aim in itself, for one that is measured against something too
    most_more: float | None = None  # the aim: at most so many more than what it is measured against
    facts: Mapping[str, Any] = field(default_factory=dict)  # what it is made of
    others: Mapping[str, Series | str] = field(default_factory=dict)  # who else does this; or why it was not measured
    times_faster: Mapping[str, float] = field(default_factory=dict)  # the aim beside them, for some

    @property
    def ratio(self) -> float | None:
        return self.series.median / self.against.median if self.against else None

    def times(self, other: str) -> float | None:
        """How many times as long another takes; None if it was not measured."""
        theirs = self.others.get(other)
        return theirs.median / self.series.median if isinstance(theirs, Series) else None

    @property
    def met(self) -> bool | None:
        """None if there is no aim, or if what it is about was not all measured and the rest is met."""
        reached = self.series.median if self.ratio is None else self.ratio
        judged: list[bool | None] = [] if self.most is None else [reached <= self.most]
        if self.most_ms is not None:
            judged.append(self.series.median <= self.most_ms)
        if self.most_more is not None and self.against:
            judged.append(self.series.median - self.against.median <= self.most_more)
        for other, least in self.times_faster.items():
            times = self.times(other)
            judged.append(None if times is None else times >= least)
        return False if False in judged else None if None in judged or not judged else True

    def json(self) -> dict[str, Any]:
        kind = "times" if self.against else self.series.unit
        aim: dict[str, Any] = {} if self.most is None else {"at_most": self.most, "unit": kind}
        aim |= {} if self.most_ms is None else {"at_most": self.most_ms, "unit": "ms"}
        aim |= {} if self.most_more is None else {"at_most_more": self.most_more, "unit": self.series.unit}
        aim |= {"times_faster": dict(self.times_faster)} if self.times_faster else {}
        return {
            "row": self.row,
            **self.series.json(),
            "against": self.against.json() if self.against else None,
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "others": {name: self._other(name) for name in self.others},
            "aim": aim or None,
            "met": self.met,
            "facts": dict(self.facts),
        }

    def _other(self, name: str) -> dict[str, Any]:
        theirs = self.others[name]
        if isinstance(theirs, str):
            return {"missing": theirs}
        return {**theirs.json(), "times_ours": round(self.times(name) or 0.0, 2)}

    @property
    def aim(self) -> str | None:
        words = []
        if self.most is not None:
            words.append(f"≤ {self.most:g}×" if self.against else f"≤ {self.most:g} {self.series.unit}")
        if self.most_ms is not None:
            words.append(f"≤ {self.most_ms:g} ms")
        if self.most_more is not None:
            words.append(f"≤ {self.most_more:g} {self.series.unit} more")
        if self.times_faster:
            least = min(self.times_faster.values())
            words.append(f"≥ {least:g}× faster than {' and '.join(self.times_faster)}")
        return ", ".join(words) or None

    @property
    def verdict(self) -> str | None:
        if self.met is None:
            return "not judged" if self.aim else None
        return "met" if self.met else "missed"

    def cells(self) -> list[str | None]:
        """For the table of `COLUMNS`."""
        against = self.against
        return [
            self.row,
            amount(self.series),
            _p95(self.series),
            amount(against) if against else None,
            None if self.ratio is None else f"{self.ratio:.2f}×",
            self.aim,
            self.verdict,
            self.series.what + (f"; against {against.what}" if against else ""),
        ]

    def cells_beside(self) -> list[str | None]:
        """For the table of `COLUMNS_BESIDE`: a column for each of the others, with how many times ours it takes."""
        row, ours, p95, limit, ratio, aim, verdict, _ = self.cells()
        others = [cell for name in OTHERS for cell in self._cells_of(name)]
        return [row, ours, p95, limit, ratio, *others, aim, verdict, self.series.what]

    def _cells_of(self, name: str) -> tuple[str | None, str | None]:
        theirs, times = self.others.get(name), self.times(name)
        if isinstance(theirs, Series) and times is not None:
            return amount(theirs), f"{times:.1f}×"
        return ("missing" if theirs else None), None


OTHERS = ("scrot", "vncdotool", "xdotool")
COLUMNS = ("row", "median", "p95", "against", "ratio", "aim", "", "what")
COLUMNS_BESIDE = (
    *("row", "ours", "p95", "limit", "ours/limit"),
    *(column for name in OTHERS for column in (name, "")),
    *("aim", "", "what"),
)


def amount(series: Series) -> str:
    return _amount(series.median, series.unit)


def _p95(series: Series) -> str | None:
    return _amount(series.p95, series.unit) if len(series.values) > 1 else None


def _amount(value: float, unit: str) -> str:
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f} {unit}"
