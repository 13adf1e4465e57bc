"""One process's own lease: asked for by the first call, kept while the process lives, given back at its end.

It holds the agent's token, and passes each call on to the controller's own door with the lease's. Where the agent has
a lease already (another process, or another thread of the same client), a child of that agent with a number to its
name gets this one, so that no two ever share a desktop. A lease that was revoked is never asked for again.
"""

import asyncio
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cu_fleet.client.desktop import Desktop
from cu_fleet.client.http import Wire, chunks, read, v1
from cu_fleet.client.lease import Errands
from cu_fleet.client.naming import agents_token, first_free, kind_of, named_in
from cu_fleet.mcp.answers import Answer, code_of, refused, said, words_of
from cu_fleet.model.errors import (
    BrokenError,
    FleetError,
    LeaseOverError,
    LeasePausedError,
    TooLongError,
    UnavailableError,
)
from cu_fleet.model.view import LeaseView

TTL = 60.0  # seconds; renewed while this process lives, and soon over should it be killed
AT_ONCE = 1.0  # seconds that a call waits behind somebody else
STARTS_WITHIN = 40.0  # and for a desktop that is being made
WITHIN = 58.0  # for any call, whatever it waits for
AGAIN = "look how far it came, and go on from there"
_FINAL = ("lease_revoked", "lease_reassigned")
_OVER = ("lease_released", "lease_expired", "lease_lost", "lease_cancelled")
_HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}


class Way:
    """The way to the controller, with a token that opens no more than it must.

    An operator's token, or none at the home's own socket, serves once: to get the agent's.
    """

    def __init__(self, wire: Wire, agent: str, *, leased: bool = False) -> None:
        self.wire, self.agent, self.leased = wire, agent, leased  # leased: the token is a lease's
        self.errands = Errands(wire)

    @classmethod
    async def open(cls, url: str | None, token: str | None, home: Path, agent: str) -> "Way":
        if kind_of(token) not in ("cfl", "cfa"):
            token = await _agent_token(Wire(url=url, token=token, home=home, start=True), agent)
        elif token:
            agent = named_in(token)
        wire = Wire(url=url, token=token, home=home, start=True)
        return cls(wire, agent, leased=kind_of(token) == "cfl")

    async def passed_on(self, method: str, asked: Mapping[str, Any], token: str | None, **query: str) -> dict[str, Any]:
        """A message to the controller's own MCP door, and its answer."""
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": dict(asked)}
        start = method == "tools/list"  # a controller started anew knows no lease that could be meant
        more: dict[str, Any] = {"query": query, "token": token, "headers": _HEADERS, "start": start}
        async with self.wire.stream("POST", "/mcp", body=message, **more) as answer:
            data = b"".join([chunk async for chunk in chunks(self.wire, answer)])
        try:
            said = json.loads(data)
            if "error" in said:
                raise UnavailableError(str(said["error"]["message"]), code="refused")
            return dict(said["result"])
        except (ValueError, KeyError, TypeError):
            shown = data[:200].decode("utf-8", "replace")
            raise BrokenError(f"the controller refused {method}: {shown}", code="not_understood") from None

    async def close(self) -> None:
        await self.errands.close()
        await self.wire.close()


async def _agent_token(wire: Wire, agent: str) -> str | None:
    try:
        return await agents_token(wire, agent)
    finally:
        await wire.close()


