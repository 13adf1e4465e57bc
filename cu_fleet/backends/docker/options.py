"""What a profile may say below `options` for desktops in containers."""

from pydantic import ValidationError

from cu_fleet.model.errors import InvalidError
from cu_fleet.model.profile import Profile, Size
from cu_fleet.model.record import Value

IMAGE = "cu-fleet/desktop"  # where the profile names none


class Options(Value):
    """The keys below `options` in a profile of this backend."""

    require_limits: bool = False  # refuse to start where the engine cannot enforce a limit
    opengl: bool = False  # give the X server GLX, drawn in software
    user_namespaces: bool = False  # let programs build sandboxes of their own, as Chromium does
    shm: Size = 1 << 30  # most that /dev/shm may hold; it is the desktop's memory
    snapshot: Size = 8 << 30  # most that one snapshot may take on the engine's disk


def options(profile: Profile) -> Options:
    try:
        return Options.model_validate(profile.options)
    except ValidationError as e:
        wrong = e.errors()[0]
        raise InvalidError(
            f'profile "{profile.name}": options.{".".join(map(str, wrong["loc"]))}: {wrong["msg"]}',
            remedy=f"the docker backend knows {', '.join(Options.model_fields)}",
            code="bad_options",
        ) from None


def image(profile: Profile) -> str:
    return profile.image or IMAGE
