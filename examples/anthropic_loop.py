#!/usr/bin/env python3
"""A complete agent loop with Anthropic's own SDK and its computer tool (with zoom), on a desktop of its own.

    pip install cu-fleet-controller anthropic
    ANTHROPIC_API_KEY=… examples/anthropic_loop.py "open the editor and write a haiku"

MODEL, AGENT and PROFILE may be set, and KIND, for a model that knows only `computer_20250124`.
"""

import asyncio
import os
import sys
from typing import Any

from anthropic import AsyncAnthropic

from cu_fleet import Fleet
from cu_fleet.adapters.anthropic import Computer

MODEL = os.environ.get("MODEL", "claude-opus-4-6")
AGENT = os.environ.get("AGENT", "anthropic-agent")
PROFILE = os.environ.get("PROFILE", "local")
KIND: Any = os.environ.get("KIND", "computer_20251124")
MOST_TURNS = 50


async def work(client: AsyncAnthropic, computer: Computer, task: str) -> str:
    """Until the model uses the computer no more: what it says then."""
    messages: list[Any] = [{"role": "user", "content": task}]
    tools: Any = [computer.tool]
    betas = [computer.beta] if computer.beta else []
    for _ in range(MOST_TURNS):
        message = await client.beta.messages.create(
            model=MODEL, max_tokens=4096, tools=tools, betas=betas, messages=messages
        )
        content = [block.to_dict() for block in message.content]
        results = await computer.answers(content)
        if not results:
            return "".join(block.text for block in message.content if block.type == "text")
        messages += [{"role": "assistant", "content": content}, {"role": "user", "content": results}]
    raise SystemExit(f"not done after {MOST_TURNS} turns")


async def main(task: str) -> None:
    async with (
        AsyncAnthropic() as client,
        Fleet.connect() as fleet,
        fleet.lease(agent=AGENT, profile=PROFILE) as desktop,
    ):
        print(await work(client, Computer(desktop, kind=KIND), task))


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "Say what is on the screen."))
