"""Solara: each page has a kernel in one process, and its websocket must get there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.products.browsers import Page
from tests.products.stage import Product, all_at_home, count_on, in_browsers, pid_in, played

CLICKS = 3


async def play(page: Page, url: str, file: Path) -> set[int]:
    """Count, lose the websocket, and count on."""
    pids = {pid_in(await page.open(url, ".shown", "count 0 "))}
    pids |= await count_on(page, ".shown", range(1, CLICKS + 1), "button", "ADD")
    await page.lose_websocket()
    pids |= await count_on(page, ".shown", [CLICKS + 1], "button", "ADD")
    return pids


PRODUCT = Product(
    "solara",
    "solara",
    in_browsers(play),
    env={"SOLARA_APP": "page.py", "SOLARA_TELEMETRY_MIXPANEL_ENABLE": "False"},
)


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_each_session_has_its_kernel_in_one_process(way: str) -> None:
    """A kernel's state is in the memory of one process."""
    all_at_home(played(PRODUCT, "limpet", way))
