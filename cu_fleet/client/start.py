"""Starting a controller on demand, for whoever needs one and finds none.

It is nobody's child: a process group of its own, its words in the home's `controller.log`. If several start one at
the same moment, the home's lock lets one live; the others end as "in conflict", which is as good: their callers go on
asking until the winner answers. But if nobody has the lock, and it is refused again and again, the conflict is another.
"""

import asyncio
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO

from cu_fleet.model.errors import ConflictError, UnavailableError

COMMAND = (sys.executable, "-m", "cu_fleet", "up", "--on-demand")
TIMEOUT = 60.0
_AGAIN = 0.5
_ALONE = 3  # refusals while nobody has the home's lock
_TAIL = 2000  # characters of its log that we repeat


async def start_controller(home: Path, answers: Callable[[], Awaitable[bool]], timeout: float = TIMEOUT) -> None:
    """Return when `answers` says that a controller does; raise in its own words if it did not come up."""
    log = home / "controller.log"
    began = log.stat().st_size if log.exists() else 0
    process = await asyncio.to_thread(_spawn, home, log)
    alone = 0
    try:
        async with asyncio.timeout(timeout):
            while not await answers():
                if process.poll() == ConflictError.exit_code:  # somebody else's; or an old one that is just ending
                    alone += not _held(home)
                    if alone == _ALONE and not await answers():
                        raise _failed("the controller was refused", log, began)
                    await asyncio.sleep(_AGAIN)
                    process = process if await answers() else await asyncio.to_thread(_spawn, home, log)
                elif process.poll() is not None and not await answers():
                    raise _failed(f"the controller ended at once (exit code {process.poll()})", log, began)
                await asyncio.sleep(0.03)
    except TimeoutError:
        raise _failed(f"the controller did not answer within {timeout:g} s", log, began) from None


def _spawn(home: Path, log: Path) -> subprocess.Popen[bytes]:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(log, "ab", opener=_private) as out:
            return _detached(home, out)
    except OSError as error:
        raise UnavailableError(
            f"cannot start a controller in {home}: {error.strerror}", remedy="set CU_FLEET_HOME", code="no_home"
        ) from None


def _held(home: Path) -> bool:
    """Whether a controller has this home now."""
    try:
        with (home / "controller.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _detached(home: Path, out: IO[bytes]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        COMMAND,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        cwd="/",
        env=_environment(home),
        start_new_session=True,
    )
    threading.Thread(target=process.wait, name="reap the controller", daemon=True).start()
    return process


def _environment(home: Path) -> dict[str, str]:
    """Ours, without what points at other controllers; and the same cu_fleet, if it runs from a checkout."""
    env = {key: value for key, value in os.environ.items() if key not in ("CU_FLEET_URL", "CU_FLEET_TOKEN")}
    env["CU_FLEET_HOME"] = str(home)
    root = Path(__file__).resolve().parents[2]
    if root.name not in ("site-packages", "dist-packages"):
        env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [env.get("PYTHONPATH")])])
    return env


def _failed(what: str, log: Path, began: int) -> UnavailableError:
    with log.open("rb") as said:
        said.seek(began)
        words = said.read().decode("utf-8", "replace").strip()[-_TAIL:]
    return UnavailableError(
        f"{what}: {words or 'it said nothing'}", remedy=f"see {log}, or run cu-fleet up to watch it", code="not_started"
    )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
