"""What a desktop may write — its home and its /tmp — begun anew, saved, and put back exactly.

    DESKTOP/state/{home,tmp}            what the desktop has
    DESKTOP/state.partial               being built; takes the place of `state` by one rename
    DESKTOP/trash                       on its way out
    SNAPSHOTS/ID/{tree/…, manifest}     a snapshot: names and contents, and what they were like
    SNAPSHOTS/ID.partial                one that is not whole; never restored

Whatever step a crash falls on, doing the same again gives the same. Nothing is reported as done before a survey of
the result has been compared with what it should be. In a snapshot every file is plain and private to the controller:
modes, owners and attributes lie in its manifest, so that a desktop's set-uid file is nothing but bytes out there.
"""

import contextlib
import ctypes
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_IFDIR, S_IFMT, S_IFREG

from cu_fleet.backends.content import digest_of
from cu_fleet.backends.inside import BEGINNING, HOME_BEGINS
from cu_fleet.backends.tree import Entry, Manifest, Tree, differences, wipe
from cu_fleet.model.errors import BrokenError, ConflictError, NotFoundError, UnavailableError
from cu_fleet.model.names import check_name

_SKELETON: dict[str, tuple[int, bytes | None]] = {
    "home": (0o700, None),
    **{f"home/{path}": what for path, what in HOME_BEGINS.items()},
    "home/Shared": (0o755, None),  # where the slot is bound
    "tmp": (0o1777, None),
}
_PASSING = re.compile(r"tmp/(\.t?X\d+-lock|\.X11-unix(/.*)?)|home/Shared/.*", re.DOTALL)
_PARTIAL = ".partial"


