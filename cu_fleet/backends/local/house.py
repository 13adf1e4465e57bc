"""Everything about desktops here that blocks, and so runs in threads: made ready, found, held still, ended, removed."""

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from cu_fleet.backends.base import Place, Spec
from cu_fleet.backends.inside import template
from cu_fleet.backends.local import cgroups, demands, processes, walls
from cu_fleet.backends.local.cgroups import Cgroups, Groups
from cu_fleet.backends.local.etc import Etc
from cu_fleet.backends.local.launch import Launch, show
from cu_fleet.backends.local.layout import Desk, Layout
from cu_fleet.backends.local.state import State
from cu_fleet.backends.tree import wipe
from cu_fleet.guest import init as guest
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import UnavailableError

T = TypeVar("T")
_SECONDS_TO_END = 15.0


async def in_thread(work: Callable[..., T], *args: object) -> T:
    """Run `work` in a thread; a cancelled caller still waits for it, so that nothing goes on behind anyone's back."""
    future = asyncio.get_running_loop().run_in_executor(None, partial(work, *args))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


class House:
    def __init__(self, place: Place) -> None:
        self.home = place.home
        self.layout = Layout(place)
        self.state = State(self.layout.desktops, self.layout.snapshots)
        self.cgroups = Cgroups(place.fleet)
        self.etc = Etc(self.layout.desktops / ".etc", guest.SETUP)
        self._profile_dirs = place.profile_dirs
        self._showing = threading.Lock()
        self._view: int | None = None  # a mount namespace that shows the desktops' folder to their own users

    def uid(self, desk: Desk) -> int:
        """Who owns what the desktop makes."""
        uid = self.layout.uid(desk.id)
        return os.geteuid() if uid is None else uid

    def prepare(self, desk: Desk, spec: Spec, launch: Launch, handle: Handle) -> Path:
        """All up to the word by which the launch goes on; returns where the desktop's /etc lies."""
        uid, groups = self._clear(desk, spec, handle)
        launch.begin(spec.profile, spec.label, groups, uid, None if uid is None else self._shown())
        try:
            return self._furnish(desk, spec, launch)
        finally:
            launch.reap()

    def _shown(self) -> int:
        with self._showing:
            if self._view is None:
                self._view = view = show(self.layout.desktops)
                weakref.finalize(self, os.close, view)
        return self._view

    def _clear(self, desk: Desk, spec: Spec, handle: Handle) -> tuple[int | None, Groups]:
        """Refuse what cannot be had, tell what is left of an earlier start to end, and settle whose this one is."""
        profile = spec.profile
        walls.refuse_home(self.home)
        demands.refuse(profile)
        uid = self.layout.take_uid(desk.id)
        new = desk.make()
        if not new:
            known = processes.holder(int(str(handle.get("pid") or 0)), desk.marker, self.layout.uids())
            processes.end([known] if known else self._to_end(desk), 0, partial(self._melt, desk))
        groups = self.cgroups.make(desk.id, profile.limits, desk.cgroups)
        if groups.lacking and not new:
            self.end(desk)  # what is to be limited may be in use
            groups = self.cgroups.make(desk.id, profile.limits, desk.cgroups)
        if groups.lacking and demands.options(profile).require_limits:
            why = "; ".join(f"{kind}: {reason}" for kind, reason in groups.lacking.items())
            raise UnavailableError(
                f'profile "{profile.name}" insists on its limits, which cannot be enforced here: {why}',
                remedy="see cu-fleet doctor, or leave out options.require_limits",
                code="no_limits",
            )
        return uid, groups

    def _furnish(self, desk: Desk, spec: Spec, launch: Launch) -> Path:
        """Put the state as it should be, and make all else that is seen inside; returns where its /etc lies.

        Nothing of an earlier start is left then.
        """
        fresh = template(spec.profile, self._profile_dirs)
        self.state.replace(desk.dir, spec.snapshot, fresh, launch.uid, partial(self.end, desk, launch))
        self._own_folders(desk, launch.uid)
        walls.clear_way(desk)
        walls.prepare(desk, spec.profile, spec.label, spec.boot)
        return self.etc.current()

    def _own_folders(self, desk: Desk, uid: int | None) -> None:
        """The run folder begins empty; the slot is left as it is."""
        folder = os.open(desk.dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            wipe(folder, desk.run.name)
        finally:
            os.close(folder)
        for path in (desk.run, desk.slot):
            if not path.exists():
                path.mkdir(mode=0o700)
                if uid is not None:
                    os.chown(path, uid, uid)

    def first(self, desk: Desk) -> processes.Holder | None:
        """The first process inside, if the desktop runs."""
        return next((h for h in self._holders(desk) if h.first), None)

    def _holders(self, desk: Desk) -> list[processes.Holder]:
        return processes.holders(desk.marker, self.layout.uids())

    def _to_end(self, desk: Desk, waiting: Launch | None = None) -> list[processes.Holder]:
        """With the first process all others inside end; and those outside then leave by themselves, and reap it.

        Where a desktop has a uid of its own, nothing that it did to its processes can hide them.
        """
        uid = self.layout.uid(desk.id)

        def theirs(found: list[processes.Holder]) -> list[processes.Holder]:
            return [h for h in found if waiting is None or h.session != waiting.session]

        found = theirs(self._holders(desk))
        return [h for h in found if h.first] or found or ([] if uid is None else theirs(processes.of_uid(uid)))

    def end(self, desk: Desk, waiting: Launch | None = None) -> None:
        """End every process of a desktop but those of the next start, and return when none is left."""
        until = time.monotonic() + _SECONDS_TO_END
        own = waiting.lock if waiting else None
        while (found := self._to_end(desk, waiting)) or desk.is_locked(but=own):
            processes.end(found, 1.0, partial(self._melt, desk))
            if time.monotonic() > until:
                raise UnavailableError(
                    f"desktop {desk.id} could not be ended within {_SECONDS_TO_END:.0f} s",
                    code="not_ended",
                    pids=[h.pid for h in found],
                )
            if not found:
                time.sleep(0.002)  # a process between its fork and its exec shows no marker yet
        desk.frozen.unlink(missing_ok=True)

    def _melt(self, desk: Desk) -> None:
        """Thaw, also what is only half frozen: a process that dies then keeps its group from ever getting there."""
        folder = self.cgroups.freezer(desk.cgroups)
        if folder is not None:
            cgroups.set_frozen(folder, frozen=False)

    def remove(self, desk: Desk) -> None:
        """Take away all there is of a desktop."""
        self.end(desk)
        until = time.monotonic() + _SECONDS_TO_END
        while not self.cgroups.remove(desk.cgroups):
            if time.monotonic() > until:
                raise UnavailableError(f"the cgroups of desktop {desk.id} could not be removed", code="not_removed")
            time.sleep(0.005)
        self.layout.remove(desk)

    def running(self, desk: Desk) -> processes.Holder:
        first = self.first(desk)
        if first is None:
            raise UnavailableError(f"desktop {desk.id} does not run", code="not_running")
        return first

    def is_frozen(self, desk: Desk) -> bool:
        folder = self.cgroups.freezer(desk.cgroups)
        return desk.frozen.exists() or (folder is not None and cgroups.is_frozen(folder))

    def freeze(self, desk: Desk) -> None:
        first = self.running(desk)
        folder = self.cgroups.freezer(desk.cgroups)
        done = (
            cgroups.set_frozen(folder, frozen=True)
            if folder is not None and _holds(folder, first.pid)
            else processes.stop_all(first.pid, desk.frozen)
        )
        if not done:
            self.thaw(desk)
            raise UnavailableError(f"the processes of desktop {desk.id} could not be held still", code="not_frozen")

    def thaw(self, desk: Desk) -> None:
        processes.go_on(desk.frozen)
        self._melt(desk)

    def save(self, desk: Desk, snapshot: str) -> int:
        """Save the state; the desktop stands still only while it is copied."""
        still = self.is_frozen(desk) or self.first(desk) is None
        if still:
            return self.state.save(desk.dir, snapshot)
        try:
            self.freeze(desk)
            return self.state.save(desk.dir, snapshot, partial(self.thaw, desk))
        finally:
            self.thaw(desk)


def _holds(folder: Path, pid: int) -> bool:
    """Whether this group really has the desktop in it: joining it may have failed."""
    return str(pid) in (folder / "cgroup.procs").read_text().split()
