"""What the helper's modules agree on: how a request is refused, and how long and how much may be waited for."""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` itself would cost memory in every desktop
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    Match = Callable[[Any], bool]
    Answer = dict[str, Any]
    Steps = Generator[tuple[Match, float], Any, Answer]  # yields what it waits for and until when

PATIENCE = 3.0  # for another program's next step
LONGEST = 10.0  # for another program's whole answer
MOST = 64  # tasks, transfers, launched programs that are watched


class RefusedError(Exception):
    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
