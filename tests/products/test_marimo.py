"""marimo: a session is a kernel in one process; its requests carry an id, the files that its cells show do not."""

from __future__ import annotations

import pytest

from tests.products.browsers import Page
from tests.products.stage import Product, all_at_home, in_browsers, played

CLICKS = 3
CLICK = """(() => {
    const found = document.querySelector("marimo-button")?.shadowRoot?.querySelector("button");
    found?.click();
    return !!found;
})()"""
FETCH = """(() => {
    const host = document.querySelector("marimo-download")?.shadowRoot ?? document;
    const link = [...host.querySelectorAll("a")].find((link) => link.download === "%d.ppm");
    return link && fetch(link.href).then((answer) => answer.ok && answer.arrayBuffer()).then((data) => data.byteLength);
})()"""


async def shown(page: Page, count: int) -> int:
    """Return the process that has counted to *count*, when the page shows it and its file can be fetched."""
    pid = await page.until(
        f"(document.body.innerText.match(/count {count} pid (\\d+) end/) ?? [])[1]", f"count {count}"
    )
    assert await page.until(FETCH % count, f"file {count}") == 100 * 100 * 3 + len("P6 100 100 255\n")
    return int(pid)


async def play(page: Page, url: str, _: object) -> set[int]:
    """Count."""
    await page.open(url, "body", "count 0 pid")
    pids = {await shown(page, 0)}
    for count in range(1, CLICKS + 1):
        await page.until(CLICK, "button")
        pids.add(await shown(page, count))
    return pids


PRODUCT = Product("marimo", "marimo", in_browsers(play))


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_each_session_has_its_kernel_and_its_files(way: str) -> None:
    """The file of a cell is in the memory of the process that ran it, and is asked for without the session's id."""
    all_at_home(played(PRODUCT, "limpet", way))
