"""Talking to libvirt: which hypervisor, from threads of our own, and its refusals in our words.

libvirt's Python binding has an event loop for asyncio, but that carries events only: every call still blocks until it
is answered, which for a machine being saved takes seconds. So calls run in threads, and libvirt's own loop, which
unlike that one may be used from many, runs in one more: it notices at once that a connection broke, and within half a
minute that nobody answers on it any more, and then every call that waits is given up.

A caller that is cancelled still waits a while, so that nothing goes on behind anyone's back; then the thread is left to
itself, for a hypervisor may hang longer than anybody can wait. It asks for nothing more; what comes late of that for
which it asked before is found by the sweep.

One connection serves all threads, and is made anew when it broke: who answered before is given a moment to come back.
The binding is loaded when it is first needed: who has no machines pays nothing for them.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from cu_fleet.model.errors import ConflictError, FleetError, UnavailableError, UnsupportedError

if TYPE_CHECKING:
    from libvirt import virConnect, virDomain

T = TypeVar("T")
_FULL = "No space left on device"
_ALIVE = (5, 5)  # seconds between two signs of life, and how many may stay away
_GRACE = 10.0  # seconds that a call may go on after nobody wants its answer any more
_BACK = 10.0  # seconds that a hypervisor which answered before may take to come back
_AGAIN = 0.2
_STARTING = threading.Lock()
_thread = threading.local()  # `unwanted`: set when nobody waits any more for what it does


class Hypervisor:
    """One hypervisor: the one given, or what libvirt's own variable names, or this machine's."""

    def __init__(self, uri: str | None = None) -> None:
        self._given = uri
        self._connecting = threading.Lock()
        self._held: list[virConnect] = []
        self._known = False  # whether it ever answered
        self.facts: dict[str, str] = {}  # found out over this connection, and true as long as it lasts
        weakref.finalize(self, _close, self._held)

    @property
    def uri(self) -> str:
        return (
            self._given or os.environ.get("LIBVIRT_DEFAULT_URI") or f"qemu:///{'session' if os.geteuid() else 'system'}"
        )

    @property
    def is_session(self) -> bool:
        """Whether it is the user's own, which the first connection starts."""
        return self.uri == "qemu:///session"

    def binding(self) -> None:
        """Refuse in words where libvirt cannot be spoken to at all."""
        with in_words(self.uri):
            import libvirt  # noqa: F401

    async def do(self, work: Callable[[virConnect], T]) -> T:
        """Run `work` with the connection, in a thread."""
        return await self.wait(partial(self.now, work))

    async def wait(self, work: Callable[[], T]) -> T:
        """Run what blocks in a thread, to its end even when cancelled, if that comes soon."""
        unwanted = threading.Event()
        future = asyncio.wrap_future(_begun(work, unwanted))
        future.add_done_callback(_seen)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            unwanted.set()
            await asyncio.wait([future], timeout=_GRACE)
            raise

    def now(self, work: Callable[[virConnect], T]) -> T:
        """Run `work` with the connection, in this thread, which may block."""
        with in_words(self.uri):
            connection = self._connection()
            if (unwanted := getattr(_thread, "unwanted", None)) and unwanted.is_set():
                raise _silent(self.uri, "not before it was given up")
            return work(connection)

    def _connection(self) -> virConnect:
        import libvirt

        if not self._connecting.acquire(timeout=_BACK):
            raise _silent(self.uri, "it lets itself be connected to, and says nothing")
        try:
            if self._held and not self._held[0].isAlive():
                with suppress(libvirt.libvirtError):
                    self._held.pop().close()
            if not self._held:
                self.facts.clear()
                self._held.append(self._opened())
                self._known = True
            return self._held[0]
        finally:
            self._connecting.release()

    def _opened(self) -> virConnect:
        from libvirt import libvirtError

        until = time.monotonic() + (_BACK if self._known else 0)
        while True:
            try:
                return _open(self.uri)
            except libvirtError:
                if time.monotonic() > until:
                    raise
            time.sleep(_AGAIN)


def _begun(work: Callable[[], T], unwanted: threading.Event) -> Future[T]:
    """In a thread that keeps nobody from ending this process."""
    future: Future[T] = Future()

    def do() -> None:
        _thread.unwanted = unwanted
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as e:  # noqa: BLE001 - it is raised where the work is awaited
                future.set_exception(e)

    threading.Thread(target=do, name="libvirt", daemon=True).start()
    return future


def _seen(future: asyncio.Future[Any]) -> None:
    """So that the loop does not complain of an error that nobody waited for."""
    if not future.cancelled():
        future.exception()


def _open(uri: str) -> virConnect:
    import libvirt

    _must_be_here(uri)
    with _STARTING:
        _events()
    connection = libvirt.open(uri)
    connection.setKeepAlive(*_ALIVE)
    return connection


def _must_be_here(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.netloc or parts.scheme not in ("qemu", "qemu+unix"):
        raise UnsupportedError(
            f"the hypervisor at {uri} is not QEMU on this machine, where screens and disks of desktops must be",
            remedy="for one on another host say qemu+ssh://user@host/system; else unset LIBVIRT_DEFAULT_URI",
            code="far_hypervisor",
        )


@cache
def _events() -> None:
    """Begin the loop that watches all connections of this process."""
    import libvirt

    def watch() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    libvirt.registerErrorHandler(_quiet, None)  # else each is printed, too
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=watch, name="libvirt events", daemon=True).start()


def _quiet(context: object, error: object) -> None:
    del context, error


def _close(held: list[virConnect]) -> None:
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
        return _silent(uri, said)
    if code in (libvirt.VIR_ERR_DOM_EXIST, libvirt.VIR_ERR_OPERATION_FAILED) and "already exists" in said:
        return ConflictError(f"libvirt says: {said}", code="hypervisor_conflict")
    return UnavailableError(f"libvirt failed: {said}", code="hypervisor_failed")


def _silent(uri: str, why: str) -> UnavailableError:
    return UnavailableError(
        f"the hypervisor at {uri} does not answer: {why}",
        remedy="see whether it runs (virsh uri), or set LIBVIRT_DEFAULT_URI",
        code="no_hypervisor",
    )
