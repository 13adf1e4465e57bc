"""The /etc that desktops see: a copy of the entries on an allow-list, shared by all, made anew when they change.

Only what anybody may read is copied. Binding each entry by itself would be simpler, and took half of a start's time:
a mount is dear in a fresh user namespace. What differs between desktops are links into a folder of each desktop's own.
"""

import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from cu_fleet.backends.tree import wipe

_ETC = Path("/etc")
_SHOWN = """alternatives bash.bashrc ca-certificates ca-certificates.conf chromium* dbus-1 dconf debian_version drirc
    emacs firefox* fonts gai.conf ghostscript glvnd gtk-* host.conf ImageMagick-* inputrc java* ld.so.cache
    ld.so.conf ld.so.conf.d libreoffice locale.alias lsb-release magic magic.mime mailcap mime.types nanorc networks
    OpenCL os-release papersize perl pki protocols pulse python3* rpc services shells ssl terminfo vim vulkan X11
    xattr.conf xdg"""
OWN = ("group", "hostname", "hosts", "localtime", "machine-id", "nsswitch.conf", "passwd", "resolv.conf", "timezone")


class Etc:
    """The copy below `folder`, one for each state of the host's /etc; running desktops keep the one they have."""

    def __init__(self, folder: Path, own: str) -> None:
        self.folder = folder
        self._own = own  # where a desktop sees its own files
        self._watched: dict[Path, int] = {}
        self._current: Path | None = None
        self._making = threading.Lock()

    def current(self) -> Path:
        """The copy to use now."""
        with self._making:
            return self._up_to_date()

    def _up_to_date(self) -> Path:
        if self._current is None or not self._current.exists() or self._watched != _times(self._watched):
            entries = _entries()
            self._watched = _times([_ETC, *entries, *(f for e in entries for f in _folders(e))])
            self._current = self._copy(entries)
        return self._current

    def _copy(self, entries: list[Path]) -> Path:
        sign = hashlib.sha256(repr((self._own, sorted(self._watched.items()))).encode()).hexdigest()[:16]
        new = self.folder / sign
        if not new.exists():
            self.folder.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._clear()
            partial = self.folder / f"{sign}.{os.getpid()}.partial"
            partial.mkdir(mode=0o755)
            for entry in entries:
                copy(entry, partial / entry.name)
            for name in OWN:
                (partial / name).symlink_to(f"{self._own}/{name}")
            (partial / "mtab").symlink_to("/proc/mounts")
            partial.rename(new)
        return new

    def _clear(self) -> None:
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            running = any(path.name.startswith("dk_") for path in self.folder.parent.iterdir())
            for path in list(self.folder.iterdir()):
                if path.name.endswith(".partial") or not running:  # a running desktop needs the copy it began with
                    wipe(fd, path.name)
        finally:
            os.close(fd)


def _entries() -> list[Path]:
    return sorted({path for pattern in _SHOWN.split() for path in _ETC.glob(pattern)})


def _folders(top: Path) -> Iterator[Path]:
    """Packages replace files by renaming, which their folder's time shows."""
    if not top.is_symlink():
        for folder, _, _ in os.walk(top):
            yield Path(folder)


def _times(paths: Iterable[Path]) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in paths if os.path.lexists(path)}


def copy(source: Path, to: Path) -> None:
    """Copy what anybody may read, links as links; ownership, times and attributes do not matter."""
    found = source.lstat()
    if stat.S_ISLNK(found.st_mode):
        to.symlink_to(source.readlink())
    elif stat.S_ISDIR(found.st_mode) and found.st_mode & 0o005 == 0o005:
        to.mkdir(mode=0o755)
        for inner in sorted(source.iterdir()):
            copy(inner, to / inner.name)
    elif stat.S_ISREG(found.st_mode) and found.st_mode & 0o004:
        shutil.copyfile(source, to)
        to.chmod(0o755 if found.st_mode & 0o001 else 0o644)
