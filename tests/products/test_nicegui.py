"""NiceGUI: a page's elements live in the process that rendered it; its websocket and uploads must get there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.products.browsers import Page
from tests.products.stage import Product, all_at_home, in_browsers, pid_in, played

CLICKS = 3


async def play(page: Page, url: str, file: Path) -> set[int]:
    """Count, send a file, lose the websocket, and count on where one was."""
    pids = {pid_in(await page.open(url, ".shown", "count 0"))}
    for count in range(1, CLICKS + 1):
        await page.click("button", "ADD")
        pids.add(pid_in(await page.text(".shown", f"count {count} ")))
    await page.choose("input[type=file]", file)
    pids.add(pid_in(await page.text(".uploads", f"{file.name}:{file.stat().st_size} ")))
    await page.lose_websocket()
    await page.click("button", "ADD")
    pids.add(pid_in(await page.text(".shown", f"count {CLICKS + 1} ")))
    return pids


PRODUCT = Product("nicegui", "nicegui", "nicegui_app:app", in_browsers(play))


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_each_session_counts_in_one_process(way: str) -> None:
    """What people build with it: state in Python, one page for each visitor."""
    all_at_home(played(PRODUCT, "limpet", way))
