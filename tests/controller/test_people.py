"""Agents, their children and their tokens: what was taken from somebody does not come back by another name."""

from pathlib import Path

import pytest

from cu_fleet.model.access import Caller, Grants, Role
from cu_fleet.model.errors import DeniedError, UnauthorizedError
from cu_fleet.model.request import Acquire
from tests.controller.fleet import ANA, Fleet, profile, running
from tests.support import run

PARENT, CHILD = Caller(agent="p"), Caller(agent="p-2")


async def _child_leases(fleet: Fleet, name: str = "local") -> str:
    """What becomes of the child's request: its state, or the code of the refusal."""
    try:
        view = await fleet.controller.acquire(CHILD, Acquire(profile=name, wait=None), hold=0)
    except DeniedError as e:
        return e.code
    await fleet.controller.release(CHILD, view.lease)
    return view.state


def test_a_bar_holds_for_the_barred_agents_children(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            await fleet.controller.add_agent(ANA, "p", Grants(children=2))
            lease = await fleet.granted("p")
            await fleet.controller.revoke(ANA, lease.lease, reason="it went astray", bar=600)
            await fleet.controller.add_agent(PARENT, "p-2", Grants())
            assert await _child_leases(fleet) == "barred"
            await fleet.controller.unbar_agent(ANA, "p")
            assert await _child_leases(fleet) in ("waiting", "active")

    run(body())


def test_what_a_parent_may_no_more_its_children_may_not_either(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, profile(), profile("other")) as fleet:
            await fleet.controller.add_agent(ANA, "p", Grants(children=2))
            await fleet.controller.add_agent(PARENT, "p-2", Grants())
            await fleet.controller.add_agent(ANA, "p", Grants(profiles=("local",), children=2))
            assert await _child_leases(fleet, "other") == "not_granted"
            assert await _child_leases(fleet, "local") in ("waiting", "active")

    run(body())


def test_a_removed_name_that_is_given_anew_does_not_bring_old_tokens_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            people = fleet.controller
            old = [(await people.add_agent(ANA, "p", Grants())).token]
            old += [(await people.add_operator(ANA, "bo", Role.ADMIN)).token]
            old += [(await people.rotate_agent(ANA, "p")).token, (await people.rotate_operator(ANA, "bo")).token]
            await people.remove_agent(ANA, "p")
            await people.remove_operator(ANA, "bo")
            new = [(await people.agent_token(ANA, "p")).token]
            new += [(await people.add_operator(ANA, "bo", Role.OBSERVER)).token]
            for token in old:
                with pytest.raises(UnauthorizedError) as caught:
                    await people.caller(token)
                assert caught.value.code == "outdated_token"
            assert [(await people.caller(token)).who for token in new] == ["agent p", "operator bo"]

    run(body())