class State:
    """The states of one backend's desktops and their snapshots. All calls block; run them in threads."""

    def __init__(self, desktops: Path, snapshots: Path) -> None:
        self.desktops = desktops
        self.snapshots = snapshots

    def fresh(self, desktop_dir: Path, template: Path | None, uid: int | None) -> None:
        """Make the state anew: the built-in home, and over it what the profile's template has."""
        self.put_back(desktop_dir, None, template, uid)

    def put_back(self, desktop_dir: Path, snapshot: str | None, template: Path | None, uid: int | None) -> None:
        """Replace the state by a snapshot, or by a clean one, and prove it. Its processes must have ended."""
        try:
            self.replace(desktop_dir, snapshot, template, uid)
        finally:
            self.tidy(desktop_dir)

    def replace(
        self,
        desktop_dir: Path,
        snapshot: str | None,
        template: Path | None,
        uid: int | None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """The same, but what the state was is left for `tidy`, and the new one is made beside it before it is replaced.

        So the processes need only have ended when `ended` returns, which is called in time.
        """
        if desktop_dir.parent != self.desktops:
            raise BrokenError(f"{desktop_dir} is no desktop of {self.desktops}")
        desktop_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        with _words(f"the state of {desktop_dir.name} could not be put back"):
            self.tidy(desktop_dir)
            try:
                self._make_room_and_make(desktop_dir, snapshot, template, uid, ended)
            except BaseException:
                self.tidy(desktop_dir)
                raise
            (desktop_dir / "trash").mkdir(mode=0o700)
            with contextlib.suppress(FileNotFoundError):
                (desktop_dir / "state").rename(desktop_dir / "trash" / "state")
            (desktop_dir / ("state" + _PARTIAL)).rename(desktop_dir / "state")

    def tidy(self, desktop_dir: Path) -> None:
        """Remove what is on its way out, and what was not finished."""
        _clear(desktop_dir, "trash", "state" + _PARTIAL)

    def _make_room_and_make(
        self,
        desktop_dir: Path,
        snapshot: str | None,
        template: Path | None,
        uid: int | None,
        ended: Callable[[], None],
    ) -> None:
        """What is to be clean may itself be what fills the disk: then it goes first."""
        try:
            self._make(desktop_dir, snapshot, template, uid)
            ended()
        except OSError as e:
            if snapshot is not None or e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            ended()
            _clear(desktop_dir, "state" + _PARTIAL, "state")
            self._make(desktop_dir, snapshot, template, uid)

    def _make(self, desktop_dir: Path, snapshot: str | None, template: Path | None, uid: int | None) -> None:
        owner = uid if os.geteuid() == 0 else None
        new = desktop_dir / ("state" + _PARTIAL)
        new.mkdir(mode=0o700)
        with Tree(new, lend=True) as tree:
            expected = self._build_saved(tree, snapshot) if snapshot else _build_clean(tree, template)
            tree.dress(expected, owner)
            if owner is not None:
                os.chown(tree.root, owner, owner)
            _prove(tree, expected, owner, f"the state of {desktop_dir.name}")

    def _build_saved(self, tree: Tree, snapshot: str) -> Manifest:
        folder = self._folder(snapshot)
        try:
            manifest = _read_manifest(folder / "manifest")
        except FileNotFoundError:
            raise NotFoundError(f"there is no snapshot {snapshot}", code="no_snapshot", snapshot=snapshot) from None
        with Tree(folder / "tree") as source:
            try:
                tree.build(manifest, source.take)
            except (ConflictError, FileNotFoundError) as e:
                raise BrokenError(f"snapshot {snapshot} is damaged: {e}", code="snapshot_damaged") from None
        return manifest

    def save(self, desktop_dir: Path, snapshot: str, copied: Callable[[], None] = lambda: None) -> int:
        """Save the state, whole or not at all; returns its size in bytes.

        The desktop must be frozen or ended until `copied` is called; proving and writing to disk come after it.
        """
        folder = self._folder(snapshot)
        if folder.exists():
            raise ConflictError(f"there already is a snapshot {snapshot}", code="snapshot_exists", snapshot=snapshot)
        self.snapshots.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.snapshots.chmod(0o700)
        partial = folder.with_name(snapshot + _PARTIAL)
        with _words(f"snapshot {snapshot} could not be saved"):
            _clear(self.snapshots, partial.name)
            try:
                size = self._save(desktop_dir / "state", partial, copied)
                partial.rename(folder)
                _sync(self.snapshots, os.fsync)
            except BaseException:
                _clear(self.snapshots, partial.name)
                raise
        return size

    def _save(self, state: Path, partial: Path, copied: Callable[[], None]) -> int:
        partial.mkdir(mode=0o700)
        (partial / "tree").mkdir(mode=0o700)
        with Tree(partial / "tree") as tree:
            with Tree(state, lend=True) as source:
                manifest = source.survey(digests=False, skip=_passing)
                tree.build(manifest, source.take)
            copied()
            kept, used = tree.survey(), tree.used
        manifest = {path: e._replace(digest=kept[path].digest) for path, e in manifest.items() if path in kept}
        wrong = differences(_bare(manifest), _bare(kept))
        if wrong:
            raise BrokenError(f"the copy of the state is not like it: {wrong[0]}", code="not_exact", wrong=wrong[:20])
        _write_manifest(partial / "manifest", manifest)
        _sync(partial, _syncfs)
        return used

    def delete(self, snapshot: str) -> None:
        """Remove a snapshot, if it is there; half-removed it is never taken for a whole one."""
        folder = self._folder(snapshot)
        with _words(f"snapshot {snapshot} could not be removed"):
            _clear(self.snapshots, snapshot + _PARTIAL)
            with contextlib.suppress(FileNotFoundError):
                folder.rename(folder.with_name(snapshot + _PARTIAL))
            _clear(self.snapshots, snapshot + _PARTIAL)

    def saved(self) -> list[str]:
        """The ids of all snapshots here, whole or not."""
        try:
            return sorted({path.name.removesuffix(_PARTIAL) for path in self.snapshots.iterdir()})
        except FileNotFoundError:
            return []

    def is_clean(self, desktop_dir: Path, template: Path | None, uid: int | None) -> bool:
        """Whether the state is what `fresh` would make."""
        try:
            with Tree(desktop_dir / "state", lend=True) as tree:
                with _template(template) as source:
                    expected = _clean(source)
                _prove(tree, expected, uid if os.geteuid() == 0 else None, desktop_dir.name)
        except (BrokenError, FileNotFoundError):
            return False
        return True

    def _folder(self, snapshot: str) -> Path:
        return self.snapshots / check_name("snapshot", snapshot.removesuffix(_PARTIAL))


def _passing(path: str) -> bool:
    """What belongs to the running screen or to the slot, not to the state."""
    return _PASSING.fullmatch(path) is not None


def _prove(tree: Tree, expected: Manifest, owner: int | None, what: str) -> None:
    actual = tree.survey(skip=_passing)
    wrong = differences(expected, actual)
    if owner is not None:
        wrong += [f"{path!r} belongs to somebody else" for path in tree.strangers(actual, owner)]
    if wrong:
        raise BrokenError(f"{what} is not as it should be: {wrong[0]}", code="not_exact", wrong=wrong[:20])


def _bare(manifest: Manifest) -> Manifest:
    """What a copy without modes, times and attributes has in common with its source."""
    return {path: e._replace(mode=S_IFMT(e.mode), mtime=0, attributes=()) for path, e in manifest.items()}


def _template(folder: Path | None) -> contextlib.AbstractContextManager[Tree | None]:
    return Tree(folder, lend=True) if folder else contextlib.nullcontext()


def _clean(template: Tree | None) -> Manifest:
    """What a fresh state has; what the template says wins over the built-in."""
    clean = {
        path: Entry(S_IFDIR | mode, mtime=BEGINNING, atime=BEGINNING)
        if content is None
        else Entry(S_IFREG | mode, len(content), BEGINNING, BEGINNING, digest=digest_of(content))
        for path, (mode, content) in _SKELETON.items()
    }
    if template:
        for path, entry in template.survey(skip=lambda path: _passing(f"home/{path}")).items():
            clean[f"home/{path}"] = entry._replace(twin=entry.twin and f"home/{entry.twin}")
    return clean


def _build_clean(tree: Tree, folder: Path | None) -> Manifest:
    with _template(folder) as template:
        clean = _clean(template)

        def fill(path: str, entry: Entry, to: int) -> None:
            built_in = _SKELETON.get(path, (0, None))[1]
            if built_in is not None and entry.digest == digest_of(built_in):
                os.write(to, built_in)
            elif template:
                template.take(path.removeprefix("home/"), entry, to)

        tree.build(clean, fill)
    return clean


def _write_manifest(path: Path, manifest: Manifest) -> None:
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(json.dumps({"version": 1, "entries": manifest}), "ascii")


def _read_manifest(path: Path) -> Manifest:
    try:
        data = json.loads(path.read_text("ascii"))
        if data["version"] != 1:
            raise BrokenError(f"{path} was written by a newer version", code="snapshot_version")
        entries = {name: Entry(*fields) for name, fields in data["entries"].items()}
        return {name: e._replace(attributes=tuple((a, v) for a, v in e.attributes)) for name, e in entries.items()}
    except (ValueError, KeyError, TypeError) as e:
        raise BrokenError(f"{path} is damaged: {e}", code="snapshot_damaged") from None


def _clear(folder: Path, *names: str) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        for name in names:
            wipe(fd, name)
    finally:
        os.close(fd)


def _sync(folder: Path, how: Callable[[int], None]) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        how(fd)
    finally:
        os.close(fd)


def _syncfs(fd: int) -> None:
    """One call for all files of a snapshot: `fsync` on each would take a thousand times as long."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@contextlib.contextmanager
def _words(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UnavailableError(
                f"{what}: the disk is full", remedy="make room and try again", code="disk_full"
            ) from e
        raise UnavailableError(f"{what}: {e}", code="state_failed") from e
