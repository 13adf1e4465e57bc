"""A desktop in a container, for test suites that want one and no controller; needs the package testcontainers.

    with DesktopContainer() as desktop:
        desktop.launch("mousepad")
        desktop.click(640, 400)
        desktop.type("hello")
        picture = desktop.screenshot()                 # a PIL image

It goes with whoever made it, however that ends, also by SIGKILL and without testcontainers' reaper and its image: the
container's first program leaves when our stream to it ends, and the engine removes the container. One that was made and
never started is removed by the next that starts here, if its owner is gone.
"""

import hashlib
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Self, TypeVar

from docker.errors import APIError, ImageNotFound, NotFound
from PIL import Image
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import get_docker_host

from cu_fleet.backends import inside
from cu_fleet.backends.docker import seccomp
from cu_fleet.backends.docker.engine import Engine
from cu_fleet.backends.inside import UID
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.profile import Profile
from cu_fleet.rfb.picture import encode
from cu_fleet.sync import Loop
from cu_fleet.testing import contained

T = TypeVar("T")
IMAGE = "cu-fleet/desktop"  # as `cu-fleet image build desktop` makes it; never fetched by itself
OWNER = "cu-fleet.testing.owner"
_FORGOTTEN = 3600.0  # seconds after which a container that was never started has no owner any more, wherever that was
Area = tuple[int, int, int, int]


class DesktopContainer(DockerContainer):
    """A screen with pointer, keyboard and clipboard. Coordinates are the screen's pixels.

    `network` is the engine's name of one; with "none" it reaches nothing. `user_namespaces` lets programs inside build
    sandboxes of their own, which Chromium needs. What is said by testcontainers' own `with_…` methods counts too.
    """

    def __init__(
        self,
        image: str = IMAGE,
        *,
        width: int = 1280,
        height: int = 800,
        keyboard: str = "us",
        locale: str = "C.UTF-8",
        network: str = "none",
        memory: str = "2g",
        user_namespaces: bool = False,
        **more: Any,
    ) -> None:
        super().__init__(image, **more)
        screen = {"width": width, "height": height}
        self._profile = Profile.model_validate(
            {"name": "container", "backend": "docker", "screen": screen, "keyboard": keyboard, "locale": locale}
        )
        self._given = image
        self._engine = Engine((more.get("docker_client_kw") or {}).get("base_url") or get_docker_host())
        program = seccomp.program(user_namespaces=user_namespaces)
        self._powers: dict[str, Any] = {
            "network_mode": network,
            "mem_limit": memory,
            "memswap_limit": memory,
            "shm_size": "1g",
            "pids_limit": 1024,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true", f"seccomp={program}"],
        }
        self._loop: Loop | None = None
        self._room: contained.Room | None = None

    # its life

    def start(self) -> Self:
        """Make it, start it, and return when its desktop is ready."""
        _sweep(self._engine)
        self.image = self._found()
        self._configure()
        label = self._name or "desktop"
        try:
            self._container = self._created(label)
            self._container.put_archive("/", contained.archive(self._profile, label))
            self._loop = Loop()
            self._room = self._loop.run(contained.Room.open(self._engine, self.get_container_id()))
        except BaseException:
            self.stop()
            raise
        return self

    def _created(self, label: str) -> Any:
        if self._network:
            self._powers["network"] = self._network.name
            del self._powers["network_mode"]
        tmpfs = {**contained.memory(), **self.tmpfs}
        asked = {**self._powers, **self._kwargs, "entrypoint": [], "user": f"{UID}:{UID}", "working_dir": "/"}
        return self.get_docker_client().client.containers.create(
            self.image,
            contained.command(self._profile, label),
            name=self._name,
            hostname=inside.hostname(label),
            environment={**inside.environment(self._profile), **self.env},
            ports=self.ports,
            volumes={host: {"bind": mount["bind"], "mode": mount["mode"]} for host, mount in self.volumes.items()},
            tmpfs=tmpfs,
            labels={OWNER: _owner(os.getpid())},
            stdin_open=True,  # ends when the stream of whoever attached does
            auto_remove=True,
            **asked,
        )

    def _found(self) -> str:
        """The image's name: with testcontainers' prefix, or, of one that is here already, without."""
        images = self.get_docker_client().client.images
        wanted = dict.fromkeys([self.image, self._given])
        for name in wanted:
            try:
                images.get(name)
            except ImageNotFound:
                continue
            return name
        remedy = f"build it: cu-fleet image build {self._given.removeprefix('cu-fleet/')}"
        if self._given.startswith("cu-fleet/") and not testcontainers_config.hub_image_name_prefix:
            raise UnavailableError(f"there is no image {self.image} here", remedy=remedy, code="no_image")
        try:
            images.pull(*self.image.rsplit(":", 1) if ":" in self.image.rpartition("/")[2] else (self.image, "latest"))
        except APIError as error:
            why = str(error.explanation or error)
            raise UnavailableError(f"image {self.image} cannot be had: {why}", remedy=remedy, code="no_image") from None
        return self.image

    def stop(self, force: bool = True, delete_volume: bool = True) -> None:
        """End it and remove it. Any number of times."""
        room, loop, container = self._room, self._loop, self._container
        self._room = self._loop = self._container = None
        try:
            if loop and room:
                loop.run(room.close())
        finally:
            if loop:
                loop.close()
            if container:
                _removed(lambda: container.remove(force=force, v=delete_volume))
            self.get_docker_client().client.close()

    def _run(self, work: Callable[[contained.Room], Coroutine[Any, Any, T]]) -> T:
        if self._room is None or self._loop is None:
            raise UnavailableError("the desktop does not run", remedy="use it as: with DesktopContainer() as desktop")
        return self._loop.run(work(self._room))

    # looking and doing

    def screenshot(
        self, *, region: Area | None = None, max_edge: int | None = None, pointer: bool = False
    ) -> Image.Image:
        """What the screen shows now: all that was drawn before is in it."""
        frame = self._run(lambda room: room.look(pointer=pointer))
        return Image.open(BytesIO(encode(frame, region, max_edge, pointer=pointer).data))

    def act(self, *actions: Mapping[str, Any]) -> None:
        """Actions as the HTTP API has them: `{"type": "click", "x": 1, "y": 2}`; the first that fails raises."""
        self._run(lambda room: room.act([dict(action) for action in actions]))

    def click(self, x: int, y: int, *, button: str = "left", count: int = 1, modifiers: Sequence[str] = ()) -> None:
        self.act({"type": "click", "x": x, "y": y, "button": button, "count": count, "modifiers": list(modifiers)})

    def double_click(self, x: int, y: int) -> None:
        self.click(x, y, count=2)

    def move(self, x: int, y: int) -> None:
        self.act({"type": "move", "x": x, "y": y})

    def drag(self, path: Sequence[tuple[int, int]], *, button: str = "left") -> None:
        self.act({"type": "drag", "path": [list(point) for point in path], "button": button})

    def scroll(self, x: int, y: int, *, dx: int = 0, dy: int = 0) -> None:
        """Wheel notches; dy > 0 is down."""
        self.act({"type": "scroll", "x": x, "y": y, "dx": dx, "dy": dy})

    def key(self, keys: str) -> None:
        """One key or several together: `ctrl+shift+t`."""
        self.act({"type": "key", "keys": keys})

    def type(self, text: str) -> None:
        """Any Unicode, as keys."""
        self.act({"type": "type", "text": text})

    def paste(self, text: str) -> None:
        """Any Unicode, through the clipboard."""
        self.act({"type": "paste", "text": text})

    def wait_stable(self, *, quiet_ms: int = 300, timeout_ms: int = 10_000) -> None:
        """Until nothing has changed on the screen for a while."""
        self.act({"type": "wait_stable", "quiet_ms": quiet_ms, "timeout_ms": timeout_ms})

    # beside the screen

    def clipboard_get(self) -> str:
        return str(self._run(lambda room: room.ask("clipboard_get")).get("text", ""))

    def clipboard_set(self, text: str) -> None:
        self._run(lambda room: room.ask("clipboard_set", text=text))

    def windows(self) -> list[dict[str, Any]]:
        """Each with id, title, class, pid, x, y, width, height and focused."""
        found = self._run(lambda room: room.ask("windows")).get("windows")
        return found if isinstance(found, list) else []

    def launch(self, *argv: str) -> None:
        """Start a program that goes on. (`exec`, testcontainers' own, runs one to its end.)"""
        self._run(lambda room: room.ask("launch", argv=list(argv)))


