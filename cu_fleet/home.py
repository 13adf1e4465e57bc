"""The home: where one fleet's database, tokens and sockets lie. Private, and held by one controller at a time.

Its one secret is made the first time it is asked for; tokens and the audit record's key come from it.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import pwd
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from cu_fleet.model.errors import ConflictError, InvalidError, UnavailableError

log = logging.getLogger(__name__)


def prepare_home(home: Path) -> None:
    """Make the home, or refuse one that others can read: its tokens and database are in it."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = home.stat()
    except OSError as e:
        raise UnavailableError(f"the home {home} cannot be used: {e.strerror}", remedy="set CU_FLEET_HOME") from None
    if found.st_uid != os.geteuid():
        owner = user_name(found.st_uid)
        raise InvalidError(
            f"the home {home} belongs to {owner}, not to you", remedy="set CU_FLEET_HOME", code="foreign_home"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise InvalidError(
            f"others can read the home {home} (mode {stat.S_IMODE(found.st_mode):04o}), where tokens lie",
            remedy=f"chmod 700 {home}",
            code="open_home",
        )


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the home: one controller at a time."""
    descriptor = os.open(home / "controller.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            raise ConflictError(
                f"a controller runs in {home} already (process {pid or 'unknown'})",
                remedy="use it, or stop it: cu-fleet down",
                code="already_running",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def secret_of(home: Path) -> bytes:
    path = home / "secret.key"
    with contextlib.suppress(FileExistsError):
        fresh = home / f"secret.{os.getpid()}"
        write_private(fresh, secrets.token_bytes(32))
        try:
            os.link(fresh, path)
        finally:
            fresh.unlink()
    secret = path.read_bytes()
    if len(secret) != 32 or stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InvalidError(f"{path} is not as it was made: 32 bytes that only you can read", code="bad_secret")
    return secret


def write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


async def watch(home: Path, stop: asyncio.Event) -> None:
    """A controller whose home was taken away, or is no longer its own, serves nobody."""
    lock = home / "controller.lock"
    mine = lock.stat().st_ino
    with contextlib.suppress(FileNotFoundError):
        while lock.stat().st_ino == mine:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await stop.wait()
                    return
    log.error("the home %s is gone: nothing can be written down any more", home)
    stop.set()
