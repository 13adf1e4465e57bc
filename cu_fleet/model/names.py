"""Names people give, and ids we give. Every name may become part of a path, so none can leave one."""

import re
import secrets
from typing import Annotated

from pydantic import AfterValidator

from cu_fleet.model.errors import InvalidError

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
RESOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,199}")
ID = re.compile(r"(?:ls|dk|sn|fr|ap|rq|wt)_[a-z0-9]{10}")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """A fresh id such as `ls_3k9m2c7d1x`: 50 random bits, easy to read aloud."""
    bits = secrets.randbits(50)
    return prefix + "_" + "".join(_ALPHABET[bits >> shift & 31] for shift in range(0, 50, 5))


def check_name(kind: str, name: str) -> str:
    """Return `name`, or refuse it: names are used in paths, host names and tables."""
    if not NAME.fullmatch(name):
        raise InvalidError(
            f"{kind} name {name!r} is not allowed",
            remedy="use 1 to 63 letters, digits, dots, dashes and underscores, with a letter or digit at both ends",
            code="bad_name",
            name=name,
        )
    return name


def check_resource(name: str) -> str:
    if not RESOURCE.fullmatch(name):
        raise InvalidError(
            f"resource name {name!r} is not allowed",
            remedy="use up to 200 letters, digits and . _ : @ / + -, beginning with a letter or digit",
            code="bad_name",
            name=name,
        )
    return name


def _valid_name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("1 to 63 letters, digits, dots, dashes and underscores, a letter or digit at both ends")
    return value


Name = Annotated[str, AfterValidator(_valid_name)]
