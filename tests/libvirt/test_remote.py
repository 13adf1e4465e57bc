"""Which hypervisors are used: this machine's, be it the user's own; and those elsewhere are refused before anything."""

import pytest

from cu_fleet.backends.libvirt.hypervisor import Hypervisor
from cu_fleet.model.errors import UnsupportedError


@pytest.mark.parametrize("uri", ["qemu+ssh://there/system", "qemu://there/system", "xen:///system", "test:///default"])
def test_a_hypervisor_elsewhere_is_refused(uri: str) -> None:
    with pytest.raises(UnsupportedError, match="not QEMU on this machine") as caught:
        Hypervisor(uri).now(lambda api: api.getURI())
    assert caught.value.code == "far_hypervisor"
    assert "CU_FLEET_URL" in (caught.value.remedy or "")
