"""Three ways to an image, which end with the same script over the same list of packages.

By its Dockerfile, where an image registry can be reached. Where none can: the first image is a file system that
mmdebstrap makes of the distribution's packages; and what rests on another image is a layer, installed in a container
that reaches nothing, from packages that this machine's apt has fetched, by that image's own sources and keys.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cu_fleet.backends.docker.engine import image_of, short_log
from cu_fleet.backends.docker.recipes import DIGEST, IMAGES, PACKAGED, Recipe
from cu_fleet.model.errors import ConflictError, UnavailableError

if TYPE_CHECKING:
    from docker import APIClient

Say = Callable[[str], None]
_SUITE = "bookworm"
_LANGUAGES = "Acquire::Languages none"
_EXCLUDED = ("man", "doc", "info", "locale")
_INTO = "/mnt"  # of the image, where a layer's packages lie while they are installed, and every image has a folder
_SOURCES = ("etc/apt", "var/lib/dpkg/status")
_ARCHITECTURES = {"arm": "armhf", "386": "i386"}  # where an engine and Debian have different names


def by_dockerfile(api: APIClient, recipe: Recipe, base: str, digest: str, say: Say, *, fresh: bool) -> None:
    lines = api.build(
        path=str(IMAGES.resolve()),
        dockerfile=f"{recipe.name}/Dockerfile",
        tag=recipe.candidate,
        buildargs={"BASE": base},
        labels={DIGEST: digest},
        network_mode="host",
        nocache=fresh,
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
        raise _failed(recipe.name, error)


def of_packages(api: APIClient, recipe: Recipe, digest: str, say: Say) -> None:
    with tempfile.TemporaryDirectory(prefix="cu-fleet-image-") as folder:
        archive = Path(folder) / "root.tar"
        from_packages(recipe.name, archive, say)
        load(api, recipe.name, archive, say, recipe.candidate.rpartition(":")[2], digest)


def from_packages(name: str, archive: Path, say: Say) -> None:
    """Make the image's file system of the distribution's packages, as one archive."""
    _need("mmdebstrap")
    recipe = Recipe(name)
    into = "/tmp/image"  # noqa: S108  # of the new file system
    command = ["mmdebstrap", "--format=tar", "--variant=minbase", f"--aptopt={_LANGUAGES}"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in _EXCLUDED]
    command += [f"--include={','.join(recipe.packages)}"]
    command += [f'--customize-hook=mkdir -p "$1{into}"']
    command += [f"--customize-hook=copy-in {IMAGES.resolve() / 'setup'} {recipe.path('packages')} {into}"]
    command += [f'--customize-hook=chroot "$1" sh {into}/setup {into}/packages']
    command += [f'--customize-hook=rm -r "$1{into}"', _SUITE, str(archive)]
    _run(name, command, lambda line: say(line[2:].strip()) if line.startswith("I:") else None)


def load(api: APIClient, name: str, archive: Path, say: Say, tag: str, digest: str | None = None) -> None:
    """Give the engine a file system as an image."""
    recipe = Recipe(name)
    say(f"importing {archive.stat().st_size >> 20} MiB")
    changes = [*recipe.changes, *_labels(digest or recipe.digest(""))]
    with archive.open("rb") as file:
        chunks = iter(partial(file.read, 1 << 20), b"")
        answer = api.import_image_from_stream(chunks, repository=recipe.image, tag=tag, changes=changes)
    for line in answer.splitlines():
        if "error" in (said := json.loads(line)):
            raise UnavailableError(f"image {name} could not be imported: {said['error']}", code="image_failed")


def as_layer(api: APIClient, recipe: Recipe, base: str, digest: str, say: Say) -> None:
    _need("apt-get")
    with tempfile.TemporaryDirectory(prefix="cu-fleet-image-") as folder:
        container = _worker(api, recipe, base)
        try:
            debs = _fetched(api, container, base, recipe, Path(folder), say)
            say(f"installing {len(debs)} packages")
            _hand_in(api, container, recipe, debs, Path(folder) / "in.tar")
            _install(api, container, recipe, say)
            repository, _, tag = recipe.candidate.partition(":")
            changes = "\n".join([*recipe.changes, 'CMD ["/bin/bash"]', *_labels(digest)])
            api.commit(container, repository, tag=tag, changes=changes)
        finally:
            api.remove_container(container, v=True, force=True)


def _worker(api: APIClient, recipe: Recipe, base: str) -> str:
    """The container in which a layer is made, and of one that an earlier build left behind, the end."""
    from docker.errors import NotFound
    from docker.types import Mount

    name = f"cu-fleet-image-{recipe.name}"
    with suppress(NotFound):
        if api.inspect_container(name)["State"]["Running"]:
            raise ConflictError(
                f"image {recipe.name} is being built already", remedy=f"wait, or: docker rm -f {name}", code="building"
            )
        api.remove_container(name, v=True)
    config = api.create_host_config(
        mounts=[Mount(_INTO, None, type="volume")], network_mode="none", log_config=short_log("16m")
    )
    command = ["/bin/sh", f"{_INTO}/setup", f"{_INTO}/packages"]
    made = api.create_container(
        base, command, name=name, user="0:0", entrypoint=[], working_dir="/", host_config=config
    )
    return str(made["Id"])


def _fetched(api: APIClient, container: str, base: str, recipe: Recipe, folder: Path, say: Say) -> list[Path]:
    """The packages that are missing there, as this machine's apt finds and checks them with that image's sources."""
    of = folder / "of"
    for path in _SOURCES:
        stream, _ = api.get_archive(container, f"/{path}")
        _lay_out(b"".join(stream), of / Path(path).parent)
    for needed in ("lists/partial", "archives/partial"):
        (folder / needed).mkdir(parents=True)
    architecture = str((image_of(api, base) or {})["Architecture"])
    options = {
        "Dir::Etc": f"{of}/etc/apt", "Dir::Etc::trustedparts": f"{of}/etc/apt/trusted.gpg.d",
        "Dir::State": f"{of}/var/lib/dpkg", "Dir::State::status": f"{of}/var/lib/dpkg/status",
        "Dir::State::lists": f"{folder}/lists", "Dir::Cache": f"{folder}/cache",
        "Dir::Cache::archives": f"{folder}/archives", "APT::Sandbox::User": "", "Acquire::Languages": "none",
        "APT::Architecture": _ARCHITECTURES.get(architecture, architecture), "APT::Architectures": "",
    }  # fmt: skip
    apt = ["apt-get", "-qq", "-y", *(f"-o{key}={value}" for key, value in options.items())]
    say("fetching packages")
    _run(recipe.name, [*apt, "update"], say)
    _run(recipe.name, [*apt, "--no-install-recommends", "--download-only", "install", *recipe.packages], say)
    return sorted((folder / "archives").glob("*.deb"))


def _lay_out(archive: bytes, folder: Path) -> None:
    """Its files and folders, and nothing else; Debian 12's Python has no filter for `extractall` yet."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            target = Path(os.path.normpath(folder / member.name))
            if not target.is_relative_to(folder) or not (member.isdir() or member.isfile()):
                continue
            (target if member.isdir() else target.parent).mkdir(parents=True, exist_ok=True)
            if file := tar.extractfile(member):
                target.write_bytes(file.read())


