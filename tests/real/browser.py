"""Headless Chromium for the tests that need a real browser.

Owns one thing: starting Debian's Chromium through selenium so that a session is fresh (no cookie, no cache),
talks to nobody but the server under test, and is gone when the block ends. It knows nothing of limpet or of
any page; test_chat.py calls it.

1. Nothing is downloaded: both programs come from the system (`apt-get install chromium chromium-driver`).
2. No test sleeps: `until` waits for a state of the page, with a deadline.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.wait import WebDriverWait

PROGRAMS = ("chromium", "chromedriver")
DEADLINE_S = 15.0  # for one state of a page; generous, since only a failing test waits it out

FLAGS = (
    "--headless",
    "--no-sandbox",  # tests may run as root in a container, where the sandbox refuses to start
    "--disable-gpu",
    "--disable-dev-shm-usage",  # /dev/shm of a container holds 64 MB, less than a renderer takes
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

T = TypeVar("T")


@contextmanager
def chromium(profile: Path, *more: str, size: tuple[int, int] = (1100, 800)) -> Iterator[Chrome]:
    """Yield a browser, with *more* flags, that knows only what it keeps in *profile*; blocks until Chromium is up.

    Owns the browser: it is closed when the block ends, whatever happened in it.
    """
    options = ChromeOptions()
    options.binary_location = _path_of("chromium")
    for flag in (*FLAGS, *more, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"):
        options.add_argument(flag)
    driver = Chrome(options=options, service=ChromeService(_path_of("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def until(driver: Chrome, what: str, condition: Callable[[Chrome], T | None]) -> T:
    """Return the first true answer of *condition*; blocks at most `DEADLINE_S`, then fails saying *what*."""
    found = WebDriverWait(driver, DEADLINE_S, poll_frequency=0.02).until(
        lambda _: condition(driver), f"not within {DEADLINE_S:.0f} s: {what}"
    )
    assert found is not None
    return found


def _path_of(program: str) -> str:
    """Return the full path, since selenium searches its own cache and the network for a bare name."""
    path = shutil.which(program)
    assert path, f"{program} is not installed"
    return path
