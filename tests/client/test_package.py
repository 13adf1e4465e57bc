"""What `import cu_fleet` offers, and what it costs."""

import subprocess
import sys

import pytest

import cu_fleet
from cu_fleet import client
from cu_fleet.model import errors


def _loaded(module: str) -> set[str]:
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert _loaded("cu_fleet") & {"httpx", "pydantic", "PIL", "asyncio"} == set()


def test_the_client_loads_no_server_and_no_pillow() -> None:
    assert _loaded("cu_fleet.sync") & {"PIL", "fastapi", "uvicorn", "vncdotool", "twisted"} == set()


def test_the_names_are_there() -> None:
    assert cu_fleet.Fleet is client.Fleet
    assert cu_fleet.Desktop is client.Desktop
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.FleetError):
            assert getattr(cu_fleet, name) is kind
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = cu_fleet.Nonsense