def _hand_in(api: APIClient, container: str, recipe: Recipe, debs: list[Path], archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        for path in (IMAGES / "setup", recipe.path("packages")):
            tar.add(path, path.name)
        for deb in debs:
            tar.add(deb, f"debs/{deb.name}")
    with archive.open("rb") as file:
        api.put_archive(container, _INTO, file)


def _install(api: APIClient, container: str, recipe: Recipe, say: Say) -> None:
    api.start(container)
    said: list[str] = []
    left = b""
    for chunk in api.logs(container, stream=True, follow=True):  # to its end, or its connection would stay open
        *lines, left = (left + chunk).split(b"\n")
        for line in (one.decode("utf-8", "replace").rstrip() for one in lines):
            said = [*said, line][-10:]
            if line.startswith("Setting up "):
                say(line)
    if api.wait(container)["StatusCode"]:
        raise _failed(recipe.name, "\n".join(said))


def _labels(digest: str) -> list[str]:
    return [f"LABEL {DIGEST}={digest}", f"LABEL {PACKAGED}=1"]


def _run(name: str, command: list[str], heard: Callable[[str], None]) -> None:
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        out: IO[str] | None = process.stdout
        assert out
        for line in out:
            said = [*said, line.rstrip()][-10:]
            heard(line.rstrip())
    if process.returncode:
        raise _failed(name, "\n".join(said))


def _need(program: str) -> None:
    if shutil.which(program) is None:
        raise UnavailableError(
            f"no image registry can be reached, and {program} is not installed to build without one",
            remedy=f"apt-get install {program}" if program != "apt-get" else "build it on Debian or Ubuntu",
            code="missing_program",
        )


def _failed(name: str, why: str) -> UnavailableError:
    return UnavailableError(f"image {name} could not be built: {why}", code="image_failed")
