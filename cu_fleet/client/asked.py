"""A controller that can be asked, to which `estate`, `people` and `record` are methods."""

from typing import Any

from cu_fleet.client.http import Wire
from cu_fleet.client.lease import Errands

HOLD = 25.0  # seconds that one call may wait for its answer


class Asked:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._errands = Errands(wire)

    async def ask(self, method: str, where: str, body: object = None, /, *, patience: float = 0.0, **query: Any) -> Any:
        """Any call of the HTTP API: `await fleet.ask("GET", "/v1/leases", agent="codex-a")`."""
        answer = await self._wire.call(method, where, body=body, query=query, patience=patience)
        return answer.json()
