"""The queue as a function: who is served, who waits behind whom, and that nobody starves or idles for nothing."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cu_fleet.model.desktop import Desktop, Event, Stage, moved
from cu_fleet.model.lease import Lease, LeaseState, granted
from cu_fleet.model.queue import GiveWay, Grant, Make, Plan, Recipe, Reset, State, Wake, plan

RECIPES = {name: Recipe(name, "memory", "d1", 100, 80, reserve=1, can_park=True) for name in ("local", "browser")}


def lease(number: int, **more: object) -> Lease:
    fields = {"id": f"ls_{number}", "agent": f"a{number}", "profile": "local", "backend": "memory", "place": number}
    return Lease.model_validate({**fields, "asked_at": float(number), "asked_by": "operator o", **more})


def desktop(number: int, stage: Stage = Stage.READY, **more: object) -> Desktop:
    fields = {"id": f"dk_{number}", "profile": "local", "profile_digest": "d1", "backend": "memory", "stage": stage}
    return Desktop.model_validate({**fields, "width": 100, "height": 80, "created_at": 0.0, **more})


def held(one: Lease, by: Desktop, until: float = 100.0) -> tuple[Lease, Desktop]:
    return granted(one, by.id, 1, until - one.ttl), by.but(stage=Stage.HELD, generation=1)


def planned(*records: Lease | Desktop, most: int = 10, **more: object) -> Plan:
    state = State(
        leases=tuple(x for x in records if isinstance(x, Lease)),
        desktops=tuple(x for x in records if isinstance(x, Desktop)),
        recipes=RECIPES,
        most_desktops=most,
        memory=10**9,
    )
    return plan(replace(state, **more))  # type: ignore[arg-type]


def kinds(out: Plan) -> list[str]:
    return [type(decision).__name__ for decision in out.decisions]


def test_the_oldest_gets_the_ready_desktop_and_the_next_one_is_made() -> None:
    out = planned(lease(2), lease(1), desktop(1))
    grant, make = out.decisions
    assert isinstance(grant, Grant)
    assert grant.lease.id == "ls_1"
    assert isinstance(make, Make)
    assert not out.blocked


def test_a_coming_desktop_is_not_made_twice() -> None:
    assert planned(lease(1), desktop(1, Stage.STARTING)).decisions == []


def test_without_room_the_waiting_hear_who_runs_out_first() -> None:
    first, one = held(lease(1), desktop(1), until=500.0)
    second, two = held(lease(2), desktop(2), until=300.0)
    out = planned(first, second, lease(3), lease(4), one, two, most=2)
    assert out.decisions == []
    assert out.blocked["ls_3"].behind == second
    assert (out.places["ls_3"], out.places["ls_4"]) == (1, 2)


def test_an_idle_desktop_of_another_profile_gives_way() -> None:
    out = planned(lease(1), desktop(1, profile="browser"), most=1)
    assert out.decisions == [GiveWay(desktop(1, profile="browser"))]
    assert not out.blocked


def test_a_desktop_that_leaves_makes_room_for_one_request_only() -> None:
    out = planned(lease(1), lease(2), desktop(1, Stage.STOPPING), most=1)
    assert set(out.blocked) == {"ls_2"}


def test_an_idle_named_desktop_goes_to_sleep_when_its_room_is_needed() -> None:
    named = desktop(1, name="finance", owner="x")
    assert planned(lease(1), named, most=1).decisions == [GiveWay(named)]
    assert planned(lease(1), named, most=2).decisions != [GiveWay(named)]


def test_a_sleeping_named_desktop_is_woken() -> None:
    named = desktop(1, Stage.PARKED, name="finance", owner="a1")
    assert planned(lease(1, desktop_name="finance"), named).decisions == [Wake(named)]


def test_a_named_desktop_is_reset_for_another_agent_and_kept_for_its_own() -> None:
    named = desktop(1, name="finance", owner="somebody")
    assert planned(lease(1, desktop_name="finance"), named).decisions == [Reset(named)]
    mine = desktop(1, name="finance", owner="a1")
    assert kinds(planned(lease(1, desktop_name="finance"), mine)) == ["Grant"]
    shared = {"local": replace(RECIPES["local"], shared=True)}
    assert kinds(planned(lease(1, desktop_name="finance"), named, recipes=shared)) == ["Grant"]


def test_a_named_desktop_is_never_given_to_someone_who_asked_for_any() -> None:
    out = planned(lease(1), desktop(1, name="finance"))
    assert kinds(out) == ["Make"]


def test_a_held_resource_blocks_and_the_desktop_goes_to_the_next_who_can_use_it() -> None:
    holder, one = held(lease(1, resources=("r",)), desktop(1))
    out = planned(holder, lease(2, resources=("r",)), lease(3), one, desktop(2), most=2)
    (grant,) = out.decisions
    assert isinstance(grant, Grant)
    assert grant.lease.id == "ls_3"
    assert out.blocked["ls_2"].behind == holder


def test_a_free_resource_is_kept_for_the_older_request() -> None:
    """ls_2 needs r and s; r is held. ls_3 may not take s, or two like it could keep ls_2 waiting for ever."""
    holder, one = held(lease(1, resources=("r",)), desktop(1))
    out = planned(holder, lease(2, resources=("r", "s")), lease(3, resources=("s",)), one, desktop(2))
    assert kinds(out) == []
    assert out.blocked["ls_3"].behind == lease(2, resources=("r", "s"))
    assert not out.blocked["ls_3"].held


def test_two_requests_for_one_resource_are_not_both_granted() -> None:
    out = planned(lease(1, resources=("r",)), lease(2, resources=("r",)), desktop(1), desktop(2))
    assert kinds(out) == ["Grant"]


def test_a_frozen_or_outdated_desktop_is_not_handed_out() -> None:
    assert "Grant" not in kinds(planned(lease(1), desktop(1, frozen=True)))
    out = planned(lease(1), desktop(1, profile_digest="older"))
    assert "Grant" not in kinds(out)
    assert GiveWay(desktop(1, profile_digest="older")) in out.decisions


def test_warm_desktops_are_kept_ready_and_refilled_but_not_before_those_who_wait() -> None:
    warm = {"local": replace(RECIPES["local"], warm=2)}
    assert kinds(planned(recipes=warm)) == ["Make", "Make"]
    assert kinds(planned(desktop(1), recipes=warm)) == ["Make"]
    assert kinds(planned(desktop(1), desktop(2), recipes=warm)) == []
    assert kinds(planned(recipes=warm, resting=frozenset({"local"}))) == []
    assert kinds(planned(lease(1), recipes=warm, most=1)) == ["Make"]


def test_memory_is_room_too() -> None:
    assert set(planned(lease(1), lease(2), memory=1).blocked) == {"ls_2"}


requests = st.lists(
    st.tuples(
        st.sampled_from(["local", "browser"]),
        st.sampled_from([None, None, "finance", "mail"]),
        st.sets(st.sampled_from("rst"), max_size=2),
    ),
    max_size=7,
)


@settings(max_examples=300, deadline=None)
@given(requests, st.integers(1, 4), st.data())
def test_whatever_is_asked_everyone_is_served_in_the_end(
    asked: list[tuple[str, str | None, set[str]]], most: int, data: st.DataObject
) -> None:
    """Carry plans out against a tame world: all invariants hold at every step, and nobody waits for ever."""
    waiting = {
        f"ls_{n}": lease(n, profile=p if not name else "local", desktop_name=name, resources=tuple(sorted(r)))
        for n, (p, name, r) in enumerate(asked, 1)
    }
    world = World(waiting, most)
    for _ in range(40 * (len(asked) + 1)):
        world.step()
        active = [x for x in world.leases.values() if x.state is LeaseState.ACTIVE]
        if active and (world.quiet() or data.draw(st.booleans())):
            world.release(data.draw(st.sampled_from(active)))
        if not world.leases:
            break
    assert not world.leases, "somebody waited for ever"


class World:
    """Desktops that start, clean and stop at once; leases that are granted and released."""

    def __init__(self, leases: dict[str, Lease], most: int) -> None:
        self.leases, self.most = leases, most
        self.desktops: dict[str, Desktop] = {}
        self.last: Plan = Plan()
        self.count = 0

    def quiet(self) -> bool:
        return not self.last.decisions

    def step(self) -> None:
        self.last = planned(*self.leases.values(), *self.desktops.values(), most=self.most)
        for decision in self.last.decisions:
            self.carry_out(decision)
        self.check()
        self.settle()

    def carry_out(self, decision: object) -> None:
        match decision:
            case Grant(one, ready):
                after = moved(self.desktops[ready.id], Event.GRANT, generation=ready.generation + 1, owner=one.agent)
                self.desktops[ready.id] = after
                self.leases[one.id] = granted(one, ready.id, after.generation, 0.0)
            case Make(recipe, name):
                self.count += 1
                new = desktop(self.count, Stage.PLANNED, profile=recipe.name, name=name)
                self.desktops[new.id] = new
            case Wake(parked):
                self.desktops[parked.id] = moved(parked, Event.START)
            case Reset(other):
                self.desktops[other.id] = moved(other, Event.CLEAN, owner=None)
            case GiveWay(idle):
                self.desktops[idle.id] = moved(idle, Event.PARK if idle.name else Event.STOP)

    def settle(self) -> None:
        steps = {
            Stage.PLANNED: [Event.START, Event.PROVED],
            Stage.STARTING: [Event.PROVED],
            Stage.CLEANING: [Event.PROVED],
            Stage.PARKING: [Event.SLEEP],
            Stage.STOPPING: [Event.STOPPED],
        }
        for key, before in list(self.desktops.items()):
            after = before
            for event in steps.get(before.stage, []):
                after = moved(after, event)
            self.desktops[key] = after
            if after.stage is Stage.GONE:
                del self.desktops[key]

    def release(self, one: Lease) -> None:
        del self.leases[one.id]
        assert one.desktop
        mine = self.desktops[one.desktop]
        self.desktops[mine.id] = moved(mine, Event.HAND_BACK if mine.name else Event.CLEAN)

    def check(self) -> None:
        active = [x for x in self.leases.values() if x.state is LeaseState.ACTIVE]
        holders = [x.desktop for x in active]
        assert len(set(holders)) == len(holders), "one desktop, two holders"
        resources = [r for x in active for r in x.resources]
        assert len(set(resources)) == len(resources), "one resource, two holders"
        assert sum(x.stage not in (Stage.GONE, Stage.PARKED) for x in self.desktops.values()) <= self.most
        names = [x.name for x in self.desktops.values() if x.name]
        assert len(set(names)) == len(names), "one name, two desktops"
