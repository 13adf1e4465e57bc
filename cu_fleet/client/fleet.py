"""A controller, as the client sees it: how it is reached, and its leases."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from cu_fleet.client.asked import HOLD
from cu_fleet.client.desktop import Desktop
from cu_fleet.client.estate import Estate
from cu_fleet.client.http import Wire, given, read, v1
from cu_fleet.client.lease import Leasing
from cu_fleet.client.opened import Time
from cu_fleet.client.people import People
from cu_fleet.client.record import Record
from cu_fleet.model.errors import TooLongError
from cu_fleet.model.view import LeaseView, TicketView
from cu_fleet.settings import default_home


class Fleet(Estate, People, Record):
    """A controller. Everything here may be called from many tasks at once."""

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        token: str | None = None,
        home: str | os.PathLike[str] | None = None,
        start: bool = True,
    ) -> Self:
        """The controller at `url` (or CU_FLEET_URL), else the home's own, which is started if it does not run.

        A `home` given here wins over the environment's URL and token.
        """
        if home is None:
            url = url or os.environ.get("CU_FLEET_URL") or None
            token = token or os.environ.get("CU_FLEET_TOKEN") or None
        folder = Path(home).absolute() if home is not None else default_home()
        return cls(Wire(url=url.rstrip("/") if url else None, token=token, home=folder, start=start))

    async def __aenter__(self) -> Self:
        try:
            await self._wire.open()
        except BaseException:
            await self._wire.close()
            raise
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        await self.close()

    async def close(self) -> None:
        """End what this object still has under way. Leases that are not released live on until their time is over."""
        await self._errands.close()
        await self._wire.close()

    # leases

    def lease(
        self,
        *,
        profile: str,
        agent: str | None = None,
        desktop: str | None = None,
        resources: Sequence[str] = (),
        ttl: Time | None = None,
        wait: Time | None = 60.0,
        view: int | None = None,
        request_id: str | None = None,
    ) -> Leasing:
        """A desktop for as long as the `async with` block runs: waited for, renewed meanwhile, given back at its end.

        `wait`: how long to stand in the queue (0: not at all, None: for ever); then TooLongError. `view`: the longest
        edge of the pictures shown, which coordinates are pixels of; None: as the profile says.
        """
        asked = given(profile=profile, agent=agent, desktop=desktop, ttl=ttl, view=view, request_id=request_id)
        return Leasing(self._errands, {**asked, "resources": list(resources), "wait": wait})

    async def acquire(
        self,
        *,
        profile: str,
        agent: str | None = None,
        desktop: str | None = None,
        resources: Sequence[str] = (),
        ttl: Time | None = None,
        wait: Time | None = 60.0,
        view: int | None = None,
        request_id: str | None = None,
    ) -> Desktop:
        """A desktop that lasts until it is released, or its time is over: nobody renews or releases it for you."""
        asked = given(profile=profile, agent=agent, desktop=desktop, ttl=ttl, view=view, request_id=request_id)
        return Desktop(self._wire, await self._errands.acquired({**asked, "resources": list(resources), "wait": wait}))

    async def leases(self, *, everything: bool = False, agent: str | None = None) -> list[LeaseView]:
        answer = await self.ask("GET", "/v1/leases", **given(all=everything or None, agent=agent))
        return [read(LeaseView, one) for one in answer["leases"]]

    async def show(self, lease: str) -> LeaseView:
        return read(LeaseView, await self.ask("GET", v1("leases", lease)))

    async def open(self, lease: str, *, as_operator: bool = False) -> Desktop:
        """What a granted lease opens. An operator who has taken over acts under their own name."""
        view = await self.show(lease)
        return Desktop(self._wire, view.but(token=None) if as_operator else view)

    async def renew(self, lease: str, ttl: Time | None = None) -> LeaseView:
        return await self._supervise(lease, "renew", ttl=ttl)

    async def release(self, lease: str) -> LeaseView:
        return await self._supervise(lease, "release")

    async def pause(self, lease: str, reason: str = "", *, looking: bool = True) -> LeaseView:
        """Stop its input at once; the agent is told why, and may still look unless `looking` is False."""
        return await self._supervise(lease, "pause", reason=reason, looking=looking)

    async def resume(self, lease: str) -> LeaseView:
        return await self._supervise(lease, "resume")

    async def take(self, lease: str, reason: str = "") -> LeaseView:
        """Pointer and keys are the operator's, until `resume`."""
        return await self._supervise(lease, "take", reason=reason)

    async def watch(self, lease: str, *, control: bool = False, ttl: Time = "60s") -> TicketView:
        """Let one VNC viewer in, once: its password, and where it is let in."""
        return read(TicketView, await self.ask("POST", v1("leases", lease, "watch"), {"control": control, "ttl": ttl}))

    async def revoke(
        self, lease: str, reason: str = "", *, bar: Time | None = "10m", snapshot: bool = False
    ) -> LeaseView:
        """Take the desktop away; bar the agent from leasing again for `bar` (None: not, "forever")."""
        bar = "none" if bar is None else bar
        return await self._supervise(lease, "revoke", reason=reason, bar=bar, snapshot=snapshot)

    async def reassign(
        self, lease: str, to: str, *, mode: Literal["clean", "as-is"], reason: str = "", ttl: Time | None = None
    ) -> LeaseView:
        """Hand the desktop to another agent; returns the new lease."""
        return await self._supervise(lease, "reassign", to=to, mode=mode, reason=reason, ttl=ttl)

    async def _supervise(self, lease: str, verb: str, **body: Any) -> LeaseView:
        answer = await self.ask("POST", v1("leases", lease, verb), given(**body), patience=HOLD)
        return read(LeaseView, answer)

    # itself

    async def status(self) -> dict[str, Any]:
        return dict(await self.ask("GET", "/v1/status"))

    async def metrics(self) -> str:
        return (await self._wire.call("GET", "/metrics")).text

    async def shutdown(self, *, within: float = 180.0) -> None:
        """Stop the controller and end everything it made. Returns when it has, if it runs on this machine."""
        pid = int((await self._wire.call("POST", "/v1/shutdown", start=False)).json()["pid"])
        if self._wire.url is None:
            await _ended(pid, within)


async def _ended(pid: int, within: float) -> None:
    """Until a process of this machine is gone."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process, gone.set)
    try:
        async with asyncio.timeout(within):
            await gone.wait()
    except TimeoutError:
        raise TooLongError(f"the controller (process {pid}) still runs after {within:g} s", pid=pid) from None
    finally:
        loop.remove_reader(process)
        os.close(process)
