"""What several nouns share in their signatures: ids, waiting times, bodies, small answers."""

import base64
import binascii
from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from cu_fleet.model.profile import Seconds
from cu_fleet.model.record import Value

LeaseId = Annotated[str, Path(description="A lease's id.", examples=["ls_3k9m2c7d1x"], max_length=100)]
DesktopId = Annotated[str, Path(description="A desktop's id or name.", examples=["dk_7x2m9c4d1k"], max_length=100)]
SnapshotId = Annotated[str, Path(description="A snapshot's id.", examples=["sn_5k2m9c4d1x"], max_length=100)]
NamePath = Annotated[str, Path(description="A name.", examples=["codex-a"], max_length=100)]
Hold = Annotated[float, Query(ge=0, le=50, description="How many seconds this call may wait before it answers.")]
Ttl = Annotated[Seconds | None, Field(gt=0, le=7 * 86400, description="Seconds or '15m'.", examples=["15m"])]
Reason = Annotated[str, Field(max_length=1000, description="Why, in the words the agent will read.")]


def _decoded(value: object) -> object:
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error:
            raise ValueError("expected base64") from None
    return value


Base64 = Annotated[bytes, BeforeValidator(_decoded), WithJsonSchema({"type": "string", "contentEncoding": "base64"})]


Answers = dict[int | str, dict[str, Any]]  # by status, as OpenAPI wants them


class Ok(Value):
    ok: bool = True


def example(**values: Any) -> ConfigDict:
    """For OpenAPI: one whole body as it may be sent."""
    return ConfigDict(json_schema_extra={"examples": [values]})
