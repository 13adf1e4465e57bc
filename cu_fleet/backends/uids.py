"""Host user ids of their own for desktops, where we are root: what one desktop runs as, nobody else here does.

Limits that the kernel counts by user (watches, keys, pending signals) are then each desktop's own too. A link named
by the uid says whose it is, and making the link is what takes it.
"""

import contextlib
import hashlib
import os
from pathlib import Path

from cu_fleet.model.errors import UnavailableError

_EACH = 4096  # for each fleet, out of the quarter of a thousand million that systemd's table leaves to nobody
_FROM = 0x7000_0000


class Uids:
    """The range that `owner` (a fleet, or a backend of it) has, and who has which of it, as links in `folder`."""

    def __init__(self, folder: Path, owner: str) -> None:
        self.folder = folder
        first = _FROM + int(hashlib.sha256(owner.encode()).hexdigest()[:4], 16) * _EACH
        self.range = range(first, first + _EACH)

    def owners(self) -> dict[Path, str]:
        owners = {}
        for path in self.folder.iterdir() if self.folder.exists() else ():
            with contextlib.suppress(FileNotFoundError):  # another desktop gives its own back at this moment
                owners[path] = str(path.readlink())
        return owners

    def of(self, desktop: str) -> int | None:
        """The uid this desktop has; None if it has none of its own, as when we are an ordinary user."""
        return next((int(path.name) for path, owner in self.owners().items() if owner == desktop), None)

    def take(self, desktop: str, *, elsewhere: bool = False) -> int | None:
        """A uid that no other desktop has; the one it has already, if it has one.

        Only root can use one on this machine; `elsewhere` is for a machine where somebody else does.
        """
        if os.geteuid() != 0 and not elsewhere:
            return None
        if (has := self.of(desktop)) is not None:
            return has
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for uid in self.range:
            try:
                (self.folder / str(uid)).symlink_to(desktop)
            except FileExistsError:
                continue
            return uid
        raise UnavailableError(f"all {_EACH} user ids of this fleet are taken", code="no_uid")

    def free(self, desktop: str) -> None:
        for path, owner in self.owners().items():
            if owner == desktop:
                path.unlink(missing_ok=True)
