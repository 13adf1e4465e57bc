"""Many streams over one: how a desktop's doors are reached where nothing but its standard input and output reaches.

Each stream joins descriptors at both ends: what is read here is written there, and the other way round. The outside
opens streams, by the name of a door in the run folder; with a command come three more, for its standard streams, whose
pipes are made inside and handed to the door beside its first byte. Nobody sends more than the other side has said it
takes, so what waits is bounded on both sides, and one stream that is not read keeps up none of the others.

Both sides use `Mux`, which moves bytes between descriptors and frames, and does not wait; whoever runs it does: the
inside, below, by `poll`. When its input ends, the inside leaves, and all its streams with it.
"""

import _socket
import errno
import os
import select
import struct

RUN = "/run/cu-fleet"
WINDOW = 1 << 20  # bytes of a stream that may be under way
CHUNK = 1 << 16
MOST_WAITING = 1 << 18  # bytes for the other side, after which nothing more is read
STATUS = "status"
OPEN, DATA, MORE, END, STOP = range(1, 6)
_HEAD = struct.Struct(">BII")  # what it is, of which stream, how many bytes follow


class NonsenseError(Exception):
    """The other side does not keep to this."""


class Stream:
    """One end: where its bytes come from and where they go, -1 once there is nothing more to come or to take."""

    def __init__(self, source: int = -1, sink: int = -1) -> None:
        self.source, self.sink = source, sink
        self.room = WINDOW  # what the other side still takes
        self.waiting = bytearray()  # what it sent, and the sink has not taken yet
        self.owed = 0  # what the sink took, and the other side has not heard of yet
        self.ended = False  # no more will come from the other side
        self.give: list[int] = []  # descriptors that travel beside the first bytes written


def _shut(fd: int) -> None:
    """Tell a socket's other end that no more will come, though another descriptor of it is still read."""
    twin = os.dup(fd)
    try:
        sock = _socket.socket(fileno=twin)
    except OSError:
        os.close(twin)  # a pipe
        return
    try:
        sock.shutdown(_socket.SHUT_WR)
    except OSError:
        pass
    finally:
        sock.close()


