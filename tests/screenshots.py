"""The pictures of the admin page in docs/images, of a real server with real clients: `make screenshots`.

Owns the scene: an hour's worth of trouble in two minutes. The page is shown by the browser of the tests, at the size of
a desk and of a phone, light and dark; a picture that is too large for a page of documentation fails.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from selenium.webdriver import Chrome

from tests.harness import HERE, Limpet
from tests.public import reload
from tests.real.browser import chromium, until

IMAGES = HERE.parent / "docs" / "images"
MOST_BYTES = 150_000
COLOURS = 96  # that a picture keeps
TOKEN = "a-token-for-the-pictures"
SHAPES = {"desk": (1280, 1040), "phone": (375, 812)}
USERS = 400
SECONDS = 90


class Clients:
    """Clients that come and go, more at times than at others, until closed."""

    def __init__(self, server: Limpet) -> None:
        self._server = server
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(6)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        chance = random.Random(number)
        while not self._ended.wait(chance.uniform(0, 2) * number):
            with self._server.connection() as connection:
                for _ in range(chance.randrange(20, 120)):
                    cookie = f"user=user{min(chance.randrange(USERS), chance.randrange(USERS))}"
                    try:
                        connection.request("GET", "/", headers={"cookie": cookie})
                        connection.getresponse().read()
                    except OSError:  # its worker was killed, for the picture
                        break
                    if self._ended.wait(0.03):
                        break

    def close(self) -> None:
        """Wait until all have ended."""
        self._ended.set()
        for thread in self._threads:
            thread.join()


def shape(browser: Chrome, size: tuple[int, int], *, dark: bool) -> None:
    """Make the page as large as a screen of that *size*, and light or dark as its owner likes it."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def unlock(browser: Chrome, address: str, token: str) -> None:
    """Open the page at *address* and unlock it."""
    browser.get(address)
    until(browser, "the page asks for the token", lambda page: page.find_element("id", "token").is_displayed())
    browser.find_element("id", "token").send_keys(token, "\n")
    until(browser, "it is unlocked", lambda page: page.find_element("id", "reload").is_enabled())


def find(browser: Chrome, key: str) -> dict[str, str]:
    """Type *key* into the box; return what the page says."""
    box = browser.find_element("id", "key")
    box.clear()
    box.send_keys(key, "\n")
    until(browser, "the key is found", lambda page: page.find_element("id", "home").is_displayed())
    script = "return [...document.querySelectorAll('#home dt')].map(t => [t.textContent, t.nextSibling.textContent])"
    pairs: list[Any] = browser.execute_script(script)
    return dict(pairs)


def play(server: Limpet) -> None:
    """Have happen what an operator looks for."""
    pause = threading.Event()
    pause.wait(SECONDS / 3)
    assert reload(server)["state"] == "done"
    pause.wait(SECONDS / 3)
    server.kill_worker(2)
    pause.wait(SECONDS / 3)
    server.ask(command="drain", slot=1)


def main() -> None:
    """Make all pictures."""
    images = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    images.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        token = Path(folder) / "token"
        token.touch(mode=0o600)
        token.write_text(TOKEN)
        arguments = ("--workers", "4", "--by", "cookie:user,ip", "--admin", "127.0.0.1:0", "--admin-token", str(token))
        with Limpet("examples.hello:app", *arguments) as server, chromium(Path(folder) / "profile") as browser:
            clients = Clients(server)
            try:
                play(server)
                unlock(browser, server.status()["admin"], TOKEN)
                find(browser, "ada")
                until(browser, "the slot is held", lambda page: "draining" in page.find_element("id", "slots").text)
                for name, size in SHAPES.items():
                    for dark in (False, True):
                        shape(browser, size, dark=dark)
                        browser.execute_script("window.scrollTo(0, 0)")
                        path = images / f"admin-{name}-{'dark' if dark else 'light'}.png"
                        with Image.open(BytesIO(browser.get_screenshot_as_png())) as picture:
                            picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
                        assert path.stat().st_size < MOST_BYTES, f"{path} has {path.stat().st_size} bytes"
            finally:
                clients.close()


if __name__ == "__main__":
    main()