class Desk:
    def __init__(self, way: Way, profile: str) -> None:
        self._way, self._profile = way, profile
        self._leasing = asyncio.Lock()
        self._asking: asyncio.Task[LeaseView] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._lease: LeaseView | None = None
        self._token: str | None = None  # of the name that asked for the lease; None: the agent's own
        self._over: FleetError | None = None

    async def listing(self) -> dict[str, Any]:
        """The tools that this profile's desktops have."""
        return await self._way.passed_on("tools/list", {}, None, profile=self._profile)

    async def call(self, tool: str, given: Mapping[str, Any] | None) -> Answer:
        try:
            async with asyncio.timeout(WITHIN):
                return await self._called(tool, given)
        except TimeoutError:
            return refused(TooLongError(f"{tool[:100]} took longer than {WITHIN:g} s", remedy=AGAIN))
        except FleetError as error:
            return refused(error)

    async def _called(self, tool: str, given: Mapping[str, Any] | None) -> Answer:
        if self._way.leased:
            return await self._done(tool, given, None)
        if tool in ("lease_status", "release") and not (self._lease and self._lease.state == "active"):
            return await self._without_desktop(tool)
        return self._heeded(tool, await self._done(tool, given, (await self._granted()).token))

    async def _done(self, tool: str, given: Mapping[str, Any] | None, token: str | None) -> Answer:
        asked = {"name": tool, "arguments": dict(given or {})}
        return Answer.model_validate(await self._way.passed_on("tools/call", asked, token))

    async def _without_desktop(self, tool: str) -> Answer:
        """What can be said and done while there is none."""
        if self._over:
            raise self._over
        if self._lease is None:
            return said("You have no desktop now. The first call that needs one leases it.")
        if tool == "release":
            await self._give_back()
            return said("You have left the queue.")
        lease = await self._looked(self._lease, 0)
        return refused(_waiting(lease)) if lease.state == "waiting" else said(f"Your lease is {lease.state}.")

    def _heeded(self, tool: str, answer: Answer) -> Answer:
        """What the answer says of the lease."""
        code = code_of(answer)
        if code in _FINAL:
            self._over = LeaseOverError(words_of(answer).rstrip("."), code=code)
        if code in (*_FINAL, *_OVER) or (tool == "release" and not answer.is_error):
            self._forget()
        if code in _OVER:
            return refused(LeaseOverError(f"{words_of(answer)} The next call leases a new, clean desktop", code=code))
        return answer

    # the lease

    async def _granted(self) -> LeaseView:
        """The lease, once it is granted; or why there is none yet."""
        async with self._leasing:
            if self._over:
                raise self._over
            lease = self._lease or await self._asked()
            if lease.state == "waiting":
                lease = await self._looked(lease, AT_ONCE)
            if lease.state == "waiting" and lease.holder is None:
                lease = await self._looked(lease, STARTS_WITHIN)
            if lease.state == "waiting":
                raise _waiting(lease)
            if lease.state != "active":
                raise self._not_granted(lease)
            if self._renewing is None:
                self._renewing = self._way.errands.renewing(Desktop(self._way.wire, lease))
            return lease

    async def _asked(self) -> LeaseView:
        """Put down a request, once. Should its asker go before the answer comes, the next call or `close` has it."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="ask for a lease")
        return await asyncio.shield(self._asking)

    async def _ask(self) -> LeaseView:
        body = {"profile": self._profile, "wait": None, "ttl": TTL, "request_id": uuid.uuid4().hex}

        async def ask(token: str | None) -> LeaseView:
            more: dict[str, Any] = {"query": {"hold": 0}, "token": token}
            answer = await self._way.wire.call("POST", "/v1/leases", body=body, **more)
            self._token, self._lease = token, read(LeaseView, answer.json())
            return self._lease

        return await first_free(self._way.wire, self._way.agent, self._profile, ask)

    async def _looked(self, lease: LeaseView, hold: float) -> LeaseView:
        more: dict[str, Any] = {"query": {"hold": hold, "while": "waiting"}, "patience": hold, "token": self._token}
        answer = await self._way.wire.call("GET", v1("leases", lease.lease), start=False, **more)
        self._lease = read(LeaseView, answer.json())
        return self._lease

    def _not_granted(self, lease: LeaseView) -> FleetError:
        self._forget()
        by, why = f" by {lease.by}" if lease.by else "", f": {lease.reason}" if lease.reason else ""
        error = LeaseOverError(
            f"you have no desktop: lease {lease.lease} was {lease.state}{by} before it was used{why}",
            code=f"lease_{lease.state}",
        )
        if error.code in _FINAL:
            self._over = error
        return error

    def _forget(self) -> None:
        self._lease = None
        if self._renewing:
            self._renewing.cancel()
            self._renewing = None

    async def _give_back(self) -> None:
        lease = self._lease
        self._forget()
        if lease:
            errands = self._way.errands
            await errands.finish(errands.release(lease.lease, lease.token or self._token), "give the desktop back")

    async def close(self) -> None:
        """Give back what was leased, and what was being asked for."""
        if self._asking:
            await asyncio.wait({self._asking}, timeout=10)
        if self._lease:
            await self._give_back()


def _waiting(lease: LeaseView) -> LeasePausedError:
    return LeasePausedError(
        f"you have no desktop yet: {lease.message or 'it is being made'}",
        remedy="do something else and call again in a while; you keep your place in line",
        code="lease_waiting",
    )
