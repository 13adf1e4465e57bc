"""What an agent is shown: in its view, under an id that coordinates may refer to, and only if it shows something.

Of each frame handed out we remember what it shows of the screen, so that a coordinate in its pixels is a pixel of the
screen, and what it was made from: where the same request would give the same picture again, "unchanged" answers
without one. The screen's serial tells that for nothing; if it has grown, the bytes of the new picture are compared.

A screen of one colour is one whose programs have not drawn yet, or have died; one of another size is not what the
profile promised. Neither is handed out as a picture, unless it is asked for as such.
"""

import hashlib
import time
import weakref
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from cu_fleet.controller.core import Core
from cu_fleet.controller.frames import Frames, Kept, not_kept
from cu_fleet.controller.permit import allowed, renew
from cu_fleet.model.access import Caller
from cu_fleet.model.desktop import Desktop
from cu_fleet.model.errors import ConflictError, DeniedError, FleetError, NotFoundError, UnavailableError
from cu_fleet.model.geometry import Geometry, Rect, fit
from cu_fleet.model.lease import Lease
from cu_fleet.model.names import new_id
from cu_fleet.model.request import Shot, Shown
from cu_fleet.rfb.canvas import Frame
from cu_fleet.rfb.picture import Encoded, check_region, encode, looks_blank
from cu_fleet.rfb.screen import Screen
from cu_fleet.stores.base import Tx
from cu_fleet.threads import in_thread

_FRAMES = 128  # remembered of one lease
_USUAL = Shot().model_dump()
_NAMES = {(0, 0, 0): "black", (255, 255, 255): "white"}


@dataclass(frozen=True)
class Wanted:
    """A request for a picture, in pixels of the screen: two that are equal want the same."""

    rect: Rect
    max_edge: int | None
    format: str
    quality: int
    max_bytes: int | None
    pointer: bool
    allow_blank: bool


@dataclass(frozen=True)
class Known:
    """A frame that was handed out."""

    shown: Shown  # without its pixels
    geometry: Geometry
    wanted: Wanted
    screen: "weakref.ref[Screen]"
    serial: int


Look = tuple[Known, bytes, float]  # with its pixels, and time.monotonic() when the server had proved what it shows


@dataclass
class Visit:
    """One caller at one desktop, in its actor's turn."""

    who: Caller
    lease: Lease
    desktop: Desktop
    screen: Screen
    intent: str | None = None
    frame: str | None = None  # what coordinates are pixels of; None: the view
    acted: bool = False
    kept: list[Kept] = field(default_factory=list)  # of the picture being made, not yet written down
    not_kept: str = ""  # why it is not


