"""Desktops for tests, as the pytest plugin lends them: leased, filmed, noted while they are held, and given back.

A program that `cu-fleet run --beside` started finds leases in CU_FLEET_LEASES, and its workers take those. Which are
taken is known by names in the kernel that vanish with their process, so a worker that takes the place of one that
crashed finds that one's desktop, and never another's.
"""

import contextlib
import json
import os
import shutil
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cu_fleet import client, sync
from cu_fleet.client.hands import Action
from cu_fleet.client.http import read, v1
from cu_fleet.client.naming import kind_of
from cu_fleet.model.errors import ConflictError, FleetError, LeaseOverError
from cu_fleet.model.view import LeaseView

TTL = 60.0  # seconds; renewed while this process lives, and soon over should it be killed
AGENT, PROFILE = "pytest", "local"
_FRAMES = 16  # of a film: the last ones
_FRAME = {"format": "jpeg", "quality": 60, "max_edge": 640, "settle_ms": 0, "pointer": True, "allow_blank": True}


class Shot(NamedTuple):
    """What the screen showed after some actions."""

    of: str
    data: bytes


class Filmed(client.Desktop):
    """A leased desktop of which the last frames after each action are kept here, in memory."""

    def __init__(self, desktop: client.Desktop) -> None:
        super().__init__(desktop._wire, desktop.lease)  # noqa: SLF001 - of its own kind
        self.film: deque[Shot] = deque(maxlen=_FRAMES)

    async def act(
        self, actions: Iterable[Action], *, screenshot: Mapping[str, Any] | bool | None = None, **more: Any
    ) -> client.Result:
        batch = list(actions)
        result = await super().act(batch, screenshot=screenshot or _FRAME, **more)
        if result.image is not None:
            self.film.append(Shot(", ".join(map(_in_words, batch)), result.image.frame.data))
        return result if screenshot else replace(result, image=None, unchanged=False, not_shown=None)


def _in_words(action: Action) -> str:
    """`click 640 400`; of a text its length, for it may be a secret."""
    if "text" in action:
        return f"{action.get('type')} {len(str(action['text']))} characters"
    words = [action.get(name) for name in ("type", "button", "count", "x", "y", "keys", "key")]
    return " ".join(str(word) for word in words if word not in (None, "left", 1))


class Leased(sync.Desktop):
    """One leased desktop, blocking, for tests; see `cu_fleet.client.Desktop`."""

    def __init__(self, inner: Filmed, loop: sync.Loop, fleet: sync.Fleet) -> None:
        super().__init__(inner, loop)
        self.fleet = fleet
        self.film = inner.film
        self.since = 0  # number of the last entry on record before the test began

    def exec(self, argv: Sequence[str], **more: Any) -> sync.Completed:
        """Run a command inside to its end; for operators. See `cu_fleet.client.Fleet.run`."""
        assert self.lease.desktop
        return self.fleet.run(self.lease.desktop, argv, **more)

    def begin(self) -> None:
        """Another test has it now."""
        self.film.clear()
        with contextlib.suppress(FleetError):  # an agent may not read the record; who reports says so
            while page := self.fleet.audit(lease=self.id, after=self.since):
                self.since = page[-1].seq


