"""Leases as the client holds them: asked for, waited for, renewed, given back.

A request is put down first and then watched, so that giving up, whatever the reason, can withdraw it; an answer that
was lost on its way is asked for again under the same request id. What must come to its end also while the caller is
being cancelled runs in tasks that `Errands` owns.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from cu_fleet.client.desktop import Desktop
from cu_fleet.client.http import Wire, read, v1
from cu_fleet.model.errors import FleetError, LeaseOverError, LeasePausedError, TooLongError, UnavailableError
from cu_fleet.model.view import LeaseView

T = TypeVar("T")
_HOLD = 25.0  # how long one look at the queue may block
_END_WITHIN = 10.0  # how long giving back may take
_PASSING = frozenset({"broken_off", "no_answer", "stopping", "not_running"})
_AWAY = 60.0  # how long a controller that does not answer is asked again
_log = logging.getLogger("cu_fleet.client")


class Errands:
    """What a Fleet has under way."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._tasks: set[asyncio.Task[Any]] = set()
        self._renewals: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Let what is under way end; cut what does not. A lease still open is renewed no longer."""
        for task in self._renewals:
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_END_WITHIN)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def acquired(self, asked: dict[str, Any]) -> LeaseView:
        """The request is put down first and then watched, so that giving up can always withdraw it."""
        asked.setdefault("request_id", uuid.uuid4().hex)
        asking = self.owned(self._put_down(asked), "ask for a lease")
        try:
            return await self._granted(await asyncio.shield(asking))
        except BaseException as error:
            refused = asking.done() and (asking.cancelled() or asking.exception())
            if not refused and not isinstance(error, LeaseOverError | TooLongError):
                await self._besides(error, self._withdraw(asking), "withdraw a request")
            raise

    async def _put_down(self, asked: dict[str, Any]) -> LeaseView:
        """An answer may be lost on its way; with the same request id it is the same lease."""

        async def put() -> LeaseView:
            return await self._view("POST", "/v1/leases", body=asked, query={"hold": 0})

        return await _again(put, known=False)

    async def _granted(self, view: LeaseView) -> LeaseView:
        waited = view
        while view.state == "waiting":
            waited = view

            async def look(lease: str = view.lease) -> LeaseView:
                query = {"hold": _HOLD, "while": "waiting"}
                return await self._view("GET", v1("leases", lease), query=query, patience=_HOLD, start=False)

            view = await _again(look, known=True)
        if view.state != "active":
            raise _not_granted(view, waited)
        return view

    async def _withdraw(self, asking: "asyncio.Task[LeaseView]") -> None:
        view = await asking
        await self.release(view.lease, view.token)

    async def release(self, lease: str, token: str | None) -> None:
        try:
            await self.wire.call("POST", v1("leases", lease, "release"), token=token, start=False)
        except LeaseOverError as error:
            _log.debug("nothing to release: %s", error)

    def owned(self, work: Coroutine[Any, Any, T], name: str) -> "asyncio.Task[T]":
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def renewing(self, desktop: Desktop) -> "asyncio.Task[None]":
        task = self.owned(_keep(desktop), f"renew {desktop.id}")
        self._renewals.add(task)
        task.add_done_callback(self._renewals.discard)
        return task

    async def give_back(self, lease: LeaseView, error: BaseException | None) -> None:
        """Release it, whatever ended its use; what fails in this is told, but never in place of that."""
        work = self.release(lease.lease, lease.token)
        if error is None:
            await self.finish(work, f"release {lease.lease}")
        else:
            await self._besides(error, work, f"release {lease.lease}")

    async def _besides(self, error: BaseException, work: Coroutine[Any, Any, T], name: str) -> None:
        try:
            await self.finish(work, name)
        except FleetError as failure:
            error.add_note(f"besides, {failure}")
            _log.warning("%s", failure)

    async def finish(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """To its end, for a bounded time, also while we are being cancelled."""
        task = self.owned(work, name)
        try:
            async with asyncio.timeout(_END_WITHIN):
                return await asyncio.shield(task)
        except TimeoutError:
            task.cancel()
            raise UnavailableError(f"the controller took longer than {_END_WITHIN:g} s to {name}") from None

    async def _view(self, method: str, where: str, **more: Any) -> LeaseView:
        return read(LeaseView, (await self.wire.call(method, where, **more)).json())


class Leasing:
    """`async with fleet.lease(…) as desktop`."""

    def __init__(self, errands: Errands, asked: dict[str, Any]) -> None:
        self._errands, self._asked = errands, asked
        self._desktop: Desktop | None = None
        self._renewing: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        """Whether it was granted, so that leaving gives something back."""
        return self._renewing is not None

    async def __aenter__(self) -> Desktop:
        if self._desktop is not None:
            raise RuntimeError("one lease, one `async with`; ask for another lease")
        desktop = self._desktop = Desktop(self._errands.wire, await self._errands.acquired(self._asked))
        self._renewing = self._errands.renewing(desktop)
        return desktop

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._desktop is not None
        assert self._renewing is not None
        self._renewing.cancel()
        await self._errands.give_back(self._desktop.lease, error)


async def _keep(desktop: Desktop) -> None:
    """Renew at a third of the term; sooner again while the controller is away."""
    pause = desktop.lease.ttl / 3
    while True:
        await asyncio.sleep(pause)
        pause = desktop.lease.ttl / 3
        try:
            await desktop.renew()
        except LeaseOverError as error:
            _log.info("no longer renewed: %s", error)
            return
        except LeasePausedError as error:
            _log.debug("not renewed now: %s", error)
        except UnavailableError as error:
            _log.warning("not renewed, trying again: %s", error)
            pause = min(2.0, pause)


async def _again(ask: Callable[[], Awaitable[T]], *, known: bool) -> T:
    """Ask until there is an answer: a controller that went away comes back. One never met is not waited for."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _AWAY
    while True:
        try:
            return await ask()
        except UnavailableError as error:
            if error.code not in _PASSING or loop.time() > until or (error.code == "not_running" and not known):
                raise
            _log.debug("asking again: %s", error)
        known = True
        await asyncio.sleep(0.2)


def _not_granted(view: LeaseView, waited: LeaseView) -> FleetError:
    if view.state == "cancelled" and view.by in ("", "controller"):
        behind = f" {waited.message}" if waited.message else ""
        return TooLongError(
            f"agent {view.agent} waited too long for a desktop of profile {view.profile}.{behind}",
            remedy="wait longer, or ask who holds what: cu-fleet lease list",
            lease=view.lease,
            holder=waited.holder,
        )
    by, why = f" by {view.by}" if view.by else "", f": {view.reason}" if view.reason else ""
    return LeaseOverError(
        f"lease {view.lease} was {view.state}{by} while it waited{why}", code=f"lease_{view.state}", lease=view.lease
    )
