"""The composition root: the only file that names concrete backends and stores.

It builds the controller over what the settings name, in a home that is prepared and held for it, and runs it behind its
doors.
"""

import asyncio
import contextlib
import importlib.resources
import logging
import os
import resource
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from cu_fleet.backends.base import Backend, Check, Place
from cu_fleet.backends.docker import DockerBackend, DockerVncBackend, Engine
from cu_fleet.backends.docker import images as docker_images
from cu_fleet.backends.docker.images import Image
from cu_fleet.backends.libvirt import building as machine_images
from cu_fleet.backends.libvirt import where as machines
from cu_fleet.backends.libvirt.far import beside
from cu_fleet.backends.local import LocalBackend
from cu_fleet.controller import Controller
from cu_fleet.controller.record import audit_key
from cu_fleet.controller.tokens import Mint
from cu_fleet.home import locked, prepare_home, secret_of, user_name, watch, write_private
from cu_fleet.model.access import EPOCH, Operator, Role
from cu_fleet.model.errors import FleetError, InvalidError, UnavailableError
from cu_fleet.model.profile import Profile, read_profile
from cu_fleet.settings import Settings
from cu_fleet.stores.base import Store, Tx
from cu_fleet.stores.sqlite import SqliteStore

log = logging.getLogger(__name__)
_TELL_WITHIN = 10.0  # seconds to end all leases before the doors close

# the parts


async def open_store(settings: Settings, secret: bytes) -> Store:
    key = audit_key(secret)
    if settings.database is None:
        return await SqliteStore.open(settings.home / "fleet.db", key)
    if settings.database.startswith(("postgresql://", "postgres://")):
        try:
            from cu_fleet.stores.postgres import PostgresStore
        except ImportError:
            raise UnavailableError(
                "PostgreSQL needs a package that is not installed",
                remedy='pip install "cu-fleet-controller[postgres]"',
                code="missing_package",
            ) from None
        return await PostgresStore.open(settings.database, key)
    raise InvalidError(
        f"CU_FLEET_DATABASE: expected postgresql://…, found {settings.database.split(':', 1)[0]}:…", code="bad_setting"
    )


def backends_of(place: Place) -> dict[str, Backend]:
    every: list[Backend] = [DockerBackend(place), DockerVncBackend(place), LocalBackend(place)]
    every += machines.backends(place)
    return {backend.name: backend for backend in every}


def place_of(settings: Settings, fleet: str) -> Place:
    return Place(
        settings.home,
        fleet,
        profile_dirs=tuple(profile_dirs(settings)),
        machines=settings.machines,
        hypervisor=settings.hypervisor,
    )


def profile_dirs(settings: Settings) -> list[Path]:
    """Where profiles come from; later ones win."""
    shipped = Path(str(importlib.resources.files("cu_fleet").joinpath("profiles")))
    return [shipped, settings.home / "profiles"]


def profiles(settings: Settings) -> list[tuple[Profile | None, Path, FleetError | None]]:
    """Every profile found, with its file; one that does not parse comes with its error."""
    out: dict[str, tuple[Profile | None, Path, FleetError | None]] = {}
    for folder in profile_dirs(settings):
        for path in sorted(folder.glob("*.yaml")):
            try:
                profile = read_profile(path)
            except FleetError as e:
                out[path.stem] = (None, path, e)
            else:
                out[profile.name] = (profile, path, None)
    return list(out.values())


def usable_profiles(settings: Settings) -> dict[str, tuple[Profile, str]]:
    """The profiles of a starting controller. A broken one stops the start: nothing runs under half a policy."""
    found: dict[str, tuple[Profile, str]] = {}
    for profile, path, error in profiles(settings):
        if error:
            raise error
        if profile:
            found[profile.name] = (profile, str(path))
    return found


async def images(settings: Settings, say: Callable[[str], None]) -> list[Image]:
    """The images there are recipes for, as the Docker engine and the store of machines have them, wherever that is.

    Whoever cannot be asked is told of; that is refused only where nobody can.
    """
    answers = await asyncio.gather(_images_of_engine(), _images_of_machines(settings), return_exceptions=True)
    refused = [one for one in answers if isinstance(one, BaseException)]
    for why in refused:
        if not isinstance(why, FleetError) or len(refused) == len(answers):
            raise why
        say(f"not all images are listed: {why}")
    return [image for one in answers if not isinstance(one, BaseException) for image in one]


async def _images_of_engine() -> list[Image]:
    return await Engine().do(docker_images.listing)


async def _images_of_machines(settings: Settings) -> list[Image]:
    return [_as_image(one) for one in await machines.listing(place_of(settings, "image"))]


def _as_image(one: machine_images.Golden) -> Image:
    return Image(one.name, one.recipe or None, one.size_bytes, one.created, one.current)


async def build_image(settings: Settings, name: str, say: Callable[[str], None], *, fresh: bool) -> Image:
    if name in machine_images.NAMES:
        known = [profile for profile, _, _ in profiles(settings) if profile]
        return _as_image(await machines.build(place_of(settings, "image"), name, say, known, fresh=fresh))
    return await docker_images.build(Engine(), name, say, fresh=fresh)


async def checks(settings: Settings) -> list[Check]:
    """What `doctor` looks at, on every backend, for every profile of it."""
    out: dict[tuple[str, str], Check] = {}
    found = [profile for profile, _, _ in profiles(settings) if profile]
    for name, backend in backends_of(place_of(settings, "doctor")).items():
        for profile in [None, *(p for p in found if p.backend == name)]:
            for check in await backend.check(profile):
                out.setdefault((check.name, check.detail), check)
    return [*out.values(), _git()]


