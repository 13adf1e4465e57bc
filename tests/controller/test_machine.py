"""Whatever agents, operators, clocks and crashes do, in any order: nothing is granted twice, nobody is forgotten."""

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cu_fleet.model.action import Action, parse_actions
from cu_fleet.model.desktop import NOT_GONE, Desktop, Stage
from cu_fleet.model.errors import ConflictError, DeniedError, LeaseOverError, LeasePausedError, UnavailableError
from cu_fleet.model.lease import LIVE, Lease, LeaseState
from cu_fleet.model.request import Shot
from cu_fleet.stores.base import Tx
from tests.controller.fleet import ANA, Fleet, check_served, profile

AGENTS = st.sampled_from(["a", "b", "c", "d"])
PROFILES = st.sampled_from(["local", "browser"])
NAMES = st.sampled_from([None, None, "finance", "mail"])
WHICH = st.integers(0, 7)
WAITS = st.sampled_from([None, 0, 50.0])
RESOURCES = st.sets(st.sampled_from(["r", "s", "t"]), max_size=2)


KEYS = st.sampled_from(["a", "b"])


def pressed(keys: str) -> list[Action]:
    return parse_actions([{"type": "key", "keys": keys}])


class FleetMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        home = Path(self.folder.name)
        self.fleet = Fleet(home, profile("local", warm=1), profile("browser"), max_desktops=2, start_timeout=5)
        self.generations: dict[str, int] = {}
        self.over: set[str] = set()
        self.asked: list[str] = []
        self.known: list[str] = []  # what is drawn never depends on it: timing must not change what is generated
        self.do(self.fleet.start())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(20):
                return await work

        return self.loop.run_until_complete(bounded())

    def settle(self) -> None:
        self.do(self.fleet.settled())

    @rule(
        agent=AGENTS,
        profile=PROFILES,
        name=NAMES,
        resources=RESOURCES,
        wait=st.sampled_from([None, 0, 50.0]),
    )
    def acquire(self, agent: str, profile: str, name: str | None, resources: set[str], wait: float | None) -> None:
        try:
            view = self.do(
                self.fleet.acquire(
                    agent, "local" if name else profile, desktop=name, resources=sorted(resources), wait=wait
                )
            )
        except (ConflictError, DeniedError):
            return
        except UnavailableError as e:  # its desktop died while it started, and the next is tried when time has passed
            if wait != 0 or e.code != "not_started":
                raise
            self.settle()
            return
        self.known.append(view.lease)
        self.settle()

    @rule(agent=AGENTS, request=st.sampled_from(["q1", "q2"]))
    def acquire_again(self, agent: str, request: str) -> None:
        """The same request id is the same lease, however often it is asked."""
        try:
            one = self.do(self.fleet.acquire(agent, request_id=request))
            two = self.do(self.fleet.acquire(agent, request_id=request))
        except DeniedError:
            return
        assert one.lease == two.lease
        self.known.append(one.lease)
        self.settle()

    @rule(which=WHICH)
    def release(self, which: int) -> None:
        if not (lease := self.lease(which)):
            return
        self.do(self.fleet.controller.release(ANA, lease))
        self.settle()

    @rule(which=WHICH)
    def pause(self, which: int) -> None:
        if not (lease := self.lease(which)):
            return
        self.maybe(self.fleet.controller.pause(ANA, lease, reason="look"))
        self.settle()

    @rule(which=WHICH)
    def resume(self, which: int) -> None:
        if not (lease := self.lease(which)):
            return
        self.maybe(self.fleet.controller.resume(ANA, lease))

    @rule(which=WHICH, bar=st.sampled_from([None, 60.0]))
    def revoke(self, which: int, bar: float | None) -> None:
        if not (lease := self.lease(which)):
            return
        self.maybe(self.fleet.controller.revoke(ANA, lease, reason="stop", bar=bar))
        self.settle()

    @rule(which=WHICH, to=AGENTS, clean=st.booleans())
    def reassign(self, which: int, to: str, clean: bool) -> None:
        if not (lease := self.lease(which)):
            return
        view = self.maybe(self.fleet.controller.reassign(ANA, lease, to=to, clean=clean))
        self.settle()
        if view:
            self.known.append(view.lease)

    @rule(which=WHICH)
    def look(self, which: int) -> None:
        """A live lease's token shows its screen; one that is over only hears why."""
        if not (lease := self.lease(which)):
            return
        who = self.do(self.fleet.controller.caller(self.fleet.lease_token(lease)))
        view = self.do(self.fleet.controller.lease(ANA, lease))
        try:
            self.do(self.fleet.controller.screenshot(who, lease, Shot()))
        except (LeaseOverError, LeasePausedError):
            assert view.state != "active" or view.control != "agent"
        else:
            assert view.state == "active"

    @rule(which=WHICH, keys=KEYS)
    def ask(self, which: int, keys: str) -> None:
        """The same question is one approval as long as it is open."""
        if not (lease := self.active(which)):
            return
        who, actions = self.do(self.fleet.controller.caller(self.fleet.lease_token(lease))), pressed(keys)
        one = self.maybe(self.fleet.controller.ask_approval(who, lease, actions))
        if one:
            assert self.do(self.fleet.controller.ask_approval(who, lease, actions)).approval == one.approval
            if one.approval not in self.asked:
                self.asked.append(one.approval)

    @rule(which=WHICH, approve=st.booleans())
    def answer(self, which: int, approve: bool) -> None:
        if self.asked:
            name = self.asked[which % len(self.asked)]
            self.maybe(self.fleet.controller.answer(ANA, name, approve=approve))

    @rule(which=WHICH, keys=KEYS, meanwhile=st.sampled_from(["nothing", "kill", "time", "take"]), others=st.booleans())
    def act_with_a_yes(self, which: int, keys: str, meanwhile: str, others: bool) -> None:
        """Only what was agreed to goes, once, and only if nothing came in between."""
        if not (lease := self.active(which)):
            return
        controller, who = self.fleet.controller, self.do(self.fleet.controller.caller(self.fleet.lease_token(lease)))
        question = self.maybe(controller.ask_approval(who, lease, pressed(keys)))
        if not question:
            return
        if question.state == "waiting":
            self.do(controller.answer(ANA, question.approval, approve=True))
        if meanwhile == "kill":
            self.killed_and_started_again()
        elif meanwhile == "time":
            self.time_passes(1000.0)
        elif meanwhile == "take":
            self.do(controller.take(ANA, lease))
            self.do(controller.resume(ANA, lease))
        sent = pressed(keys) * (2 if others else 1)
        done = self.maybe(self.fleet.controller.act(who, lease, sent, approval=question.approval))
        active = self.do(self.fleet.controller.lease(ANA, lease)).state == "active"
        assert bool(done) == (active and not others and meanwhile in ("nothing", "kill"))
        assert not self.maybe(self.fleet.controller.act(who, lease, sent, approval=question.approval)), "twice"

    @rule(which=WHICH)
    def take(self, which: int) -> None:
        if lease := self.active(which):
            self.do(self.fleet.controller.take(ANA, lease))

    @rule(seconds=st.sampled_from([1.0, 49.0, 400.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.do(self.fleet.clock.advance(seconds))
        self.settle()

    @rule()
    def killed_and_started_again(self) -> None:
        self.do(self.fleet.kill())
        self.do(self.fleet.clock.advance(30))
        self.do(self.fleet.start())
        self.settle()

    @rule(agent=AGENTS, name=NAMES)
    def killed_while_it_makes_a_desktop(self, agent: str, name: str | None) -> None:
        try:
            self.do(self.fleet.acquire(agent, desktop=name))
        except DeniedError:
            return
        self.killed_and_started_again()

    @rule(which=WHICH)
    def killed_while_it_cleans_a_desktop(self, which: int) -> None:
        if not (lease := self.lease(which)):
            return
        self.do(self.fleet.controller.release(ANA, lease))
        self.killed_and_started_again()

    @rule(which=st.integers(0, 2))
    def screen_dies(self, which: int) -> None:
        alive = sorted(self.fleet.world.desktops.values(), key=lambda x: x.number)
        if alive:
            self.do(alive[which % len(alive)].screen.close())
            self.settle()

    def lease(self, which: int) -> str | None:
        return self.known[which % len(self.known)] if self.known else None

    def active(self, which: int) -> str | None:
        """One that has a desktop."""
        views = self.do(self.fleet.controller.leases(ANA))
        active = [view.lease for view in views if view.state == "active"]
        return active[which % len(active)] if active else None

    @invariant()
    def holds(self) -> None:
        self.do(self.fleet.check())

    @invariant()
    def generations_only_grow(self) -> None:
        def look(tx: Tx) -> None:
            for desktop in tx.find(Desktop):
                assert desktop.generation >= self.generations.get(desktop.id, 0), "a generation went back"
                self.generations[desktop.id] = desktop.generation
            for lease in tx.find(Lease):
                assert not (lease.id in self.over and lease.state in LIVE), "a lease came back"
                if lease.state not in LIVE:
                    self.over.add(lease.id)

        self.do(self.fleet.controller.core.read(look))

    def maybe(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do it, if the state allows; a refusal changes nothing."""
        try:
            return self.do(work)
        except (ConflictError, DeniedError, LeaseOverError, LeasePausedError):
            return None

    def teardown(self) -> None:
        try:
            self.settle()
            self.do(self.fleet.controller.core.read(lambda tx: check_served(tx, self.fleet.controller)))
            self.do(self.everyone_is_served())
            self.do(self.fleet.controller.shut_down())
            left = set(self.fleet.world.desktops)
            assert not left, f"left behind: {left}"
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
            self.folder.cleanup()

    async def everyone_is_served(self) -> None:
        """Release whoever holds something until nobody waits: the queue always comes to an end."""
        for _ in range(200):
            core = self.fleet.controller.core
            live = await core.read(lambda tx: tx.find(Lease, state=tuple(x.value for x in LIVE)))
            if not live:
                return
            for lease in live:
                if lease.state is LeaseState.ACTIVE:
                    await self.fleet.controller.release(ANA, lease.id)
            await self.fleet.settled()
        raise AssertionError("somebody waited for ever")


FleetMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestFleetMachine = pytest.mark.slow(FleetMachine.TestCase)


def test_every_stage_that_is_not_gone_is_looked_at() -> None:
    assert set(NOT_GONE) == {stage.value for stage in Stage} - {"gone"}
