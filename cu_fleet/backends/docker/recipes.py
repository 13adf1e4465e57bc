"""The recipes of images: a folder of `images/` each, with a Dockerfile and one list of packages.

A recipe begins from a public base, or on top of another of ours, as its Dockerfile says. That file is the one place
for all but the packages: other ways of building read it, too. An image bears its recipe's digest, so that it is built
again only when something has changed.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cu_fleet.model.errors import NotFoundError

IMAGES = Path(str(files("cu_fleet").joinpath("images")))
DIGEST = "cu-fleet.recipe"  # the label with it
PACKAGED = "cu-fleet.packaged"  # the label of an image that was built where no image registry could be reached
_OURS = "cu-fleet/"
_CANDIDATE = "candidate"


def names() -> list[str]:
    """The images there are recipes for."""
    return sorted(path.parent.name for path in IMAGES.glob("*/Dockerfile"))


@dataclass(frozen=True)
class Recipe:
    name: str

    def __post_init__(self) -> None:
        if self.name not in names():
            raise NotFoundError(
                f"there is no recipe for an image {self.name}", remedy=f"there are {', '.join(names())}"
            )

    @property
    def image(self) -> str:
        return _OURS + self.name

    @property
    def candidate(self) -> str:
        """What a new image is called until it has proved itself."""
        return f"{self.image}:{_CANDIDATE}"

    @property
    def base(self) -> str:
        """The image it begins from."""
        return next(line.partition("=")[2] for line in self._lines() if line.startswith("ARG BASE="))

    @property
    def under(self) -> "Recipe | None":
        """The recipe it rests on, if that is one of ours."""
        return Recipe(self.base.removeprefix(_OURS)) if self.base.startswith(_OURS) else None

    @property
    def packages(self) -> list[str]:
        """Those it adds to its base."""
        lines = self.path("packages").read_text("utf-8").splitlines()
        return [word for line in lines for word in line.partition("#")[0].split()]

    @property
    def changes(self) -> list[str]:
        """What its Dockerfile says of the image once everything is installed."""
        lines = self._lines()
        last = max(at for at, line in enumerate(lines) if line.startswith("RUN "))
        return lines[last + 1 :]

    def path(self, file: str) -> Path:
        return IMAGES.resolve() / self.name / file

    def digest(self, base_id: str) -> str:
        """Changes with the recipe, and with the image of ours that it rests on."""
        parts = [self.path("Dockerfile"), self.path("packages"), IMAGES / "setup"]
        data = b"\0".join([*(part.read_bytes() for part in parts), base_id.encode()])
        return hashlib.sha256(data).hexdigest()[:16]

    def _lines(self) -> list[str]:
        lines = self.path("Dockerfile").read_text("utf-8").splitlines()
        return [line for line in lines if line and not line.startswith("#")]