class Mux:
    """Frames in, frames out. `opened` makes the streams that the other side asks for."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.out = bytearray()  # for the other side
        self._in = bytearray()

    def opened(self, number: int, what: bytes) -> None:
        raise NonsenseError("this side opens streams itself")

    def dropping(self, fd: int) -> None:
        """This descriptor is about to be closed."""

    def frame(self, kind: int, number: int, data: bytes = b"") -> None:
        self.out += _HEAD.pack(kind, number, len(data)) + data

    def join(self, number: int, stream: Stream) -> Stream:
        for fd in (stream.source, stream.sink):
            if fd >= 0:
                os.set_blocking(fd, False)
        self.streams[number] = stream
        return stream

    def feed(self, data: bytes) -> set[int]:
        """Take in what the other side sent; returns the streams that it is about."""
        self._in += data
        at, about = 0, set()
        while len(self._in) - at >= _HEAD.size:
            kind, number, size = _HEAD.unpack_from(self._in, at)
            if size > CHUNK:
                raise NonsenseError("a frame is too large")
            if len(self._in) - at < _HEAD.size + size:
                break
            at += _HEAD.size
            self._hear(kind, number, bytes(self._in[at : at + size]))
            about.add(number)
            at += size
        del self._in[:at]
        return about

    def _hear(self, kind: int, number: int, data: bytes) -> None:
        if kind == OPEN:
            self.opened(number, data)
            return
        stream = self.streams.get(number)
        if stream is None:
            return  # it has ended here, which the other side is about to hear
        if kind == DATA:
            if len(stream.waiting) + len(data) + stream.owed > WINDOW or stream.ended:
                raise NonsenseError("more came than there is room for")
            if stream.sink >= 0:
                stream.waiting += data
                self.write(number)
        elif kind == MORE:
            stream.room = min(WINDOW, stream.room + int.from_bytes(data, "big"))
        elif kind == END:
            stream.ended = True
            self.write(number)
        elif kind == STOP:
            self.close_source(stream)
            self._settle(number)
        else:
            raise NonsenseError("a frame is of no known kind")

    def wants_read(self, stream: Stream) -> bool:
        return stream.source >= 0 and stream.room > 0 and len(self.out) < MOST_WAITING

    def read(self, number: int) -> None:
        """The source has something, or has come to its end."""
        stream = self.streams[number]
        if not self.wants_read(stream):
            return
        try:
            data = os.read(stream.source, min(CHUNK, stream.room))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.send(number, data)

    def send(self, number: int, data: bytes) -> None:
        stream = self.streams[number]
        if data:
            stream.room -= len(data)
            self.frame(DATA, number, data)
        else:
            self.close_source(stream)
            self.frame(END, number)
            self._settle(number)

    def write(self, number: int) -> None:
        """The sink may take something."""
        stream = self.streams[number]
        try:
            while stream.waiting and stream.sink >= 0:
                n = self._write(stream)
                del stream.waiting[:n]
                stream.owed += n
        except BlockingIOError:
            pass
        except OSError:
            self.close_sink(stream)
            self.frame(STOP, number)
        if stream.owed >= WINDOW // 4:
            self.frame(MORE, number, stream.owed.to_bytes(4, "big"))
            stream.owed = 0
        if stream.ended and not stream.waiting:
            self.close_sink(stream)
        self._settle(number)

    def _write(self, stream: Stream) -> int:
        if not stream.give:
            return os.write(stream.sink, stream.waiting[:CHUNK])
        sock = _socket.socket(fileno=os.dup(stream.sink))
        try:
            fds = struct.pack(f"{len(stream.give)}i", *stream.give)
            n = sock.sendmsg([stream.waiting], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])
        finally:
            sock.close()
        while stream.give:
            os.close(stream.give.pop())
        return n

    def _settle(self, number: int) -> None:
        """Forget a stream over which nothing more can go."""
        stream = self.streams.get(number)
        if stream and stream.source < 0 and stream.sink < 0:
            del self.streams[number]

    def close_source(self, stream: Stream) -> None:
        if stream.source >= 0:
            self.dropping(stream.source)
            os.close(stream.source)
        stream.source = -1

    def close_sink(self, stream: Stream) -> None:
        if stream.sink >= 0:
            self.dropping(stream.sink)
            _shut(stream.sink)
            os.close(stream.sink)
        stream.sink = -1
        stream.waiting.clear()
        while stream.give:
            os.close(stream.give.pop())

    def shut(self) -> None:
        for stream in self.streams.values():
            self.close_source(stream)
            self.close_sink(stream)
        self.streams.clear()


class Inside(Mux):
    """The side of the doors."""

    def opened(self, number: int, what: bytes) -> None:
        name, _, pipes = what.decode().partition("\0")
        if number in self.streams or name not in (STATUS, "rfb.sock", "exec.sock"):
            raise NonsenseError("a stream cannot be opened so")
        try:
            if name == STATUS:
                self.join(number, Stream(source=os.open(f"{RUN}/{STATUS}", os.O_RDONLY | os.O_NONBLOCK)))
            else:
                self._door(number, name, pipes == "3")
        except OSError:
            self.frame(STOP, number)
            self.frame(END, number)

    def _door(self, number: int, name: str, pipes: bool) -> None:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            sock.connect(f"{RUN}/{name}")
            door = self.join(number, Stream(os.dup(sock.fileno()), os.dup(sock.fileno())))
        finally:
            sock.close()
        if pipes:
            (stdin, to), (out, stdout), (err, stderr) = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
            door.give = [stdin, stdout, stderr]
            self.join(number + 1, Stream(sink=to))
            self.join(number + 2, Stream(source=out))
            self.join(number + 3, Stream(source=err))


def main() -> None:
    mux = Inside()
    os.set_blocking(1, False)
    while True:
        poll = select.poll()
        poll.register(0, select.POLLIN)
        if mux.out:
            poll.register(1, select.POLLOUT)
        readers = {s.source: n for n, s in mux.streams.items() if mux.wants_read(s)}
        writers = {s.sink: n for n, s in mux.streams.items() if s.sink >= 0 and s.waiting}
        for fd in readers:
            poll.register(fd, select.POLLIN)
        for fd in writers:
            poll.register(fd, select.POLLOUT)
        for fd, _ in poll.poll():
            if fd == 0:
                if not (data := os.read(0, 1 << 18)):
                    return
                mux.feed(data)
            elif fd == 1:
                flush(mux)
            elif fd in readers and mux.streams.get(readers[fd]):
                mux.read(readers[fd])
            elif fd in writers and mux.streams.get(writers[fd]):
                mux.write(writers[fd])
        if mux.out:
            flush(mux)


def flush(mux: Mux) -> None:
    try:
        del mux.out[: os.write(1, mux.out)]
    except OSError as e:
        if e.errno != errno.EAGAIN:
            raise


if __name__ == "__main__":
    main()
