"""A whole controller over fakes, in this process: killed, started again and looked through by the tests."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from cu_fleet.backends.base import Backend, Place
from cu_fleet.backends.memory import MemoryBackend, MemoryWorld
from cu_fleet.controller import Controller
from cu_fleet.controller.record import audit_key
from cu_fleet.model.access import Caller, Grants, Role
from cu_fleet.model.approval import OPEN, Approval, ApprovalState, Kind
from cu_fleet.model.desktop import NOT_GONE, RESTING, Desktop, Stage
from cu_fleet.model.lease import LIVE, Control, Lease, LeaseState
from cu_fleet.model.profile import Profile
from cu_fleet.model.queue import Grant, plan
from cu_fleet.model.request import Acquire
from cu_fleet.model.resource import Holding
from cu_fleet.model.view import LeaseView
from cu_fleet.settings import Settings
from cu_fleet.stores.base import Store, Tx
from cu_fleet.stores.sqlite import SqliteStore
from cu_fleet.testing.clock import FakeClock
from tests.support import until

SECRET = b"s" * 32
ANA = Caller(operator="ana", role=Role.ADMIN)


def profile(name: str = "local", **more: object) -> Profile:
    fields = {"name": name, "backend": "memory", "screen": {"width": 200, "height": 120}, "reserve": 1}
    return Profile.model_validate({**fields, **more})


class Fleet:
    """One home and one world of desktops; controllers come and go."""

    def __init__(
        self,
        home: Path,
        *profiles: Profile,
        wrap: Callable[[Backend], Backend] | None = None,
        **settings: object,
    ) -> None:
        self.home = home
        self.world = MemoryWorld()
        self.clock = FakeClock()
        self.profiles = {x.name: (x, "test") for x in profiles or (profile(),)}
        self.settings = Settings.model_validate({"home": home, "max_desktops": 3, "memory": 10**9, **settings})
        self.wrap = wrap or (lambda backend: backend)
        self.controller: Controller = None  # type: ignore[assignment]

    async def store(self) -> Store:
        return await SqliteStore.open(self.home / "fleet.db", audit_key(SECRET))

    async def start(self) -> Controller:
        self.backend = MemoryBackend(Place(self.home, "f1"), self.world)
        self.controller = Controller(
            self.settings,
            await self.store(),
            {"memory": self.wrap(self.backend)},
            self.profiles,
            fleet="f1",
            secret=SECRET,
            clock=self.clock,
        )
        await self.controller.start()
        return self.controller

    async def kill(self) -> None:
        """As SIGKILL does, seen from outside: nothing is finished, nothing is written any more."""
        me = asyncio.current_task()
        controller, self.controller = self.controller, None  # type: ignore[assignment]
        controller.core.closing = True
        tasks = [task for task in asyncio.all_tasks() if task is not me and _of_controller(task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await controller.actors.close()
        await controller.core.store.close()

    async def acquire(self, agent: str, name: str = "local", *, hold: float = 0, **more: object) -> LeaseView:
        ask = Acquire.model_validate({"agent": agent, "profile": name, "wait": None, **more})
        return await self.controller.acquire(ANA, ask, hold=hold)

    async def granted(self, agent: str, name: str = "local", **more: object) -> LeaseView:
        """A lease that is granted, once its desktop has started."""
        view = await self.acquire(agent, name, **more)
        return await self.reached(view.lease, LeaseState.ACTIVE)

    async def reached(self, lease: str, state: LeaseState) -> LeaseView:
        async def there() -> LeaseView | None:
            view = await self.controller.lease(ANA, lease)
            return view if view.state == state.value else None

        return await until(there)  # type: ignore[no-any-return]

    async def settled(self) -> None:
        """Every desktop rests, and the queue has nothing to decide."""
        await until(self._at_rest)

    async def _at_rest(self) -> bool:
        core = self.controller.core

        def look(tx: Tx) -> bool:
            resting = all(x.stage in RESTING for x in tx.find(Desktop, stage=NOT_GONE))
            return resting and not plan(core.queue_state(tx)).decisions

        return await core.read(look)

    async def check(self) -> None:
        """What must hold at any moment."""
        await self.controller.core.read(lambda tx: check_invariants(tx, self.settings.max_desktops or 0))
        await self.controller.verify_audit(ANA)

    def lease_token(self, lease: str) -> str:
        return self.controller.core.mint.lease(lease)


def check_invariants(tx: Tx, most: int) -> None:
    active = tx.find(Lease, state=LeaseState.ACTIVE.value)
    desktops = {x.id: x for x in tx.find(Desktop, stage=NOT_GONE)}
    holders = [x.desktop for x in active]
    assert len(set(holders)) == len(holders), "one desktop has two holders"
    for lease in active:
        desktop = desktops[lease.desktop or ""]
        assert desktop.stage in (Stage.HELD, Stage.CLEANING), f"{lease.id} holds a desktop that is {desktop.stage}"
        assert desktop.generation == lease.generation, "a live lease of an old generation"
    held = {x.id for x in desktops.values() if x.stage is Stage.HELD}
    assert held <= set(holders), "a desktop is held by nobody"
    holdings = {x.resource: x.lease for x in tx.find(Holding)}
    assert holdings == {r: x.id for x in active for r in x.resources}, "resources do not follow their leases"
    assert sum(x.stage is not Stage.PARKED for x in desktops.values()) <= most, "more desktops than there is room for"
    names = [x.name for x in desktops.values() if x.name]
    assert len(set(names)) == len(names), "two desktops of one name"
    check_questions(tx, {lease.id: lease for lease in active})


def check_questions(tx: Tx, active: dict[str, Lease]) -> None:
    """A lease's clock stands still exactly while it waits for somebody; no question outlives what it rests on."""
    open_ones = tx.find(Approval, kind=Kind.ACTION, state=OPEN)
    for question in open_ones:
        assert question.lease in active, f"{question.id} is {question.state} of a lease that is over"
        assert question.generation == active[question.lease].generation, f"{question.id} is of an old generation"
    for lease in active.values():
        waiting = {x.id for x in open_ones if x.lease == lease.id and x.state is ApprovalState.WAITING}
        assert set(lease.approvals) == waiting, f"{lease.id} waits for other answers than there are"
        assert (lease.expires_at is None) == (bool(waiting) or lease.control is not Control.AGENT), "its clock is wrong"
    for over in tx.find(Lease):
        assert over.id in active or not over.approvals, f"{over.id} is over, and waits for an answer"


