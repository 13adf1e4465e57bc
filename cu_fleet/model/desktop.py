"""A desktop, and its life as one transition table.

`stage` is what is; `wanted` is what should be. The reconciler only ever asks `moved` for the next stage, and an
illegal move raises and changes nothing.
"""

from enum import StrEnum
from typing import ClassVar, Literal

from cu_fleet.model.errors import ConflictError
from cu_fleet.model.names import Name
from cu_fleet.model.record import Record

Handle = dict[str, str | int | float | bool | None]  # what a backend needs to find its desktop again; opaque to others
PROGRESS = "progress"  # but for this: what takes its start so long, in words
AT = "at"  # and this: on which other host it is, if it is on one
EMULATED = "emulated"  # and this: true if its processor is emulated


class Stage(StrEnum):
    PLANNED = "planned"  # written down; nothing exists yet
    STARTING = "starting"  # the backend is making it
    READY = "ready"  # clean, proven, and nobody's
    HELD = "held"  # one live lease has it
    CLEANING = "cleaning"  # being rolled back
    PARKING = "parking"  # a named desktop on its way to sleep
    PARKED = "parked"  # a named desktop asleep: its files are saved, nothing runs
    QUARANTINED = "quarantined"  # its cleaning could not be proved: never granted again
    STOPPING = "stopping"  # being taken away
    GONE = "gone"  # nothing of it is left


class Event(StrEnum):
    START = "start"
    PROVED = "proved"
    GRANT = "grant"
    HAND_BACK = "hand back"  # a lease ended and the desktop keeps its state
    CLEAN = "clean"
    GIVE_BACK = "give back"  # restored to a snapshot under a live lease
    PARK = "park"
    SLEEP = "sleep"
    DISTRUST = "distrust"
    STOP = "stop"
    STOPPED = "stopped"


TRANSITIONS: dict[Stage, dict[Event, Stage]] = {
    Stage.PLANNED: {Event.START: Stage.STARTING, Event.STOP: Stage.STOPPING},
    Stage.STARTING: {
        Event.START: Stage.STARTING,  # once more, after the controller was killed in the middle
        Event.PROVED: Stage.READY,
        Event.STOP: Stage.STOPPING,
        Event.DISTRUST: Stage.QUARANTINED,
    },
    Stage.READY: {
        Event.GRANT: Stage.HELD,
        Event.CLEAN: Stage.CLEANING,
        Event.PARK: Stage.PARKING,
        Event.STOP: Stage.STOPPING,
        Event.DISTRUST: Stage.QUARANTINED,
    },
    Stage.HELD: {
        Event.HAND_BACK: Stage.READY,
        Event.CLEAN: Stage.CLEANING,
        Event.STOP: Stage.STOPPING,
        Event.DISTRUST: Stage.QUARANTINED,
    },
    Stage.CLEANING: {
        Event.CLEAN: Stage.CLEANING,
        Event.PROVED: Stage.READY,
        Event.GIVE_BACK: Stage.HELD,
        Event.STOP: Stage.STOPPING,
        Event.DISTRUST: Stage.QUARANTINED,
    },
    Stage.PARKING: {
        Event.PARK: Stage.PARKING,
        Event.SLEEP: Stage.PARKED,
        Event.STOP: Stage.STOPPING,
        Event.DISTRUST: Stage.QUARANTINED,
    },
    Stage.PARKED: {Event.START: Stage.STARTING, Event.STOP: Stage.STOPPING},
    Stage.QUARANTINED: {Event.STOP: Stage.STOPPING},
    Stage.STOPPING: {Event.STOP: Stage.STOPPING, Event.STOPPED: Stage.GONE},
    Stage.GONE: {},
}

NOT_GONE = tuple(stage.value for stage in Stage if stage is not Stage.GONE)
RUNNING = frozenset({Stage.READY, Stage.HELD})
RESTING = frozenset({Stage.READY, Stage.HELD, Stage.PARKED, Stage.QUARANTINED, Stage.GONE})
COMING = frozenset({Stage.PLANNED, Stage.STARTING, Stage.CLEANING})  # will be ready without anyone's doing
TAKES_ROOM = frozenset(Stage) - {Stage.GONE, Stage.PARKED}


class Desktop(Record):
    TABLE: ClassVar[str] = "desktop"
    COLUMNS: ClassVar[tuple[str, ...]] = ("name", "profile", "backend", "stage", "created_at")

    id: str
    name: Name | None = None  # a named desktop lasts, and keeps its state for the agents it was granted to
    profile: str
    profile_digest: str  # of the profile it was made from: a warm desktop of an older text is not handed out
    backend: str
    stage: Stage = Stage.PLANNED
    wanted: Literal["ready", "gone"] = "ready"
    generation: int = 0  # grows whenever the desktop changes hands
    handle: Handle = {}
    boot: str = ""  # a nonce for each fresh screen: tells a desktop that was really restarted from one that was not
    width: int
    height: int
    frozen: bool = False
    owner: str | None = None  # named desktops: whose state lies in it
    target: str | None = None  # the snapshot it is being put back to; None: clean
    parked_in: str | None = None  # the snapshot a parked desktop wakes from
    note: str = ""  # why it is quarantined, or what went wrong last
    failures: int = 0
    created_at: float
    ready_at: float | None = None


def moved(desktop: Desktop, event: Event, **changes: object) -> Desktop:
    """The desktop after `event`; raises, changing nothing, if its stage does not allow that."""
    to = TRANSITIONS[desktop.stage].get(event)
    if to is None:
        raise ConflictError(
            f'desktop {desktop.id} is {desktop.stage.value}: it cannot "{event.value}" now',
            code="illegal_move",
            desktop=desktop.id,
            stage=desktop.stage.value,
            event=event.value,
        )
    return desktop.but(stage=to, **changes)


def diagram() -> str:
    """The life of a desktop as Mermaid text, drawn from the table."""
    lines = ["stateDiagram-v2", "    [*] --> planned"]
    lines += [
        f"    {stage.value} --> {to.value}: {event.value}"
        for stage, row in TRANSITIONS.items()
        for event, to in row.items()
    ]
    return "\n".join([*lines, "    gone --> [*]"])
