"""Snapshots: images that hold one archive each, of what the desktop may write.

An engine's layers forget what a snapshot must bring back exactly: fractions of a second, users' attributes, holes in
files. So a container of our own, which sees the desktop's volumes read-only while the desktop stands still, writes an
archive with all of that into its own layer; committed, this is the snapshot, whole from the moment it has a name.
Restored, the archive comes out of the image again, and a new container begins with it.

The archive is written by a program of the desktop's image, which the desktop cannot change, with the one right to
read all files; it is unpacked by the desktop's own user.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from cu_fleet.backends.base import Saved, Spec
from cu_fleet.backends.docker.begin import FAR_STATE, STATE
from cu_fleet.backends.docker.engine import image_of, patient, short_log
from cu_fleet.backends.docker.house import House
from cu_fleet.backends.docker.layout import FLEET, MOST, SNAPSHOT, SNAPSHOTS, Desk, write
from cu_fleet.backends.docker.walls import powers_to_read
from cu_fleet.backends.inside import HOME
from cu_fleet.model.errors import BrokenError, ConflictError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from docker import APIClient

_PASSING = (f"{HOME[1:]}/Shared", "tmp/.X11-unix", "tmp/.X0-lock")
_SECONDS_TO_SAVE = 600
_CHUNK = 1 << 20
_FULL = "No space left on device"
_TOO_LARGE = 90
# Not /tmp itself, which belongs to nobody: what lies in it. $0 is the most bytes there may be.
_ARCHIVE = f"""cd / && {{ printf '{HOME[1:]}\\0'; find tmp -mindepth 1 -maxdepth 1 -print0; }} | {{
tar --create --format=posix --sparse --numeric-owner --xattrs --xattrs-include='user.*' \
--pax-option=delete=atime,delete=ctime --warning=no-file-ignored --anchored --no-wildcards \
{" ".join(f"--exclude={path}" for path in _PASSING)} --null --files-from=-
echo $? >/code; }} | head -c $(($0 + 1)) >/{STATE} || exit
[ $(stat -c %s /{STATE}) -le $0 ] || exit {_TOO_LARGE}
exit $(cat /code)"""


class Snapshots:
    """All calls block; run them in threads."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.layout = house.layout

    def save(self, api: APIClient, desk: Desk, snapshot: str) -> Saved:
        name = self._image(snapshot)
        if self._find(api, snapshot) is not None:
            raise ConflictError(f"there already is a snapshot {snapshot}", code="snapshot_exists", snapshot=snapshot)
        self._clear_work(api, snapshot)
        running = self.house.must_run(api, desk)
        try:
            worker, base = self._worker(api, desk, snapshot, running)
            thaw = self.house.freeze(api, desk)
            try:
                self._work(api, worker, snapshot)
            finally:
                if thaw:
                    self.house.thaw(api, desk)
            repository, _, tag = name.partition(":")
            with patient(api, _SECONDS_TO_SAVE):
                made = api.commit(worker, repository, tag=tag)
            size = _size(api, made["Id"]) - base
        except BaseException:
            self._delete_image(api, snapshot)
            raise
        finally:
            self._clear_work(api, snapshot)
        return Saved("disk", max(1, size))

    def _worker(self, api: APIClient, desk: Desk, snapshot: str, running: dict[str, Any]) -> tuple[str, int]:
        """A container that will write the archive; and the size of the image it comes from."""
        from docker.types import Mount

        config = api.create_host_config(
            mounts=[Mount(to, name, type="volume", read_only=True) for name, to in desk.volumes.items()],
            **powers_to_read() | {"read_only": False},
            network_mode="none",
            log_config=short_log("64k"),
        )
        made = api.create_container(
            running["Image"],
            ["/bin/sh", "-c", _ARCHIVE, running["Config"]["Labels"][MOST]],
            entrypoint=[],
            user="0:0",
            working_dir="/",
            name=self.layout.worker(snapshot),
            labels=self.layout.labels(desk.id, **{SNAPSHOT: snapshot}),
            healthcheck={"test": ["NONE"]},
            host_config=config,
        )
        return str(made["Id"]), _size(api, running["Image"])

    def _work(self, api: APIClient, worker: str, snapshot: str) -> None:
        api.start(worker)
        code = api.wait(worker, timeout=_SECONDS_TO_SAVE)["StatusCode"]
        if code == 0:
            return
        said = api.logs(worker, tail=5).decode("utf-8", "replace").strip()
        if code == _TOO_LARGE:
            raise UnavailableError(
                f"snapshot {snapshot} would be larger than its profile allows",
                remedy="remove files in the desktop, or raise options.snapshot in the profile",
                code="snapshot_too_large",
            )
        full = _FULL in said
        raise UnavailableError(
            f"snapshot {snapshot} could not be saved: " + ("the engine's disk is full" if full else said or str(code)),
            remedy="make room: docker system df" if full else "",
            code="disk_full" if full else "save_failed",
        )

    def fetch(self, api: APIClient, desk: Desk, spec: Spec, container: str | None = None) -> None:
        """Put the snapshot's archive where the desktop begins from: in its folder, or its container."""
        assert spec.snapshot
        found = self._find(api, spec.snapshot)
        if found is None:
            raise NotFoundError(
                f"there is no snapshot {spec.snapshot}", code="no_snapshot", snapshot=spec.snapshot
            ) from None
        labels = self.layout.labels(desk.id, **{SNAPSHOT: spec.snapshot})
        name = self.layout.worker(spec.snapshot, desk.id)
        made = api.create_container(found["Id"], ["true"], name=name, labels=labels, network_disabled=True)
        holder = made["Id"]
        try:
            stream, _ = api.get_archive(holder, f"/{STATE}", chunk_size=_CHUNK)
            try:
                if container is None:
                    self._unpack(stream, desk, spec.snapshot)
                else:
                    with patient(api, _SECONDS_TO_SAVE):
                        api.put_archive(container, FAR_STATE, stream)
            finally:
                for _ in stream:  # to its end, or its connection would stay open
                    pass
        finally:
            self.house.remove_containers(api, [{"Id": holder}])

    def _unpack(self, stream: Iterator[bytes], desk: Desk, snapshot: str) -> None:
        with tarfile.open(fileobj=_Reader(stream), mode="r|") as tar:
            member = tar.next()
            content = tar.extractfile(member) if member else None
            if content is None:
                raise BrokenError(f"snapshot {snapshot} is damaged: it holds no archive", code="damaged")
            _copy(content, desk)

    def delete(self, api: APIClient, snapshot: str) -> None:
        self._clear_work(api, snapshot)
        self._delete_image(api, snapshot)

    def saved(self, api: APIClient) -> list[str]:
        images = api.images(filters={"label": [f"{FLEET}={self.layout.fleet}", SNAPSHOT]})
        found = [one["Labels"][SNAPSHOT] for one in images if self.layout.is_ours(one.get("Labels"))]
        return sorted({*found, *(one["Labels"][SNAPSHOT] for one in self.house.of_snapshot(api))})

    # small things

    def _image(self, snapshot: str) -> str:
        return f"{SNAPSHOTS}:{self.layout.snapshot_name(snapshot)}"

    def _find(self, api: APIClient, snapshot: str) -> dict[str, Any] | None:
        found = image_of(api, self._image(snapshot))
        return found if found and self.layout.is_ours(found["Config"].get("Labels")) else None

    def _delete_image(self, api: APIClient, snapshot: str) -> None:
        if self._find(api, snapshot) is not None:
            api.remove_image(self._image(snapshot), noprune=False)

    def _clear_work(self, api: APIClient, snapshot: str) -> None:
        self.house.remove_containers(api, self.house.of_snapshot(api, snapshot))


def _size(api: APIClient, image: str) -> int:
    return int((image_of(api, image) or {}).get("Size", 0))


class _Reader(io.RawIOBase):
    """A stream of chunks as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._left) < size:
            more = next(self._chunks, b"")
            if not more:
                break
            self._left += more
        data, self._left = (self._left, b"") if size < 0 else (self._left[:size], self._left[size:])
        return data


def _copy(content: IO[bytes], desk: Desk) -> None:
    path = desk.init / STATE
    write(path, b"")
    with path.open("ab") as file:
        read: Callable[[], bytes] = lambda: content.read(_CHUNK)  # noqa: E731
        for chunk in iter(read, b""):
            file.write(chunk)