def check_served(tx: Tx, controller: Controller) -> None:
    """Nobody waits for what is free."""
    state = controller.core.queue_state(tx)
    assert not [x for x in plan(state).decisions if isinstance(x, Grant)], "somebody waits for a free desktop"
    for lease in tx.find(Lease, state=tuple(x.value for x in LIVE)):
        if lease.state is LeaseState.WAITING:
            assert lease.id in plan(state).blocked, f"{lease.id} waits for nothing"


@asynccontextmanager
async def running(home: Path, *profiles: Profile, **more: object) -> AsyncIterator[Fleet]:
    fleet = Fleet(home, *profiles, **more)  # type: ignore[arg-type]
    await fleet.start()
    try:
        yield fleet
    finally:
        if fleet.controller:
            await fleet.controller.close()
        for desktop in list(fleet.world.desktops):
            await fleet.backend.stop({"desktop": desktop})


def _of_controller(task: asyncio.Task[object]) -> bool:
    starts = (
        "keep ",
        "deadlines",
        "heartbeat",
        "sweep",
        "disk",
        "act ",
        "until",
        "change",
        "call ",
        "worktree",
        "viewer",
        "steer ",
        "broadcast ",
        "git ",
    )
    return task.get_name().startswith(starts)


GENEROUS = Grants(profiles=("*",), desktops=("*",), resources=("*",), leases=10, children=3)
