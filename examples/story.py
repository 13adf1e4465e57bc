"""The demo's story: what each agent does, and what must be true of it.

Agents use the Python client; what a person would do is done with the command line, and shown. Every step is checked,
and the first that is not true ends the story with what was expected.
"""

import asyncio
import io
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from board import Board
from PIL import Image

from cu_fleet.client import Desktop, Fleet
from cu_fleet.model.audit import Entry
from cu_fleet.model.errors import FleetError
from cu_fleet.model.view import LeaseView

T = TypeVar("T")
ORDER = {"name": "Zoë Müller", "tea": "Earl Grey", "boxes": "3"}
LETTER = "Dear reader,\nnobody took my focus away while I wrote this.\nYours, Ben\n"
PRIMES = "2 3 5 7 11 13 17 19 23 29 31 37 41 43 47"


class UntrueError(Exception):
    """A step of the demo was not true."""


def check(true: object, otherwise: str) -> None:
    if not true:
        raise UntrueError(otherwise)


async def until(what: str, ask: Callable[[], Awaitable[T]], timeout: float = 20.0) -> T:
    """Ask again until the answer is true; the last one is in the error."""
    last: object = None
    try:
        async with asyncio.timeout(timeout):
            while not (answer := await ask()):
                last = answer
                await asyncio.sleep(0.05)
            return answer
    except TimeoutError:
        raise UntrueError(f"{what}: not within {timeout:.0f} s; the last answer was {last!r}") from None


