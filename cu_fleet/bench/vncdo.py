"""vncdotool, as its users drive it, in a process of its own: its reactor would be a second event loop in ours.

Reads one JSON list a line, what to do and its arguments, and says the seconds it took; the first line it says is `{}`,
once it is connected.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vncdotool import api  # type: ignore[import-untyped]


def run(server: str, folder: Path) -> None:
    picture = str(folder / "vncdotool.png")
    client: Any = api.connect(server, timeout=30)
    before = b""

    def click(x: int, y: int) -> None:
        client.mouseMove(x, y)
        client.mousePress(1)

    def key_to_frame() -> None:
        client.keyPress("a")
        while client.screen.tobytes() == before:
            client.captureScreen(picture)

    def write(text: str) -> None:
        for char in text:
            client.keyPress(char)

    work: dict[str, Callable[..., object]] = {
        "capture": lambda: client.captureScreen(picture),
        "click": click,
        "key": key_to_frame,
        "type": write,
    }
    client.captureScreen(picture)
    print("{}", flush=True)
    try:
        for line in sys.stdin:
            name, *words = json.loads(line)
            before = client.screen.tobytes()
            began = time.perf_counter()
            work[name](*words)
            print(time.perf_counter() - began, flush=True)
    finally:
        client.disconnect()
        api.shutdown()


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))
