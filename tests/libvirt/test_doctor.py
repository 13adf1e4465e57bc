"""What `doctor` says of machines, without a hypervisor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from cu_fleet.backends.base import Place
from cu_fleet.backends.libvirt import checks
from cu_fleet.backends.libvirt.hypervisor import Hypervisor
from cu_fleet.backends.libvirt.layout import Layout
from tests.support import run


class Answering:
    is_session = False

    async def do(self, work: Callable[[Any], str]) -> str:
        del work
        return "libvirt 9.0.0, QEMU 7.2.22"


@pytest.mark.parametrize(
    ("works", "there", "told"), [(False, True, 1), (False, False, 0), (True, True, 0), (None, True, 0)]
)
def test_a_device_that_opens_and_does_not_work_is_told_with_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool | None, there: bool, told: int
) -> None:
    device = tmp_path / "kvm"
    if there:
        device.touch()
    monkeypatch.setattr(checks, "DEVICE", device)
    layout = Layout(Place(tmp_path, "fleet"), tmp_path / "store")
    found = run(checks.all_checks(layout, cast("Hypervisor", Answering()), works, None))
    assert all(not check.needed for check in found), "who has no machines lacks nothing"
    said = [check for check in found if check.name == "kvm"]
    assert len(said) == told
    assert all(not check.ok and "a second or two" in check.detail for check in said)


@pytest.mark.real  # with libvirt's own package for Python
def test_looking_starts_no_libvirt_for_a_user_who_has_no_machines(tmp_path: Path) -> None:
    class Untouched(Hypervisor):
        def _connection(self) -> Any:
            raise AssertionError("connected to")

    layout = Layout(Place(tmp_path, "fleet"), tmp_path / "store")
    (libvirt,) = [
        x for x in run(checks.all_checks(layout, Untouched("qemu:///session"), None, None)) if x.name == "libvirt"
    ]
    assert libvirt.ok
    assert "left alone" in libvirt.detail
    with pytest.raises(AssertionError, match="connected to"):
        run(checks.all_checks(layout, Untouched("qemu:///system"), None, None))