class House:
    """The desktops of one process of pytest."""

    def __init__(self, wait: str, worker: str, notes: Path | None) -> None:
        self._wait, self._worker, self._notes = wait, worker, notes
        self._loop = sync.Loop()
        self._client = client.Fleet.connect()
        self._fleet = sync.Fleet(self._client, self._loop)
        self._own: dict[str, tuple[Leased, ExitStack]] = {}  # this worker's, by profile
        self._given: Leased | None = None
        self._claims: list[socket.socket] = []

    def close(self) -> None:
        try:
            with ExitStack() as all_of_them:
                for _, held in self._own.values():
                    all_of_them.push(held)
        finally:
            for claim in self._claims:
                claim.close()
            self._fleet.close()

    def lend(self, profile: str | None, isolation: str | None) -> AbstractContextManager[Leased]:
        """A desktop for one test; giving back one of the worker's own keeps it for the next."""
        if isolation != "test" and (given := self._one_given(profile)):
            return self._kept(given)
        if isolation == "worker":
            return self._kept(self._workers(profile or PROFILE))
        return self._leased(profile or PROFILE)

    @contextmanager
    def _kept(self, leased: Leased) -> Iterator[Leased]:
        leased.begin()
        yield leased

    def _workers(self, profile: str) -> Leased:
        if profile in self._own:
            leased, held = self._own[profile]
            try:
                leased.refresh()
            except LeaseOverError:  # it was taken away, or lost: the tests to come have nothing to do with that
                del self._own[profile]
                held.close()
            else:
                return leased
        with ExitStack() as held:
            leased = held.enter_context(self._leased(profile))
            self._own[profile] = leased, held.pop_all()
        return leased

    @contextmanager
    def _leased(self, profile: str) -> Iterator[Leased]:
        agent = f"{AGENT}-{self._worker}" if self._worker else AGENT
        asks_for_itself = kind_of(os.environ.get("CU_FLEET_TOKEN")) == "cfa"
        name = None if asks_for_itself else agent
        leasing = self._client.lease(agent=name, profile=profile, ttl=TTL, wait=self._wait)
        note = None
        try:  # ^C may come when it has just been granted
            inner = self._loop.run(leasing.__aenter__())
            note = self._note(inner.id)
            yield Leased(Filmed(inner), self._loop, self._fleet)
        finally:
            if leasing.held:
                self._loop.run(leasing.__aexit__(None, None, None))
            if note:
                note.unlink(missing_ok=True)

    def _note(self, lease: str) -> Path | None:
        if self._notes is None:
            return None
        self._notes.mkdir(mode=0o700, exist_ok=True)
        note = self._notes / lease
        note.write_text(self._worker)
        return note

    # given by `cu-fleet run --beside`

    def _one_given(self, profile: str | None) -> Leased | None:
        """The one that is this process's, if any are given and they are of this kind."""
        leases = json.loads(os.environ.get("CU_FLEET_LEASES") or "[]")
        if leases and self._given is None:
            taken = self._taken(leases)
            seen = self._loop.run(self._seen(taken["lease"], taken["token"]))
            inner = Filmed(client.Desktop(self._client._wire, seen))  # noqa: SLF001 - one house
            self._given = Leased(inner, self._loop, self._fleet)
        given = self._given
        return given if given and profile in (None, given.lease.profile) else None

    async def _seen(self, lease: str, token: str) -> LeaseView:
        answer = await self._client._wire.call("GET", v1("leases", lease), token=token)  # noqa: SLF001 - one house
        return read(LeaseView, {**answer.json(), "token": token})

    def _taken(self, leases: list[dict[str, Any]]) -> dict[str, Any]:
        """The worker's by its number, else whichever is free."""
        number = int("".join(filter(str.isdigit, self._worker)) or 0)
        for one in sorted(leases, key=lambda one: one["worker"] != number):
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(f"\0cu-fleet/{one['lease']}")
            except OSError:
                claim.close()
                continue
            self._claims.append(claim)
            return one
        raise ConflictError(
            f"all {len(leases)} desktops that cu-fleet run --beside gave are in use by other workers",
            remedy=f"use as many workers: -n {len(leases)}",
            code="too_few_desktops",
        )


def give_back(notes: Path, worker: str) -> None:
    """Release what is noted for a worker; or for any if none is named, and then the folder goes too."""
    left = [note for note in notes.iterdir() if worker in ("", note.read_text())]
    if left:
        with contextlib.suppress(FleetError), sync.Fleet.connect(start=False) as fleet:
            for note in left:
                with contextlib.suppress(LeaseOverError):
                    fleet.release(note.name)
                note.unlink()
    if not worker:
        shutil.rmtree(notes)
