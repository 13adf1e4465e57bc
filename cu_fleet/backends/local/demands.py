"""What a profile asks of this machine, refused in words before anything is made."""

import ctypes
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from cu_fleet.backends.inside import keyboard
from cu_fleet.backends.options import checked
from cu_fleet.model.errors import InvalidError, UnavailableError
from cu_fleet.model.profile import Profile
from cu_fleet.model.record import Value

PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
PACKAGES = {  # what must be on this machine, and where Debian and Ubuntu have it
    "bwrap": "bubblewrap",
    "Xvnc": "tigervnc-standalone-server",
    "xkbcomp": "x11-xkb-utils",
    "setxkbmap": "x11-xkb-utils",
    "openbox": "openbox",
    "dbus-daemon": "dbus",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
}
NETWORKED = {"slirp4netns": "slirp4netns"}
PYTHON = Path("/usr/bin/python3")
TUN = Path("/dev/net/tun")
_LC_ALL = 0x1FBF  # the mask of all categories in glibc
_ZONES = Path("/usr/share/zoneinfo")
_LAYOUTS = Path("/usr/share/X11/xkb/symbols")


class Options(Value):
    """The keys below `options` in a profile of this backend."""

    require_limits: bool = False  # refuse to start where a limit cannot be enforced
    opengl: bool = False  # give the X server GLX, drawn in software: 45 MB more, and a slower start


def options(profile: Profile) -> Options:
    return checked(profile, Options)


def which(program: str) -> str | None:
    """Where desktops would find it: what only the controller's own PATH has does not count."""
    return shutil.which(program, path=PATH)


def missing(profile: Profile | None) -> dict[str, str]:
    """Programs that are not here, and the packages that have them."""
    needed = PACKAGES | (NETWORKED if profile and profile.network == "full" else {})
    lacking = {program: package for program, package in needed.items() if which(program) is None}
    return lacking | ({} if PYTHON.exists() else {str(PYTHON): "python3"})


def apt(packages: Iterable[str]) -> tuple[str, ...]:
    return ("apt-get", "install", "-y", "--no-install-recommends", *sorted(set(packages)))


def refuse(profile: Profile) -> None:
    """Raise for anything in the profile that cannot be had here."""
    options(profile)
    if lacking := missing(profile):
        raise UnavailableError(
            f"desktops need {', '.join(lacking)}, which this machine does not have",
            remedy="install it: " + " ".join(apt(lacking.values())),
            code="missing_program",
            missing=list(lacking),
        )
    problems = [locale_problem(profile), timezone_problem(profile), keyboard_problem(profile)]
    if profile.network == "full":
        problems.append((tun_problem(), f"as root: modprobe tun && chmod 0666 {TUN}"))
    for problem, remedy in problems:
        if problem:
            raise UnavailableError(f'profile "{profile.name}": {problem}', remedy=remedy, code="profile_unmet")
    for name, value in profile.env.items():
        if not name or "=" in name or "\0" in name + value:
            raise InvalidError(f'profile "{profile.name}": env: {name!r} is no variable', code="bad_profile")


def locale_problem(profile: Profile) -> tuple[str, str]:
    """C.UTF-8 always works: it is built in."""
    if profile.locale in ("C", "POSIX", "C.UTF-8", "C.utf8"):
        return "", ""
    libc = ctypes.CDLL(None)
    libc.newlocale.restype, libc.newlocale.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    libc.freelocale.restype, libc.freelocale.argtypes = None, [ctypes.c_void_p]
    if found := libc.newlocale(_LC_ALL, profile.locale.encode(), None):
        libc.freelocale(found)
        return "", ""
    line = f"{profile.locale} {profile.locale.partition('.')[2] or 'ISO-8859-1'}"
    return (
        f"locale {profile.locale} is not installed here",
        f"as root: apt-get install -y locales && echo '{line}' >> /etc/locale.gen && locale-gen",
    )


def timezone_problem(profile: Profile) -> tuple[str, str]:
    if profile.timezone == "UTC" or (_ZONES / profile.timezone).is_file():
        return "", ""
    return f"there is no time zone {profile.timezone} here", "see /usr/share/zoneinfo, of the package tzdata"


def tun_problem() -> str:
    """Root can show its desktops a device of their own; for others it must be open to all, as it usually is."""
    if not TUN.exists():
        return f"there is no {TUN}"
    if os.geteuid() != 0 and not os.access(TUN, os.R_OK | os.W_OK):
        return f"{TUN} is closed to ordinary users"
    return ""


def keyboard_problem(profile: Profile) -> tuple[str, str]:
    layout, variant = keyboard(profile)
    try:
        text = (_LAYOUTS / layout).read_text("utf-8", "replace")
    except OSError:
        return f"there is no keyboard layout {layout} here", f"see {_LAYOUTS}, of the package xkb-data"
    if variant and not re.search(rf'xkb_symbols\s+"{re.escape(variant)}"', text):
        return f"keyboard layout {layout} has no variant {variant}", f"see {_LAYOUTS / layout}"
    return "", ""
