"""Agents and operators: who they are, what their tokens open, and what agents may lease."""

from collections import OrderedDict
from collections.abc import Callable

from cu_fleet.controller.core import Core
from cu_fleet.model.access import CHILDREN, EPOCH, Agent, Caller, Grants, Operator, Role, check_within
from cu_fleet.model.errors import ConflictError, DeniedError, NotFoundError, UnauthorizedError
from cu_fleet.model.lease import LIVE, Lease
from cu_fleet.model.names import check_name
from cu_fleet.model.view import AgentView, OperatorView, agent_view, operator_view
from cu_fleet.stores.base import Tx

_LIVE = tuple(state.value for state in LIVE)


class People:
    def __init__(self, core: Core) -> None:
        self.core = core
        self._agent_of: OrderedDict[str, str] = OrderedDict()  # a lease's agent never changes

    async def caller(self, token: str | None, *, socket_owner: str | None = None) -> Caller:
        """Who this is. The socket's owner is an admin by name; everyone else shows a token."""
        if token is None:
            if socket_owner is None:
                raise UnauthorizedError(
                    "this door needs a token", remedy="send Authorization: Bearer, or set CU_FLEET_TOKEN"
                )
            return Caller(operator=socket_owner, role=Role.ADMIN)
        bearer = self.core.mint.read(token)
        if bearer.kind == "cfl":
            return Caller(lease=bearer.subject, agent=await self._lease_agent(bearer.subject))
        if bearer.kind == "cfa":
            agent = await self.core.read(lambda tx: tx.get(Agent, bearer.subject))
            if agent is None or agent.epoch != bearer.epoch:
                raise _outdated("agent", bearer.subject)
            return Caller(agent=agent.name)
        operator = await self.core.read(lambda tx: tx.get(Operator, bearer.subject))
        if operator is None or operator.epoch != bearer.epoch:
            raise _outdated("operator", bearer.subject)
        return Caller(operator=operator.name, role=operator.role)

    async def _lease_agent(self, lease_id: str) -> str:
        if lease_id not in self._agent_of:
            lease = await self.core.read(lambda tx: tx.get(Lease, lease_id))
            if lease is None:
                raise UnauthorizedError(
                    f"this token's lease {lease_id} is over and no longer remembered", code="forgotten_lease"
                )
            self._agent_of[lease_id] = lease.agent
            if len(self._agent_of) > 10_000:
                self._agent_of.popitem(last=False)
        return self._agent_of[lease_id]

    # agents

    async def agents(self, who: Caller) -> list[AgentView]:
        who.needs(Role.OBSERVER)

        def work(tx: Tx) -> list[AgentView]:
            leases = [lease.agent for lease in tx.find(Lease, state=_LIVE)]
            return [agent_view(agent, leases.count(agent.name)) for agent in tx.find(Agent)]

        return await self.core.read(work)

    async def add_agent(self, who: Caller, name: str, grants: Grants) -> AgentView:
        """Add an agent, or change an agent's grants; an agent may add children within its own."""
        check_name("agent", name)

        def work(tx: Tx) -> Agent:
            old = tx.get(Agent, name)
            parent = self._may_add(tx, who, old, grants)
            agent = (old or self._new(tx, name, parent)).but(grants=grants)
            tx.put(agent)
            what = "agent.changed" if old else "agent.added"
            self.core.record(tx, what, who.who, facts={"agent": name, "grants": grants.model_dump()})
            return agent

        agent = await self.core.change(work)
        return agent_view(agent, token=self.core.mint.agent(agent.name, agent.epoch))

    def _new(self, tx: Tx, name: str, parent: str | None = None) -> Agent:
        return Agent(name=name, parent=parent, epoch=tx.next_number(EPOCH), created_at=self.core.now())

    def _may_add(self, tx: Tx, who: Caller, old: Agent | None, grants: Grants) -> str | None:
        if who.role is not None:
            who.needs(Role.OPERATOR)
            return None
        parent = tx.get(Agent, who.agent or "") if not who.lease else None
        if parent is None:
            raise DeniedError(f"{who.who} may not add agents", code="needs_operator")
        if old is not None and old.parent != parent.name:
            raise ConflictError(f'there is an agent "{old.name}" already', code="taken")
        children = tx.find(Agent, parent=parent.name)
        if old is None and len(children) >= parent.grants.children:
            raise DeniedError(
                f"agent {parent.name} may have {parent.grants.children} children, and has {len(children)}",
                remedy=f"an operator can allow more: cu-fleet agent add {parent.name} --children N",
                code="too_many_children",
            )
        check_within(parent.grants, grants)
        return parent.name

    async def rotate_agent(self, who: Caller, name: str) -> AgentView:
        agent = await self._change_agent(who, name, "agent.rotated", lambda tx, x: x.but(epoch=tx.next_number(EPOCH)))
        return agent_view(agent, token=self.core.mint.agent(agent.name, agent.epoch))

    async def agent_token(self, who: Caller, name: str) -> AgentView:
        """The token of an agent as it is, for a door that acts for it; one not known yet is added."""
        check_name("agent", name)
        who.needs(Role.OPERATOR)

        def work(tx: Tx) -> Agent:
            agent = tx.get(Agent, name)
            if agent is None:
                agent = self._new(tx, name).but(grants=Grants(children=CHILDREN))
                tx.put(agent)
                self.core.record(tx, "agent.added", who.who, facts={"agent": name, "on_the_fly": True})
            self.core.record(tx, "agent.token", who.who, facts={"agent": name})
            return agent

        agent = await self.core.change(work)
        return agent_view(agent, token=self.core.mint.agent(agent.name, agent.epoch))

    async def unbar_agent(self, who: Caller, name: str) -> AgentView:
        return agent_view(
            await self._change_agent(
                who, name, "agent.unbarred", lambda _, agent: agent.but(barred_until=None, bar_reason="")
            )
        )

    async def _change_agent(self, who: Caller, name: str, what: str, change: Callable[[Tx, Agent], Agent]) -> Agent:
        who.needs(Role.OPERATOR)

        def work(tx: Tx) -> Agent:
            agent = change(tx, _get_agent(tx, name))
            tx.put(agent)
            self.core.record(tx, what, who.who, facts={"agent": name})
            return agent

        return await self.core.change(work)

    async def remove_agent(self, who: Caller, name: str) -> None:
        who.needs(Role.OPERATOR)

        def work(tx: Tx) -> None:
            agent = _get_agent(tx, name)
            live = tx.find(Lease, agent=name, state=_LIVE)
            if live:
                raise ConflictError(
                    f"agent {name} still has lease {live[0].id}",
                    remedy=f"cu-fleet lease revoke {live[0].id}, then remove the agent",
                    code="agent_busy",
                )
            for child in tx.find(Agent, parent=name):
                tx.put(child.but(parent=None))
            tx.delete(agent)
            self.core.record(tx, "agent.removed", who.who, facts={"agent": name})

        await self.core.change(work)

    # operators

    async def operators(self, who: Caller) -> list[OperatorView]:
        who.needs(Role.OBSERVER)
        return [operator_view(x) for x in await self.core.read(lambda tx: tx.find(Operator))]

    async def add_operator(self, who: Caller, name: str, role: Role) -> OperatorView:
        who.needs(Role.ADMIN)
        check_name("operator", name)

        def work(tx: Tx) -> Operator:
            old = tx.get(Operator, name)
            fresh = {"epoch": tx.next_number(EPOCH), "created_at": self.core.now()}
            operator = old.but(role=role) if old else Operator.model_validate({"name": name, "role": role, **fresh})
            tx.put(operator)
            what = "operator.changed" if old else "operator.added"
            self.core.record(tx, what, who.who, facts={"operator": name, "role": role.value})
            return operator

        operator = await self.core.change(work)
        return operator_view(operator, self.core.mint.operator(operator.name, operator.epoch))

    async def rotate_operator(self, who: Caller, name: str) -> OperatorView:
        who.needs(Role.ADMIN)

        def work(tx: Tx) -> Operator:
            operator = _get_operator(tx, name)
            operator = operator.but(epoch=tx.next_number(EPOCH))
            tx.put(operator)
            self.core.record(tx, "operator.rotated", who.who, facts={"operator": name})
            return operator

        operator = await self.core.change(work)
        return operator_view(operator, self.core.mint.operator(operator.name, operator.epoch))

    async def remove_operator(self, who: Caller, name: str) -> None:
        who.needs(Role.ADMIN)

        def work(tx: Tx) -> None:
            tx.delete(_get_operator(tx, name))
            self.core.record(tx, "operator.removed", who.who, facts={"operator": name})

        await self.core.change(work)


def _get_agent(tx: Tx, name: str) -> Agent:
    agent = tx.get(Agent, name)
    if agent is None:
        raise NotFoundError(f'there is no agent "{name}"', remedy="cu-fleet agent list", code="no_agent", agent=name)
    return agent


def _get_operator(tx: Tx, name: str) -> Operator:
    operator = tx.get(Operator, name)
    if operator is None:
        raise NotFoundError(f'there is no operator "{name}"', remedy="cu-fleet operator list", code="no_operator")
    return operator


def _outdated(kind: str, name: str) -> UnauthorizedError:
    return UnauthorizedError(
        f"this token of {kind} {name} opens nothing any more: it was rotated, or the {kind} was removed",
        remedy=f"ask an operator for a new one: cu-fleet {kind} rotate {name}",
        code="outdated_token",
    )
