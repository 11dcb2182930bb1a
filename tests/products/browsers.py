"""Many people at one headless Chromium: each page in a context of its own, with its own cookies, cache and connections.

Owns the browser's process and the one connection over which it is driven (the DevTools protocol, of which this is the
small part that the products need). Knows no product. Twenty browsers would take twenty times what one takes to start;
twenty contexts of one are as far apart from each other as the server can see.

1. All pages act at the same time, once all are open: each is driven by a coroutine.
2. Every wait is for a state of the page and has a deadline.
3. What a page could not load is in `complaints`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect

from tests.products.clients.crowd import Crowd
from tests.real.browser import FLAGS

DEADLINE_S: Final = 60.0  # for one state of a page; 20 pages of megabytes of script share two cores
START_S: Final = 30.0
DOOR: Final = 4  # pages that load at the same time; all of them are open, and act, at the same time


PRELUDE: Final = """
const still = new CSSStyleSheet();
still.replaceSync('* { animation: none !important }');
document.adoptedStyleSheets = [still];
window.sockets = [];
window.WebSocket = class extends WebSocket { constructor(...all) { super(...all); window.sockets.push(this) } };
window.elements = (root = document) =>
    [...root.querySelectorAll('*')].flatMap((e) => e.shadowRoot ? [e, ...elements(e.shadowRoot)] : [e]);
window.element = (selector, part = '') =>
    elements().find((e) => e.matches(selector) && (e.innerText ?? '').includes(part));
"""
"""Run in each document first. Keeps its websockets; finds elements, those in shadow roots too; and has nothing spin,
since twenty pages that each draw 60 pictures a second would leave no processor for the servers."""


class Page:
    """A tab in a context of its own: one person's browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.complaints: list[str] = []

    async def send(self, method: str, **parameters: Any) -> Any:
        """Return the answer to one command of the protocol."""
        return await self._browser.send(method, parameters, self._session)

    async def open(self, url: str, selector: str, part: str = "") -> str:
        """Open *url*, a few pages at a time; return what `text` does once all pages of the browser are open."""
        async with self._browser.crowd.coming_in():
            await self.send("Page.navigate", url=url)
            return await self.text(selector, part)

    async def run(self, script: str) -> Any:
        """Return the value of the expression *script*, awaited if it is a promise."""
        answer = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def until(self, script: str, what: str) -> Any:
        """Return the first true value of the expression *script*; fail at the deadline naming *what* did not come."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                if value := await self.run(script):
                    return value
            except (AssertionError, ProtocolError):  # the page is between two documents
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                shown = await self.run("document.body ? document.body.innerText.slice(0, 600) : null")
                raise AssertionError(f"after {DEADLINE_S:g} s still not: {what}; shown is {shown!r}")
            await asyncio.sleep(0.2)

    async def text(self, selector: str, part: str = "") -> str:
        """Return the text of the first element *selector* that has *part* in it."""
        return str(await self.until(f"{_element(selector, part)}?.innerText", f"{selector} with {part!r}"))

    async def value(self, selector: str, part: str) -> str:
        """Return what stands in the field *selector*, once *part* is in it."""
        value = f"{_element(selector)}?.value"
        return str(
            await self.until(f"({value} ?? '').includes({json.dumps(part)}) && {value}", f"{selector}: {part!r}")
        )

    async def click(self, selector: str, part: str = "") -> None:
        """Click the first element *selector* whose text has *part* in it."""
        await self.until(f"{_element(selector, part)}?.disabled === false", f"{selector} with {part!r} to click")
        await self.run(f"({_element(selector, part)}.click(), true)")

    async def type(self, selector: str, text: str) -> None:
        """Type *text* into the element *selector* and press Enter."""
        await self.until(f"{_element(selector)}?.disabled === false", f"{selector} to type into")
        await self.run(f"({_element(selector)}.focus(), {_element(selector)}.select(), true)")
        await self.send("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            await self.send(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    async def choose(self, selector: str, path: Path) -> None:
        """Choose the file at *path* in the file input *selector*."""
        await self.until(f"!!{_element(selector)}", f"{selector} to choose a file in")
        answer = await self.send("Runtime.evaluate", expression=_element(selector))
        await self.send("DOM.setFileInputFiles", files=[str(path)], objectId=answer["result"]["objectId"])

    async def lose_websocket(self) -> None:
        """Close the page's websockets, as a network does that goes away; return when it has made a new one."""
        assert await self.run("sockets.splice(0).map((socket) => socket.close()).length"), "there is no websocket"
        await self.until("sockets.some((socket) => socket.readyState == WebSocket.OPEN)", "websocket is back")

    def hear(self, method: str, said: Mapping[str, Any]) -> None:
        """Take note of an event of the page."""
        if method == "Network.responseReceived" and said["response"]["status"] >= 400:
            self.complaints.append(f"{said['response']['status']} {said['response']['url']}")


def _element(selector: str, part: str = "") -> str:
    return f"element({json.dumps(selector)}, {json.dumps(part)})"


class ProtocolError(Exception):
    """Chromium refused a command."""


class Browser:
    """One Chromium that keeps what it knows in *profile*, for so many *pages*."""

    def __init__(self, profile: Path, pages: int = 1) -> None:
        self._profile = profile
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._pages: dict[str, Page] = {}
        self.crowd = Crowd(pages, DOOR)

    async def __aenter__(self) -> Browser:
        program = shutil.which("chromium")
        assert program, "`apt-get install chromium`"
        command = [program, *FLAGS, f"--user-data-dir={self._profile}", "--remote-debugging-port=0", "about:blank"]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._connection = await self._connected()
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.send("Browser.close")  # on a signal it would leave processes that still write into the profile
            await asyncio.to_thread(self._process.wait, START_S)
        finally:
            self._reader.cancel()
            await self._connection.close()
            self._process.kill()
            self._process.wait()

    async def _connected(self) -> ClientConnection:
        told = self._profile / "DevToolsActivePort"
        deadline = time.monotonic() + START_S
        while not (told.exists() and told.read_text().count("\n") == 1):
            assert time.monotonic() < deadline, "Chromium has not started"
            await asyncio.sleep(0.05)
        port, path = told.read_text().split("\n")
        return await connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None)

    async def page(self) -> Page:
        """Return an empty page in a new context."""
        context = (await self.send("Target.createBrowserContext"))["browserContextId"]
        target = await self.send("Target.createTarget", {"url": "about:blank", "browserContextId": context})
        attached = await self.send("Target.attachToTarget", {"targetId": target["targetId"], "flatten": True})
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Network"):
            await page.send(f"{domain}.enable")
        await page.send("Page.addScriptToEvaluateOnNewDocument", source=PRELUDE)
        return page

    async def send(self, method: str, parameters: Mapping[str, Any] | None = None, session: str | None = None) -> Any:
        """Return the answer to one command. Raises ProtocolError."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters or {}}
        await self._connection.send(json.dumps(message if session is None else {**message, "sessionId": session}))
        async with asyncio.timeout(DEADLINE_S):
            return await answer

    async def _read(self) -> None:
        async for text in self._connection:
            message = json.loads(text)
            waiting = self._waiting.pop(message.get("id", 0), None)
            if waiting is None:
                page = self._pages.get(message.get("sessionId", ""))
                if page is not None and "method" in message:
                    page.hear(message["method"], message["params"])
            elif not waiting.done():  # its deadline may have passed
                if "error" in message:
                    waiting.set_exception(ProtocolError(f"{message['error']}"))
                else:
                    waiting.set_result(message["result"])
