"""A controller in a throw-away home, for one scene. Whatever ends the scene, nothing of it is left.

It is started as users start it, by `cu-fleet up`, and spoken to as they do, by the client over TCP. None of the
caller's own CU_FLEET_* settings reach it, least of all a database.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from cu_fleet.app import clean_up, place_of
from cu_fleet.backends.local.layout import Layout
from cu_fleet.client import Fleet
from cu_fleet.client.http import Wire
from cu_fleet.model.errors import FleetError, UnavailableError
from cu_fleet.rfb.link import deadline
from cu_fleet.settings import read_settings

PROFILE = "bench"
_UP_WITHIN, _DOWN_WITHIN = 60.0, 180.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class House:
    fleet: Fleet
    wire: Wire  # the same controller, with nothing of the client's own around the answers
    pid: int
    home: Path
    label: str  # the fleet's id, part of every desktop's marker

    def marker(self, desktop: str) -> str:
        return f"cu-fleet/{self.label}/{desktop}"

    def screen_of(self, desktop: str) -> Path:
        """The socket on which a desktop's own server speaks RFB: the back door, for whom we are compared with."""
        layout = Layout(place_of(read_settings(self.home, env={}), self.label))
        return layout.desk(desktop).run / "rfb.sock"

    async def settled(self, within: float = 120.0) -> None:
        """Return when no desktop is on its way."""
        async with deadline(within, "the desktops did not come to rest"):
            while True:
                stages = {desktop.stage for desktop in await self.fleet.desktops()}
                if stages <= {"ready", "held", "quarantined"}:
                    return
                await asyncio.sleep(0.02)


@asynccontextmanager
async def house(
    top: Path, recipe: Mapping[str, object], most: int, settings: Mapping[str, object] | None = None
) -> AsyncIterator[House]:
    """A controller with one profile of its own, `bench`, and room for `most` desktops."""
    home = top / "home"
    _furnish(home, recipe, {"max_desktops": most, "log_level": "warning", **(settings or {})})
    process, url = await _up(home)
    try:
        token = (home / "operator.token").read_text().strip()
        wire = Wire(url=url, token=token, home=home, start=False)
        async with Fleet.connect(url=url, token=token) as fleet, contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(wire.close)
            yield House(fleet, wire, process.pid, home, str((await fleet.status())["fleet"]))
    finally:
        await _to_its_end(_down(process, home))


def _furnish(home: Path, recipe: Mapping[str, object], settings: Mapping[str, object]) -> None:
    """The shipped profiles are kept from warming up anything by having the same names here."""
    (home / "profiles").mkdir(mode=0o700, parents=True)
    home.chmod(0o700)
    quiet = {"backend": "local", "gates": "none", "warm": 0}
    for name, body in {"local": quiet, PROFILE: {**quiet, "reserve": "1M", **recipe}}.items():
        (home / "profiles" / f"{name}.yaml").write_text(yaml.safe_dump(body))
    (home / "config.yaml").write_text(yaml.safe_dump(dict(settings)))


async def _up(home: Path) -> tuple[asyncio.subprocess.Process, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("CU_FLEET_")}
    env |= {"CU_FLEET_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}  # this very cu_fleet
    with (home / "controller.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cu_fleet", "up", "--port", "0", "--json"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=env,
            start_new_session=True,  # ^C is for us: we end it in our own time
        )
    try:
        return process, await _url(process, home)
    except BaseException:
        await _to_its_end(_down(process, home))
        raise


async def _url(process: asyncio.subprocess.Process, home: Path) -> str:
    assert process.stdout
    said = b""
    try:
        async with asyncio.timeout(_UP_WITHIN):
            while not said.endswith(b"}\n"):
                if not (line := await process.stdout.readline()):
                    break
                said += line
        return str(json.loads(said)["url"])
    except (TimeoutError, ValueError):
        words = (home / "controller.log").read_text("utf-8", "replace").strip()
        raise UnavailableError(f"the controller to be measured did not start: {words}", code="not_started") from None


async def _to_its_end(work: Coroutine[None, None, None]) -> None:
    """Also while we are being cancelled, once or more."""
    task = asyncio.create_task(work, name="end the controller that was measured")
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled:
        raise cancelled


async def _down(process: asyncio.subprocess.Process, home: Path) -> None:
    """By asking it; by force if it does not heed that, and then what it has left is ended in its place."""
    wire = Wire(url=None, token=None, home=home, start=False)
    try:
        async with asyncio.timeout(_DOWN_WITHIN):
            await wire.call("POST", "/v1/shutdown", body={})
            await process.wait()
    except (FleetError, TimeoutError) as error:
        _log.warning("the controller that was measured did not stop by itself: %s", error)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await clean_up(read_settings(home, env={}))
    finally:
        await wire.close()
