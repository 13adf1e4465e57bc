"""UEFI, Secure Boot and a TPM: what a profile may ask for, and what libvirt is then told."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cu_fleet.backends.base import Place
from cu_fleet.backends.libvirt import domain, firmware, machines, tpm
from cu_fleet.backends.libvirt.layout import Desk, Layout
from cu_fleet.backends.libvirt.options import options
from cu_fleet.model.errors import InvalidError, UnavailableError
from cu_fleet.model.profile import Profile
from tests.support import command_lines


def described(folder: Path, name: str, *features: str, **more: Any) -> None:
    folder.mkdir(exist_ok=True)
    said = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": f"/fw/{name}.code", "format": "raw"},
            "nvram-template": {"filename": f"/fw/{name}.vars", "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3", "amd-sev", *features],
    }
    (folder / f"{name}.json").write_text(json.dumps(said | more))


def test_the_firmware_is_the_one_that_does_what_was_asked_and_no_more(tmp_path: Path) -> None:
    system, own = tmp_path / "system", tmp_path / "own"
    described(system, "10-bios", **{"interface-types": ["bios"]})
    described(system, "20-arm", targets=[{"architecture": "aarch64", "machines": ["virt-*"]}])
    described(system, "30-confidential", "amd-sev-snp")
    described(system, "40-enrolled", "secure-boot", "enrolled-keys", "requires-smm")
    described(system, "50-empty", "secure-boot", "requires-smm")
    described(system, "60-plain")
    described(system, "70-plain-too")
    folders = (own, system)
    assert firmware.find(secure=True, folders=folders).code == Path("/fw/40-enrolled.code")
    found = firmware.find(secure=False, folders=folders)
    assert (found.code, found.settings) == (Path("/fw/60-plain.code"), Path("/fw/60-plain.vars"))
    described(own, "60-plain", mapping={"device": "memory", "filename": "/x"})
    assert firmware.find(secure=False, folders=folders).code == Path("/fw/70-plain-too.code"), "a name stands once"
    with pytest.raises(UnavailableError) as e:
        firmware.find(secure=True, folders=(own,))
    assert (e.value.code, e.value.remedy) == ("no_firmware", "apt-get install ovmf")


def profile(**given: Any) -> Profile:
    return Profile.model_validate({"name": "p", "backend": "libvirt", "options": given})


def test_secure_boot_is_a_matter_of_uefi() -> None:
    assert options(profile(firmware="uefi", secure_boot=True, tpm=True)).secure_boot
    with pytest.raises(InvalidError, match="secure_boot needs firmware: uefi"):
        options(profile(secure_boot=True))


def desk(tmp_path: Path, name: str) -> Desk:
    return Layout(Place(tmp_path / "home", "f"), tmp_path / "store").desk(name)


@pytest.mark.parametrize("secure", [False, True])
def test_a_machine_has_settings_and_a_tpm_of_its_own(
    tmp_path: Path, secure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = firmware.Firmware(Path("/fw/code"), Path("/fw/vars"), secure)
    monkeypatch.setattr(firmware, "find", lambda *, secure: found if secure is found.secure else None)
    recipe = profile(firmware="uefi", secure_boot=secure, tpm=True)
    machine = domain.Machine.of(recipe, "qemu", "q35", Path("/image"), Path("/seed"))
    one, two = desk(tmp_path, "dk_1"), desk(tmp_path, "dk_2")
    text = domain.xml(machine, one, "x", "f", 5)
    top = ElementTree.fromstring(text)  # noqa: S314  # our own
    loader = top.find("os/loader")
    assert loader is not None
    assert (loader.text, loader.get("readonly"), loader.get("secure")) == ("/fw/code", "yes", "yes" if secure else "no")
    assert (top.find("features/smm") is not None) is secure
    assert top.findtext("os/kernel") == "/image/vmlinuz", "UEFI starts no bare kernel"
    assert top.findtext("os/nvram") == str(one.nvram)
    renamed = machines.renamed(text, two, machines.Names("x", Path("/seed"), 7))
    assert "dk_1" not in renamed
    assert str(two.nvram) in renamed
    assert str(two.tpm) in renamed


def test_a_machine_that_asks_for_nothing_has_neither() -> None:
    machine = domain.Machine.of(profile(), "qemu", "q35", Path("/image"), Path("/seed"))
    text = domain.xml(machine, Desk("d", Path("/d"), "d", "u"), "", "", None)
    assert not any(word in text for word in ("loader", "nvram", "tpm", "smm"))


def test_settings_are_copied_for_their_machine_alone_and_kept_with_its_states(tmp_path: Path) -> None:
    template, state = tmp_path / "vars", tmp_path / "state"
    template.write_bytes(b"as they come")
    template.chmod(0o444)
    state.mkdir()
    own = tmp_path / firmware.NVRAM
    firmware.own(own, template, None)
    assert own.stat().st_mode & 0o777 == 0o600
    own.write_bytes(b"written by the machine")
    firmware.keep(tmp_path, state)
    assert (state / firmware.NVRAM).read_bytes() == b"written by the machine"
    assert (state / firmware.NVRAM).stat().st_mode & 0o777 == 0o400
    assert template.read_bytes() == b"as they come"


@pytest.mark.real
def test_a_tpm_that_nobody_came_to_use_is_ended(tmp_path: Path) -> None:
    one = desk(tmp_path, "dk_1")
    one.run.mkdir(parents=True)
    tpm.begin(one, None)
    assert one.tpm.is_socket()

    def its() -> list[str]:
        return [line for line in command_lines().values() if f" dir={one.run}/tpm-state,mode=0600 " in line]

    assert [line.partition(" ")[0].rpartition("/")[2] for line in its()] == ["swtpm"]
    tpm.end(one)
    assert its() == []
    tpm.end(one)
