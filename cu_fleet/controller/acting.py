"""Acting: one batch at a time through the desktop's actor.

Coordinates come in pixels of the lease's view, or of a frame that was handed out. A batch is done in order until an
action fails or is refused; then, if one is wanted, it answers with the settled picture, and says what was done also if
there is no picture to be had.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

from cu_fleet.controller.actor import Actor, Actors
from cu_fleet.controller.batch import INTERRUPTED, Agreement, Batch, note_interrupted
from cu_fleet.controller.core import Core
from cu_fleet.controller.frames import Around, Frames
from cu_fleet.controller.looking import Looking, Visit
from cu_fleet.controller.permit import Seats, allowed
from cu_fleet.model.access import Caller
from cu_fleet.model.action import Action, Wait, WaitChange, WaitStable, check_on_screen
from cu_fleet.model.approval import digest
from cu_fleet.model.desktop import Desktop
from cu_fleet.model.errors import FleetError, TooLongError
from cu_fleet.model.geometry import Geometry
from cu_fleet.model.lease import Lease
from cu_fleet.model.request import Acted, Done, Shot, Shown
from cu_fleet.rfb.screen import Screen

SETTLE_MS = 100  # of a picture after actions, unless asked otherwise


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
        approval: str | None = None,
    ) -> Acted:
        """Send a batch, and the settled frame that shows its effect if one is wanted.

        Coordinates are pixels of the lease's view, or of the frame that `frame` names. `approval` is a person's answer
        to these very actions: without a yes nothing is sent.
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
            screen = await self._screen(actor, who, lease, desktop)
            visit = Visit(who, lease, desktop, screen, intent, frame, acted=bool(actions))
            if any(geometry.placed(action) for action in actions):
                self.looking.check_geometry(visit, geometry)
            if shot:
                self.looking.check(visit, shot)
            agreement = self._agreement(approval, geometry, actions)
            batch = Batch(self.core, self.frames, visit, geometry, Around(self.frames, lease, screen), agreement)
            remember = partial(actor.remember, lease_id, request_id)
            try:
                await self._batch(actor, batch, actions)
            except BaseException as e:
                if not isinstance(e, FleetError) or any(one.ok for one in batch.done):
                    remember(batch.answer(len(actions)))
                raise
            answer = batch.answer(len(actions))
            remember(answer)  # whatever becomes of the picture, this is not done again
            if shot:
                answer = answer.model_copy(update=await self._after(actor, visit, shot))
                remember(answer)
            return answer

    def _agreement(self, approval: str | None, geometry: Geometry, actions: Sequence[Action]) -> Agreement | None:
        if approval is None:
            return None
        return Agreement(approval, digest([geometry.meant(x) for x in actions], self.core.redaction_key))

    async def screenshot(self, who: Caller, lease_id: str, shot: Shot, *, intent: str | None = None) -> Shown:
        """What the screen shows now. Looking is on record like any other action."""
        lease, desktop = await self.seats.of(who, lease_id, look=True)
        actor = self.actors.of(desktop.id)
        settled = None
        if shot.settle_ms:
            async with actor.turn:
                screen = await self._screen(actor, who, lease, desktop, look=True)
            settled = await self._rested(Visit(who, lease, desktop, screen), shot)
        async with actor.turn:
            screen = await self._screen(actor, who, lease, desktop, look=True)
            return await self.looking.look(Visit(who, lease, desktop, screen, intent), shot, settled)

    async def interrupted(self) -> None:
        """After a start: batches that a killed controller left in the middle."""
        await note_interrupted(self.core)

    async def allowed(self, who: Caller, lease_id: str, *, look: bool = False) -> tuple[Lease, Desktop]:
        return await self.core.read(lambda tx: allowed(self.core, tx, who, lease_id, look=look))

    async def _screen(self, actor: Actor, who: Caller, lease: Lease, desktop: Desktop, *, look: bool = False) -> Screen:
        if actor.screen:
            return actor.screen
        try:
            return await actor.connect(desktop, await self.core.endpoint(desktop), self.core.settings.backend_timeout)
        except FleetError:
            await self.allowed(who, lease.id, look=look)  # the screen went with the lease: then that is why
            raise

    async def _batch(self, actor: Actor, batch: Batch, actions: Sequence[Action]) -> None:
        """Do them in order, until one is refused or fails; what became of each is in `batch.done`."""
        try:
            for number, action in enumerate(actions):
                try:
                    await batch.intend(action)
                    await self._do(actor, batch, action, waited_for(actions, number))
                except FleetError as e:
                    batch.done.append(Done(ok=False, code=e.code, detail=str(e)))
                    await batch.conclude(None if batch.failed else action)
                    if number == 0:
                        raise
                    return
                batch.done.append(Done(ok=True))
            if actions:
                await batch.conclude()
            elif batch.agreement:
                await batch.agree()
        except FleetError:
            raise
        except BaseException:
            if len(batch.done) < len(actions):
                batch.done.append(INTERRUPTED)
            await asyncio.shield(batch.conclude())
            raise

    async def _do(self, actor: Actor, batch: Batch, action: Action, waited: WaitChange | None) -> None:
        try:
            await batch.around.before()
            if waited:
                await actor.mark(whole=not (waited.region or waited.ignore or waited.ignore_below))
            await actor.do(batch.geometry.meant(action))
        except FleetError as e:
            batch.ended(Done(ok=False, code=e.code))
            raise
        else:
            batch.ended(Done(ok=True))
        finally:
            if not batch.under_way:  # as it is when we are cancelled
                await batch.around.after()

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
        except FleetError:
            await self.allowed(visit.who, visit.lease.id, look=True)
            raise
        return True


def waited_for(actions: Sequence[Action], number: int) -> WaitChange | None:
    """What waits for this action's effect, if anything does: then only what changes from now on may count."""
    if isinstance(actions[number], Wait | WaitStable | WaitChange):
        return None
    after = (action for action in actions[number + 1 :] if not isinstance(action, Wait | WaitStable))
    following = next(after, None)
    return following if isinstance(following, WaitChange) else None
