"""What runs inside a desktop to be compared with, or to count: given to the distribution's own python3 as a text.

It takes the time around the programs alone, not around itself; and it says one JSON document.
"""

import base64
import json
import subprocess
import sys
import time
from pathlib import Path

_SHOT = Path("/tmp/cu-fleet-bench.png")  # noqa: S108 - the desktop's own


def scrot() -> str:
    """The usual way to show a desktop to a model: a file, then base64."""
    subprocess.run(["scrot", "-o", str(_SHOT)], check=True, timeout=30)
    return base64.b64encode(_SHOT.read_bytes()).decode()


def xdotool(*words: str) -> None:
    subprocess.run(["xdotool", *words], check=True, timeout=60)


def key_to_frame() -> None:
    """A key, then pictures until one differs from the picture before."""
    until = time.monotonic() + 10
    xdotool("key", "a")
    while scrot() == before:
        if time.monotonic() > until:
            raise SystemExit("the screen did not change")


def clients() -> int:
    """How many programs the X server knows, this one among them."""
    from Xlib import display  # type: ignore[import-untyped]

    return len(display.Display().res_query_clients().clients)


WORK = {
    "scrot": scrot,
    "click": lambda: xdotool("mousemove", sys.argv[2], sys.argv[3], "click", "1"),
    "key": key_to_frame,
    "type": lambda: xdotool("type", "--delay", "0", sys.argv[2]),
    "clients": clients,
}

if __name__ == "__main__":
    before = scrot() if sys.argv[1] == "key" else ""
    began = time.perf_counter()
    result = WORK[sys.argv[1]]()
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "result": result if isinstance(result, int) else None}))
