"""What `doctor` says of this machine: programs, namespaces, limits, network, and the commands that mend each."""

import asyncio
import os
import shutil
from pathlib import Path

from cu_fleet.backends.base import Check
from cu_fleet.backends.local import demands, walls
from cu_fleet.backends.local.cgroups import KINDS, Cgroups
from cu_fleet.model.errors import FleetError
from cu_fleet.model.profile import Profile

_NOBODY = 65534
_LEAST_ROOM = 1 << 30
_APPARMOR = """abi <abi/4.0>,
include <tunables/global>
profile bwrap /usr/bin/bwrap flags=(unconfined) {
  userns,
  include if exists <local/bwrap>
}
"""
_RESTRICTS = Path("/etc/apparmor.d/bwrap-userns-restrict")  # newer Ubuntu: what bubblewrap starts has no rights inside
_RESTRICTS_NOT = Path("/etc/apparmor.d/disable/bwrap-userns-restrict")
_SWITCHES = {  # kernel settings that forbid user namespaces, and the value that does
    "kernel/apparmor_restrict_unprivileged_userns": "1",
    "kernel/unprivileged_userns_clone": "0",
    "user/max_user_namespaces": "0",
}
_LIMITS = {"memory": "memory", "pids": "processes", "cpu": "CPU time"}


async def all_checks(home: Path, cgroups: Cgroups, profile: Profile | None) -> list[Check]:
    found = [
        _programs(profile),
        await _xlib(),
        await _accessibility(),
        _home(home),
        await _namespaces(),
        await asyncio.to_thread(_limits, cgroups, profile),
        _disk(home, profile),
    ]
    if profile is not None:
        found += [_profile(profile), *_offered(profile)]
    found.append(_network(needed=profile is not None and profile.network == "full"))
    return found


def _programs(profile: Profile | None) -> Check:
    lacking = demands.missing(profile)
    if not lacking:
        return Check("programs", True, "bubblewrap, Xvnc, openbox, D-Bus and Python are here")
    names = ", ".join(f"{program} (package {package})" for program, package in lacking.items())
    return Check("programs", False, f"missing: {names}", fix=_install(*lacking.values()))


def _install(*packages: str) -> tuple[tuple[str, ...], ...]:
    return (("apt-get", "update"), demands.apt(packages))


async def _xlib() -> Check:
    """The helper inside is run by the distribution's Python with the distribution's python3-xlib."""
    code, said = await _try([str(demands.PYTHON), "-I", "-c", "import Xlib"])
    if code == 0:
        return Check("python3-xlib", True, "the helper can talk to X")
    return Check(
        "python3-xlib",
        False,
        f"{demands.PYTHON} cannot import Xlib, so windows, focus, launch and clipboard do not work: {said}",
        needed=False,
        fix=_install("python3-xlib"),
    )


async def _accessibility() -> Check:
    """What programs tell of their elements goes over a bus of its own, which the session's starts when it is asked."""
    needs = "from gi.repository import Gio; open('/usr/share/dbus-1/services/org.a11y.Bus.service')"
    code, said = await _try([str(demands.PYTHON), "-I", "-c", needs])
    if code == 0:
        return Check("accessibility", True, "programs can tell what they show")
    fix = _install("at-spi2-core", "python3-gi")
    return Check("accessibility", False, f"elements cannot be read by role and name: {said}", needed=False, fix=fix)


def _home(home: Path) -> Check:
    try:
        walls.refuse_home(home)
    except FleetError as e:
        return Check("home", False, str(e))
    return Check("home", True, f"desktops cannot see {home}")