class Looking:
    def __init__(self, core: Core, frames: Frames) -> None:
        self.core = core
        self.frames = frames
        self._known: dict[str, OrderedDict[str, Known]] = {}

    # coordinates

    def geometry(self, lease: Lease, desktop: Desktop, frame: str | None) -> Geometry:
        """What coordinates are pixels of: a frame that was handed out, or else the lease's view."""
        if frame is None:
            return Geometry.whole(desktop.width, desktop.height, lease.view)
        known = self._of(lease, frame)
        if known is None:
            raise self._stranger(lease, frame)
        if known.shown.generation != lease.generation:
            raise _refused(
                ConflictError,
                f"frame {frame} is of generation {known.shown.generation} of desktop {desktop.id}, "
                f"which is at {lease.generation} now: what it showed is gone",
                "old_generation",
                frame,
            )
        return known.geometry

    def _of(self, lease: Lease, frame: str | None) -> Known | None:
        frames = self._known.get(lease.id)
        return frames.get(frame) if frames and frame else None

    def check_geometry(self, visit: Visit, geometry: Geometry) -> None:
        """Coordinates mean nothing on a screen of another size than they were made for."""
        size = (visit.screen.width, visit.screen.height)
        if size == geometry.screen:
            return
        if visit.frame is None:
            raise wrong_size(visit.desktop, *size)
        raise self._other_geometry(visit.frame, geometry, size)

    def _other_geometry(self, frame: str | None, geometry: Geometry, size: tuple[int, int]) -> FleetError:
        was, now = "x".join(map(str, geometry.screen)), "x".join(map(str, size))
        what = f"frame {frame} shows a screen of {was}, which is {now} now"
        return _refused(ConflictError, what, "other_geometry", frame)

    def _stranger(self, lease: Lease, frame: str) -> FleetError:
        if any(frame in frames for frames in self._known.values()):
            return _refused(DeniedError, f"frame {frame} is of another lease than {lease.id}", "other_lease", frame)
        return _refused(
            NotFoundError,
            f"frame {frame} is not known (any more): the last {_FRAMES} of a lease are",
            "no_frame",
            frame,
        )

    # looking

    async def look(self, visit: Visit, shot: Shot, settled: bool | None = None) -> Shown:
        """A picture of the screen as it is now, or word that the caller has it already; on record either way."""
        began = self.core.now()
        try:
            known, data, at = await self._unchanged(visit, shot) or await self._fresh(visit, shot)
            age = time.monotonic() - at
            shown = known.shown.model_copy(update={"age": age, "settled": settled, "data": data, "unchanged": not data})
            await self.core.note(lambda tx: self._note(tx, visit, shot, began, shown))
        except FleetError as e:
            why = await self._note_refusal(visit, shot, began, e)
            if why is e:
                raise
            raise why from e
        self._remember(visit.lease.id, known)
        if visit.kept:
            visit.kept = []
            self.frames.tidying.mind_the_quota()
        return shown

    def check(self, visit: Visit, shot: Shot) -> None:
        """Refuse a picture that cannot be had, before anything is done."""
        self._wanted(visit, shot, (visit.screen.width, visit.screen.height))

    async def _unchanged(self, visit: Visit, shot: Shot) -> Look | None:
        """The frame the caller has, if nothing at all has changed since; without a copy of the picture."""
        known = self._comparable(visit, shot)
        if known is None or known.screen() is not visit.screen or shot.pointer:
            return None
        alike: list[bool] = []

        def compare() -> None:
            alike.append(known.wanted == self._wanted(visit, shot, known.geometry.screen)[0])

        if await visit.screen.refresh(meanwhile=compare) != known.serial or not alike[0]:
            return None
        return known, b"", time.monotonic()

    def _comparable(self, visit: Visit, shot: Shot) -> Known | None:
        known = self._of(visit.lease, shot.if_changed_since)
        return known if known and known.shown.generation == visit.lease.generation else None

    async def _fresh(self, visit: Visit, shot: Shot) -> Look:
        frame = await visit.screen.frame(pointer=True)
        size = (frame.width, frame.height)
        if size != (visit.desktop.width, visit.desktop.height) and not shot.allow_blank:
            raise wrong_size(visit.desktop, *size)
        wanted, geometry = self._wanted(visit, shot, size)
        picture, sha256 = await self._made(visit, frame, wanted)
        before = self._comparable(visit, shot)
        if before and before.wanted == wanted and before.shown.sha256 == sha256:
            return replace(before, screen=weakref.ref(visit.screen), serial=frame.serial), b"", frame.at
        shown = Shown(
            frame=new_id("fr"),
            width=picture.width,
            height=picture.height,
            screen_width=frame.width,
            screen_height=frame.height,
            generation=visit.lease.generation or 0,
            sha256=sha256,
            scale=picture.scale,
            age=0.0,
            within=frame.within,
            format=picture.format,
        )
        geometry = replace(geometry, width=picture.width, height=picture.height)
        return Known(shown, geometry, wanted, weakref.ref(visit.screen), frame.serial), picture.data, frame.at

    def _wanted(self, visit: Visit, shot: Shot, screen: tuple[int, int]) -> tuple[Wanted, Geometry]:
        """The request in pixels of the screen, and what its picture will show."""
        frame = shot.frame or visit.frame
        view = Geometry.whole(*screen, visit.lease.view)
        base = view if frame is None else self.geometry(visit.lease, visit.desktop, frame)
        if base.screen != screen:
            raise self._other_geometry(frame, base, screen)
        rect, max_edge = view.rect, max(view.width, view.height)
        if shot.region:
            check_region(shot.region, base.width, base.height)
            rect = base.area(shot.region)
            max_edge = max(shot.region[2:]) if frame is None else max(1, round(max(rect[2:]) * view.scale))
        max_edge = shot.max_edge or max_edge
        wanted = Wanted(
            rect, max_edge, shot.format, shot.quality, shot.max_bytes, shot.pointer, allow_blank=shot.allow_blank
        )
        return wanted, Geometry(rect, *fit(*rect[2:], max_edge), screen)

    def shown_area(self, visit: Visit, shot: Shot) -> Rect | None:
        """What of the screen a picture will show; None: all of it."""
        wanted, _ = self._wanted(visit, shot, (visit.screen.width, visit.screen.height))
        return wanted.rect if shot.region else None

    async def _made(self, visit: Visit, frame: Frame, wanted: Wanted) -> tuple[Encoded, str]:
        """The picture and its hash, in a thread, and what is to be kept of it on the shelf."""
        policy = self.frames.wanted(visit.lease)

        def work() -> tuple[Encoded, str, list[Kept]]:
            if not wanted.allow_blank and looks_blank(frame):
                raise blank_screen(visit.desktop, frame)
            picture = encode(
                frame,
                region=wanted.rect,
                max_edge=wanted.max_edge,
                format=wanted.format,
                quality=wanted.quality,
                max_bytes=wanted.max_bytes,
                pointer=wanted.pointer,
            )
            kept: list[Kept] = []
            try:
                if policy == "all":
                    kept.append(self.frames.put(visit.lease, picture, "shown"))
                elif policy == "actions" and visit.acted:
                    kept.append(self.frames.put(visit.lease, encode(frame, pointer=True), "after"))
            except OSError as e:
                visit.not_kept = not_kept(e)
            return picture, hashlib.sha256(picture.data).hexdigest(), kept

        picture, sha256, visit.kept = await in_thread(work)
        return picture, sha256

    def _note(self, tx: Tx, visit: Visit, shot: Shot, began: float, shown: Shown) -> None:
        generation = visit.desktop.generation
        lease, _ = allowed(self.core, tx, visit.who, visit.lease.id, look=True, generation=generation)
        renew(tx, lease, visit.who, began)
        kept = self.frames.note(tx, visit.kept)
        facts: dict[str, object] = {"frame": shown.frame}
        facts |= {"unchanged": True} if shown.unchanged else {}
        facts |= {"not_kept": visit.not_kept} if visit.not_kept else {}
        self._record(tx, visit, shot, began, "ok", tuple(dict.fromkeys((shown.sha256, *kept))), facts)

    async def _note_refusal(self, visit: Visit, shot: Shot, began: float, error: FleetError) -> FleetError:
        """Why there is no picture: whoever may not look (any more) hears that, and nothing of the screen."""

        def work(tx: Tx) -> FleetError:
            why = error
            try:
                allowed(self.core, tx, visit.who, visit.lease.id, look=True, generation=visit.desktop.generation)
            except FleetError as refusal:
                why = refusal
            facts: dict[str, object] = {
                key: why.facts[key] for key in ("colour", "width", "height") if key in why.facts
            }
            self._record(tx, visit, shot, began, why.code, (), facts)
            return why

        return await self.core.note(work)

    def _record(
        self,
        tx: Tx,
        visit: Visit,
        shot: Shot,
        began: float,
        result: str,
        frames: tuple[str, ...],
        facts: dict[str, object],
    ) -> None:
        self.core.record(
            tx,
            "look",
            visit.who.who,
            lease=visit.lease,
            action=_on_record(shot),
            intent=visit.intent,
            frames=frames,
            result=result,
            seconds=round(self.core.now() - began, 6),
            facts=facts,
        )

    def _remember(self, lease: str, known: Known) -> None:
        frames = self._known.setdefault(lease, OrderedDict())
        frames[known.shown.frame] = known
        frames.move_to_end(known.shown.frame)
        while len(frames) > _FRAMES:
            frames.popitem(last=False)

    def forget_but(self, leases: Collection[str]) -> None:
        """Only these are under way; nobody may refer to a frame of another any more."""
        self._known = {lease: frames for lease, frames in self._known.items() if lease in leases}


