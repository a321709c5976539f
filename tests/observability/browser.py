"""Headless Chromium, driven over its DevTools protocol: opens pages, presses keys, looks."""

import asyncio
import base64
import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--remote-debugging-port=0",
)
SECONDS = 30.0


class Browser:
    """One tab. Calls fail the test where the browser refuses them."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self.complaints: list[str] = []
        """What stood in the console: errors of scripts, and everything the page was not allowed to do."""

    async def listen(self) -> None:
        """Read what the browser says, for ever."""
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif told["method"] == "Page.loadEventFired":
                self._loaded.set()
            elif told["method"] == "Log.entryAdded":
                self.complaints.append(told["params"]["entry"]["text"])
            elif told["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(told["params"]["exceptionDetails"]))

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call of the protocol."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        told = await asyncio.wait_for(answer, SECONDS)
        assert "error" not in told, told
        result: dict[str, Any] = told["result"]
        return result

    async def open(self, address: str) -> None:
        """Go to a page and wait until it is loaded."""
        self._loaded.clear()
        await self.call("Page.navigate", url=address)
        await self.loaded()

    async def loaded(self) -> None:
        """Wait for the load of a page that something else began; call `expect_load` before it does."""
        await asyncio.wait_for(self._loaded.wait(), SECONDS)

    def expect_load(self) -> None:
        """The next load is the one that `loaded` waits for."""
        self._loaded.clear()

    async def run(self, script: str) -> Any:
        """The value of an expression, or of the promise it gives."""
        told = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, script: str, seconds: float = SECONDS) -> None:
        """Wait until an expression is true."""
        look = f"""new Promise((done, fail) => {{
          const end = Date.now() + {seconds * 1000};
          const look = () => {script} ? done(true) : Date.now() > end ? fail("not so") : setTimeout(look, 50);
          look();
        }})"""
        told = await self.call("Runtime.evaluate", expression=look, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, (script, await self.run("document.body.innerText"))

    async def press(self, key: str) -> None:
        """Press one key: `Tab`, `Enter`."""
        text = {"Enter": "\r"}.get(key, "")
        code = {"Tab": 9, "Enter": 13, " ": 32}[key]
        await self.call(
            "Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, text=text
        )
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    async def size(self, width: int, height: int, *, scale: float = 1) -> None:
        """The window's size in CSS pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    async def prefers(self, **features: str) -> None:
        """What the person prefers: `color_scheme="dark"`, `reduced_motion="reduce"`."""
        named: Sequence[Mapping[str, str]] = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()
        ]
        await self.call("Emulation.setEmulatedMedia", features=named)

    async def scripts(self, *, on: bool) -> None:
        """Whether pages may run scripts from the next one on."""
        await self.call("Emulation.setScriptExecutionDisabled", value=not on)

    async def shot(self, *, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of the whole page."""
        told = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(told["data"])


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Browser]:
    """Chromium with an empty profile and one tab."""
    profile = folder / "profile"
    process = await asyncio.create_subprocess_exec(
        "chromium",
        *FLAGS,
        f"--user-data-dir={profile}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port = await asyncio.wait_for(_port(profile / "DevToolsActivePort"), SECONDS)
        async with aiohttp.ClientSession() as http:
            async with http.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
                address = (await answer.json())["webSocketDebuggerUrl"]
            async with http.ws_connect(address, max_msg_size=0) as socket:
                tab = Browser(socket)
                listening = asyncio.create_task(tab.listen())
                for domain in ("Page", "Runtime", "Log"):
                    await tab.call(f"{domain}.enable")
                yield tab
                listening.cancel()
                with suppress(asyncio.CancelledError):
                    await listening
    finally:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _port(told_in: Path) -> int:
    while True:
        with suppress(OSError, IndexError, ValueError):
            return int((await asyncio.to_thread(told_in.read_text)).splitlines()[0])
        await asyncio.sleep(0.05)
