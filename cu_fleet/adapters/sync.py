"""The same tools, blocking, over a desktop of `cu_fleet.sync`: for loops around `OpenAI()` and `Anthropic()`.

    with Fleet.connect() as fleet, fleet.lease(agent="a", profile="local") as desktop:
        computer = OpenAI(desktop, confirm=ask_a_person)
        response = client.responses.create(model=…, tools=[computer.tool], input=task)
        items = computer.answers(item.to_dict() for item in response.output)

The names and the arguments are those of the asynchronous ones. `confirm` may block: the lease is renewed meanwhile.
"""

import asyncio
from collections.abc import Callable
from functools import wraps
from inspect import isawaitable
from typing import Any

from cu_fleet.adapters import anthropic, openai
from cu_fleet.adapters.display import Display
from cu_fleet.sync import Blocking, Desktop, waits

__all__ = ["Anthropic", "OpenAI"]


class OpenAI(Blocking[openai.Computer]):
    """See `cu_fleet.adapters.openai.Computer`."""

    def __init__(
        self,
        desktop: Desktop,
        size: tuple[int, int] | None = None,
        *,
        confirm: openai.Confirm | None = None,
        **more: Any,
    ) -> None:
        asked = _besides(confirm) if confirm else None
        super().__init__(openai.Computer(desktop.inner, size, confirm=asked, **more), desktop.loop)

    @property
    def tool(self) -> dict[str, Any]:
        return self.inner.tool

    @property
    def display(self) -> Display:
        return self.inner.display

    answers = waits(openai.Computer.answers)
    answer = waits(openai.Computer.answer)


class Anthropic(Blocking[anthropic.Computer]):
    """See `cu_fleet.adapters.anthropic.Computer`."""

    def __init__(self, desktop: Desktop, size: tuple[int, int] | None = None, **more: Any) -> None:
        super().__init__(anthropic.Computer(desktop.inner, size, **more), desktop.loop)

    @property
    def tool(self) -> dict[str, Any]:
        return self.inner.tool

    @property
    def beta(self) -> str | None:
        return self.inner.beta

    @property
    def display(self) -> Display:
        return self.inner.display

    answers = waits(anthropic.Computer.answers)
    answer = waits(anthropic.Computer.answer)


def _besides(confirm: Callable[..., Any]) -> openai.Confirm:
    """A person takes their time: nobody else waits for them."""

    @wraps(confirm)
    async def asked(*words: Any) -> bool:
        said = await asyncio.to_thread(confirm, *words)
        return bool((await said if isawaitable(said) else said) is True)

    return asked
