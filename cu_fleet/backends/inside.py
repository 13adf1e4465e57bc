"""What a desktop is like inside, wherever it comes from: its one user, its X server, its window manager's manners."""

import io
import secrets
import tarfile
from collections.abc import Iterable
from pathlib import Path

from cu_fleet.guest import backdrop
from cu_fleet.guest import init as guest
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.profile import Profile

UID = 1000
HOME = "/home/agent"
BEGINNING = 1_577_836_800 * 10**9  # the time of all that every fresh home has
HOME_BEGINS: dict[str, tuple[int, bytes | None]] = {  # mode and content; None: a folder
    ".cache": (0o700, None),
    ".config": (0o700, None),
    ".local": (0o700, None),
    ".local/share": (0o700, None),
    "Downloads": (0o755, None),
    ".bashrc": (0o644, b"PS1='\\w\\$ '\n"),
    ".config/user-dirs.dirs": (0o644, b'XDG_DESKTOP_DIR="$HOME"\nXDG_DOWNLOAD_DIR="$HOME/Downloads"\n'),
}
OPENBOX = """<?xml version="1.0" encoding="UTF-8"?>
<openbox_config xmlns="http://openbox.org/3.4/rc">
  <focus><focusNew>yes</focusNew><followMouse>no</followMouse><raiseOnFocus>yes</raiseOnFocus></focus>
  <placement><policy>Smart</policy><center>yes</center></placement>
  <theme><name>Clearlooks</name><titleLayout>NLIMC</titleLayout><animateIconify>no</animateIconify></theme>
  <desktops><number>1</number></desktops>
  <keyboard>
    <keybind key="A-F4"><action name="Close"/></keybind>
    <keybind key="A-Tab"><action name="NextWindow"><finalactions>
      <action name="Focus"/><action name="Raise"/></finalactions></action></keybind>
  </keyboard>
  <mouse>
    <context name="Titlebar">
      <mousebind button="Left" action="Press"><action name="Focus"/><action name="Raise"/></mousebind>
      <mousebind button="Left" action="Drag"><action name="Move"/></mousebind>
      <mousebind button="Left" action="DoubleClick"><action name="ToggleMaximize"/></mousebind>
    </context>
    <context name="Client"><mousebind button="Left" action="Press">
      <action name="Focus"/><action name="Raise"/></mousebind>
      <mousebind button="Middle" action="Press"><action name="Focus"/><action name="Raise"/></mousebind>
      <mousebind button="Right" action="Press"><action name="Focus"/><action name="Raise"/></mousebind></context>
    <context name="Top Bottom Left Right TLCorner TRCorner BLCorner BRCorner">
      <mousebind button="Left" action="Drag"><action name="Resize"/></mousebind></context>
    <context name="Close"><mousebind button="Left" action="Click"><action name="Close"/></mousebind></context>
    <context name="Maximize"><mousebind button="Left" action="Click">
      <action name="ToggleMaximize"/></mousebind></context>
    <context name="Iconify"><mousebind button="Left" action="Click"><action name="Iconify"/></mousebind></context>
  </mouse>
  <menu><showIcons>no</showIcons></menu>
</openbox_config>
"""

# Of xkb-data's layouts those whose keys make fewer than the 26 Latin letters.
_LACKING = """af ara am az by bd in bg ma bt ir iq gn ge gr il kg kh kz la mk mn ru rs sy tj lk th ua uz pk mv np et
    brai tz jv my custom"""
_NOT_LATIN = frozenset(_LACKING.split())

_IMPORT = "from cu_fleet.guest.backdrop import Screen\n"


def _one_file(text: str, imported: str) -> str:
    """init as it gets inside, where nothing else of cu_fleet is."""
    before, line, after = text.partition(_IMPORT)
    assert line, "init imports otherwise than it did"
    return before + imported + after


INIT = _one_file(Path(guest.__file__).read_text("utf-8"), Path(backdrop.__file__).read_text("utf-8"))


def hostname(label: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in label).strip("-")[:63] or "desktop"


def accounts(uid: int) -> dict[str, str]:
    """The files of /etc that say who there is: root, whom nobody can become, and the agent."""
    return {
        "passwd": f"root:x:0:0:root:/root:/usr/sbin/nologin\nagent:x:{uid}:{uid}:Agent:{HOME}:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        "group": f"root:x:0:\nagent:x:{uid}:\nnogroup:x:65534:\n",
    }


def machine_id() -> str:
    return f"{secrets.token_hex(16)}\n"


