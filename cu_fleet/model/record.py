"""The base of every record: immutable, strict, comparable, and JSON both ways."""

from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """An immutable value; an unknown field or a wrong type is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def but(self, **changes: object) -> Self:
        """The same value with some fields changed, checked like a new one."""
        return type(self).model_validate({**dict(self), **changes})


class Record(Value):
    """A value that stores keep: `TABLE` names its table, `KEY` the field that identifies it.

    `COLUMNS` are the fields a store keeps in columns of their own, to find and constrain by; the whole record lies
    beside them as JSON.
    """

    TABLE: ClassVar[str]
    KEY: ClassVar[str] = "id"
    COLUMNS: ClassVar[tuple[str, ...]] = ()

    @property
    def key(self) -> str:
        return str(getattr(self, self.KEY))
