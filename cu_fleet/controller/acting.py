"""Seeing and acting: one batch at a time through the desktop's actor, each action on record before it is sent.

A batch costs one transaction more than it has actions: the result of one action and the intent of the next are
written together. An intent without a result, found at a start, is a batch that was cut off: it is recorded as
interrupted, and never taken up again.
"""

import asyncio
import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cu_fleet.controller.actor import Actor, Actors
from cu_fleet.controller.core import Core, stale
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.action import Action, Wait, WaitChange, WaitStable, check_on_screen, for_record
from cu_fleet.model.audit import redacted
from cu_fleet.model.desktop import Desktop, Stage
from cu_fleet.model.errors import ConflictError, DeniedError, FleetError, LeasePausedError, NotFoundError
from cu_fleet.model.lease import Control, Lease, renewed, why_not
from cu_fleet.model.names import new_id
from cu_fleet.model.request import Acted, Done, Shot, Shown
from cu_fleet.rfb.picture import encode
from cu_fleet.rfb.screen import Screen
from cu_fleet.stores.base import Tx

_RENEW_AFTER = 1.0  # seconds a lease must have lost before an action writes its renewal


@dataclass
class Batch:
    """One caller's batch, and the intent that has no result yet."""

    who: Caller
    lease_id: str
    generation: int
    intent: str | None
    seq: int | None = None
    began: float = 0.0


class Acting:
    def __init__(self, core: Core, actors: Actors) -> None:
        self.core = core
        self.actors = actors

    async def act(
        self,
        who: Caller,
        lease_id: str,
        actions: Sequence[Action],
        *,
        shot: Shot | None = None,
        intent: str | None = None,
        request_id: str | None = None,
    ) -> Acted:
        """Send a batch, and the frame that shows its effect if one is wanted."""
        _, desktop = await self.core.read(lambda tx: self._allowed(tx, who, lease_id))
        actor = self.actors.of(desktop.id)
        for action in actions:
            check_on_screen(action, desktop.width, desktop.height)
        async with actor.turn:
            if request_id and (answer := actor.answers.get((lease_id, request_id))):
                return answer
            screen = await self._screen(actor, desktop)
            batch = Batch(who, lease_id, desktop.generation, intent)
            done = await self._batch(actor, batch, actions)
            shown = await self._look(who, batch, screen, shot) if shot and all(one.ok for one in done) else None
            answer = Acted(done=tuple(done), generation=batch.generation, screenshot=shown)
            actor.remember(lease_id, request_id, answer)
            return answer

    async def screenshot(self, who: Caller, lease_id: str, shot: Shot, *, intent: str | None = None) -> Shown:
        """What the screen shows now. Looking is on record like any other action."""
        _, desktop = await self.core.read(lambda tx: self._allowed(tx, who, lease_id, look=True))
        actor = self.actors.of(desktop.id)
        async with actor.turn:
            screen = await self._screen(actor, desktop)
            return await self._look(who, Batch(who, lease_id, desktop.generation, intent), screen, shot)

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

    async def _screen(self, actor: Actor, desktop: Desktop) -> Screen:
        return await actor.connect(desktop, await self.core.endpoint(desktop), self.core.settings.backend_timeout)

    async def _batch(self, actor: Actor, batch: Batch, actions: Sequence[Action]) -> list[Done]:
        done: list[Done] = []
        for number, action in enumerate(actions):
            try:
                await self._intend(batch, action, done[-1] if done else None)
                if waited_for(actions, number):
                    await actor.mark()
                await actor.do(action)
            except FleetError as e:
                failed = Done(ok=False, code=e.code, detail=str(e))
                await self._conclude(batch, failed)
                if number == 0:
                    raise
                done.append(failed)
                rest = Done(ok=False, code="not_done", detail="an earlier action of the batch failed")
                done += [rest] * (len(actions) - number - 1)
                return done
            except BaseException:
                await asyncio.shield(self._conclude(batch, Done(ok=False, code="interrupted")))
                raise
            done.append(Done(ok=True))
        if done:
            await self._conclude(batch, done[-1])
        return done

    async def _intend(self, batch: Batch, action: Action, before: Done | None) -> None:
        """Write down what is about to be sent, if this lease still may send it."""
        now = self.core.now()

        def work(tx: Tx) -> int:
            lease, desktop = self._allowed(tx, batch.who, batch.lease_id)
            if desktop.generation != batch.generation:
                raise ConflictError(f"desktop {desktop.id} has changed hands", code="old_generation")
            if before is not None:
                self._write_result(tx, batch, lease, before)
            self._renew(tx, lease, batch.who, now)
            seq = self.core.record(
                tx,
                "act",
                batch.who.who,
                lease=lease,
                action=for_record(action, lambda text: redacted(text, self.core.redaction_key)),
                intent=batch.intent,
            )
            tx.set_meta(f"acting:{desktop.id}", str(seq))
            return seq

        batch.seq = await self.core.note(work)
        batch.began = now

    async def _conclude(self, batch: Batch, done: Done) -> None:
        def work(tx: Tx) -> None:
            lease = self.core.get_lease(tx, batch.lease_id)
            self._write_result(tx, batch, lease, done)
            tx.set_meta(f"acting:{lease.desktop}", None)

        await self.core.note(work)

    def _write_result(self, tx: Tx, batch: Batch, lease: Lease, done: Done) -> None:
        self.core.record(
            tx,
            "act.done",
            batch.who.who,
            lease=lease,
            of=batch.seq,
            result=done.code or "ok",
            seconds=round(self.core.now() - batch.began, 6) if batch.seq else None,
        )

    async def _look(self, who: Caller, batch: Batch, screen: Screen, shot: Shot) -> Shown:
        began = self.core.now()
        frame = await screen.frame(pointer=shot.pointer)
        picture = await asyncio.to_thread(
            encode,
            frame,
            region=shot.region,
            max_edge=shot.max_edge,
            format=shot.format,
            quality=shot.quality,
            max_bytes=shot.max_bytes,
            pointer=shot.pointer,
        )
        sha256 = hashlib.sha256(picture.data).hexdigest()

        def work(tx: Tx) -> int:
            lease, desktop = self._allowed(tx, who, batch.lease_id, look=True)
            self._renew(tx, lease, who, began)
            self.core.record(
                tx,
                "look",
                who.who,
                lease=lease,
                action={"type": "screenshot", **shot.model_dump(mode="json", exclude_defaults=True)},
                intent=batch.intent,
                frames=(sha256,),
                result="ok",
                seconds=round(self.core.now() - began, 6),
            )
            return desktop.generation

        generation = await self.core.note(work)
        return Shown(
            frame=new_id("fr"),
            width=picture.width,
            height=picture.height,
            screen_width=screen.width,
            screen_height=screen.height,
            generation=generation,
            sha256=sha256,
            scale=picture.scale,
            age=max(0.0, self.core.now() - began),
            format=picture.format,
            data=picture.data,
        )

    def _renew(self, tx: Tx, lease: Lease, who: Caller, now: float) -> None:
        """Every action of the agent's own renews its lease."""
        if who.lease and lease.expires_at is not None and lease.expires_at < now + lease.ttl - _RENEW_AFTER:
            tx.put(renewed(lease, now))

    def _allowed(self, tx: Tx, who: Caller, lease_id: str, *, look: bool = False) -> tuple[Lease, Desktop]:
        """The lease and its desktop, if this caller may act on it (or look at it) at this moment."""
        lease = self.core.get_lease(tx, lease_id)
        refusal = may_not(who, lease, look=look)
        if refusal:
            raise refusal
        desktop = self.core.get_desktop(tx, lease.desktop or "")
        if desktop.stage is not Stage.HELD or desktop.generation != lease.generation:
            raise stale(desktop)
        if desktop.frozen:
            raise ConflictError(
                f"desktop {desktop.id} is frozen", remedy=f"cu-fleet desktop thaw {desktop.id}", code="frozen"
            )
        return lease, desktop

    async def allowed(self, who: Caller, lease_id: str, *, look: bool = False) -> tuple[Lease, Desktop]:
        return await self.core.read(lambda tx: self._allowed(tx, who, lease_id, look=look))


