"""Acting: one batch at a time through the desktop's actor, each action on record before it is sent.

A batch costs one transaction more than it has actions: the result of one action and the intent of the next are
written together. An intent without a result, found at a start, is a batch that was cut off: it is recorded as
interrupted, and never taken up again.

Coordinates come in pixels of the lease's view, or of a frame that was handed out; the record has them in pixels of the
screen, as they were sent, and beside them what was asked.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from cu_fleet.controller.actor import Actor, Actors
from cu_fleet.controller.core import Core
from cu_fleet.controller.frames import Around, Frames, Kept
from cu_fleet.controller.looking import Looking, Visit
from cu_fleet.controller.permit import Seats, allowed, renew
from cu_fleet.model.access import Caller
from cu_fleet.model.action import Action, Wait, WaitChange, WaitStable, check_on_screen, for_record
from cu_fleet.model.audit import redacted
from cu_fleet.model.desktop import Desktop, Stage
from cu_fleet.model.errors import FleetError, TooLongError
from cu_fleet.model.geometry import Geometry
from cu_fleet.model.lease import Lease
from cu_fleet.model.request import Acted, Done, Shot, Shown
from cu_fleet.rfb.screen import Screen
from cu_fleet.stores.base import Tx

SETTLE_MS = 100  # of a picture after actions, unless asked otherwise
_PLACES = ("x", "y", "path", "region", "ignore")
_NOT_DONE = Done(ok=False, code="not_done", detail="an earlier action of the batch failed")


@dataclass
class Batch:
    """One caller's batch: what became of it so far, and the intent that has no result yet."""

    visit: Visit
    geometry: Geometry
    around: Around
    done: list[Done] = field(default_factory=list)
    seq: int | None = None
    began: float = 0.0


class Result(NamedTuple):
    """What the record says of the latest action."""

    code: str
    seconds: float
    kept: list[Kept]
    facts: dict[str, object]


