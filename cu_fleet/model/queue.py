"""Who gets what, next: one pure function from the whole state to the next decisions.

Requests are looked at oldest first. A request is granted when its desktop is ready and all its resources are free,
everything at once or nothing, so nobody holds one thing while waiting for another and no two can wait for each other.

Nobody starves and no desktop idles for nothing:
- a resource that an older request needs is never given to a younger one, even while it is free;
- a desktop is kept for an older request only if nothing but the desktop is missing; otherwise the next in line that
  can use it at once gets it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cu_fleet.model.desktop import COMING, TAKES_ROOM, Desktop, Stage
from cu_fleet.model.lease import Lease, LeaseState


@dataclass(frozen=True)
class Recipe:
    """What the queue needs to know of a profile."""

    name: str
    backend: str
    digest: str
    width: int
    height: int
    reserve: int = 0
    warm: int = 0
    shared: bool = False
    can_park: bool = False


@dataclass(frozen=True)
class State:
    leases: tuple[Lease, ...]  # live ones, oldest first
    desktops: tuple[Desktop, ...]  # those not gone
    recipes: Mapping[str, Recipe]
    most_desktops: int
    memory: int
    resting: frozenset[str] = frozenset()  # profiles whose last starts failed: made only for those who wait


@dataclass(frozen=True)
class Grant:
    lease: Lease
    desktop: Desktop


@dataclass(frozen=True)
class Make:
    recipe: Recipe
    name: str | None = None


@dataclass(frozen=True)
class Wake:
    desktop: Desktop


@dataclass(frozen=True)
class Reset:
    """A named desktop goes to another agent: cleaned first."""

    desktop: Desktop


@dataclass(frozen=True)
class GiveWay:
    """An idle desktop ends (or, named, goes to sleep) so that someone who waits finds room."""

    desktop: Desktop


Decision = Grant | Make | Wake | Reset | GiveWay


@dataclass(frozen=True)
class Blocked:
    """Why a request waits: `thing` in words, and the live lease it waits behind."""

    thing: str
    kind: str  # "desktop", "profile", "resource", "room"
    behind: Lease | None
    held: bool = True  # `behind` holds it; False: it is only earlier in the queue


@dataclass
class Plan:
    decisions: list[Decision] = field(default_factory=list)
    blocked: dict[str, Blocked] = field(default_factory=dict)  # by lease id; a waiting lease not here is being served
    places: dict[str, int] = field(default_factory=dict)


def plan(state: State) -> Plan:
    return _Planner(state).run()


class _Planner:
    def __init__(self, state: State) -> None:
        self.state = state
        self.out = Plan()
        self.active = [lease for lease in state.leases if lease.state is LeaseState.ACTIVE]
        self.holder = {lease.desktop: lease for lease in self.active}
        self.resource_of = {resource: lease for lease in self.active for resource in lease.resources}
        self.claims: dict[str, Lease] = {}  # resources that older requests need
        self.named = {d.name: d for d in state.desktops if d.name}
        self.named_claims: dict[str, Lease] = {}
        self.ready = _by_profile(d for d in state.desktops if self._is_free(d))
        self.coming = _by_profile(d for d in state.desktops if not d.name and d.stage in COMING and self._current(d))
        self.leaving = {d.id for d in state.desktops if d.stage in (Stage.STOPPING, Stage.PARKING)}
        self.used = sum(d.stage in TAKES_ROOM for d in state.desktops)
        self.memory = sum(self._reserve(d.profile) for d in state.desktops if d.stage in TAKES_ROOM)

    def run(self) -> Plan:
        waiting = sorted((x for x in self.state.leases if x.state is LeaseState.WAITING), key=lambda x: x.place)
        for lease in waiting:
            self._serve(lease)
        self._retire_outdated()
        self._keep_warm()
        return self.out

    def _serve(self, lease: Lease) -> None:
        recipe = self.state.recipes.get(lease.profile)
        if recipe is None:
            self._block(lease, Blocked(f'profile "{lease.profile}", which is no longer there', "profile", None))
            return
        blocked = self._resources(lease)
        if blocked:
            self._block(lease, blocked)
        elif lease.desktop_name:
            self._serve_named(lease, recipe, lease.desktop_name)
        else:
            self._serve_pool(lease, recipe)
        for resource in lease.resources:
            self.claims.setdefault(resource, lease)

    def _resources(self, lease: Lease) -> Blocked | None:
        for resource in lease.resources:
            if holder := self.resource_of.get(resource):
                return Blocked(f'resource "{resource}"', "resource", holder)
            if older := self.claims.get(resource):
                return Blocked(f'resource "{resource}"', "resource", older, held=False)
        return None

    def _serve_named(self, lease: Lease, recipe: Recipe, name: str) -> None:
        thing = f'desktop "{name}"'
        desktop = self.named.get(name)
        if desktop and (holder := self.holder.get(desktop.id)):
            self._block(lease, Blocked(thing, "desktop", holder))
        elif older := self.named_claims.get(name):
            self._block(lease, Blocked(thing, "desktop", older, held=False))
        elif desktop is None:
            self._make_or_wait(lease, recipe, name)
        elif desktop.stage is Stage.PARKED:
            self._wake_or_wait(lease, recipe, desktop)
        elif desktop.stage is Stage.READY and not self._decided(desktop):
            if desktop.owner not in (None, lease.agent) and not recipe.shared:
                self.out.decisions.append(Reset(desktop))
            else:
                self._grant(lease, desktop)
        elif desktop.stage is Stage.QUARANTINED:
            self._block(lease, Blocked(f"{thing}, which is quarantined ({desktop.note})", "desktop", None))
        self.named_claims.setdefault(name, lease)

    def _serve_pool(self, lease: Lease, recipe: Recipe) -> None:
        ready, coming = self.ready.get(recipe.name), self.coming.get(recipe.name)
        if ready:
            self._grant(lease, ready.pop(0))
        elif coming:
            coming.pop(0)
        else:
            self._make_or_wait(lease, recipe, None)

    def _make_or_wait(self, lease: Lease, recipe: Recipe, name: str | None) -> None:
        if self._room(recipe):
            self._make(recipe, name)
        elif not self._await_room():
            self._block(lease, self._full(recipe, name))

    def _wake_or_wait(self, lease: Lease, recipe: Recipe, desktop: Desktop) -> None:
        if self._room(recipe):
            self._take_room(recipe)
            self.out.decisions.append(Wake(desktop))
        elif not self._await_room():
            self._block(lease, self._full(recipe, desktop.name))

    def _await_room(self) -> bool:
        """Whether room is on its way; each leaving desktop's room is for one request only."""
        if not self.leaving:
            self._make_room()
        if self.leaving:
            self.leaving.pop()
            return True
        return False

    def _make_room(self) -> None:
        """Ask an idle desktop, that no older request will get, to give way: its room comes later, never at once."""
        for desktop in self.state.desktops:
            idle = desktop.stage is Stage.READY and not self._decided(desktop)
            if idle and (self._parkable(desktop) if desktop.name else self._unclaimed(desktop)):
                self.out.decisions.append(GiveWay(desktop))
                self._forget(desktop)
                self.leaving.add(desktop.id)
                return

    def _unclaimed(self, desktop: Desktop) -> bool:
        return desktop in self.ready.get(desktop.profile, ()) or desktop.frozen or not self._current(desktop)

    def _full(self, recipe: Recipe, name: str | None) -> Blocked:
        """No room: the one to wait for is the lease that runs out first, of this profile if there is one."""
        mine = [x for x in self.active if x.profile == recipe.name and not x.desktop_name]
        soonest = min(mine or self.active, key=lambda x: (x.expires_at or float("inf"), x.place), default=None)
        count = sum(d.stage in TAKES_ROOM for d in self.state.desktops)
        thing = f'desktop "{name}"' if name else f'a desktop of profile "{recipe.name}"'
        return Blocked(f"{thing}; all {count} this machine has room for are taken", "room", soonest)

    def _grant(self, lease: Lease, desktop: Desktop) -> None:
        self.out.decisions.append(Grant(lease, desktop))
        self.holder[desktop.id] = lease
        for resource in lease.resources:
            self.resource_of[resource] = lease

    def _block(self, lease: Lease, blocked: Blocked) -> None:
        self.out.blocked[lease.id] = blocked
        same = [
            x
            for x in self.state.leases
            if x.state is LeaseState.WAITING and x.place <= lease.place and _compete(x, lease, blocked)
        ]
        self.out.places[lease.id] = len(same)

    def _retire_outdated(self) -> None:
        for desktop in self.state.desktops:
            idle = desktop.stage is Stage.READY and not desktop.name and not self._decided(desktop)
            if idle and not self._current(desktop):
                self.out.decisions.append(GiveWay(desktop))

    def _keep_warm(self) -> None:
        for recipe in self.state.recipes.values():
            if recipe.name in self.state.resting:
                continue
            have = len(self.ready.get(recipe.name, ())) + len(self.coming.get(recipe.name, ()))
            for _ in range(recipe.warm - have):
                if self.out.blocked or self.leaving or not self._room(recipe):
                    return
                self._make(recipe, None)

    def _make(self, recipe: Recipe, name: str | None) -> None:
        self._take_room(recipe)
        self.out.decisions.append(Make(recipe, name))

    def _take_room(self, recipe: Recipe) -> None:
        self.used += 1
        self.memory += recipe.reserve

    def _room(self, recipe: Recipe) -> bool:
        return self.used < self.state.most_desktops and self.memory + recipe.reserve <= self.state.memory

    def _reserve(self, profile: str) -> int:
        recipe = self.state.recipes.get(profile)
        return recipe.reserve if recipe else 0

    def _current(self, desktop: Desktop) -> bool:
        recipe = self.state.recipes.get(desktop.profile)
        return recipe is not None and recipe.digest == desktop.profile_digest

    def _parkable(self, desktop: Desktop) -> bool:
        recipe = self.state.recipes.get(desktop.profile)
        return recipe is not None and recipe.can_park and desktop.name not in self.named_claims

    def _is_free(self, desktop: Desktop) -> bool:
        return desktop.stage is Stage.READY and not desktop.name and not desktop.frozen and self._current(desktop)

    def _decided(self, desktop: Desktop) -> bool:
        return any(
            not isinstance(decision, Make) and decision.desktop.id == desktop.id for decision in self.out.decisions
        )

    def _forget(self, desktop: Desktop) -> None:
        for ready in self.ready.values():
            if desktop in ready:
                ready.remove(desktop)


def _by_profile(desktops: Iterable[Desktop]) -> dict[str, list[Desktop]]:
    out: dict[str, list[Desktop]] = {}
    for desktop in desktops:
        out.setdefault(desktop.profile, []).append(desktop)
    return out


def _compete(one: Lease, other: Lease, blocked: Blocked) -> bool:
    """Whether two waiting requests stand in the same line, for what `other` is blocked by."""
    if blocked.kind == "resource":
        return bool(set(one.resources) & set(other.resources))
    if blocked.kind == "desktop":
        return one.desktop_name == other.desktop_name
    return True
