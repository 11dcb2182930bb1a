"""NiceGUI: a page's elements live in the process that rendered it; its websocket and uploads must get there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.products.browsers import Page
from tests.products.stage import Product, all_at_home, count_on, in_browsers, pid_in, played

CLICKS = 3


async def play(page: Page, url: str, file: Path) -> set[int]:
    """Count, send a file, lose the websocket, and count on where one was."""
    pids = {pid_in(await page.open(url, ".shown", "count 0"))}
    pids |= await count_on(page, ".shown", range(1, CLICKS + 1), "button", "ADD")
    await page.choose("input[type=file]", file)
    pids.add(pid_in(await page.text(".uploads", f"{file.name}:{file.stat().st_size} ")))
    await page.lose_websocket()
    pids |= await count_on(page, ".shown", [CLICKS + 1], "button", "ADD")
    return pids


PRODUCT = Product("nicegui", "nicegui", in_browsers(play))


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_each_session_counts_in_one_process(way: str) -> None:
    """What people build with it: state in Python, one page for each visitor."""
    all_at_home(played(PRODUCT, "limpet", way))