def _on_record(shot: Shot) -> dict[str, object]:
    return {"type": "screenshot", **{key: value for key, value in shot.__dict__.items() if value != _USUAL[key]}}


def _refused(kind: type[FleetError], what: str, code: str, frame: str | None) -> FleetError:
    remedy = "take a new screenshot, and use its frame or leave `frame` out; nothing was sent"
    return kind(what, remedy=remedy, code=code, frame=frame)


def wrong_size(desktop: Desktop, width: int, height: int) -> UnavailableError:
    return UnavailableError(
        f"the screen of desktop {desktop.id} is {width}x{height}, but its profile says "
        f"{desktop.width}x{desktop.height}",
        remedy="set it back inside (xrandr), restore or release the desktop; `allow_blank` shows it as it is",
        code="wrong_size",
        desktop=desktop.id,
        width=width,
        height=height,
    )


def blank_screen(desktop: Desktop, frame: Frame) -> UnavailableError:
    blue, green, red = frame.pixels[:3]
    colour = f"#{red:02x}{green:02x}{blue:02x}"
    name = _NAMES.get((red, green, blue))
    return UnavailableError(
        f"the screen of desktop {desktop.id} is blank: every pixel is {colour}{f' ({name})' if name else ''}",
        remedy="wait until something is drawn (wait_change), start a program, or look with `allow_blank` all the same",
        code="blank_screen",
        desktop=desktop.id,
        colour=colour,
    )