async def _namespaces() -> Check:
    """Not whether they should work: whether they do."""
    if demands.which("bwrap") is None:
        return Check("namespaces", False, "not tried: bubblewrap is missing", fix=_install("bubblewrap"))
    argv = ["bwrap", "--unshare-user", "--uid", "1000", "--gid", "1000", "--unshare-pid", "--unshare-ipc"]
    argv += ["--unshare-uts", "--unshare-net", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    # Chromium's own sandbox needs a further level, and the rights of a root in it
    argv += ["--", "unshare", "--user", "--map-root-user", "--net", "true"]
    if os.geteuid() == 0:
        argv = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", *argv]
    code, said = await _try(argv)
    if code == 0:
        return Check("namespaces", True, "bubblewrap works, also without privileges")
    for name, forbids in _SWITCHES.items():
        if _sysctl(name) == forbids:
            return Check(
                "namespaces", False, f"this machine forbids them: {name.replace('/', '.')}={forbids}", fix=_allow(name)
            )
    return Check("namespaces", False, f"bubblewrap cannot make a desktop here: {said}")


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""


def _allow(name: str) -> tuple[tuple[str, ...], ...]:
    """Ubuntu's way is a profile that allows bubblewrap alone; elsewhere it is a switch for all."""
    if "apparmor" in name:
        write = f"cat > /etc/apparmor.d/bwrap <<'END'\n{_APPARMOR}END"
        load = (("sh", "-c", write), ("apparmor_parser", "--replace", "/etc/apparmor.d/bwrap"))
        if not (_RESTRICTS.exists() and not _RESTRICTS_NOT.exists()):
            return load
        return (("ln", "-s", str(_RESTRICTS), str(_RESTRICTS_NOT)), ("apparmor_parser", "-R", str(_RESTRICTS)), *load)
    value = "28633" if "max" in name else "1"
    setting = f"{name.replace('/', '.')}={value}"
    return (
        ("sysctl", "-w", setting),
        ("sh", "-c", f"echo {setting} > /etc/sysctl.d/60-cu-fleet.conf"),
    )


def _limits(cgroups: Cgroups, profile: Profile | None) -> Check:
    insist = profile is not None and demands.options(profile).require_limits
    lacking = cgroups.lacking()
    enforced = [_LIMITS[kind] for kind in KINDS if kind not in lacking]
    if not lacking:
        return Check("limits", True, f"enforced by cgroup: {', '.join(enforced)}")
    why = "; ".join(f"{_LIMITS[kind]}: {reason}" for kind, reason in lacking.items())
    hint = "" if os.geteuid() == 0 else "; as an ordinary user: systemd-run --user --scope -p Delegate=yes cu-fleet up"
    detail = f"enforced: {', '.join(enforced) or 'nothing'}; not enforced: {why}{hint}"
    return Check("limits", False, detail, needed=insist)


def _disk(home: Path, profile: Profile | None) -> Check:
    """No quota is needed, and so none is looked for: the controller measures."""
    found = os.statvfs(next(path for path in (home, *home.parents) if path.exists()))
    left = found.f_bavail * found.f_frsize
    wanted = profile.limits.disk if profile else _LEAST_ROOM
    detail = f"{left >> 20} MB are left; desktops are measured while it fills up, and past limits.disk they are frozen"
    if left >= wanted:
        return Check("disk", True, detail)
    return Check("disk", False, f"{detail}, but less is left than one may write, {wanted >> 20} MB", needed=False)


def _profile(profile: Profile) -> Check:
    try:
        demands.refuse(profile)
    except FleetError as e:
        return Check(f"profile {profile.name}", False, str(e))
    return Check(f"profile {profile.name}", True, "this machine has what it asks for")


def _offered(profile: Profile) -> list[Check]:
    """What its desktops offer to start, and could not: they work all the same."""
    programs = [program.command[0] for program in profile.launch.values()] + [words[0] for words in profile.autostart]
    lacking = sorted({program for program in programs if demands.which(program) is None})
    if not lacking:
        return []
    detail = f"its desktops cannot start {', '.join(lacking)}, which is not in {demands.PATH}"
    detail += "; install it (the package is often named alike), or take it out of the profile"
    return [Check(f"programs of {profile.name}", False, detail, needed=False)]


def _network(*, needed: bool) -> Check:
    if demands.which("slirp4netns") is None:
        return Check(
            "network",
            False,
            "slirp4netns is missing, so no desktop can have a network",
            needed,
            _install("slirp4netns"),
        )
    if problem := demands.tun_problem():
        fix = (("modprobe", "tun"), ("chmod", "0666", str(demands.TUN)))
        return Check("network", False, f"{problem}, so no desktop can have a network", needed, fix)
    return Check("network", True, "desktops whose profile says `network: full` get one of their own")


async def _try(argv: list[str], seconds: float = 10.0) -> tuple[int, str]:
    """Its exit code, and the end of what it said."""
    if (program := shutil.which(argv[0], path=demands.PATH)) is None:
        return 127, f"{argv[0]} is missing"
    process = await asyncio.create_subprocess_exec(
        program, *argv[1:], stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT, env={"PATH": demands.PATH}, cwd="/",
    )  # fmt: skip
    try:
        async with asyncio.timeout(seconds):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return 124, f"{argv[0]} did not answer within {seconds:.0f} s"
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return process.returncode or 0, lines[-1] if lines else f"exit code {process.returncode}"
