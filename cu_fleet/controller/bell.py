"""A bell: whoever waits for a change hears every ring after it began to listen, and none is missed in between."""

import asyncio


class Bell:
    def __init__(self) -> None:
        self.rings = 0
        self._ringing: asyncio.Future[None] | None = None

    def ring(self) -> None:
        self.rings += 1
        if self._ringing and not self._ringing.done():
            self._ringing.set_result(None)
        self._ringing = None

    async def heard(self, since: int, timeout: float | None = None) -> bool:
        """Wait until it has rung after `since` (a value of `rings`); False if `timeout` passed first."""
        try:
            async with asyncio.timeout(timeout):
                while self.rings == since:
                    if self._ringing is None:
                        self._ringing = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._ringing)
        except TimeoutError:
            return False
        return True
