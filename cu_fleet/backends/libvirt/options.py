"""What a profile may say below `options` for desktops in virtual machines."""

from typing import Literal

from pydantic import ValidationError

from cu_fleet.model.errors import InvalidError
from cu_fleet.model.profile import Profile
from cu_fleet.model.record import Value

IMAGE = "vm-desktop"  # where the profile names none


class Options(Value):
    """The keys below `options` in a profile of this backend."""

    acceleration: Literal["auto", "kvm", "none"] = "auto"  # auto: the processor's own where it works, else emulation


def options(profile: Profile) -> Options:
    try:
        return Options.model_validate(profile.options)
    except ValidationError as e:
        wrong = e.errors()[0]
        raise InvalidError(
            f'profile "{profile.name}": options.{".".join(map(str, wrong["loc"]))}: {wrong["msg"]}',
            remedy=f"the libvirt backend knows {', '.join(Options.model_fields)}",
            code="bad_options",
        ) from None


def image(profile: Profile) -> str:
    return profile.image or IMAGE
