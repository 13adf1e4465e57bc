"""What a profile says below `options`, which each backend has keys of its own for: checked, and refused in words."""

from typing import TypeVar

from pydantic import ValidationError

from cu_fleet.model.errors import InvalidError
from cu_fleet.model.profile import Profile
from cu_fleet.model.record import Value

T = TypeVar("T", bound=Value)


def checked(profile: Profile, kind: type[T]) -> T:
    try:
        return kind.model_validate(profile.options)
    except ValidationError as e:
        wrong = e.errors()[0]
        where = ".".join(["options", *map(str, wrong["loc"])])
        raise InvalidError(
            f'profile "{profile.name}": {where}: {wrong["msg"].removeprefix("Value error, ")}',
            remedy=f"the {profile.backend} backend knows {', '.join(kind.model_fields)}",
            code="bad_options",
        ) from None
