"""What is under way to a machine at once, what is waited for, and what is said when something does not arrive."""

import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest

from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.keys import NAMES
from cu_fleet.rfb.passage import COUNTED, Passage
from tests.support import run

A, SHIFTED_A = ord("a"), ord("A")


class Machine:
    """Somebody inside who counts; all arrives, but for what is lost."""

    def __init__(self) -> None:
        self.asked: list[dict[str, int]] = []
        self.counter = "one"
        self.lost = dict.fromkeys(COUNTED, 0)
        self.base = dict.fromkeys(COUNTED, 7)

    async def ask(
        self, wanted: Mapping[str, int], place: tuple[int, int], within: float, of: object
    ) -> Mapping[str, object] | None:
        assert of in (None, "one", self.counter), "who counted is named"
        del place, within
        if wanted["motions"] > 1 << 20:
            return {**self.base, "of": self.counter, "arrived": True}
        self.asked.append({what: wanted[what] - self.base[what] for what in COUNTED})
        told = {what: wanted[what] - self.lost[what] for what in COUNTED}
        return {**told, "of": self.counter, "arrived": not any(self.lost.values())}


Body = Callable[[Machine, Passage], Coroutine[Any, Any, None]]


def through(server: str) -> Callable[[Body], Callable[[], None]]:
    """A test of what passes through this server to a machine, where somebody has begun to count."""

    def test_of(body: Body) -> Callable[[], None]:
        async def work() -> None:
            machine = Machine()
            one = Passage(server, (5, 5), machine.ask)
            await one.begin()
            await body(machine, one)

        return lambda: run(work())

    return test_of


@through("QEMU (one)")
async def test_no_more_is_under_way_than_a_machine_has_room_for(machine: Machine, one: Passage) -> None:
    for _ in range(30):
        one.key(A, down=True)
        one.key(A, down=False)
        await one.room()
    assert [asked["keys"] for asked in machine.asked] == [24, 48]
    for notch in range(12):
        one.point((5, 5), 8 if notch % 2 else 0)
        await one.room()
    assert machine.asked[-1] == {"keys": 60, "buttons": 0, "notches": 6, "motions": 0}
    assert await one.arrived()
    assert len(machine.asked) == 3, "what has arrived is not asked for again"


@through("QEMU (one)")
async def test_a_key_that_is_down_already_is_not_waited_for(machine: Machine, one: Passage) -> None:
    for sym, down in ((A, True), (SHIFTED_A, True), (A, False), (SHIFTED_A, False), (NAMES["Meta_L"], True)):
        one.key(sym, down=down)
    one.key(NAMES["Alt_L"], down=True)
    await one.arrived()
    assert machine.asked[-1]["keys"] == 3


@through("QEMU (one)")
async def test_neither_device_overtakes_the_other(machine: Machine, one: Passage) -> None:
    one.point((9, 9), 0)
    await one.turn("pointer")
    assert machine.asked == []
    await one.turn("keys")
    assert machine.asked == [{"keys": 0, "buttons": 0, "notches": 0, "motions": 1}]
    one.key(A, down=True)
    await one.turn("pointer")
    assert machine.asked[-1]["keys"] == 1


@through("QEMU (one)")
async def test_what_is_lost_is_said_and_a_pointer_that_was_moved_on_is_not(machine: Machine, one: Passage) -> None:
    one.point((9, 9), 1)
    one.key(A, down=True)
    machine.lost["motions"] = 1
    assert await one.arrived()
    await one.begin()
    one.key(A, down=False)
    machine.lost["keys"] = 1
    with pytest.raises(UnavailableError, match="1 of keys did not arrive in 8 s") as e:
        await one.arrived()
    assert e.value.code == "not_arrived"
    assert not await one.arrived(), "it is not said twice, and counted anew"
    await one.begin()
    one.key(A, down=True)
    with pytest.raises(UnavailableError, match="did not arrive in 2 s"):
        await one.arrived(within=2.0)


@through("QEMU (one)")
async def test_who_counts_may_begin_anew_or_be_nobody(machine: Machine, one: Passage) -> None:
    one.key(A, down=True)
    machine.counter = "another"
    assert not await one.arrived()
    await one.begin()
    one.key(A, down=False)
    assert await one.arrived()
    alone = Passage("QEMU", (0, 0))
    began = time.monotonic()
    alone.key(A, down=True)
    await alone.turn("pointer")
    assert time.monotonic() - began >= 0.1, "then time must do"
    assert not await alone.arrived()


@through("QEMU (one)")
async def test_a_button_is_pressed_again_only_when_its_release_has_arrived_for_a_while(
    machine: Machine, one: Passage
) -> None:
    one.point((5, 5), 1)
    await one.press()
    assert machine.asked == []
    one.point((5, 5), 0)
    began = time.monotonic()
    await one.press()
    assert time.monotonic() - began >= 0.03
    assert machine.asked[-1]["buttons"] == 2


@through("TigerVNC")
async def test_others_than_qemu_are_never_waited_for(machine: Machine, one: Passage) -> None:
    one.key(A, down=True)
    one.point((9, 9), 1)
    one.point((9, 9), 0)
    await one.room()
    await one.turn("keys")
    await one.press()
    assert not await one.arrived()
    assert machine.asked == []