class Shop:
    """`shop.py`, put into a desktop and started there by the operator; knows what it was asked for."""

    url = "http://127.0.0.1:8000/"

    def __init__(self, fleet: Fleet, desktop: Desktop) -> None:
        self._fleet, self._desktop = fleet, desktop
        self._told: list[dict[str, Any]] = []
        self._listening: asyncio.Task[None]

    @classmethod
    @asynccontextmanager
    async def opened(cls, fleet: Fleet, desktop: Desktop) -> AsyncIterator[Self]:
        shop = cls(fleet, desktop)
        await desktop.put_file("shop.py", Path(__file__).with_name("shop.py"))
        shop._listening = asyncio.create_task(shop._listen(), name="listen to the shop")
        try:
            await shop._until("an open shop", lambda said: "listening" in said)
            yield shop
        finally:
            shop._listening.cancel()
            await asyncio.gather(shop._listening, return_exceptions=True)

    async def request(self, method: str, path: str) -> dict[str, str]:
        """The fields of this request, as soon as the shop has got it."""
        said = await self._until(
            f"{method} {path}", lambda said: (said.get("method"), said.get("path")) == (method, path)
        )
        fields: dict[str, str] = said["fields"]
        return fields

    async def _listen(self) -> None:
        said = b""
        async with self._fleet.exec(str(self._desktop.lease.desktop), ["python3", "Shared/shop.py", "8000"]) as command:
            async for _, data in command:
                *lines, said = (said + data).split(b"\n")
                self._told += [json.loads(line) for line in lines]

    async def _until(self, what: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async def found() -> dict[str, Any] | None:
            if self._listening.done():
                await self._listening
            return next((said for said in self._told if wanted(said)), None)

        return await until(what, found) or {}


class Story:
    """Four agents, and the operator."""

    def __init__(self, fleet: Fleet, board: Board, home: Path) -> None:
        self.fleet, self.board, self.home = fleet, board, home
        self.shots: dict[str, Image.Image] = {}
        self.cleo_has_it = asyncio.Event()
        self.dan_waits = asyncio.Event()

    # helpers

    async def cli(self, *words: str, expect: int = 0) -> str:
        """What a person would type, and what they would read. Returns it."""
        self.board.say("operator", f"$ cu-fleet {shlex.join(words)}")
        env = {**os.environ, "CU_FLEET_HOME": str(self.home), "COLUMNS": "118"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cu_fleet", *words),
            env=env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            said = (await process.communicate())[0].decode()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
        self.board.quote(said)
        check(process.returncode == expect, f"cu-fleet {words[0]} should end with {expect}, not {process.returncode}")
        return said

    async def window(self, desktop: Desktop, name: str) -> None:
        """Until a window of this title or class has the focus, and its picture has settled."""

        async def focused() -> bool:
            return any(name in w["title"] + w["class"] and w["focused"] for w in await desktop.windows())

        await until(f"a window {name!r}", focused)
        await desktop.wait_stable(quiet_ms=250, timeout_ms=5000)

    async def keep_picture(self, desktop: Desktop, caption: str) -> None:
        await desktop.wait_stable(quiet_ms=250)
        self.shots[caption] = await desktop.screenshot(intent="for the contact sheet")

    # the agents

    async def ada(self) -> None:
        """Fills in a form in Chromium, on a page that only her own desktop can see."""
        say = self.board.say
        async with self.fleet.lease(agent="ada", profile="browser") as desktop:
            say("ada", "has a desktop; a small shop opens inside it", str(desktop.lease.desktop))
            async with Shop.opened(self.fleet, desktop) as shop:
                await desktop.launch("browser", shop.url)
                say("ada", "starts Chromium")
                await shop.request("GET", "/")
                await self.window(desktop, "Order tea")
                say("ada", "fills in the form")
                for number, value in enumerate(ORDER.values()):
                    if number:
                        await desktop.key("Tab", intent="to the next field")
                    await desktop.type(value, intent="fill in the form")
                await self.keep_picture(desktop, "ada: the form is filled in")
                await desktop.key("Return", intent="send the order")
                sent = await shop.request("POST", "/order")
                check(sent == ORDER, f"the shop should have got {ORDER}, not {sent}")
                await self.window(desktop, "Thank you")
                await self.keep_picture(desktop, "ada: the shop says thank you")
            say("ada", f"done: the shop got {sent}")

    async def ben(self) -> None:
        """Writes a letter in an editor and saves it; then is revoked in the middle of an action."""
        say = self.board.say
        desktop = await self.fleet.acquire(agent="ben", profile="local")
        name = str(desktop.lease.desktop)
        say("ben", "has a desktop, starts the editor", name)
        await desktop.launch("editor", "Shared/letter.txt")
        await self.window(desktop, "letter.txt")
        say("ben", "writes a letter")
        await desktop.type(LETTER, intent="write the letter")
        await desktop.key("ctrl+s", intent="save it")

        async def saved() -> bytes:
            with suppress(FleetError):
                return await desktop.get_file("letter.txt")
            return b""

        check(await until("the saved letter", saved) == LETTER.encode(), "the saved letter should be what was typed")
        await self.keep_picture(desktop, "ben: the letter is saved")
        say("ben", "the letter is saved, word for word; types on, holding a key down for a minute")
        await self.revoked(desktop, name)

    async def revoked(self, desktop: Desktop, name: str) -> None:
        before = (await self.fleet.run(name, ["ls", "-A", ".config", "Shared"])).stdout.decode().split()
        check("letter.txt" in before, f"the letter should lie in the desktop, beside {before}")
        batch: list[dict[str, Any]] = [
            {"type": "type", "text": "P.S. aaa"},
            {"type": "hold_key", "keys": "h", "seconds": 60},
            {"type": "type", "text": "this is never typed"},
        ]
        action = asyncio.create_task(desktop.act(batch, intent="add a postscript"), name="ben's action")
        await until("the held key on record", lambda: self.acting(desktop.id, "hold_key"))
        await self.cli("lease", "revoke", desktop.id, "--reason", "wrong letter")
        try:
            done = (await action).done
            check(not done[1].ok and not done[2].ok, f"the held key should have been cut short, but: {done}")
            self.board.say("ben", f"in the middle of it: {done[1].detail}")
        except FleetError as told:
            self.board.say("ben", f"in the middle of it: {told}")
        try:
            await desktop.screenshot()
        except FleetError as told:
            check(told.code == "lease_revoked" and "wrong letter" in str(told), f"the old token should say why: {told}")
            self.board.say("ben", f"his old token: {told}")
        else:
            raise UntrueError("the old token should open nothing")
        self.shots["ben: the last that was seen, when he was revoked"] = await self.evidence(desktop.id)
        await self.cli("lease", "acquire", "--agent", "ben", "--profile", "local", "--no-wait", expect=3)
        await until("the desktop clean again", lambda: self.is_ready(name))
        after = (await self.fleet.run(name, ["ls", "-A", ".", "Shared"])).stdout.decode()
        check("letter.txt" not in after, f"the letter should be gone, but: {after}")
        self.board.say("operator", f"{name} is rolled back and clean: ben's letter.txt is gone")

    async def evidence(self, lease: str) -> Image.Image:
        """The frame that was kept when a lease was revoked."""

        async def kept() -> list[Entry]:
            return await self.fleet.audit(lease=lease, what="lease.evidence")

        (entry,) = await until("the last frame kept", kept)
        return Image.open(io.BytesIO(await self.fleet.frame(entry.frames[0])))

    async def acting(self, lease: str, kind: str) -> bool:
        entries = await self.fleet.audit(lease=lease, what="act")
        return any(entry.action and entry.action.get("type") == kind for entry in entries)

    async def is_ready(self, desktop: str) -> bool:
        return (await self.fleet.desktop(desktop)).stage == "ready"

    async def cleo(self) -> None:
        """Reckons in a terminal, on the desktop named finance, until somebody else wants it."""
        say = self.board.say
        async with self.fleet.lease(agent="cleo", profile="local", desktop="finance") as desktop:
            say("cleo", "has the desktop named finance, starts a terminal", str(desktop.lease.desktop))
            self.cleo_has_it.set()
            await desktop.launch("terminal")
            await self.window(desktop, "XTerm")
            say("cleo", "looks for prime numbers")
            command = "seq 2 47 | factor | awk 'NF == 2 {print $2}' | xargs | tee Shared/primes.txt"
            await desktop.type(command + "\n", intent="find the primes up to 47")

            async def written() -> str:
                with suppress(FleetError):
                    return (await desktop.get_file("primes.txt")).decode().strip()
                return ""

            found = await until("the primes in a file", written)
            check(found == PRIMES, f"the file should say {PRIMES}, not {found}")
            await self.keep_picture(desktop, "cleo: primes, on the desktop named finance")
            say("cleo", "done, the file is right; keeps the desktop until somebody waits for it")
            await self.dan_waits.wait()
            say("cleo", "releases finance")

    async def dan(self) -> None:
        """Wants the desktop that cleo has: is told so, waits for it, gets it."""
        say = self.board.say
        await self.cleo_has_it.wait()
        wish = ("--agent", "dan", "--profile", "local", "--desktop", "finance", "--no-wait")
        said = await self.cli("lease", "acquire", *wish, expect=3)
        check("cleo" in said and "finance" in said, "dan should be told who holds finance")
        say("dan", "is refused, and waits", "finance")
        watching = asyncio.create_task(self.watch_dan_wait(), name="watch dan wait")
        try:
            async with self.fleet.lease(agent="dan", profile="local", desktop="finance", wait=60) as desktop:
                await watching
                say("dan", f"gets finance, as generation {desktop.lease.generation}", str(desktop.lease.desktop))
                check(not await desktop.files(), "nothing of cleo's should be in dan's desktop")
                await desktop.launch("terminal")
                await self.window(desktop, "XTerm")
                await desktop.type("ls -A Shared; echo 'nothing of cleo left; mine now'\n", intent="look around")
                await self.keep_picture(desktop, "dan: got finance, clean")
                say("dan", "done: finance is clean, and his")
        finally:
            watching.cancel()

    async def watch_dan_wait(self) -> None:
        async def waiting() -> LeaseView | None:
            return next((one for one in await self.fleet.leases(agent="dan") if one.state == "waiting"), None)

        view = await until("dan in the queue", waiting)
        assert view
        self.board.say("dan", str(view.message))
        holder = view.holder or {}
        check(holder.get("agent") == "cleo", f"the queue should name cleo, not {holder}")
        self.dan_waits.set()
