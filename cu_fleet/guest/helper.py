"""The guest helper: one small program inside a desktop that does there what a screen alone cannot.

It is started over Exec as `python3 -I -c SOURCE`, needs the distribution's python3 and python3-xlib and nothing else,
reads a request a line and writes an answer a line, both JSON, and ends at the end of its input:

    {"id": 7, "do": "focus", "window": 4194307}
    {"id": 7, "ok": {"window": 4194307}}    or    {"id": 7, "error": {"code": "not_found", "text": "…"}}

One thread, one loop over standard input, the X connection and the programs it launched. What must wait for an event
is a generator that yields what it waits for and until when; so a slow clipboard owner holds up nobody else. What
asks the X server for an answer is under an alarm: if another client grabs the server and never lets go, the
connection is given up and the next request makes a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time

TYPE_CHECKING = False  # `typing` itself would cost memory in every desktop
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    Match = Callable[[Any], bool]
    Answer = dict[str, Any]
    Steps = Generator[tuple[Match, float], Any, Answer]  # yields what it waits for and until when

try:
    from Xlib import X, Xatom, error  # type: ignore[import-untyped]
    from Xlib.display import Display  # type: ignore[import-untyped]
    from Xlib.protocol import event as xevent  # type: ignore[import-untyped]

    NO_XLIB = ""
except ImportError as e:
    NO_XLIB = f"python3-xlib is not installed in this desktop: {e}"

VERSION = 1
LINE_LIMIT = 8 << 20
TEXT_LIMIT = 1 << 20
CHUNK = 64 << 10  # larger texts are handed over in parts of this size
PATIENCE = 3.0  # for another program's next step
LONGEST = 10.0  # for another program's whole answer
ALARM = 4.0  # for the X server itself
MOST = 64  # tasks, transfers, launched programs that are watched


class RefusedError(Exception):
    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class ChangedError(Exception):
    """The clipboard has another owner than the one that was asked."""


class StuckError(BaseException):
    """The X server does not answer."""


def on_alarm(signum: int, frame: object) -> None:
    raise StuckError


def is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def from_compound(value: bytes) -> str:
    """X's older encoding of names: Latin-1, with escapes to UTF-8 and to the East Asian sets."""
    text = ""
    for plain in value.split(b"\x1b%G"):
        utf8, end, rest = plain.partition(b"\x1b%@")
        text += utf8.decode("utf-8", "replace") if end else ""
        rest = rest if end else plain
        text += rest.decode("iso2022_jp_2" if b"\x1b" in rest else "latin-1", "replace")
    return text


