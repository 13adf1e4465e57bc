"""A Chromium without a window, driven over its own DevTools: noVNC's page as a person's browser has it."""

import base64
import io
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from websockets.asyncio.client import ClientConnection, connect

from tests.support import until


class Page:
    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.said: list[str] = []  # its console, and what its policy refused

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(await self._socket.recv())
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.said.append(json.dumps(message["params"]))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])

    async def evaluate(self, expression: str) -> Any:
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    async def picture(self) -> Image.Image:
        """What noVNC has drawn so far, pixel by pixel."""
        data = await self.evaluate("document.querySelector('#noVNC_container canvas').toDataURL('image/png')")
        return Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB")

    async def click(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            buttons = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **buttons)

    async def type(self, text: str) -> None:
        for char in text:
            code = f"Key{char.upper()}" if char.isalpha() else "Space"
            key = {"key": char, "code": code, "windowsVirtualKeyCode": ord(char.upper())}
            await self.call("Input.dispatchKeyEvent", type="keyDown", text=char, **key)
            await self.call("Input.dispatchKeyEvent", type="keyUp", **key)


@asynccontextmanager
async def page(url: str, width: int = 1280, height: int = 800) -> AsyncIterator[Page]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        words = ["chromium", "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={home}", "--disable-gpu"]
        words += ["--no-first-run", "--disable-dev-shm-usage", f"--window-size={width},{height}", "about:blank"]
        if os.geteuid() == 0:
            words.insert(1, "--no-sandbox")
        process = subprocess.Popen(  # noqa: ASYNC220 - it is back at once
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": home}
        )
        try:
            active = Path(home) / "DevToolsActivePort"
            await until(lambda: active.exists() and active.read_text().count("\n"), timeout=30)
            port, path = active.read_text().split("\n")[:2]
            async with connect(f"ws://127.0.0.1:{port}{path}", max_size=1 << 26) as browser:
                root = Page(browser)
                target = await root.call("Target.createTarget", url=url)
                where = f"ws://127.0.0.1:{port}/devtools/page/{target['targetId']}"
                async with connect(where, max_size=1 << 26) as socket:
                    shown = Page(socket)
                    await shown.call("Runtime.enable")
                    await shown.call("Log.enable")
                    yield shown
        finally:
            process.kill()
            process.wait()