class Acting:
    def __init__(self, core: Core, actors: Actors, frames: Frames) -> None:
        self.core = core
        self.actors = actors
        self.looking = Looking(core, frames)
        self.frames = frames
        self.seats = Seats(core)

    async def act(
        self,
        who: Caller,
        lease_id: str,
        actions: Sequence[Action],
        *,
        shot: Shot | None = None,
        intent: str | None = None,
        request_id: str | None = None,
        frame: str | None = None,
    ) -> Acted:
        """Send a batch, and the settled frame that shows its effect if one is wanted.

        Coordinates are pixels of the lease's view, or of the frame that `frame` names.
        """
        lease, desktop = await self.seats.of(who, lease_id)
        actor = self.actors.of(desktop.id)
        if request_id and (answer := actor.answers.get((lease_id, request_id))):
            return answer
        geometry = self.looking.geometry(lease, desktop, frame)
        what = f"frame {frame}" if frame else "the screen" if geometry.same else "the view"
        for action in actions:
            check_on_screen(action, geometry.width, geometry.height, what)
        async with actor.turn:
            if request_id and (answer := actor.answers.get((lease_id, request_id))):
                return answer
            screen = await self._screen(actor, desktop)
            visit = Visit(who, lease, desktop, screen, intent, frame, acted=bool(actions))
            if any(geometry.placed(action) for action in actions):
                self.looking.check_geometry(visit, geometry)
            if shot:
                self.looking.check(visit, shot)
            batch = Batch(visit, geometry, Around(self.frames, lease, screen))
            remember = partial(actor.remember, lease_id, request_id)
            try:
                await self._batch(actor, batch, actions)
            except asyncio.CancelledError:
                remember(_answer(batch, actions))
                raise
            answer = _answer(batch, actions)
            remember(answer)  # whatever becomes of the picture, this is not done again
            if shot:
                answer = answer.model_copy(update=await self._after(actor, visit, shot))
                remember(answer)
            return answer

    async def screenshot(self, who: Caller, lease_id: str, shot: Shot, *, intent: str | None = None) -> Shown:
        """What the screen shows now. Looking is on record like any other action."""
        lease, desktop = await self.seats.of(who, lease_id, look=True)
        actor = self.actors.of(desktop.id)
        settled = None
        if shot.settle_ms:
            async with actor.turn:
                screen = await self._screen(actor, desktop)
            settled = await self._rested(Visit(who, lease, desktop, screen), shot)
        async with actor.turn:
            screen = await self._screen(actor, desktop)
            return await self.looking.look(Visit(who, lease, desktop, screen, intent), shot, settled)

    async def interrupted(self) -> None:
        """After a start: batches that a killed controller left in the middle."""

        def work(tx: Tx) -> None:
            for desktop in tx.find(Desktop, stage=tuple(x.value for x in Stage)):
                open_seq = tx.get_meta(f"acting:{desktop.id}")
                if open_seq:
                    self.core.record(
                        tx, "act.done", "controller", desktop=desktop, of=int(open_seq), result="interrupted"
                    )
                    tx.set_meta(f"acting:{desktop.id}", None)

        await self.core.note(work)

    async def allowed(self, who: Caller, lease_id: str, *, look: bool = False) -> tuple[Lease, Desktop]:
        return await self.core.read(lambda tx: allowed(self.core, tx, who, lease_id, look=look))

    async def _screen(self, actor: Actor, desktop: Desktop) -> Screen:
        if actor.screen:
            return actor.screen
        return await actor.connect(desktop, await self.core.endpoint(desktop), self.core.settings.backend_timeout)

    async def _batch(self, actor: Actor, batch: Batch, actions: Sequence[Action]) -> None:
        for number, action in enumerate(actions):
            try:
                await self._intend(batch, action)
                await self._do(actor, batch, action, mark=waited_for(actions, number))
                batch.done.append(Done(ok=True))
            except FleetError as e:
                batch.done.append(Done(ok=False, code=e.code, detail=str(e)))
                await self._conclude(batch)
                if number == 0:
                    raise
                return
            except BaseException:
                batch.done.append(Done(ok=False, code="interrupted", detail="the call ended in the middle of it"))
                await asyncio.shield(self._conclude(batch))
                raise
        if actions:
            await self._conclude(batch)

    async def _do(self, actor: Actor, batch: Batch, action: Action, *, mark: bool) -> None:
        await batch.around.before()
        if mark:
            await actor.mark()
        await actor.do(batch.geometry.meant(action))
        await batch.around.after()

    async def _intend(self, batch: Batch, action: Action) -> None:
        """Write down what is about to be sent, with the result of the one before, if this lease still may send it."""
        visit, now = batch.visit, self.core.now()
        result = await self._result(batch) if batch.done else None
        sent, facts = self._sent(batch, action)

        def work(tx: Tx) -> int:
            lease, desktop = allowed(self.core, tx, visit.who, visit.lease.id, generation=visit.desktop.generation)
            if result:
                self._write_result(tx, batch, lease, result)
            renew(tx, lease, visit.who, now)
            seq = self.core.record(tx, "act", visit.who.who, lease=lease, action=sent, intent=visit.intent, facts=facts)
            tx.set_meta(f"acting:{desktop.id}", str(seq))
            return seq

        batch.seq = await self.core.note(work)
        batch.began = now

    def _sent(self, batch: Batch, action: Action) -> tuple[dict[str, object], dict[str, object]]:
        """The action as it is recorded, in pixels of the screen, and as facts what was asked instead."""
        meant = batch.geometry.meant(action)
        sent = for_record(meant, lambda text: redacted(text, self.core.redaction_key))
        if meant is action:
            return sent, {}
        asked = {key: value for key, value in action.model_dump(mode="json").items() if key in _PLACES and key in sent}
        return sent, {"asked": asked} | ({"frame": batch.visit.frame} if batch.visit.frame else {}) if asked else {}

    async def _conclude(self, batch: Batch) -> None:
        result = await self._result(batch)

        def work(tx: Tx) -> None:
            lease = self.core.get_lease(tx, batch.visit.lease.id)
            self._write_result(tx, batch, lease, result)
            tx.set_meta(f"acting:{batch.visit.desktop.id}", None)

        await self.core.note(work)
        if result.kept:
            self.frames.tidying.mind_the_quota()

    async def _result(self, batch: Batch) -> Result:
        seconds = round(self.core.now() - batch.began, 6)
        return Result(batch.done[-1].code or "ok", seconds, *await batch.around.ready())

    def _write_result(self, tx: Tx, batch: Batch, lease: Lease, result: Result) -> None:
        self.core.record(
            tx,
            "act.done",
            batch.visit.who.who,
            lease=lease,
            of=batch.seq,
            result=result.code,
            seconds=result.seconds if batch.seq else None,
            frames=self.frames.note(tx, result.kept),
            facts=result.facts,
        )

    async def _after(self, actor: Actor, visit: Visit, shot: Shot) -> dict[str, object]:
        """The picture after a batch, or why there is none: what was done is told all the same."""
        quiet = shot.settle_ms if shot.settle_ms is not None else SETTLE_MS if visit.acted else 0
        try:
            settled = None
            if quiet:
                area = self.looking.shown_area(visit, shot)
                settled = await actor.settled(visit.screen, quiet / 1000, shot.settle_timeout_ms / 1000, area)
            return {"screenshot": await self.looking.look(visit, shot, settled)}
        except FleetError as e:
            return {"not_shown": Done(ok=False, code=e.code, detail=str(e))}

    async def _rested(self, visit: Visit, shot: Shot) -> bool:
        """Whether the screen came to rest in time; nobody else waits for that."""
        quiet, timeout = (shot.settle_ms or 0) / 1000, shot.settle_timeout_ms / 1000
        try:
            await visit.screen.wait_stable(quiet, timeout, self.looking.shown_area(visit, shot))
        except TooLongError:
            return False
        return True


def _answer(batch: Batch, actions: Sequence[Action]) -> Acted:
    rest = [_NOT_DONE] * (len(actions) - len(batch.done))
    return Acted(done=(*batch.done, *rest), generation=batch.visit.desktop.generation)


def waited_for(actions: Sequence[Action], number: int) -> bool:
    """Whether what comes of this action is waited for next: then only what changes from now on may count."""
    if isinstance(actions[number], Wait | WaitStable | WaitChange):
        return False
    after = (action for action in actions[number + 1 :] if not isinstance(action, Wait | WaitStable))
    return isinstance(next(after, None), WaitChange)
