"""How much a desktop has written to this machine's disk: counted by `du`, which no nesting and no link leads astray.

An ordinary user may not read the folders that its own desktop has closed to its owner, and so counts as the root of a
user namespace, who may. Each name counts a little, too, so that millions of empty files are no way around a limit. Nor
are files that have no name any more: those that a process of the desktop has open are counted by their descriptors.
Only what is mapped into memory alone, its descriptor closed and its name removed, is not seen.
"""

import asyncio
import contextlib
import os
import stat
from pathlib import Path

from cu_fleet.backends.local import demands, processes
from cu_fleet.model.errors import UnavailableError

_EACH_NAME = 512
_READER = ["bwrap", "--unshare-user", "--uid", "0", "--gid", "0", "--cap-add", "CAP_DAC_READ_SEARCH"]
_READER += ["--ro-bind", "/", "/", "--dev", "/dev", "--"]
_COUNT = ["du", "--summarize", "--one-file-system", "--null"]


async def used(folder: Path, first: int | None) -> int:
    """What lies in the folder, and what all that descends from this process holds of the same file system."""
    named = await _count(folder, "--block-size=1") + _EACH_NAME * await _count(folder, "--inodes")
    return named + (await asyncio.to_thread(_nameless, folder, first) if first else 0)


def _nameless(folder: Path, first: int) -> int:
    here, sizes = folder.stat().st_dev, dict[int, int]()
    for process in processes.tree(first):
        with contextlib.suppress(OSError):  # it has ended
            for link in list(os.scandir(f"/proc/{process.pid}/fd")):
                with contextlib.suppress(OSError):
                    found = link.stat()
                    if stat.S_ISREG(found.st_mode) and found.st_nlink == 0 and found.st_dev == here:
                        sizes[found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


async def _count(folder: Path, what: str) -> int:
    argv = ["nice", *(_READER if os.geteuid() != 0 else []), *_COUNT, what, "--", str(folder)]
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL, env={"PATH": demands.PATH, "LC_ALL": "C"}, cwd="/",
    )  # fmt: skip
    try:
        said, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    try:
        return int(said.split(b"\t")[0])  # what vanished meanwhile makes it end with 1, and does not matter
    except ValueError:
        raise UnavailableError(f"what lies in {folder} could not be counted", code="not_counted") from None
