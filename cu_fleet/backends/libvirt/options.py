"""What a profile may say below `options` for desktops in virtual machines."""

from typing import Literal, Self

from pydantic import Field, model_validator

from cu_fleet.backends.options import checked
from cu_fleet.model.profile import Profile, Seconds
from cu_fleet.model.record import Value

IMAGE = "vm-desktop"  # where the profile names none
FOREIGN = "libvirt-vnc"  # the backend for images that are not ours


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


class ForeignOptions(Options):
    """The same for images that are not ours."""

    hardware: Literal["plain", "virtio"] = "plain"  # plain: SATA, USB and VGA, which every system can drive
    up_after: Seconds | None = None  # None: it is up when it rests, with a screen of the profile's size
    agent: bool = False  # qemu-guest-agent runs in it, and may be asked
    user: str = Field("", pattern=r"([a-z_][a-z0-9_.-]*)?", max_length=32)  # whose commands and files; empty: root's

    @model_validator(mode="after")
    def _user_needs_agent(self) -> Self:
        if self.user and not self.agent:
            raise ValueError("user needs agent: true")
        return self


def options(profile: Profile) -> Options:
    return checked(profile, ForeignOptions if profile.backend == FOREIGN else Options)


def foreign_options(profile: Profile) -> ForeignOptions:
    return checked(profile, ForeignOptions)


def image(profile: Profile) -> str:
    return profile.image or IMAGE
