"""What a viewer may not do."""

from cu_fleet.model.errors import InvalidError


class BreachError(InvalidError):
    """The viewer broke the protocol, or went past what is taken from one."""

    default_code = "viewer_broke_protocol"
