"""`cu-fleet cp`: files in and out of a desktop's `~/Shared`.

What lies in a desktop may be hostile. So nothing of it decides where we write (`slot` sees to the paths); links are
never followed, in neither direction; and a file is written beside its place and then moved there, so that a link which
lies there already is replaced, not written through.
"""

import os
import re
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from cu_fleet.cli import connect, output
from cu_fleet.cli.common import Json, command
from cu_fleet.cli.slot import Info, look, safe, tree
from cu_fleet.model.errors import InvalidError, NotFoundError, UnavailableError

CHUNK = 256 << 10
_REMOTE = re.compile(r"((?:ls|dk)_[a-z0-9]{10}):(.*)", re.DOTALL)


@dataclass
class Tally:
    """What was copied, shown while it goes on."""

    files: int = 0
    bytes: int = 0
    skipped: list[str] = field(default_factory=list)
    line: output.Live = field(default_factory=output.Live)

    def add(self, name: str, count: int) -> None:
        self.bytes += count
        if self.bytes > 1 << 20:
            self.line.passing(f"{name}  {output.size(self.bytes)}")

    def skip(self, name: str, why: str) -> None:
        self.skipped.append(name)
        output.note(f"left out {name}: {why}")


def register(root: typer.Typer) -> None:
    command(
        root,
        "cp",
        "cu-fleet cp report.pdf ls_3k9m2c7d1x:",
        "cu-fleet cp ls_3k9m2c7d1x:out results",
        "tar c data | cu-fleet cp - ls_3k9m2c7d1x:data.tar",
        rich_help_panel="Look and do",
    )(cp)


def cp(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A file, a folder, LEASE:path, or - for standard input.")
    ],
    target: Annotated[str, typer.Argument(metavar="DST", help="Where to; - is standard output.")],
    as_json: Json = False,
) -> None:
    """Copy files into a desktop's ~/Shared or out of it; folders with all in them.

    One of the two is LEASE:path, a path below ~/Shared. As with cp, a target that is a folder (or ends with /) gets
    the source inside it. Links are left out.
    """
    from_lease, to_lease = _REMOTE.fullmatch(source), _REMOTE.fullmatch(target)
    if bool(from_lease) == bool(to_lease):
        raise InvalidError(
            "one of SRC and DST must be LEASE:path, the other one here",
            remedy="write it as ls_3k9m2c7d1x:path; a file here whose name looks like that as ./NAME",
            code="usage",
        )
    if as_json and target == "-":
        raise InvalidError("--json and - both want standard output", remedy="give DST a name", code="usage")
    tally = Tally()

    async def work(wire: connect.Wire) -> None:
        if from_lease:
            lease = await connect.lease_id(wire, from_lease[1])
            await _out(wire, lease, from_lease[2], target, tally)
        elif to_lease:
            await _in(wire, await connect.lease_id(wire, to_lease[1]), source, to_lease[2], tally)

    try:
        connect.run(work)
    finally:
        tally.line.clear()
    _report(tally, source, target, as_json)


def _report(tally: Tally, source: str, target: str, as_json: bool) -> None:
    if as_json:
        counts = {"files": tally.files, "bytes": tally.bytes, "skipped": tally.skipped}
        output.document({"from": source, "to": target, **counts})
    elif target != "-":
        output.note(f"{tally.files} file{'' if tally.files == 1 else 's'}, {output.size(tally.bytes)}")


# In


async def _in(wire: connect.Wire, lease: str, source: str, path: str, tally: Tally) -> None:
    path_there = safe(path, "DST")
    there_now = await look(wire, lease, path_there)
    into = path.endswith("/") or (there_now is not None and there_now["kind"] == "dir")
    if source == "-":
        if into:
            raise InvalidError("standard input needs a file name in DST", code="usage")
        return await _put(wire, lease, path_there, _stdin_chunks("-", tally), 0o644, tally)
    here, name = _source(source)
    there = "/".join(filter(None, [path_there, name])) if into else path_there
    for file, name in _files_here(here, there, tally):
        mode = stat.S_IMODE(file.stat().st_mode) & 0o777
        await _put(wire, lease, name, _file_chunks(file, name, tally), mode, tally)
    return None


def _source(source: str) -> tuple[Path, str]:
    here = Path(source)
    if not here.exists():
        raise NotFoundError(f"there is no {source} here", code="no_file")
    return here, here.resolve().name


def _files_here(here: Path, there: str, tally: Tally) -> Iterator[tuple[Path, str]]:
    if not here.is_dir():
        yield here, there
        return
    for folder, folders, files in os.walk(here):
        below = Path(folder).relative_to(here).as_posix()
        prefix = there if below == "." else f"{there}/{below}"
        for name in sorted(files + [name for name in folders if (Path(folder) / name).is_symlink()]):
            file = Path(folder) / name
            if file.is_symlink() or not file.is_file():
                tally.skip(str(file), "a link" if file.is_symlink() else "neither a file nor a folder")
            else:
                yield file, f"{prefix}/{name}".lstrip("/")
        if not files and not folders:
            tally.skip(folder, "an empty folder")