def _git() -> Check:
    if shutil.which("git"):
        return Check("git", True, "runs of Codex can have worktrees of their own")
    fix = (("apt-get", "update"), ("apt-get", "install", "-y", "git"))
    return Check("git", False, "missing: no run of Codex can have a worktree", needed=False, fix=fix)


# running


@contextlib.asynccontextmanager
async def controller_of(settings: Settings) -> AsyncIterator[Controller]:
    """A controller over this home, not yet started. The caller holds the home's lock."""
    secret = secret_of(settings.home)
    store = await open_store(settings, secret)
    try:
        fleet = await store.transact(_fleet_id)
        place = place_of(settings, fleet)
        controller = Controller(
            settings, store, backends_of(place), usable_profiles(settings), fleet=fleet, secret=secret
        )
        await _settle_owner(controller, settings.home, secret)
    except BaseException:
        await store.close()
        raise
    yield controller


def _fleet_id(tx: Tx) -> str:
    fleet = tx.get_meta("fleet")
    if fleet is None:
        fleet = secrets.token_hex(4)
        tx.set_meta("fleet", fleet)
    return fleet


async def _settle_owner(controller: Controller, home: Path, secret: bytes) -> None:
    """The home's owner is an operator by name, with a token in `operator.token`."""
    name = user_name(os.geteuid()).replace(" ", "-")

    def work(tx: Tx) -> Operator:
        operator = tx.get(Operator, name)
        if operator is None:
            operator = Operator(
                name=name, role=Role.ADMIN, epoch=tx.next_number(EPOCH), created_at=controller.core.now()
            )
            tx.put(operator)
        return operator

    operator = await controller.core.read(work)
    token = Mint.of(secret).operator(operator.name, operator.epoch)
    write_private(home / "operator.token", token.encode() + b"\n")


def run_controller(settings: Settings, *, on_demand: bool, ready: Callable[[str], None]) -> None:
    """Run a controller until it is stopped. SIGINT and SIGTERM leave its desktops running; `shutdown` ends them."""
    import uvloop

    prepare_home(settings.home)
    _set_up_logging(settings)
    _allow_many_connections()
    with locked(settings.home):
        (settings.home / "not-ended").unlink(missing_ok=True)
        uvloop.run(_run(settings, on_demand, ready))


def serve_machines(settings: Settings) -> int:
    """Serve the machines of this host to a controller elsewhere, for as long as that one's connection lasts."""
    import uvloop

    prepare_home(settings.home)
    _set_up_logging(settings)
    _allow_many_connections()
    return uvloop.run(beside.serve(settings.home, settings.machines))


def _allow_many_connections() -> None:
    """Every desktop, viewer and caller is a file descriptor; the soft limit of many systems is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 65536
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), hard))


async def _run(settings: Settings, on_demand: bool, ready: Callable[[str], None]) -> None:
    from cu_fleet.api.auth import SOCKET_OWNER
    from cu_fleet.api.serve import serve
    from cu_fleet.mcp.door import Door

    async with controller_of(settings) as controller:
        stop = asyncio.Event()
        ending: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)

        watching = asyncio.create_task(watch(settings.home, stop), name="watch the home")

        def shut_down() -> None:
            if not ending:
                ending.append(asyncio.create_task(_end_leases(controller, stop), name="end the leases"))

        def listening(url: str) -> None:
            controller.url = url
            write_private(settings.home / "controller.url", url.encode() + b"\n")
            ready(url)

        mcp = Door(controller, SOCKET_OWNER)
        await controller.start()
        try:
            await serve(
                controller,
                socket_path=settings.home / "controller.sock",
                host=settings.host,
                port=settings.port,
                port_fallback=on_demand,
                ready=listening,
                stop=stop,
                shutdown=shut_down,
                doors={"/mcp": mcp},
            )
        finally:
            watching.cancel()
            await mcp.close()
            if ending:
                await asyncio.wait(ending)
                await _shut_down(controller, settings.home)
            else:
                await controller.close()


async def _shut_down(controller: Controller, home: Path) -> None:
    """What could not be ended is told to whoever waits for that, who is no client any more."""
    try:
        await controller.shut_down()
    except UnavailableError as e:
        write_private(home / "not-ended", f"{e.what}\n{e.remedy}\n".encode())
        raise


async def _end_leases(controller: Controller, stop: asyncio.Event) -> None:
    """Tell everybody while the doors still answer; what could not be told in time ends all the same."""
    try:
        async with asyncio.timeout(_TELL_WITHIN):
            await controller.end_leases()
    except (FleetError, TimeoutError) as e:
        log.warning("not every lease could be ended at once: %s", e)
    finally:
        stop.set()


async def clean_up(settings: Settings) -> bool:
    """End everything a controller left behind in this home, when none runs. False if there was nothing."""
    if not (settings.home / "fleet.db").exists() and settings.database is None:
        return False
    prepare_home(settings.home)
    with locked(settings.home):
        async with controller_of(settings) as controller:
            left = [x for backend in controller.core.backends.values() for x in await backend.found()]
            if not left:
                await controller.core.store.close()
            else:
                await controller.start()
                await controller.shut_down()
        (settings.home / "controller.sock").unlink(missing_ok=True)
        return bool(left)


def _set_up_logging(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    for noisy in ("httpx", "httpcore", "mcp", "uvicorn.access", "twisted"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
