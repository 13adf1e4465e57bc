"""Trying a new image: a desktop of it proves that it works, in a small fleet of its own that leaves nothing behind.

That fleet's home is a temporary folder, locked as long as the trial lasts. One that nobody has locked was left by a
trial that was killed: the next one takes away what is left of it.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from cu_fleet.backends.base import Place, Spec
from cu_fleet.backends.docker.backend import DockerBackend
from cu_fleet.backends.docker.building import Say
from cu_fleet.backends.docker.recipes import IMAGES
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.names import new_id
from cu_fleet.model.profile import Profile

_PREFIX = "cu-fleet-trial-"
_SECONDS = 120.0


async def prove(host: str, image: str, say: Say, *, polled: bool = False) -> None:
    """Start a desktop of this image and have it prove that it works; the desktop is removed whatever comes of it."""
    await clear(host)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, _locked(Path(folder)):
        backend = _backend(Path(folder), host)
        spec = Spec(new_id("dk"), Profile(name="check", backend="docker", image=image), new_id("bt"), "check")
        handle: Handle = {"desktop": spec.desktop}
        try:
            handle = [one async for one in backend.start(spec)][-1]
            async with asyncio.timeout(_SECONDS):
                await _check(backend, handle, image, say, ["inside"] if polled else [])
        except TimeoutError:
            raise _unproved(image, f"its check did not end within {_SECONDS:.0f} s") from None
        finally:
            await backend.stop(handle)


async def clear(host: str) -> None:
    """Take away what trials left that were killed."""
    for folder in _of_trials():
        with contextlib.suppress(FileNotFoundError, BlockingIOError), _locked(folder):
            backend = _backend(folder, host)
            for found in await backend.found():
                await backend.stop(found.handle)
            shutil.rmtree(folder)


def _of_trials() -> list[Path]:
    """Our own folders; anybody may put others beside them."""
    with os.scandir(tempfile.gettempdir()) as entries:
        mine = [one for one in entries if one.name.startswith(_PREFIX) and one.is_dir(follow_symlinks=False)]
        return [Path(one.path) for one in mine if one.stat(follow_symlinks=False).st_uid == os.geteuid()]


def _backend(folder: Path, host: str) -> DockerBackend:
    fleet = "image" + "".join(c for c in folder.name.removeprefix(_PREFIX) if c.isalnum())
    return DockerBackend(Place(folder, fleet), host)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises BlockingIOError where another has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


async def _check(backend: DockerBackend, handle: Handle, image: str, say: Say, words: list[str]) -> None:
    assert backend.abilities.exec
    source = (IMAGES / "check.py").read_text("utf-8")
    process = await backend.abilities.exec.exec(handle, ["/usr/bin/python3", "-I", "-c", source, *words])
    said = ""
    async for line in _lines(process.output()):
        said = f"{said}{line}\n"[-2000:]
        say(line.rstrip())
    if await process.wait() != 0:
        raise _unproved(image, said.strip())


def _unproved(image: str, why: str) -> UnavailableError:
    return UnavailableError(f"a desktop of {image} does not work: {why}", code="image_unproved")


async def _lines(output: AsyncIterator[tuple[int, bytes]]) -> AsyncIterator[str]:
    """What was written, line by line, however it came."""
    left = b""
    async for _, data in output:
        *whole, left = (left + data).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
    if left:
        yield left.decode("utf-8", "replace")