def keyboard(profile: Profile) -> tuple[str, str]:
    """Layout and variant."""
    layout, _, variant = profile.keyboard.partition("(")
    return layout, variant.rstrip(")")


def groups(profile: Profile) -> tuple[str, str]:
    """Layouts and variants as the desktop has them: a US keyboard comes first where Latin letters may be lacking.

    TigerVNC finds the key of a character in the first layout alone, and has room for twenty that it lacks.
    """
    layout, variant = keyboard(profile)
    return (f"us,{layout}", variant and f",{variant}") if variant or layout in _NOT_LATIN else (layout, "")


def config(profile: Profile, boot: str) -> bytes:
    """What init reads when it begins."""
    return guest.pack([[boot, str(profile.screen.dpi), *groups(profile)], *map(list, profile.autostart)])


def environment(profile: Profile, uid: int = UID) -> dict[str, str]:
    return {
        "ACCESSIBILITY_ENABLED": "1",  # Chromium and Qt tell what they show only if they are asked to from the start
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path=/run/user/{uid}/bus",
        "DISPLAY": ":0",
        "HOME": HOME,
        "LANG": profile.locale,
        "LOGNAME": "agent",
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/games",
        "QT_LINUX_ACCESSIBILITY_ALWAYS_ON": "1",
        "SHELL": "/bin/bash",
        "TZ": profile.timezone,
        "USER": "agent",
        "XDG_RUNTIME_DIR": f"/run/user/{uid}",
        "XDG_SESSION_TYPE": "x11",
        **profile.env,
    }


def screen(profile: Profile, label: str, *, opengl: bool) -> list[str]:
    """The X server and its arguments."""
    size = profile.screen
    words = f"""Xvnc :0 -geometry {size.width}x{size.height} -depth 24 -dpi {size.dpi} -nolisten tcp -noreset
        -rfbport -1 -rfbunixpath {guest.RUN}/rfb.sock -rfbunixmode 0600 -SecurityTypes None -UseBlacklist=0
        -FrameRate 1000 -AlwaysShared -AcceptSetDesktopSize=0 -IdleTimeout 0 -s 0""".split()
    return [*words, *([] if opengl else ["-extension", "GLX"]), "-desktop", label]


# With these x11vnc knows its screen within half a second; as it comes, it may take twenty.
X11VNC = "-xd_area 0 -wait 10 -defer 1 -nonap -sb 0 -speeds lan"
X11VNC_WITHIN = 0.5
# The X server says on the pipe that it is up; neither outlives the other. The clipboard is the helper's alone: while
# x11vnc looks into it too, nobody can tell whether a program has taken what was pasted.
_X11VNC = f""""$@" | {{ read display && x11vnc -display :0 -unixsock {guest.RUN}/rfb.sock -rfbport 0 -desktop "$0" \
    -forever -shared -nopw -nosel -nolookup -noipv6 -norc {X11VNC}
kill $$; }}"""


def polled_screen(profile: Profile, label: str, *, opengl: bool) -> list[str]:
    """The same by Xvfb, which x11vnc looks at."""
    size = profile.screen
    server = f"""Xvfb :0 -displayfd 1 -screen 0 {size.width}x{size.height}x24 -dpi {size.dpi} -nolisten tcp -noreset
        -s 0""".split()
    return ["/bin/sh", "-c", _X11VNC, label, *server, *([] if opengl else ["-extension", "GLX"])]


def template(profile: Profile, folders: Iterable[Path]) -> Path | None:
    """The folder every fresh home of this profile begins with."""
    if profile.home is None:
        return None
    for folder in folders:
        found = (folder / profile.home).resolve()
        if found.is_dir() and found.is_relative_to(folder.resolve()) and found != folder.resolve():
            return found
    raise UnavailableError(
        f'profile "{profile.name}": home: there is no folder {profile.home!r} beside the profiles',
        remedy="look in " + ", ".join(map(str, folders)),
        code="no_template",
    )


def home(template: Path | None) -> bytes:
    """An archive of what a fresh home has; what the profile's folder says wins over the built-in."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, (mode, content) in {"": (0o700, None), **HOME_BEGINS}.items():
            member = tarfile.TarInfo(f"{HOME[1:]}/{path}".rstrip("/"))
            member.mode, member.mtime = mode, BEGINNING // 10**9
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.size = len(content or b"")
            tar.addfile(member, io.BytesIO(content or b""))
        for own in sorted(template.iterdir()) if template else ():
            tar.add(own, f"{HOME[1:]}/{own.name}")
    return data.getvalue()