def waited_for(actions: Sequence[Action], number: int) -> bool:
    """Whether what comes of this action is waited for next: then only what changes from now on may count."""
    if isinstance(actions[number], Wait | WaitStable | WaitChange):
        return False
    after = (action for action in actions[number + 1 :] if not isinstance(action, Wait | WaitStable))
    return isinstance(next(after, None), WaitChange)


def may_not(who: Caller, lease: Lease, *, look: bool = False) -> FleetError | None:
    """Why this caller may not act on the lease's desktop (or look at it) now."""
    if who.lease is not None:
        if who.lease != lease.id:
            return DeniedError("a lease's token opens that lease and nothing else", code="other_lease")
        return why_not(lease, look=look)
    if who.role is None:
        return DeniedError(
            f"{who.who} may not use a desktop with its agent token",
            remedy="use the token that the lease was granted with",
            code="needs_lease_token",
        )
    who.needs(Role.OBSERVER if look else Role.OPERATOR)
    if not lease.live or lease.desktop is None:
        return why_not(lease, look=look) or NotFoundError(f"lease {lease.id} has no desktop yet", code="no_desktop")
    if look or lease.control is Control.AGENT:
        return None
    if lease.control is Control.HUMAN and lease.by == who.who:
        return None
    return why_not(lease) or LeasePausedError(f"lease {lease.id} is not yours to drive", code="lease_human")


def shown_json(shown: Shown) -> dict[str, object]:
    return {**shown.model_dump(mode="json", exclude={"data"}), "data": base64.b64encode(shown.data).decode()}
