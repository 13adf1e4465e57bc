"""What a profile may say below `options` for desktops in containers."""

from typing import Literal

from pydantic import Field

from cu_fleet.backends.options import checked
from cu_fleet.model.profile import Profile, Seconds, Size
from cu_fleet.model.record import Value

IMAGE = "cu-fleet/desktop"  # where the profile names none


class Options(Value):
    """The keys below `options` in a profile of this backend."""

    require_limits: bool = False  # refuse to start where the engine cannot enforce a limit
    opengl: bool = False  # give the X server GLX, drawn in software
    user_namespaces: bool = False  # let programs build sandboxes of their own, as Chromium does
    shm: Size = 1 << 30  # most that /dev/shm may hold; it is the desktop's memory
    snapshot: Size = 8 << 30  # most that one snapshot may take on the engine's disk


# Of those that Docker itself gives to every container, the ones that let an image begin as root and become another.
Capability = Literal["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"]


class VncOptions(Value):
    """The same for images that are not ours."""

    port: int = Field(5900, ge=1, le=65535)  # where the image serves its screen by VNC, inside its container
    password_env: str | None = Field(
        None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"
    )  # where it reads the password to ask for
    command: tuple[str, ...] = ()  # instead of the image's own
    user: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]+(:[A-Za-z0-9_-]+)?$")  # instead of the image's own
    root: bool = False  # let it run as root, without any right of root's but these
    capabilities: tuple[Capability, ...] = ()
    init: bool = True  # an init of the engine's that reaps; some images insist on being the first process themselves
    within: Seconds | None = None  # how old its server's knowledge of the screen may be, if that is known
    require_limits: bool = False
    user_namespaces: bool = False
    shm: Size = 1 << 30
    door: str = IMAGE  # an image of ours, whose Python passes the screen on


def options(profile: Profile) -> Options:
    return checked(profile, Options)


def vnc_options(profile: Profile) -> VncOptions:
    return checked(profile, VncOptions)


def image(profile: Profile) -> str:
    return profile.image or IMAGE
