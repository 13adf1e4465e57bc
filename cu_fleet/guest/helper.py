"""The guest helper: one small program inside a desktop that does there what a screen alone cannot.

It is started over Exec as `python3 -I -c PROGRAM`, where PROGRAM carries the modules of this package (carry.py says
how; `import` works as everywhere). It needs the distribution's python3 and python3-xlib and nothing else, reads a
request a line and writes an answer a line, both JSON, and ends at the end of its input:

    {"id": 7, "do": "focus", "window": 4194307}
    {"id": 7, "ok": {"window": 4194307}}    or    {"id": 7, "error": {"code": "not_found", "text": "…"}}

`do_NAME` below is what can be asked for. One thread, one loop over standard input, the X connection and the programs
it launched. What must wait for an event is a generator that yields what it waits for and until when; so a slow
clipboard owner holds up nobody else. What asks the X server for an answer is under an alarm: if another client grabs
the server and never lets go, the connection is given up and the next request makes a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time

from cu_fleet.guest.launch import Launch
from cu_fleet.guest.terms import LONGEST, MOST, PATIENCE, RefusedError

try:
    from cu_fleet.guest.arrivals import Arrivals
    from cu_fleet.guest.buttons import Buttons
    from cu_fleet.guest.link import FAILED, LOST, Link
    from cu_fleet.guest.selections import HANDED, Selections
    from cu_fleet.guest.windows import Windows

    NO_XLIB = ""
except ImportError as e:
    NO_XLIB = f"python3-xlib is not installed in this desktop: {e}"
    LOST = FAILED = (OSError,)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cu_fleet.guest.terms import Answer, Steps

VERSION = 1
LINE_LIMIT = 8 << 20
TEXT_LIMIT = 1 << 20
MOST_PRESSES = 16
ALARM = 4.0  # for the X server itself


class StuckError(BaseException):
    """The X server does not answer."""


def on_alarm(signum: int, frame: object) -> None:
    raise StuckError


def is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


class Screen:
    """The X connection and all that goes over it, which begin and end together."""

    def __init__(self) -> None:
        if NO_XLIB:
            raise RefusedError("no_xlib", NO_XLIB)
        self.link = Link()
        self.display = self.link.display
        self.windows = Windows(self.link)
        self.selections = Selections(self.link)
        self.buttons = Buttons(self.link)
        self.arrivals: Arrivals | None = None  # once somebody has asked


class Helper:
    """The loop, and what can be asked for."""

    def __init__(self) -> None:
        self.screen: Screen | None = None
        self.tasks: list[list[Any]] = []  # [request id, generator, what it waits for, until when]
        self.launches: list[Launch] = []
        self.received = bytearray()
        signal.signal(signal.SIGALRM, on_alarm)

    # requests

    def do_hello(self) -> Answer:
        works = ["hello", "launch"]
        manager, why = None, ""
        try:
            manager = self.x().windows.manager()
            works += [
                "windows",
                "focus",
                "clipboard_get",
                "clipboard_set",
                "clipboard_taken",
                "sync",
                "heard",
                "button",
                "lift",
                "arrived",
                "drawn",
            ]
        except RefusedError as e:
            why = str(e)
        return {"version": VERSION, "pid": os.getpid(), "works": works, "why": why, "manager": manager}

    def do_windows(self) -> Answer:
        return {"windows": self.x().windows.all()}

    def do_sync(self) -> Answer:
        self.x().display.sync()
        return {}

    def do_heard(self, presses: object = 1) -> Steps:
        if not isinstance(presses, int) or not 0 < presses <= MOST_PRESSES:
            raise RefusedError("invalid", f"presses is a number up to {MOST_PRESSES}")
        return self.x().windows.heard(presses)

    def do_arrived(self, wanted: object, place: object, within: object, of: object = None) -> Steps:
        """How much has arrived since it was asked first, once it is what is wanted, or after so many seconds."""
        if self.x().arrivals is None:
            self.x().arrivals = Arrivals(self.x().link)
        arrivals: Any = self.x().arrivals
        counts = isinstance(wanted, dict) and all(isinstance(wanted.get(what), int) for what in arrivals.counts)
        if not counts or not isinstance(within, (int, float)) or not 0 <= within <= LONGEST:
            raise RefusedError("invalid", f"wanted is a count of each kind, within seconds up to {LONGEST:.0f}")
        steps: Steps = arrivals.wait(wanted, place, within, of)
        return steps

    def do_drawn(self) -> Answer:
        """Return when the X server has passed on all that was drawn: it does so between two requests of a client."""
        self.x().display.sync()
        self.x().display.sync()
        return {}

    def do_focus(self, window: object) -> Steps:
        if not isinstance(window, int):
            raise RefusedError("invalid", "window is a number")
        return self.x().windows.focus(window)

    def do_clipboard_get(self, selection: object = "clipboard", limit: object = TEXT_LIMIT) -> Steps:
        if not isinstance(limit, int) or not 0 < limit <= TEXT_LIMIT:
            raise RefusedError("invalid", f"limit is a number up to {TEXT_LIMIT}")
        return self.x().selections.ask(selection, limit)

    def do_clipboard_set(self, text: object, selections: object = ("clipboard",)) -> Steps:
        if not isinstance(text, str) or not isinstance(selections, (list, tuple)):
            raise RefusedError("invalid", "text is a string and selections a list")
        data = text.encode("utf-8", "replace")
        if len(data) > TEXT_LIMIT:
            raise RefusedError("too_large", f"the clipboard takes at most {TEXT_LIMIT} bytes, these are {len(data)}")
        return self.x().selections.own(data, list(selections))

    def do_clipboard_taken(self, within: object = 1.0) -> Steps:
        if not isinstance(within, (int, float)) or not 0 <= within <= LONGEST:
            raise RefusedError("invalid", f"within is a number of seconds up to {LONGEST:.0f}")
        return self.x().selections.taken(within)

    def do_button(self, name: object, down: object, x: object, y: object) -> Answer:
        self.x().buttons.press(name, down, x, y)
        return {}

    def do_lift(self) -> Answer:
        self.x().buttons.lift()
        return {}

    def do_launch(self, argv: object, env: object = None, cwd: object = None) -> Steps:
        if not (isinstance(argv, list) and argv and all(map(is_text, argv))):
            raise RefusedError("invalid", "argv is a list of strings")
        if not (env is None or (isinstance(env, dict) and all(map(is_text, env.values())))):
            raise RefusedError("invalid", "env is an object of strings")
        place = cwd if isinstance(cwd, str) else os.environ.get("HOME", "/")
        try:
            launch = Launch(argv, {**os.environ, **(env or {})}, place)
        except OSError as e:
            raise RefusedError("launch_failed", f"{argv[0]!r} could not be started: {e.strerror}") from e
        self.launches.append(launch)
        return self.watch(launch, argv[0])

    def watch(self, launch: Launch, name: str) -> Steps:
        event = yield (lambda e: e is launch), time.monotonic() + PATIENCE
        if event is None or "pid" not in launch.told:
            text = launch.told.get("error", "no answer")
            raise RefusedError(launch.told.get("code", "launch_failed"), f"{name!r} could not be started: {text}")
        code = launch.told.get("ended")
        if code:
            how = f"exit code {code}" if code > 0 else f"signal {-code}"
            raise RefusedError("launch_failed", f"{name!r} ended at once with {how}")
        return {"pid": launch.told["pid"]}

    def x(self) -> Screen:
        if self.screen is None:
            self.screen = Screen()
        return self.screen

    # answers

    def say(self, message: Answer) -> None:
        data = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        while data:
            data = data[os.write(1, data) :]

    def refuse(self, number: object, code: str, text: str) -> None:
        self.say({"id": number, "error": {"code": code, "text": text[:2000]}})

    # the loop

    def begin(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            number, name = request.pop("id"), request.pop("do")
        except (ValueError, AttributeError, KeyError, RecursionError):
            self.refuse(None, "invalid", "not a request")
            return
        do = getattr(self, f"do_{name}", None)
        if do is None:
            self.refuse(number, "unknown", f"this helper cannot {str(name)[:80]!r}")
        elif len(self.tasks) >= MOST:
            self.refuse(number, "busy", "too many requests at once")
        else:
            self.step(number, lambda: do(**request), None)

    def step(self, number: object, go: Callable[[], Any], waiting: Steps | None) -> None:
        """Run until the next wait or the end; `waiting` is the generator if it is one already."""
        try:
            result = self.under_alarm(go, number, waiting)
        except RefusedError as e:
            self.refuse(number, e.code, str(e))
        except TypeError as e:
            self.refuse(number, "invalid", str(e))
        except StuckError:
            self.refuse(number, "stuck", f"the X server has not answered for {ALARM:.0f} s")
            self.drop_screen("the X server does not answer")
        except FAILED as e:
            self.refuse(number, "x_failed", f"the X server refused: {e}")
            if isinstance(e, LOST):
                self.drop_screen("the X server is gone")
        else:
            if result is not None:
                self.say({"id": number, "ok": result})

    def under_alarm(self, go: Callable[[], Any], number: object, waiting: Steps | None) -> Answer | None:
        """The result, or None if that is still to come."""
        signal.setitimer(signal.ITIMER_REAL, ALARM)
        try:
            result: Any = go()
            if hasattr(result, "send"):
                waiting, result = result, next(result)
        except StopIteration as e:
            result, waiting = e.value, None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if waiting is None:
            return dict(result)
        self.tasks.append([number, waiting, *result])
        return None

    def drop_screen(self, why: str) -> None:
        """The connection can no longer be trusted. What waited for it is told; the next request makes another."""
        screen, self.screen = self.screen, None
        if screen:
            screen.link.close()
        for task in [t for t in self.tasks if t[1].__name__ != "watch"]:
            self.tasks.remove(task)
            self.refuse(task[0], "stuck", why)

    def offer(self, event: Any) -> None:
        """Give an event to the tasks that wait for it."""
        for task in [t for t in self.tasks if t[2](event)]:
            self.tasks.remove(task)
            self.resume(task, event)

    def expire(self) -> None:
        now = time.monotonic()
        for task in [t for t in self.tasks if t[3] <= now]:
            if task in self.tasks:
                self.tasks.remove(task)
                self.resume(task, None)

    def resume(self, task: list[Any], event: Any) -> None:
        self.step(task[0], lambda: task[1].send(event), task[1])

    def take_events(self) -> bool:
        """The X events that are here, also those that came while a reply was awaited; whether there are more."""
        taken = 0
        try:
            while taken < 1000 and self.screen:
                signal.setitimer(signal.ITIMER_REAL, ALARM)
                self.screen.display.flush()
                if not self.screen.display.pending_events():  # last: whatever else is called may take events in
                    break
                event = self.screen.display.next_event()
                taken += 1
                self.offer(HANDED if self.serve(event) else event)
        except StuckError:
            self.drop_screen("the X server does not answer")
        except LOST:
            self.drop_screen("the X server is gone")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return taken == 1000

    def serve(self, event: Any) -> bool:
        if self.screen and self.screen.arrivals:
            self.screen.arrivals.count(event)
        try:
            return self.x().selections.serve(event)
        except RefusedError:
            return True  # the program that asked must ask again
        except FAILED as e:
            if isinstance(e, LOST):
                raise
            return True  # the program that asked has gone

    def follow(self, launch: Launch) -> None:
        if not launch.read():
            self.launches.remove(launch)
            self.offer(launch)

    def read(self) -> bool:
        """Take in what came. False at the end of input."""
        data = os.read(0, 65536)
        self.received += data
        *lines, rest = self.received.split(b"\n") if b"\n" in data else [self.received]
        self.received = bytearray(rest)
        for line in lines:
            self.begin(bytes(line))
        return bool(data) and len(self.received) <= LINE_LIMIT

    def end(self) -> None:
        """Leave no button down."""
        if self.screen and self.screen.buttons.down:
            with contextlib.suppress(StuckError, *FAILED):
                self.under_alarm(self.do_lift, None, None)

    def run(self) -> None:
        while True:
            self.expire()
            more = self.take_events()
            fds: list[Any] = [0, *self.launches] + ([self.screen.display.fileno()] if self.screen else [])
            untils = [t[3] for t in self.tasks]
            wait = 0.0 if more else max(0.0, min(untils) - time.monotonic()) if untils else None
            ready = select.select(fds, [], [], wait)[0]
            for launch in [found for found in ready if isinstance(found, Launch)]:
                self.follow(launch)
            if 0 in ready and not self.read():
                return


def main() -> None:
    helper = Helper()
    try:
        helper.run()
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)
    finally:
        helper.end()