class Screen:
    """The X connection: what windows there are, and the selections we own."""

    def __init__(self) -> None:
        if NO_XLIB:
            raise RefusedError("no_xlib", NO_XLIB)
        try:
            self.display = Display()
        except (error.DisplayError, OSError) as e:
            raise RefusedError("no_display", f"no X server answers in this desktop: {e}") from e
        self.display.set_error_handler(lambda problem, request: None)  # windows vanish; replies still raise
        self.root = self.display.screen().root
        self.root.change_attributes(event_mask=X.PropertyChangeMask)
        self.window = self.root.create_window(
            -1, -1, 1, 1, 0, X.CopyFromParent, X.InputOnly, X.CopyFromParent, event_mask=X.PropertyChangeMask
        )
        self.owned: dict[int, tuple[bytes, int]] = {}  # selection atom -> (bytes, time)
        self.transfers: dict[
            tuple[int, int], list[Any]
        ] = {}  # (window id, property) -> [window, type, bytes left, deadline]
        self.busy: set[int] = set()  # properties of ours that an answer is awaited in
        self.handed = False  # whether the text set last has been handed to anybody, to its end

    def atom(self, name: str) -> int:
        return int(self.display.intern_atom(name))

    def close(self) -> None:
        self.display.display.socket.close()

    def get(self, window: Any, name: str, kind: int, limit: int = 4096) -> Any:
        """A property's value, or None; never more than `limit` bytes of it."""
        found = window.get_property(self.atom(name), kind, 0, limit // 4 + 1)
        return None if found is None else found.value

    # windows

    def has_manager(self) -> bool:
        check = self.get(self.root, "_NET_SUPPORTING_WM_CHECK", Xatom.WINDOW)
        return bool(check)

    def manager(self) -> str | None:
        check = self.get(self.root, "_NET_SUPPORTING_WM_CHECK", Xatom.WINDOW)
        return self.text(self.display.create_resource_object("window", check[0]), "_NET_WM_NAME") if check else None

    def clients(self) -> list[Any]:
        ids = self.get(self.root, "_NET_CLIENT_LIST", Xatom.WINDOW, 64 << 10)
        if ids is not None:
            return [self.display.create_resource_object("window", i) for i in ids]
        return [w for w in self.root.query_tree().children if self.is_shown(w)]

    def is_shown(self, window: Any) -> bool:
        try:
            return window.get_attributes().map_state == X.IsViewable and window.get_wm_class() is not None
        except error.XError:
            return False

    def active(self) -> int:
        found = self.get(self.root, "_NET_ACTIVE_WINDOW", Xatom.WINDOW)
        if found is not None:
            return found[0] if len(found) else 0
        focus = self.display.get_input_focus().focus
        return getattr(focus, "id", 0)

    def text(self, window: Any, name: str) -> str:
        value = self.get(window, name, X.AnyPropertyType)
        if not isinstance(value, bytes):
            return ""
        text = value.decode("utf-8", "replace") if name.startswith("_NET") else from_compound(value)
        return text.replace("\0", " ")[:1000]

    def describe(self, window: Any, active: int) -> Answer:
        geometry = window.get_geometry()
        place = self.root.translate_coords(window, 0, 0)
        pid = self.get(window, "_NET_WM_PID", Xatom.CARDINAL)
        states = self.get(window, "_NET_WM_STATE", Xatom.ATOM) or []
        names = self.get(window, "WM_CLASS", Xatom.STRING)
        names = names.decode("latin-1").split("\0") if isinstance(names, bytes) else []
        return {
            "id": window.id,
            "title": self.text(window, "_NET_WM_NAME") or self.text(window, "WM_NAME"),
            "class": (names[1] if len(names) > 1 else "")[:200],
            "pid": pid[0] if pid else None,
            "x": place.x,
            "y": place.y,
            "width": geometry.width,
            "height": geometry.height,
            "focused": window.id == active,
            "minimized": self.atom("_NET_WM_STATE_HIDDEN") in states,
        }

    def windows(self) -> list[Answer]:
        active, found = self.active(), []
        for window in self.clients()[:1000]:
            try:
                found.append(self.describe(window, active))
            except error.XError:
                continue  # closed meanwhile
        return found

    def focus(self, number: int) -> Steps:
        window = next((w for w in self.clients() if w.id == number), None)
        if window is None:
            raise RefusedError("not_found", f"there is no window {number}")
        if not self.has_manager():
            window.set_input_focus(X.RevertToParent, X.CurrentTime)
            window.configure(stack_mode=X.Above)
        else:
            message = xevent.ClientMessage(
                window=window, client_type=self.atom("_NET_ACTIVE_WINDOW"), data=(32, [2, X.CurrentTime, 0, 0, 0])
            )
            self.root.send_event(message, event_mask=X.SubstructureRedirectMask | X.SubstructureNotifyMask)
        until = time.monotonic() + PATIENCE
        while self.active() != number:
            event = yield (lambda e: e.type == X.PropertyNotify and e.window == self.root), until
            if event is None:
                raise RefusedError("not_focused", f"window {number} did not take the focus within {PATIENCE:.0f} s")
        return {"window": number}

    # selections: asking others

    def selection(self, name: object) -> int:
        names = {"clipboard": "CLIPBOARD", "primary": "PRIMARY"}
        if name not in names:
            raise RefusedError("invalid", "selection is clipboard or primary")
        return self.atom(names[name])

    def clipboard_get(self, name: object, limit: int) -> Steps:
        selection = self.selection(name)
        owner = self.display.get_selection_owner(selection)
        if owner == X.NONE:
            return {"text": ""}
        if owner == self.window:
            return {"text": self.owned[selection][0].decode()}
        for target, coding in (("UTF8_STRING", "utf-8"), ("STRING", "latin-1")):
            try:
                data = yield from self.ask_owner(selection, self.atom(target), limit, owner)
            except ChangedError:
                return (yield from self.clipboard_get(name, limit))
            if data is not None:
                return {"text": data.decode(coding, "replace")}
        return {"text": ""}

    def ask_owner(
        self, selection: int, target: int, limit: int, owner: Any
    ) -> Generator[tuple[Match, float], Any, bytes | None]:
        place = next((p for p in map(self.atom, (f"CU_FLEET_{n}" for n in range(8))) if p not in self.busy), None)
        if place is None:
            raise RefusedError("busy", "the clipboard is being asked for too often at once")
        self.busy.add(place)
        try:
            self.window.delete_property(place)
            self.window.convert_selection(selection, target, place, X.CurrentTime)
            last, event = time.monotonic() + PATIENCE, None
            while event is None:
                event = yield self.is_answer(selection, target), min(last, time.monotonic() + 0.3)
                if event is None and self.display.get_selection_owner(selection) != owner:
                    raise ChangedError
                if event is None and time.monotonic() >= last:
                    raise RefusedError("no_answer", f"the clipboard's owner did not answer in {PATIENCE:.0f} s")
            if event.property == X.NONE:
                return None
            return (yield from self.receive(place, limit))
        finally:
            self.window.delete_property(place)
            self.busy.discard(place)

    def is_answer(self, selection: int, target: int) -> Match:
        def match(e: Any) -> bool:
            if e.type != X.SelectionNotify or e.requestor != self.window:
                return False
            return bool(e.selection == selection and e.target == target)

        return match

    def receive(self, place: int, limit: int) -> Generator[tuple[Match, float], Any, bytes]:
        kind, data = self.take(place, limit)
        if kind != self.atom("INCR"):
            return data
        parts: list[bytes] = []
        total, last = 0, time.monotonic() + LONGEST
        while True:
            until = min(last, time.monotonic() + PATIENCE)
            event = yield (lambda e: self.is_new(e, place)), until
            if event is None:
                raise RefusedError(
                    "no_answer", "the program that owns the clipboard stopped in the middle of its answer"
                )
            _, data = self.take(place, limit)
            total += len(data)
            if total > limit:
                raise RefusedError("too_large", f"the clipboard holds more than {limit} bytes")
            if not data:
                return b"".join(parts)
            parts.append(data)

    def is_new(self, e: Any, place: int) -> bool:
        is_ours = e.type == X.PropertyNotify and e.window == self.window
        return bool(is_ours and e.atom == place and e.state == X.PropertyNewValue)

    def take(self, place: int, limit: int) -> tuple[int, bytes]:
        found = self.window.get_property(place, X.AnyPropertyType, 0, limit // 4 + 1)
        if found is None:
            return X.NONE, b""
        if found.bytes_after:
            raise RefusedError("too_large", f"the clipboard holds more than {limit} bytes")
        self.window.delete_property(place)
        return found.property_type, found.value if isinstance(found.value, bytes) else b""

    # selections: owning them

    def clipboard_set(self, text: bytes, names: list[object]) -> Steps:
        selections = [self.selection(name) for name in names]
        stamp = self.atom("CU_FLEET_TIME")
        self.window.change_property(stamp, Xatom.INTEGER, 32, [])
        event = yield (lambda e: self.is_new(e, stamp)), time.monotonic() + PATIENCE
        if event is None:
            raise RefusedError("no_answer", "the X server did not tell the time")
        for selection in selections:
            self.window.set_selection_owner(selection, event.time)
            if self.display.get_selection_owner(selection) != self.window:
                raise RefusedError("taken", "another program took the clipboard at the same moment")
            self.owned[selection] = (text, event.time)
        self.handed = False
        return {"bytes": len(text)}

    def clipboard_taken(self, within: float) -> Steps:
        """Wait until a program has been handed the text set last: what is sent to it now, it hears after that."""
        if not self.handed:
            yield (lambda e: e is HANDED and self.handed), time.monotonic() + within
        self.display.sync()
        return {"taken": self.handed}

    def serve(self, e: Any) -> bool:
        """Answer other programs that want what we own; returns whether the event was for that."""
        if e.type == X.SelectionRequest:
            place = e.property if e.property != X.NONE else e.target
            owned = self.owned.get(e.selection) if e.owner == self.window else None
            done = owned is not None and self.convert(e.requestor, e.target, place, owned)
            self.tell(e, place if done else X.NONE)
        elif e.type == X.SelectionClear:
            self.owned.pop(e.atom, None)
        elif e.type == X.PropertyNotify and e.state == X.PropertyDelete:
            return self.go_on(e)
        else:
            return False
        return True

    def tell(self, e: Any, place: int) -> None:
        answer = xevent.SelectionNotify(
            time=e.time, requestor=e.requestor, selection=e.selection, target=e.target, property=place
        )
        e.requestor.send_event(answer)

    def convert(self, requestor: Any, target: int, place: int, owned: tuple[bytes, int], nested: bool = False) -> bool:
        text, since = owned
        name = self.name_of(target)
        if name == "TARGETS":
            names = ("TARGETS", "MULTIPLE", "TIMESTAMP", "UTF8_STRING", "STRING", "TEXT", *PLAIN)
            requestor.change_property(place, Xatom.ATOM, 32, [self.atom(n) for n in names])
        elif name == "TIMESTAMP":
            requestor.change_property(place, Xatom.INTEGER, 32, [since])
        elif name == "MULTIPLE" and not nested:
            self.convert_many(requestor, place, owned)
        elif name in ("UTF8_STRING", "TEXT", *PLAIN):
            self.hand_over(requestor, place, self.atom("UTF8_STRING") if name == "TEXT" else target, text)
        elif name == "STRING":
            self.hand_over(requestor, place, Xatom.STRING, text.decode().encode("latin-1", "replace"))
        else:
            return False
        return True

    def name_of(self, atom: int) -> str:
        try:
            return str(self.display.get_atom_name(atom))
        except error.XError:
            return ""

    def convert_many(self, requestor: Any, place: int, owned: tuple[bytes, int]) -> None:
        found = requestor.get_property(place, X.AnyPropertyType, 0, 64)
        pairs = list(found.value) if found and found.format == 32 else []
        for i in range(0, len(pairs) - 1, 2):
            if not self.convert(requestor, pairs[i], pairs[i + 1], owned, nested=True):
                pairs[i + 1] = X.NONE
        requestor.change_property(place, self.atom("ATOM_PAIR"), 32, pairs)

    def hand_over(self, requestor: Any, place: int, kind: int, data: bytes) -> None:
        if len(data) <= CHUNK:
            requestor.change_property(place, kind, 8, data)
            self.handed = True
            return
        self.forget_stale()
        if len(self.transfers) >= MOST:
            raise RefusedError("busy", "too many programs are being given the clipboard")
        requestor.change_attributes(event_mask=X.PropertyChangeMask)
        self.transfers[requestor.id, place] = [requestor, kind, data, time.monotonic() + LONGEST]
        requestor.change_property(place, self.atom("INCR"), 32, [len(data)])

    def go_on(self, e: Any) -> bool:
        """The next part of a long text, since the last one was taken."""
        transfer = self.transfers.get((e.window.id, e.atom))
        if transfer is None:
            return False
        window, kind, data, _ = transfer
        window.change_property(e.atom, kind, 8, data[:CHUNK])
        transfer[2:] = data[CHUNK:], time.monotonic() + LONGEST
        if not data:
            del self.transfers[e.window.id, e.atom]
            self.handed = True
            if window != self.window:
                window.change_attributes(event_mask=0)
        return True

    def forget_stale(self) -> None:
        now = time.monotonic()
        self.transfers = {key: t for key, t in self.transfers.items() if t[3] > now}


PLAIN = ("text/plain;charset=utf-8", "text/plain")


class Handed:
    """What is offered to tasks when a text of ours was taken."""

    type = "handed"


HANDED = Handed()


class Launch:
    """A program on its way. It becomes nobody's child, so that it outlives this helper and whoever started that.

    The process between us tells what became of it within a moment: its number, and how it ended if it has.
    """

    type = "launch"

    def __init__(self, argv: list[str], env: dict[str, str], cwd: str) -> None:
        self.told: Answer = {}
        self.data = b""
        self.fd, tell = os.pipe()
        self.between = os.fork()
        if self.between == 0:
            try:
                self.start(argv, env, cwd, tell)
            finally:
                os._exit(0)
        os.close(tell)

    def start(self, argv: list[str], env: dict[str, str], cwd: str, tell: int) -> None:
        def say(**facts: object) -> None:
            os.write(tell, json.dumps(facts).encode() + b"\n")

        null = subprocess.DEVNULL
        try:
            child = subprocess.Popen(
                argv, stdin=null, stdout=null, stderr=null, start_new_session=True, cwd=cwd, env=env
            )
            say(pid=child.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                say(ended=child.wait(0.1))
        except FileNotFoundError:
            say(code="not_found", error="there is no such program in this desktop")
        except (OSError, ValueError) as e:
            say(error=str(e))

    def fileno(self) -> int:
        return self.fd

    def read(self) -> bool:
        """Take in what is told; False when that is all."""
        more = os.read(self.fd, 4096)
        self.data += more
        if more:
            return True
        for line in self.data.splitlines():
            self.told.update(json.loads(line))
        os.close(self.fd)
        os.waitpid(self.between, 0)
        return False


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
            manager = self.x().manager()
            works += ["windows", "focus", "clipboard_get", "clipboard_set", "clipboard_taken", "sync"]
        except RefusedError as e:
            why = str(e)
        return {"version": VERSION, "pid": os.getpid(), "works": works, "why": why, "manager": manager}

    def do_windows(self) -> Answer:
        return {"windows": self.x().windows()}

    def do_sync(self) -> Answer:
        self.x().display.sync()
        return {}

    def do_focus(self, window: object) -> Steps:
        if not isinstance(window, int):
            raise RefusedError("invalid", "window is a number")
        return self.x().focus(window)

    def do_clipboard_get(self, selection: object = "clipboard", limit: object = TEXT_LIMIT) -> Steps:
        if not isinstance(limit, int) or not 0 < limit <= TEXT_LIMIT:
            raise RefusedError("invalid", f"limit is a number up to {TEXT_LIMIT}")
        return self.x().clipboard_get(selection, limit)

    def do_clipboard_set(self, text: object, selections: object = ("clipboard",)) -> Steps:
        if not isinstance(text, str) or not isinstance(selections, (list, tuple)):
            raise RefusedError("invalid", "text is a string and selections a list")
        data = text.encode("utf-8", "replace")
        if len(data) > TEXT_LIMIT:
            raise RefusedError("too_large", f"the clipboard takes at most {TEXT_LIMIT} bytes, these are {len(data)}")
        return self.x().clipboard_set(data, list(selections))

    def do_clipboard_taken(self, within: object = 1.0) -> Steps:
        if not isinstance(within, (int, float)) or not 0 <= within <= LONGEST:
            raise RefusedError("invalid", f"within is a number of seconds up to {LONGEST:.0f}")
        return self.x().clipboard_taken(within)

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
        except (OSError, *X_ERRORS) as e:
            self.refuse(number, "x_failed", f"the X server refused: {e}")
            if isinstance(e, (OSError, *X_LOST)):
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
            screen.close()
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
        except (OSError, *X_LOST):
            self.drop_screen("the X server is gone")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return taken == 1000

    def serve(self, event: Any) -> bool:
        try:
            return self.x().serve(event)
        except X_LOST:
            raise
        except (RefusedError, *X_ERRORS):
            return True  # the program that asked has gone, or must ask again

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


X_ERRORS = () if NO_XLIB else (error.XError, error.ConnectionClosedError)
X_LOST = () if NO_XLIB else (error.ConnectionClosedError,)

if __name__ == "__main__":
    try:
        Helper().run()
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)
