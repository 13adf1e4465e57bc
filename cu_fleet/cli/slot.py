"""What lies in a desktop's `~/Shared`, as its controller lists it, and its paths in safe parts.

A desktop may be hostile, and its list of files with it: a path from there is taken apart, and one that could lead
elsewhere is refused together with all the rest.
"""

from collections.abc import AsyncIterator
from typing import Any

from cu_fleet.cli import connect, output
from cu_fleet.model.errors import BrokenError, InvalidError, NotFoundError

MOST = 100_000  # files of one copy
DEEPEST = 64

Info = dict[str, Any]  # one file or folder: path, kind, size, mtime, mode


def safe(path: str, which: str) -> str:
    """A path below ~/Shared as people write it, in its plain form."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or path.startswith(("~", "/")):
        raise InvalidError(f"{which}: {path!r} must be a path below ~/Shared", code="usage")
    return "/".join(parts)


async def look(wire: connect.Wire, lease: str, path: str) -> Info | None:
    """What lies there, if anything does."""
    if not path:
        return {"path": "", "kind": "dir", "mode": 0o755}
    found = await _listing(wire, lease, path.rpartition("/")[0])
    return next((info for info in found if info["path"] == path), None)


async def tree(wire: connect.Wire, lease: str, root: str) -> AsyncIterator[tuple[Info, list[str]]]:
    """Everything below `root`, folders before what is in them, with its path from `root` in safe parts."""
    folders, seen = [root], {root}
    while folders:
        for info in await _listing(wire, lease, folders.pop()):
            name = str(info["path"])
            below = parts_below(name, root)
            if name in seen:
                continue
            seen.add(name)
            if len(seen) > MOST:
                raise BrokenError(f"lease {lease} shows more than {MOST} files: refused", code="too_many_files")
            if info["kind"] == "dir":
                folders.append(name)
            yield info, below


def parts_below(name: str, root: str) -> list[str]:
    """The parts of `name` after `root`; what would lead out of it is refused."""
    parts, above = name.split("/"), root.split("/") if root else []
    below = parts[len(above) :]
    good = parts[: len(above)] == above and below and all(_good(part) for part in below)
    if not good or len(parts) > DEEPEST:
        raise BrokenError(
            f"the desktop lists a file {output.clean(name)!r}, which is not below {root or '~/Shared'}",
            remedy="do not trust this desktop: revoke its lease",
            code="hostile_path",
        )
    return below


def _good(part: str) -> bool:
    return part not in ("", ".", "..") and "\x00" not in part and "/" not in part


async def _listing(wire: connect.Wire, lease: str, path: str) -> list[dict[str, Any]]:
    try:
        answer = await connect.ask(wire, "GET", connect.path("leases", lease, "files"), path=path)
    except NotFoundError as error:
        if error.code != "no_file":
            raise
        return []
    return list(answer["files"])
