"""The machine the numbers belong to, and its processes as /proc shows them."""

import asyncio
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cu_fleet import __version__

_TICK = os.sysconf("SC_CLK_TCK")
_PROGRAMS = {"bubblewrap": ["bwrap", "--version"], "xvnc": ["Xvnc", "-version"], "openbox": ["openbox", "--version"]}


def facts(home: Path) -> dict[str, Any]:
    system = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "system": system.get("PRETTY_NAME", platform.system()),
        "root": os.geteuid() == 0,
        "load": round(os.getloadavg()[0], 2),  # by others, before we began
        "home_on": _filesystem(home),
        "versions": {"cu_fleet": __version__, "python": platform.python_version(), **_versions()},
    }


def in_words(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    size = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
    who = "root" if machine["root"] else "an ordinary user"
    where = f"{machine['cores']} cores ({machine['processor']}), {size}, {machine['system']}, Linux {machine['kernel']}"
    return f"{where}\nload {machine['load']} before, home on {machine['home_on']}, as {who}\n{versions}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _filesystem(path: Path) -> str:
    """The kind of file system a path lies on: the longest mount point that leads there."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    leading = [(len(words[1]), words[2]) for words in mounts if path.resolve().is_relative_to(words[1])]
    return max(leading, default=(0, "unknown"))[1]


def _versions() -> dict[str, str]:
    return {name: _version(argv) for name, argv in _PROGRAMS.items() if shutil.which(argv[0])}


def _version(argv: list[str]) -> str:
    """The first word of what it says of itself that looks like a version."""
    said = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    words = f"{said.stdout} {said.stderr}".split()
    return next((word.strip(",") for word in words if word[:1].isdigit() and "." in word), "unknown")


# processes


def private_memory(pid: int) -> int:
    """Bytes that would come free if this process ended; 0 if it has."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


async def steady_memory(pid: int) -> int:
    """The same of a process that starts others: for the moment of each start it shares all it has with them."""
    found = list[int]()
    for _ in range(5):
        found.append(private_memory(pid))
        await asyncio.sleep(0.05)
    return max(found)


def descriptors(pid: int) -> int:
    """How many file descriptors a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def busy_seconds() -> float:
    """What all cores together have worked since the machine started."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    idle = int(words[3]) + int(words[4])
    return (sum(map(int, words)) - idle) / _TICK


def of_desktop(marker: str) -> dict[str, int]:
    """The private memory of a desktop's processes, by program: those that bear its marker, and all below them."""
    parents, names, roots = {}, {}, set()
    for pid in _pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            name, _, fields = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[pid], names[pid] = int(fields.split()[1]), name
        if marker.encode() in words:
            roots.add(pid)
    memory: dict[str, int] = {}
    for pid in _with_children(roots, parents):
        memory[names[pid]] = memory.get(names[pid], 0) + private_memory(pid)
    return memory


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _with_children(roots: Iterable[int], parents: dict[int, int]) -> set[int]:
    found, new = set[int](), set(roots)
    while new:
        found |= new
        new = {pid for pid, parent in parents.items() if parent in found} - found
    return found
