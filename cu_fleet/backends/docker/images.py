"""Building the images of desktops: from a public base, or, where no image registry can be reached, from packages.

Both ways end with the same script over the same list of packages. A new image gets its name only when a desktop of
it has proved its screen, pointer, keyboard and clipboard; until then the old one stays in use.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from cu_fleet.backends.base import Place, Spec
from cu_fleet.backends.docker.backend import DockerBackend
from cu_fleet.backends.docker.engine import Engine, image_of, patient
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import NotFoundError, UnavailableError
from cu_fleet.model.names import new_id
from cu_fleet.model.profile import Profile

if TYPE_CHECKING:
    from docker import APIClient

IMAGES = Path(str(files("cu_fleet").joinpath("images")))
Say = Callable[[str], None]
_BASE, _BASE_TAG, _SUITE = "debian", "bookworm-slim", "bookworm"
_CANDIDATE = "candidate"
_LANGUAGES = "Acquire::Languages none"
_EXCLUDED = ("man", "doc", "info", "locale")
_CHANGES = ["USER 1000:1000", "WORKDIR /"]
_SECONDS_TO_BUILD = 1800


@dataclass(frozen=True)
class Image:
    name: str
    id: str | None  # None: not built yet
    size_bytes: int = 0
    created: str = ""


def names() -> list[str]:
    """The images there are recipes for."""
    return sorted(path.parent.name for path in IMAGES.glob("*/Dockerfile"))


def listing(api: APIClient) -> list[Image]:
    found = [(name, image_of(api, f"cu-fleet/{name}")) for name in names()]
    return [
        Image(f"cu-fleet/{name}", one["Id"], one["Size"], one["Created"]) if one else Image(f"cu-fleet/{name}", None)
        for name, one in found
    ]


def packages(name: str) -> list[str]:
    lines = (IMAGES / name / "packages").read_text("utf-8").splitlines()
    return [word for line in lines for word in line.partition("#")[0].split()]


async def build(engine: Engine, name: str, say: Say, base: str | None = None) -> Image:
    """Build an image, prove it, and only then give it its name. `base` is one to build from instead of the public."""
    if name not in names():
        raise NotFoundError(f"there is no recipe for an image {name}", remedy=f"there are {', '.join(names())}")
    candidate = f"cu-fleet/{name}:{_CANDIDATE}"
    await engine.do(lambda api: _build(api, name, say, base))
    try:
        say("trying a desktop of it")
        await prove(engine.host, candidate, say)
        await engine.do(lambda api: _replace(api, name, candidate))
    finally:
        await engine.do(lambda api: _untag(api, candidate))
    [made] = [one for one in await engine.do(listing) if one.name == f"cu-fleet/{name}"]
    return made


def _replace(api: APIClient, name: str, candidate: str) -> None:
    """Give the image its name, and remove the one that had it, unless a desktop or a snapshot still needs that."""
    from docker.errors import APIError

    before, new = image_of(api, f"cu-fleet/{name}"), image_of(api, candidate)
    api.tag(candidate, f"cu-fleet/{name}", "latest")
    if before and new and before["Id"] != new["Id"] and not before.get("RepoTags", [])[1:]:
        try:
            api.remove_image(before["Id"])
        except APIError as e:
            if e.status_code not in (404, 409):
                raise


def _untag(api: APIClient, name: str) -> None:
    if image_of(api, name):
        api.remove_image(name)


def _build(api: APIClient, name: str, say: Say, base: str | None) -> None:
    with patient(api, _SECONDS_TO_BUILD):
        if base or _pulled(api, say):
            _from_base(api, name, say, base or f"{_BASE}:{_BASE_TAG}")
        else:
            with tempfile.TemporaryDirectory(prefix="cu-fleet-image-") as folder:
                archive = Path(folder) / "root.tar"
                from_packages(name, archive, say)
                load(api, name, archive, say)


def _pulled(api: APIClient, say: Say) -> bool:
    """Whether the public base is here, or could be had."""
    from docker.errors import APIError

    say(f"fetching {_BASE}:{_BASE_TAG}")
    try:
        api.pull(_BASE, tag=_BASE_TAG)
    except APIError as e:
        say(f"no image registry can be reached ({e.explanation}): building from {_SUITE}'s packages instead")
        return image_of(api, f"{_BASE}:{_BASE_TAG}") is not None
    return True


def _from_base(api: APIClient, name: str, say: Say, base: str) -> None:
    lines = api.build(
        path=str(IMAGES.resolve()),
        dockerfile=f"{name}/Dockerfile",
        tag=f"cu-fleet/{name}:{_CANDIDATE}",
        buildargs={"BASE": base},
        network_mode="host",
        rm=True,
        forcerm=True,
        decode=True,
    )
    error = ""
    for line in lines:  # to the end, or its connection would stay open
        error = error or str(line.get("error", ""))
        for text in str(line.get("stream", "")).splitlines():
            if text.strip():
                say(text.rstrip())
    if error:
        raise UnavailableError(f"image {name} could not be built: {error}", code="image_failed")


def from_packages(name: str, archive: Path, say: Say) -> None:
    """Make the image's file system of the distribution's packages, as one archive."""
    if shutil.which("mmdebstrap") is None:
        raise UnavailableError(
            "no image registry can be reached, and mmdebstrap is not installed to build without one",
            remedy="apt-get install mmdebstrap",
            code="missing_program",
        )
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in _EXCLUDED]
    into = "/tmp/image"  # noqa: S108  # of the new file system
    command = ["mmdebstrap", "--format=tar", "--variant=minbase", f"--aptopt={_LANGUAGES}", *excluded]
    command += [f"--include={','.join(packages(name))}"]
    command += [f'--customize-hook=mkdir -p "$1{into}"']
    command += [f"--customize-hook=copy-in {IMAGES.resolve() / 'setup'} {IMAGES.resolve() / name / 'packages'} {into}"]
    command += [f'--customize-hook=chroot "$1" sh {into}/setup {into}/packages']
    command += [f'--customize-hook=rm -r "$1{into}"', _SUITE, str(archive)]
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            said = [*said, line.rstrip()][-10:]
            if line.startswith("I:"):
                say(line.removeprefix("I:").strip())
    if process.returncode:
        raise UnavailableError(f"image {name} could not be built: " + "\n".join(said), code="image_failed")


def load(api: APIClient, name: str, archive: Path, say: Say, tag: str = _CANDIDATE) -> None:
    """Give the engine a file system as an image."""
    say(f"importing {archive.stat().st_size >> 20} MiB")
    with archive.open("rb") as file:
        chunks = iter(partial(file.read, 1 << 20), b"")
        answer = api.import_image_from_stream(chunks, repository=f"cu-fleet/{name}", tag=tag, changes=_CHANGES)
    for line in answer.splitlines():
        if "error" in (said := json.loads(line)):
            raise UnavailableError(f"image {name} could not be imported: {said['error']}", code="image_failed")


async def prove(host: str, image: str, say: Say) -> None:
    """Start a desktop of this image and have it prove that it works; the desktop is removed whatever comes of it."""
    with tempfile.TemporaryDirectory(prefix="cu-fleet-image-") as folder:
        backend = DockerBackend(Place(Path(folder), "image" + new_id("dk")[3:]), host)
        spec = Spec(new_id("dk"), Profile(name="check", backend="docker", image=image), new_id("bt"), "check")
        handle: Handle = {"desktop": spec.desktop}
        try:
            handle = [one async for one in backend.start(spec)][-1]
            await _check(backend, handle, image, say)
        finally:
            await backend.stop(handle)


async def _check(backend: DockerBackend, handle: Handle, image: str, say: Say) -> None:
    assert backend.abilities.exec
    source = (IMAGES / "check.py").read_text("utf-8")
    process = await backend.abilities.exec.exec(handle, ["/usr/bin/python3", "-I", "-c", source])
    said = ""
    async for line in _lines(process.output()):
        said = f"{said}{line}\n"[-2000:]
        say(line.rstrip())
    if await process.wait() != 0:
        raise UnavailableError(f"a desktop of {image} does not work: {said.strip()}", code="image_unproved")


async def _lines(output: AsyncIterator[tuple[int, bytes]]) -> AsyncIterator[str]:
    """What was written, line by line, however it came."""
    left = b""
    async for _, data in output:
        *whole, left = (left + data).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
    if left:
        yield left.decode("utf-8", "replace")
