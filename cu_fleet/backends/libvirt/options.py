"""What a profile may say below `options` for desktops in virtual machines."""

from typing import Literal, Self

from pydantic import ValidationError, model_validator

from cu_fleet.model.errors import InvalidError
from cu_fleet.model.profile import Profile
from cu_fleet.model.record import Value

IMAGE = "vm-desktop"  # where the profile names none


class Options(Value):
    """The keys below `options` in a profile of this backend."""

    acceleration: Literal["auto", "kvm", "none"] = "auto"  # auto: the processor's own where it works, else emulation
    firmware: Literal["bios", "uefi"] = "bios"
    secure_boot: bool = False  # start only what is signed, by the keys that Windows and distributions sign with
    tpm: bool = False  # TPM 2.0

    @model_validator(mode="after")
    def _secure_is_uefi(self) -> Self:
        if self.secure_boot and self.firmware != "uefi":
            raise ValueError("secure_boot needs firmware: uefi")
        return self


def options(profile: Profile) -> Options:
    try:
        return Options.model_validate(profile.options)
    except ValidationError as e:
        wrong = e.errors()[0]
        raise InvalidError(
            f'profile "{profile.name}": {_at(wrong["loc"])}: {wrong["msg"].removeprefix("Value error, ")}',
            remedy=f"the libvirt backend knows {', '.join(Options.model_fields)}",
            code="bad_options",
        ) from None


def _at(where: tuple[int | str, ...]) -> str:
    return ".".join(["options", *map(str, where)])


def image(profile: Profile) -> str:
    return profile.image or IMAGE
