"""A machine's seed: a second, read-only disk with all that makes a booting golden image this profile's desktop.

The disk is an archive without a file system, so it is made as fast as it is read. An image holds nothing of ours but
the service that reads it, and need not be built again when something in here changes.
"""

import hashlib
import io
import json
import tarfile
from pathlib import Path

from cu_fleet.backends import inside
from cu_fleet.backends.inside import BEGINNING, HOME, UID
from cu_fleet.guest import channel, files, frames, network, port
from cu_fleet.guest import init as guest
from cu_fleet.guest.carry import carried
from cu_fleet.model.profile import Profile, Screen

_BEGIN = f"""import sys
sys.path.insert(0, "{guest.SETUP}")
from cu_fleet.guest.port import main
main()
"""
_HELPER = carried()
_BEGIN_HELPER = ["/usr/bin/python3", "-I", f"{guest.SETUP}/helper.py"]
_PROGRAMS = {
    "port.py": _BEGIN.encode(),  # what the image's service runs
    "cu_fleet/__init__.py": b"",
    "cu_fleet/guest/__init__.py": b"",
    **{
        f"cu_fleet/guest/{Path(str(one.__file__)).name}": Path(str(one.__file__)).read_bytes()
        for one in (channel, files, frames, network, port)
    },
}
# Both GTK 3 and 4 take what points to places for a touch screen, on which a drag selects nothing, unless they know it
# by its name: one that has "mouse" in it will do, and QEMU's tablet has not.
_XORG = """Section "ServerFlags"
  Option "BlankTime" "0"
  Option "DontVTSwitch" "true"
  Option "DontZap" "true"
EndSection
Section "Monitor"
  Identifier "screen"
  Modeline {modeline}
  Option "PreferredMode" "desktop"
EndSection
Section "Device"
  Identifier "card"
  Driver "modesetting"
  Option "AccelMethod" "none"
  Option "Monitor-Virtual-1" "screen"
EndSection
Section "Screen"
  Identifier "screen"
  Device "card"
  Monitor "screen"
  DefaultDepth 24
  SubSection "Display"
    Modes "desktop"
  EndSubSection
EndSection
Section "InputDevice"
  Identifier "mouse"
  Driver "libinput"
  Option "Device" "{pointer}"
EndSection
Section "InputClass"
  Identifier "the same once more"
  MatchProduct "Tablet"
  Option "Ignore" "on"
EndSection
Section "ServerLayout"
  Identifier "desktop"
  Screen "screen"
  InputDevice "mouse" "CorePointer"
EndSection
"""


def seed(profile: Profile, template: Path | None) -> bytes:
    """The same bytes for the same profile and program."""
    setup = {
        "uid": UID,
        "home": HOME,
        "boot": "warm",
        "argv": _server(profile.screen),
        "env": [f"{name}={value}" for name, value in inside.environment(profile.but(env={})).items()],
        "hostname": "desktop",
        "machine_id": "0" * 31 + "1",
        "network": profile.network == "full",
        "standing": [digest(_HELPER), guest.pack([["run", ""], [], _BEGIN_HELPER]).decode()],
    }
    return archive(
        {
            "config": inside.config(profile.but(autostart=()), "warm"),
            "desktop.json": json.dumps(setup).encode(),
            "helper.py": _HELPER.encode(),
            "init.py": inside.INIT.encode(),
            "openbox.xml": inside.OPENBOX.encode(),
            **_PROGRAMS,
            "state.tar": inside.home(template),
            "xorg.conf": _XORG.format(modeline=_modeline(profile.screen), pointer=port.POINTER).encode(),
        }
    )


def digest(program: str) -> str:
    """By which a machine that was saved long ago tells whether what stands by in it is this very program."""
    return hashlib.sha256(program.encode()).hexdigest()


def _server(screen: Screen) -> list[str]:
    """The terminal is made ready by who starts it; see `guest.port`."""
    own = f"-config {guest.SETUP}/xorg.conf -logfile {guest.RUN}/Xorg.log".split()
    words = f"Xorg :0 vt7 -sharevts -novtswitch -nolisten tcp -noreset -s 0 -dpms -dpi {screen.dpi}".split()
    return [*words, *own]


def _modeline(screen: Screen) -> str:
    """Any size there is, at 60 pictures a second; a card that is none needs no porches."""
    width, height = screen.width, screen.height
    across, down = width + 32, height + 16
    return (
        f'"desktop" {across * down * 60 / 1e6:.2f} {width} {width + 8} {width + 16} {across} '
        f"{height} {height + 2} {height + 4} {down}"
    )


def archive(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), BEGINNING // 10**9
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()