# what others left


def _owner(pid: int) -> str:
    """Who a process is, among all there are and were; empty if it is not."""
    try:
        since = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
    return f"{_machine()}/{pid}/{since}"


def _machine() -> str:
    """This start of this machine, as this namespace of processes sees it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    space = Path("/proc/self/ns/pid").readlink()
    return hashlib.sha256(f"{boot} {space}".encode()).hexdigest()[:16]


def _sweep(engine: Engine) -> None:
    """Remove containers of ours whose owner is gone; those that ran have gone by themselves."""
    here = _machine()

    def work(api: Any) -> None:
        for one in api.containers(all=True, filters={"label": OWNER}):
            machine, _, rest = one["Labels"][OWNER].partition("/")
            pid = rest.partition("/")[0]
            gone = machine == here and pid.isdecimal() and _owner(int(pid)) != one["Labels"][OWNER]
            forgotten = one["State"] == "created" and time.time() - one["Created"] > _FORGOTTEN
            if gone or forgotten:
                _removed(lambda one=one: api.remove_container(one["Id"], v=True, force=True))  # type: ignore[misc]

    engine.now(work)


def _removed(remove: Callable[[], object]) -> None:
    """Remove what the engine may be removing by itself at the same moment."""
    try:
        remove()
    except NotFound:
        pass
    except APIError as error:
        if error.status_code != 409:
            raise
