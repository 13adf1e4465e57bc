"""The engine without a socket: fed by hand, and telling what it has made of it."""

from cu_fleet.rfb.engine import Engine
from cu_fleet.rfb.handshake import MOST_PIXELS, RfbError
from cu_fleet.rfb.updates import Update


class Told:
    """A wire and a listener in one, which asks for pictures as long as any come."""

    def __init__(self, password: str | None = None, most_pixels: int = MOST_PIXELS) -> None:
        self.sent = bytearray()
        self.closed = 0
        self.updates = 0
        self.errors: list[RfbError] = []
        self.texts: list[str | None] = []
        self.offers = 0
        self.rests = 0
        self.engine = Engine(self, self, password, most_pixels)

    def write(self, data: bytes) -> None:
        self.sent += data

    def loseConnection(self) -> None:  # noqa: N802
        self.closed += 1

    def rest(self) -> None:
        self.rests += 1
        self.tired = True

    def feed(self, data: bytes) -> None:
        """All of it, however many turns it takes."""
        self.tired = True
        while self.tired:
            self.tired = False
            self.engine.dataReceived(data)
            data = b""

    def ready(self) -> None:
        self.engine.request(incremental=False)

    def updated(self, update: Update) -> None:
        self.updates += 1
        self.engine.request(incremental=True)

    def fenced(self, payload: bytes) -> None:
        pass

    def offered(self) -> None:
        self.offers += 1

    def provided(self, text: str | None) -> None:
        self.texts.append(text)

    def failed(self, error: RfbError) -> None:
        self.errors.append(error)


def fed(*pieces: bytes, password: str | None = None) -> Told:
    told = Told(password)
    for piece in pieces:
        told.feed(piece)
    return told


def state(told: Told) -> tuple[object, ...]:
    engine = told.engine
    return bytes(engine.canvas.data), engine.cursor, engine.name, engine.pointer, told.updates, bytes(told.sent)
