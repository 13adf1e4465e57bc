"""Who may use a controller: agents and operators."""

from collections.abc import Sequence
from typing import Literal

from cu_fleet.client.asked import Asked
from cu_fleet.client.http import read, v1
from cu_fleet.model.view import AgentView, OperatorView


class People(Asked):
    async def agents(self) -> list[AgentView]:
        return [read(AgentView, one) for one in (await self.ask("GET", "/v1/agents"))["agents"]]

    async def add_agent(
        self,
        agent: str,
        *,
        profiles: Sequence[str] = ("*",),
        desktops: Sequence[str] = (),
        resources: Sequence[str] = (),
        leases: int = 1,
        children: int = 0,
    ) -> AgentView:
        """Add an agent or change what it may; its token is in the answer."""
        patterns = {"profiles": list(profiles), "desktops": list(desktops), "resources": list(resources)}
        body = {"agent": agent, **patterns, "leases": leases, "children": children}
        return read(AgentView, await self.ask("POST", "/v1/agents", body))

    async def rotate_agent(self, agent: str) -> AgentView:
        return read(AgentView, await self.ask("POST", v1("agents", agent, "rotate")))

    async def unbar_agent(self, agent: str) -> AgentView:
        return read(AgentView, await self.ask("POST", v1("agents", agent, "unbar")))

    async def remove_agent(self, agent: str) -> None:
        await self.ask("DELETE", v1("agents", agent))

    async def operators(self) -> list[OperatorView]:
        return [read(OperatorView, one) for one in (await self.ask("GET", "/v1/operators"))["operators"]]

    async def add_operator(
        self, operator: str, role: Literal["observer", "operator", "admin"] = "operator"
    ) -> OperatorView:
        return read(OperatorView, await self.ask("POST", "/v1/operators", {"operator": operator, "role": role}))

    async def rotate_operator(self, operator: str) -> OperatorView:
        return read(OperatorView, await self.ask("POST", v1("operators", operator, "rotate")))

    async def remove_operator(self, operator: str) -> None:
        await self.ask("DELETE", v1("operators", operator))
