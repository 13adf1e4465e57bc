#!/usr/bin/env python3
"""A complete agent loop with OpenAI's own SDK and its `computer` tool, on a desktop of its own.

    pip install cu-fleet-controller openai
    OPENAI_API_KEY=… examples/openai_loop.py "open the editor and write a haiku"

MODEL, AGENT and PROFILE may be set. A call with pending safety checks waits until the operator has answered
(`cu-fleet approval list`), and is done only after a yes; no answer within ten minutes is a no.
"""

import asyncio
import os
import sys
from typing import Any

from openai import AsyncOpenAI

from cu_fleet import Fleet
from cu_fleet.adapters.openai import Computer

MODEL = os.environ.get("MODEL", "gpt-5.4")
AGENT = os.environ.get("AGENT", "openai-agent")
PROFILE = os.environ.get("PROFILE", "local")
MOST_TURNS = 50


async def work(client: AsyncOpenAI, computer: Computer, task: str) -> str:
    """Until the model calls the computer no more: what it says then."""
    sent: Any = [{"role": "user", "content": task}]
    last: str | None = None
    for _ in range(MOST_TURNS):
        tools: Any = [computer.tool]
        more: Any = {"previous_response_id": last} if last else {}
        response = await client.responses.create(model=MODEL, tools=tools, input=sent, truncation="auto", **more)
        sent = await computer.answers(item.to_dict() for item in response.output)
        if not sent:
            return response.output_text
        last = response.id
    raise SystemExit(f"not done after {MOST_TURNS} turns")


async def main(task: str) -> None:
    async with (
        AsyncOpenAI() as client,
        Fleet.connect() as fleet,
        fleet.lease(agent=AGENT, profile=PROFILE) as desktop,
    ):
        print(await work(client, Computer(desktop), task))


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "Say what is on the screen."))