async def _put(
    wire: connect.Wire, lease: str, path: str, chunks: AsyncIterator[bytes], mode: int, tally: Tally
) -> None:
    await connect.upload(wire, connect.path("leases", lease, "files", *path.split("/")), chunks, mode=f"{mode:04o}")
    tally.files += 1


async def _file_chunks(file: Path, name: str, tally: Tally) -> AsyncIterator[bytes]:
    with _opened(file) as data:
        while chunk := data.read(CHUNK):
            tally.add(name, len(chunk))
            yield chunk


def _opened(file: Path) -> Any:
    try:
        return file.open("rb")
    except OSError as error:
        raise UnavailableError(f"{file} cannot be read: {error.strerror}", code="not_readable") from None


async def _stdin_chunks(name: str, tally: Tally) -> AsyncIterator[bytes]:
    descriptor = sys.stdin.fileno()
    while chunk := await read_some(descriptor):
        tally.add(name, len(chunk))
        yield chunk


async def read_some(descriptor: int) -> bytes:
    """The next bytes of a pipe or file, without keeping ^C waiting for them."""
    import asyncio

    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(descriptor, readable.set)
    except PermissionError:  # a file: never waits
        return os.read(descriptor, CHUNK)
    try:
        await readable.wait()
        return os.read(descriptor, CHUNK)
    finally:
        loop.remove_reader(descriptor)


# Out


async def _out(wire: connect.Wire, lease: str, path: str, target: str, tally: Tally) -> None:
    there = safe(path, "SRC")
    info = await look(wire, lease, there)
    if info is None or info["kind"] not in ("file", "dir"):
        what = f"{there} is a {info['kind']}" if info else f"there is no {there}"
        remedy = f"take all of it out: cu-fleet cp {lease}: DIR"
        raise NotFoundError(f"{what} in ~/Shared of lease {lease}", remedy=remedy, code="no_file")
    folder = info["kind"] == "dir"
    if target == "-":
        if folder:
            raise InvalidError(f"{there or '~/Shared'} is a folder: it cannot go to standard output", code="usage")
        return await _to_stdout(wire, lease, there, tally)
    place = _target(target, there)
    if folder:
        return await folder_out(wire, lease, there, place, tally)
    return await _get(wire, lease, info, place, place.parent, tally)


def _target(target: str, path: str) -> Path:
    place, into = Path(target), target.endswith("/") or Path(target).is_dir()
    return place / path.rsplit("/", 1)[-1] if path and into else place


async def folder_out(wire: connect.Wire, lease: str, path: str, place: Path, tally: Tally) -> None:
    _folder(place, place)
    async for info, below in tree(wire, lease, path):
        there = place.joinpath(*below)
        if info["kind"] == "dir":
            _folder(there, place)
        elif info["kind"] == "file":
            await _get(wire, lease, info, there, place, tally)
        else:
            tally.skip(info["path"], f"a {info['kind']}")


async def _get(wire: connect.Wire, lease: str, info: Info, place: Path, within: Path, tally: Tally) -> None:
    _folder(place.parent, within)
    path, part = str(info["path"]), place.with_name(f".cu-fleet.{os.getpid()}.part")
    allowed = 0o777 if int(info["mode"]) & 0o111 else 0o666  # the umask does the rest
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, allowed)
        with os.fdopen(descriptor, "wb") as to:
            async for chunk in connect.download(wire, connect.path("leases", lease, "files", *path.split("/"))):
                to.write(chunk)
                tally.add(path, len(chunk))
        part.replace(place)
    except OSError as error:
        raise UnavailableError(f"{place} cannot be written: {error.strerror}", code="not_writable") from None
    finally:
        part.unlink(missing_ok=True)
    tally.files += 1


def _folder(folder: Path, within: Path) -> None:
    """Make `folder`, which is below `within`, without going through a link on the way."""
    for place in [*reversed(folder.relative_to(within).parents), Path(folder.relative_to(within))]:
        step = within / place
        if step != within and step.is_symlink():
            raise UnavailableError(f"{step} is a link: nothing is written through it", code="not_writable")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"{folder} cannot be made: {error.strerror}", code="not_writable") from None


async def _to_stdout(wire: connect.Wire, lease: str, path: str, tally: Tally) -> None:
    async for chunk in connect.download(wire, connect.path("leases", lease, "files", *path.split("/"))):
        sys.stdout.buffer.write(chunk)
        tally.bytes += len(chunk)
    sys.stdout.buffer.flush()
    tally.files += 1
