"""Streamlit: a session lives where its websocket is; uploads and media are plain requests that must get there too."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.products.browsers import Page
from tests.products.stage import Product, all_at_home, count_on, in_browsers, pid_in, played

CLICKS = 3


async def play(page: Page, url: str, file: Path) -> set[int]:
    """Count, send a file, see the picture made of it, lose the websocket and count on."""
    pids = {pid_in(await page.open(url, "p", "count 0 "))}
    pids |= await count_on(page, "p", range(1, CLICKS + 1), "button", "add")
    data = file.read_bytes()
    await page.choose("input[type=file]", file)
    pids.add(pid_in(await page.text("p", f"{file.name}:{len(data)}:{hashlib.sha256(data).hexdigest()[:8]} ")))
    await page.until("[...document.querySelectorAll('img')].some((e) => e.naturalWidth == 100)", "picture")
    await page.lose_websocket()
    pids |= await count_on(page, "p", [CLICKS + 1], "button", "add")
    return pids


PRODUCT = Product(
    "streamlit",
    "streamlit",
    in_browsers(play),
    env={"STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false"},
)


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_each_session_lives_in_one_process(way: str) -> None:
    """The session's state, its uploads and its pictures are in the memory of one process."""
    all_at_home(played(PRODUCT, "limpet", way))
