"""Shiny: a session lives where its websocket is; its uploads and downloads are plain requests that must get there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.products.browsers import Page
from tests.products.stage import Product, all_at_home, in_browsers, pid_in, played

CLICKS = 3


async def play(page: Page, url: str, file: Path) -> set[int]:
    """Count, send a file, and fetch a download that only this session's process can make."""
    pids = {pid_in(await page.open(url, "#shown", "count 0 "))}
    for count in range(1, CLICKS + 1):
        await page.click("#add")
        pids.add(pid_in(await page.text("#shown", f"count {count} ")))
    await page.choose("#given", file)
    pids.add(pid_in(await page.text("#arrived", f"{file.name}:{file.stat().st_size} ")))
    taken = await page.run("fetch(document.querySelector('#taken').href).then((answer) => answer.text())")
    assert taken.startswith(f"count {CLICKS} "), taken
    return pids | {pid_in(taken)}


PRODUCT = Product("shiny", "shiny", in_browsers(play))


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_each_session_reacts_in_one_process(way: str) -> None:
    """Reactive values, uploads and downloads are one session's, which is in the memory of one process."""
    all_at_home(played(PRODUCT, "limpet", way))
