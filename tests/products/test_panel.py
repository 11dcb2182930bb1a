"""Panel: the page makes a session in one process, and the websocket must get there: elsewhere it makes a second one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.products.browsers import Page
from tests.products.stage import Product, all_at_home, count_on, in_browsers, pid_in, played

CLICKS = 3


async def play(page: Page, url: str, file: Path) -> set[int]:
    """Count and send a file."""
    pids = {pid_in(await page.open(f"{url}/page", "pre", "count 0 "))}
    pids |= await count_on(page, "pre", range(1, CLICKS + 1), "button")
    await page.choose("input[type=file]", file)
    pids.add(pid_in(await page.text("pre", f"file {file.name}:{file.stat().st_size} ")))
    return pids


PRODUCT = Product("panel", "panel", in_browsers(play))


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_each_session_keeps_its_widgets_in_one_process(way: str) -> None:
    """What the page was made with and what its websocket talks to must be the same widgets."""
    all_at_home(played(PRODUCT, "limpet", way))
