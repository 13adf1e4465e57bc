"""Helpers that look into real desktops through the client."""

from pathlib import Path

from cu_fleet.client import Desktop, Fleet
from tests.support import until

SINK = Path(__file__).with_name("sink.py").read_text()


async def inside(fleet: Fleet, desktop: str, script: str, *args: str) -> str:
    """What a shell script says inside a desktop; it must succeed."""
    done = await fleet.run(desktop, ["sh", "-c", script, "sh", *args])
    assert done.exit_code == 0, (script, done)
    return done.stdout.decode()


async def sink(fleet: Fleet, desktop: str, path: str = "/home/agent/events") -> None:
    """Open a window over the whole desktop that writes down each key and button that reaches it."""
    script = 'setsid -f /usr/bin/python3 -I -c "$1" "$2" </dev/null >/dev/null 2>/tmp/sink.err; true'
    await inside(fleet, desktop, script, SINK, path)
    await until(lambda: _says(fleet, desktop, path, "window"))


async def events(fleet: Fleet, desktop: str, mark: int, path: str = "/home/agent/events") -> list[str]:
    """All that had been delivered when this was called; `mark` is a number not used before."""
    await inside(fleet, desktop, '/usr/bin/python3 -I -c "$1" "$2" "$3"', SINK, path, str(mark))
    await until(lambda: _says(fleet, desktop, path, f"mark {mark}"))
    log = await inside(fleet, desktop, 'cat "$1"', path)
    return log.split(f"mark {mark}\n")[0].splitlines()


async def _says(fleet: Fleet, desktop: str, path: str, word: str) -> bool:
    return (await fleet.run(desktop, ["grep", "-q", word, path])).exit_code == 0


def held(seen: list[str]) -> set[str]:
    """The keys and buttons that are down after these events."""
    down: set[str] = set()
    for line in seen:
        kind, _, what = line.partition(" ")
        name = f"{kind.removesuffix('up')} {what}"
        if kind in ("key", "button"):
            down.add(name)
        elif kind in ("keyup", "buttonup"):
            down.discard(name)
    return down


async def terminal(desktop: Desktop) -> None:
    """Open the profile's terminal as an agent does, and wait until it has the keyboard and its prompt."""
    await desktop.launch("terminal")

    async def focused() -> bool:
        return any(window["focused"] and window["class"] == "XTerm" for window in await desktop.windows())

    await until(focused)
    await desktop.wait_stable(quiet_ms=300)
