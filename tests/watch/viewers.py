"""Viewers of ours for tests: the same client that the controller has for its desktops, at the other end of a ticket."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cu_fleet.controller import Controller
from cu_fleet.model.access import Caller
from cu_fleet.model.view import TicketView
from cu_fleet.rfb.hands import Hands
from cu_fleet.rfb.handshake import response
from cu_fleet.rfb.screen import Screen
from tests.controller.fleet import ANA
from tests.support import until


async def connected(ticket: TicketView, *, unix: bool = False) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(sock, ticket.socket if unix else (ticket.host, ticket.port))
    except BaseException:
        sock.close()
        raise
    return sock


async def entered(ticket: TicketView, *, unix: bool = False) -> Screen:
    return await Screen.open(await connected(ticket, unix=unix), password=ticket.ticket)


@asynccontextmanager
async def viewer(
    controller: Controller, lease: str, who: Caller = ANA, *, control: bool = False
) -> AsyncIterator[Screen]:
    screen = await entered(await controller.watch(who, lease, control=control))
    try:
        yield screen
    finally:
        await screen.close()


def hands(screen: Screen) -> Hands:
    made = Hands(screen, lambda: None)
    made.fingers.new = False
    return made


async def shows(screen: Screen, pixels: Screen) -> None:
    """Until both have the same picture."""

    async def same() -> bool:
        return (await screen.frame()).pixels == (await pixels.frame()).pixels

    await until(same)


async def stopped(ticket: TicketView) -> socket.socket:
    """A viewer that wants every picture as it comes, and reads none."""
    sock = await let_in(ticket)
    everything = struct.pack("!BBHHHH", 150, 1, 0, 0, 0xFFFF, 0xFFFF)
    hello = b"\1" + struct.pack("!BxHi", 2, 1, 0) + everything
    await asyncio.get_running_loop().sock_sendall(sock, hello)
    return sock


async def let_in(ticket: TicketView) -> socket.socket:
    """A viewer that has shown its ticket, and says nothing more."""
    loop, sock = asyncio.get_running_loop(), await connected(ticket)

    async def read(size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += await loop.sock_recv(sock, size - len(data))
        return data

    await read(12)
    await loop.sock_sendall(sock, b"RFB 003.008\n\2")
    challenge = (await read(18))[2:]
    await loop.sock_sendall(sock, response(ticket.ticket, challenge))
    assert await read(4) == bytes(4)
    return sock
