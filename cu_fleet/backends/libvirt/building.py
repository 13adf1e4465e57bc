"""Building a golden image, and proving it before it is used: a desktop of it is warmed, forked, and tried.

The new image takes its name only then. It is built again only if its recipe has changed, or when that is asked for.
In the end the profiles that use it are warmed, each once, so that no lease has to wait for a machine to boot.
"""

import asyncio
import secrets
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cu_fleet.backends.base import Place, Spec
from cu_fleet.backends.libvirt import images
from cu_fleet.backends.libvirt.backend import LibvirtBackend
from cu_fleet.backends.libvirt.images import NAMES, Golden, Say
from cu_fleet.backends.libvirt.layout import Layout, drop
from cu_fleet.backends.libvirt.options import image
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.names import new_id
from cu_fleet.model.profile import Profile

__all__ = ["NAMES", "Golden", "build", "listing"]
# What there must be for the helper, and a window that is really drawn.
_TRY = """
import subprocess, sys, time
from Xlib.display import Display
import gi; gi.require_version("Atspi", "2.0")
window = subprocess.Popen(["xterm", "-T", "cu-fleet proof"])
screen, until = Display().screen(), time.monotonic() + 60
while time.monotonic() < until:
    shown = [one.query_tree().children or [one] for one in screen.root.query_tree().children]
    if any(w.get_wm_name() == "cu-fleet proof" for group in shown for w in group):
        break
    time.sleep(0.2)
else:
    sys.exit("a window of xterm did not come up")
window.kill()
for program in ("mousepad", "xclip", "setxkbmap"):
    subprocess.run(["which", program], check=True, stdout=subprocess.DEVNULL)
print("programs, X and accessibility are there")
"""


def listing(place: Place, store: Path | None = None) -> list[Golden]:
    layout = Layout(place, store)
    return [images.look(layout, name) for name in NAMES]


async def build(
    place: Place,
    name: str,
    say: Say,
    profiles: Sequence[Profile] = (),
    *,
    fresh: bool = False,
    uri: str | None = None,
    store: Path | None = None,
) -> Golden:
    """Build an image, prove it, only then give it its name, and warm these profiles."""
    layout = Layout(place, store)
    if not (golden := await asyncio.to_thread(images.look, layout, name)).current or fresh:
        golden = await _built(layout, name, say, uri)
    else:
        say(f"{name} is there, and its recipe has not changed")
    warm = LibvirtBackend(place, uri, store).warm
    for profile in (one for one in profiles if one.backend == LibvirtBackend.name and image(one) == name):
        say(f"warming a machine for profile {profile.name}")
        async for words in warm.coming(profile):
            say(words)
    return golden


async def _built(layout: Layout, name: str, say: Say, uri: str | None) -> Golden:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    new = await asyncio.to_thread(images.build, layout, name, say, created)
    try:
        say("booting it, which takes a minute or more where machines are emulated")
        await prove(layout, new, say, uri)
    except BaseException:
        await asyncio.to_thread(drop, new.dir)
        raise
    return await asyncio.to_thread(images.adopt, layout, new)


async def prove(layout: Layout, new: Golden, say: Say, uri: str | None) -> None:
    """Start a desktop of this image, in a store of its own beside it, and have it show that it works."""
    trial = layout.folder(layout.store / f".trial.{secrets.token_hex(2)}")  # short, for sockets lie in it
    with tempfile.TemporaryDirectory(prefix="cu-fleet-image-") as home:
        backend = LibvirtBackend(Place(Path(home), secrets.token_hex(3)), uri, trial)
        backend.layout.folder(backend.layout.images)
        (backend.layout.images / new.name).symlink_to(new.dir)
        profile = Profile.model_validate({"name": "check", "backend": "libvirt", "limits": {"memory": "1G"}})
        spec = Spec(new_id("dk"), profile.but(image=new.name), new_id("bt"), "check")
        handle: Handle = {"desktop": spec.desktop}
        try:
            handle = [one async for one in backend.start(spec)][-1]
            say("its desktop is up, and a fork of it woke" + (" (emulated)" if handle["emulated"] else " (KVM)"))
            await _try(backend, handle, new.name, say)
        finally:
            await backend.stop(handle)
            await asyncio.to_thread(drop, trial)


async def _try(backend: LibvirtBackend, handle: Handle, name: str, say: Say) -> None:
    assert backend.abilities.exec
    process = await backend.abilities.exec.exec(handle, ["/usr/bin/python3", "-I", "-c", _TRY])
    said = b"".join([data async for _, data in process.output()]).decode("utf-8", "replace").strip()[-2000:]
    if await process.wait() != 0:
        raise UnavailableError(f"a desktop of {name} does not work: {said}", code="image_unproved")
    say(said)
