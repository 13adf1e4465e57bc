"""What one lease opens, to which `hands`, `eyes` and `shared` are methods."""

from typing import Any

from cu_fleet.client.http import Wire, v1
from cu_fleet.model.view import LeaseView

Time = float | str  # seconds, or "15m"


class Opened:
    def __init__(self, wire: Wire, lease: LeaseView) -> None:
        self._wire = wire
        self.lease = lease  # as it was when we last heard of it

    @property
    def id(self) -> str:
        """The lease's."""
        return self.lease.lease

    async def _call(self, method: str, *steps: str, **more: Any) -> Any:
        return await self._wire.call(method, v1("leases", self.id, *steps), token=self.lease.token, start=False, **more)
