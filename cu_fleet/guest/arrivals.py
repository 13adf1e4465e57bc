"""What the X server has taken in from a machine's own keyboard and pointer, counted, for whoever sent it from outside.

Raw events come whatever has the focus or a grab. What XTEST presses is not counted, nor what X repeats. A
motion whose count is missing, for the kernel was in haste, has arrived where the pointer is.
"""

from __future__ import annotations

import os
import struct
import time

from Xlib.ext import ge, xinput  # type: ignore[import-untyped]

from cu_fleet.guest.terms import RefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cu_fleet.guest.link import Link
    from cu_fleet.guest.terms import Steps

_KEYS = (xinput.RawKeyPress, xinput.RawKeyRelease)
_BUTTONS = (xinput.RawButtonPress, xinput.RawButtonRelease)
_RAW = (*_KEYS, *_BUTTONS, xinput.RawMotion)
_HEAD = struct.Struct("=HIIHHI4x")  # device, time, detail, source, words of the mask, flags
_REPEATED = 1 << 16
_PLACE = 3  # the two axes that are no wheel's
_LOOK = 0.02  # seconds after which the pointer's place is looked at again


class Arrivals:
    def __init__(self, link: Link) -> None:
        self.display, self.root = link.display, link.root
        self.name = f"{os.getpid()} {time.monotonic()}"  # another begins to count anew
        self.counts = {"keys": 0, "buttons": 0, "notches": 0, "motions": 0}
        if not (self.display.has_extension("XInputExtension") and self.display.has_extension(ge.extname)):
            raise RefusedError("no_xinput", "the X server does not tell what its keyboard and pointer send")
        self.major = self.display.display.get_extension_major(xinput.extname)
        xinput.XIQueryVersion(  # 2.0, which the library asks for, tells nothing while a button is down
            display=self.display.display, opcode=self.major, major_version=2, minor_version=2
        )
        devices = self.display.xinput_query_device(xinput.AllDevices).devices
        self.ours = {one.deviceid for one in devices if "XTEST" in one.name}
        self.root.xinput_select_events([(xinput.AllMasterDevices, sum(1 << kind for kind in _RAW))])

    def count(self, event: Any) -> None:
        if event.type != ge.GenericEventCode or event.extension != self.major or event.evtype not in _RAW:
            return
        _, _, _, source, words, flags = _HEAD.unpack_from(event.data)
        if source in self.ours or flags & _REPEATED:
            return
        if event.evtype in _KEYS:
            self.counts["keys"] += 1
        elif event.evtype in _BUTTONS:
            self.counts["buttons"] += 1
        else:
            axes = event.data[_HEAD.size] if words else 0
            self.counts["motions"] += bool(axes & _PLACE)
            self.counts["notches"] += bool(axes & ~_PLACE)

    def wait(self, wanted: dict[str, int], place: object, within: float, of: object) -> Steps:
        """Return when so much has arrived, or after so many seconds; at once if it was another who counted before."""
        until = time.monotonic() + (within if of in (None, self.name) else 0.0)
        while not (has := self._has(wanted, place)) and time.monotonic() < until:
            yield _is_raw, time.monotonic() + _LOOK
        return {**self.counts, "of": self.name, "arrived": has}

    def _has(self, wanted: dict[str, int], place: object) -> bool:
        if any(self.counts[what] < wanted[what] for what in ("keys", "buttons", "notches")):
            return False
        if self.counts["motions"] >= wanted["motions"]:
            return True
        here = self.root.query_pointer()
        return [here.root_x, here.root_y] == place


def _is_raw(event: Any) -> bool:
    return bool(getattr(event, "type", None) == ge.GenericEventCode)
