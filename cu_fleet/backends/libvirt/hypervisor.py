"""Talking to libvirt: which hypervisor, from a few threads of our own, and its refusals in our words.

libvirt's Python binding has an event loop for asyncio, but that carries events only: every call still blocks until it
is answered, which for a machine being saved takes seconds. So calls run in threads, as those to a Docker engine do; a
caller that is cancelled still waits, so that nothing goes on behind anyone's back. And that a machine has ended is
heard first from its screen, without events. One connection serves all threads, and is made anew when it broke.

The binding is loaded when it is first needed: who has no machines pays nothing for them.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from cu_fleet.model.errors import ConflictError, FleetError, UnavailableError

if TYPE_CHECKING:
    from libvirt import virConnect, virDomain

T = TypeVar("T")
_AT_ONCE = 8
_FULL = "No space left on device"


class Hypervisor:
    """One hypervisor: the one given, or what libvirt's own variable names, or this machine's."""

    def __init__(self, uri: str | None = None) -> None:
        self._given = uri
        self._threads = ThreadPoolExecutor(_AT_ONCE, "libvirt")
        self._connecting = threading.Lock()
        self._held: list[virConnect] = []
        self.facts: dict[str, str] = {}  # found out over this connection, and true as long as it lasts
        weakref.finalize(self, _close, self._threads, self._held)

    @property
    def uri(self) -> str:
        return (
            self._given or os.environ.get("LIBVIRT_DEFAULT_URI") or f"qemu:///{'session' if os.geteuid() else 'system'}"
        )

    async def do(self, work: Callable[[virConnect], T]) -> T:
        """Run `work` with the connection, in a thread."""
        return await self.wait(partial(self.now, work))

    async def wait(self, work: Callable[[], T]) -> T:
        """Run what blocks in one of the threads, to its end even when cancelled."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            future.exception()  # seen, so that the loop does not complain of it
            raise

    def now(self, work: Callable[[virConnect], T]) -> T:
        """Run `work` with the connection, in this thread, which may block."""
        with in_words(self.uri):
            return work(self._connection())

    def _connection(self) -> virConnect:
        import libvirt

        with self._connecting:
            if self._held and not self._held[0].isAlive():
                with suppress(libvirt.libvirtError):
                    self._held.pop().close()
            if not self._held:
                libvirt.registerErrorHandler(_quiet, None)  # else each is printed, too
                self.facts.clear()
                self._held.append(libvirt.open(self.uri))
            return self._held[0]


def _quiet(context: object, error: object) -> None:
    del context, error


def _close(threads: ThreadPoolExecutor, held: list[virConnect]) -> None:
    threads.shutdown(wait=False)
    for connection in held:
        with suppress(Exception):
            connection.close()


def domain_of(api: virConnect, uuid: str) -> virDomain | None:
    """The domain, if it is there; it may end at any moment."""
    with missing_is_fine():
        return api.lookupByUUIDString(uuid)
    return None


@contextmanager
def missing_is_fine() -> Iterator[None]:
    """For what is said of a domain that may have ended meanwhile."""
    from libvirt import VIR_ERR_NO_DOMAIN, VIR_ERR_OPERATION_INVALID, libvirtError

    try:
        yield
    except libvirtError as e:
        if e.get_error_code() not in (VIR_ERR_NO_DOMAIN, VIR_ERR_OPERATION_INVALID):
            raise


@contextmanager
def in_words(uri: str) -> Iterator[None]:
    """What libvirt refuses, or that it does not answer, as our own errors."""
    try:
        import libvirt
    except ImportError:
        raise UnavailableError(
            "desktops in virtual machines need a package that is not installed",
            remedy='apt-get install libvirt-dev pkg-config && pip install "cu-fleet-controller[libvirt]"',
            code="missing_package",
        ) from None
    try:
        yield
    except libvirt.libvirtError as e:
        raise _refusal(uri, e.get_error_code(), e.get_error_domain(), str(e), libvirt) from e


def _refusal(uri: str, code: int | None, domain: int | None, said: str, libvirt: Any) -> FleetError:
    if _FULL in said:
        return UnavailableError(f"the disk is full: {said}", remedy="make room", code="disk_full")
    lost = (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_AUTH_FAILED)
    if code in lost or domain in (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE):
        return UnavailableError(
            f"the hypervisor at {uri} does not answer: {said}",
            remedy="see whether it runs (virsh uri), or set LIBVIRT_DEFAULT_URI",
            code="no_hypervisor",
        )
    if code in (libvirt.VIR_ERR_DOM_EXIST, libvirt.VIR_ERR_OPERATION_FAILED) and "already exists" in said:
        return ConflictError(f"libvirt says: {said}", code="hypervisor_conflict")
    return UnavailableError(f"libvirt failed: {said}", code="hypervisor_failed")
