"""What all parts of the controller share: the store, the backends, the profiles, the clock, and one way to change.

Every change is a function over a transaction, run by `Core.change`: it writes the new state and its audit entries
together, then the queue is planned anew in the same transaction, and whoever waits for a change hears the bell.
"""

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from cu_fleet.backends.base import Abilities, Backend, Endpoint
from cu_fleet.controller.bell import Bell
from cu_fleet.controller.clock import Clock
from cu_fleet.controller.tokens import Mint, derived
from cu_fleet.model.audit import Draft
from cu_fleet.model.desktop import NOT_GONE, Desktop, Event, Stage, moved
from cu_fleet.model.errors import BrokenError, ConflictError, NotFoundError, UnavailableError
from cu_fleet.model.lease import LIVE, Lease, LeaseState, granted
from cu_fleet.model.names import new_id
from cu_fleet.model.profile import Profile
from cu_fleet.model.queue import GiveWay, Grant, Make, Recipe, Reset, State, Wake, plan
from cu_fleet.model.resource import Holding
from cu_fleet.settings import Settings
from cu_fleet.stores.base import Store, Tx

T = TypeVar("T")


@dataclass
class Core:
    settings: Settings
    fleet: str
    store: Store
    backends: Mapping[str, Backend]
    profiles: Mapping[str, tuple[Profile, str]]
    clock: Clock
    secret: bytes
    bell: Bell = field(default_factory=Bell)  # whenever anything is written down
    turned: Bell = field(default_factory=Bell)  # only when a change is, which may matter to the queue and to deadlines
    poke: Callable[[str], None] = lambda desktop: None  # set by the keeper: this desktop has something to do
    resting: set[str] = field(default_factory=set)  # profiles whose last starts failed: not kept warm for now
    ending: bool = False  # nothing is granted, made or cleaned any more
    closing: bool = False
    alarm: str = ""  # what is wrong with the audit record
    changes: int = 0  # how many there were of leases, desktops and people since the start

    def __post_init__(self) -> None:
        self.mint = Mint.of(self.secret)
        self.redaction_key = derived(self.secret, "redaction")
        self._touched: set[str] = set()

    def now(self) -> float:
        return self.clock.now()

    def profile(self, name: str) -> Profile:
        found = self.profiles.get(name)
        if found is None:
            known = ", ".join(sorted(self.profiles)) or "none at all"
            raise NotFoundError(
                f'there is no profile "{name}"; there are: {known}',
                remedy="cu-fleet profile list",
                code="no_profile",
                profile=name,
            )
        return found[0]

    def backend(self, name: str) -> Backend:
        if name not in self.backends:
            raise NotFoundError(f'there is no backend "{name}" here', code="no_backend", backend=name)
        return self.backends[name]

    def abilities(self, desktop: Desktop) -> Abilities:
        """What this desktop can do, which may be less than others of its backend can."""
        found = self.backend(desktop.backend).abilities
        return found.of(self.profiles[desktop.profile][0]) if desktop.profile in self.profiles else found

    async def read(self, work: Callable[[Tx], T]) -> T:
        return await self.store.transact(work)

    async def change(self, work: Callable[[Tx], T]) -> T:
        """Run a change, plan the queue in the same transaction, then wake whoever it concerns."""
        touched: set[str] = set()

        def both(tx: Tx) -> T:
            self._touched = touched
            touched.clear()
            result = work(tx)
            self.schedule(tx)
            return result

        try:
            result = await self.store.transact(both)
        except asyncio.CancelledError:
            if not self.closing:
                self._tell(touched)  # it may have landed
            raise
        finally:
            self.changes += 1
        self._tell(touched)
        return result

    def _tell(self, touched: set[str]) -> None:
        for desktop in touched:
            self.poke(desktop)
        self.turned.ring()
        self.bell.ring()

    def touch(self, desktop: str) -> None:
        """Within a change: this desktop will have something to do once the change is written."""
        self._touched.add(desktop)

    async def note(self, work: Callable[[Tx], T]) -> T:
        """A change that cannot matter to the queue, nor bring a deadline nearer: an audit entry, a renewal."""
        result = await self.store.transact(work, lasting=False)
        self.bell.ring()
        return result

    def schedule(self, tx: Tx) -> None:
        """Carry out what the queue decides."""
        if self.ending or self.closing:
            return
        for decision in plan(self.queue_state(tx)).decisions:
            match decision:
                case Grant(lease, desktop):
                    self.grant(tx, lease, desktop)
                case Make(recipe, name):
                    self._make(tx, recipe, name)
                case Wake(desktop):
                    tx.put(moved(desktop, Event.START, boot=new_id("bt")))
                    self.touch(desktop.id)
                case Reset(desktop):
                    tx.put(moved(desktop, Event.CLEAN, target=None, generation=desktop.generation + 1, owner=None))
                    self.record(tx, "desktop.reset", "controller", desktop=desktop, facts={"was": desktop.owner})
                    self.touch(desktop.id)
                case GiveWay(desktop):
                    tx.put(moved(desktop, Event.PARK if desktop.name else Event.STOP))
                    self.record(tx, "desktop.gave_way", "controller", desktop=desktop)
                    self.touch(desktop.id)

    def queue_state(self, tx: Tx) -> State:
        return State(
            leases=tuple(tx.find(Lease, state=tuple(x.value for x in LIVE))),
            desktops=tuple(tx.find(Desktop, stage=NOT_GONE)),
            recipes={name: self._recipe(profile) for name, (profile, _) in self.profiles.items()},
            most_desktops=self.most_desktops,
            memory=self.memory,
            resting=frozenset(self.resting),
        )

    @property
    def most_desktops(self) -> int:
        return self.settings.max_desktops or 32 * len(os.sched_getaffinity(0))

    @property
    def memory(self) -> int:
        return self.settings.memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4

    def _recipe(self, profile: Profile) -> Recipe:
        backend = self.backends.get(profile.backend)
        return Recipe(
            name=profile.name,
            backend=profile.backend,
            digest=profile.digest,
            width=profile.screen.width,
            height=profile.screen.height,
            reserve=profile.reserve,
            warm=profile.warm if backend else 0,
            shared=profile.shared,
            can_park=bool(backend and backend.abilities.snapshots),
        )

    def grant(self, tx: Tx, lease: Lease, desktop: Desktop) -> None:
        now = self.now()
        held = moved(desktop, Event.GRANT, generation=desktop.generation + 1, owner=lease.agent)
        lease = granted(lease, held.id, held.generation, now)
        tx.put(held)
        tx.put(lease)
        for resource in lease.resources:
            tx.put(Holding(resource=resource, lease=lease.id))
        self.record(tx, "lease.granted", "controller", lease=lease, facts={"waited": round(now - lease.asked_at, 3)})

    def _make(self, tx: Tx, recipe: Recipe, name: str | None) -> None:
        desktop = Desktop(
            id=new_id("dk"),
            name=name,
            profile=recipe.name,
            profile_digest=recipe.digest,
            backend=recipe.backend,
            boot=new_id("bt"),
            width=recipe.width,
            height=recipe.height,
            created_at=self.now(),
        )
        tx.put(desktop)
        self.record(tx, "desktop.planned", "controller", desktop=desktop)
        self.touch(desktop.id)

    async def bounded(self, work: Awaitable[T], what: str, seconds: float | None = None) -> T:
        """What a backend does, for as long as it may take and no longer."""
        limit = seconds or self.settings.backend_timeout
        try:
            async with asyncio.timeout(limit):
                return await work
        except TimeoutError:
            raise UnavailableError(f"the backend did not {what} within {limit:g} s", code="backend_hangs") from None

    async def endpoint(self, desktop: Desktop) -> Endpoint | None:
        """Where the desktop's screen answers now."""
        return await self.bounded(self.backend(desktop.backend).endpoint(desktop.handle), "say where the screen is")

    def record(
        self,
        tx: Tx,
        what: str,
        who: str,
        *,
        lease: Lease | None = None,
        desktop: Desktop | None = None,
        **more: Any,
    ) -> int:
        """Append to the audit record, in this transaction; returns the entry's number."""
        draft = Draft(
            at=self.now(),
            what=what,
            who=who,
            lease=lease.id if lease else None,
            agent=lease.agent if lease else None,
            desktop=desktop.id if desktop else (lease.desktop if lease else None),
            generation=desktop.generation if desktop else (lease.generation if lease else None),
            **more,
        )
        return tx.add(draft)

    def get_lease(self, tx: Tx, lease: str) -> Lease:
        found = tx.get(Lease, lease)
        if found is None:
            raise NotFoundError(
                f"there is no lease {lease}", remedy="cu-fleet lease list --all", code="no_lease", lease=lease
            )
        return found

    def get_desktop(self, tx: Tx, key: str) -> Desktop:
        """A desktop by its id, its name, or the lease that holds it."""
        found = tx.get(Desktop, key)
        if found is None:
            named = [d for d in tx.find(Desktop, name=key) if d.stage is not Stage.GONE]
            lease = tx.get(Lease, key) if not named else None
            found = named[0] if named else tx.get(Desktop, lease.desktop) if lease and lease.desktop else None
        if found is None:
            raise NotFoundError(
                f"there is no desktop {key}", remedy="cu-fleet desktop list", code="no_desktop", desktop=key
            )
        return found

    def holder_of(self, tx: Tx, desktop: str) -> Lease | None:
        live = tx.find(Lease, desktop=desktop, state=LeaseState.ACTIVE.value)
        if len(live) > 1:
            raise BrokenError(f"desktop {desktop} has {len(live)} live leases", code="two_holders")
        return live[0] if live else None


def until_words(lease: Lease) -> str:
    """How long a lease may hold what it holds, as a person would say it."""
    if lease.expires_at is None:
        return "until it is released or revoked (its clock stands still)"
    clock = datetime.fromtimestamp(lease.expires_at, UTC).strftime("%H:%M:%SZ")
    return f"until it is released, revoked or runs out at {clock}"


def in_words(at: float | None) -> str:
    if at is None or math.isinf(at) or at > 32503680000:
        return "until an operator lifts it"
    return "until " + datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def stale(desktop: Desktop) -> ConflictError:
    return ConflictError(
        f"desktop {desktop.id} is {desktop.stage.value}", code="desktop_busy", desktop=desktop.id, stage=desktop.stage
    )


def folder(path: Path) -> Path:
    """A private folder in the home, made if it is not there, with those above it."""
    if not path.parent.exists():
        folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    return path
