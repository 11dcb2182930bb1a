"""Chainlit: a chat is a session of Socket.IO, by polls at first, and what it remembers is in one process."""

from __future__ import annotations

import pytest

from tests.products.browsers import Page
from tests.products.stage import Product, all_at_home, in_browsers, played

MESSAGES = 3
SAY = """(() => {
    const line = document.querySelector("#chat-input");
    if (!line) return false;
    if (!line.value) {
        Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(line, "hello");
        line.dispatchEvent(new Event("input", { bubbles: true }));
    }
    const send = document.querySelector("#chat-submit");
    if (!send || send.disabled) return false;
    send.click();
    return true;
})()"""


async def play(page: Page, url: str, _: object) -> set[int]:
    """Say things, and be told how many by the process that remembers."""
    await page.open(f"{url}/chat", "body", "Toggle theme")
    pids = set()
    for count in range(1, MESSAGES + 1):
        await page.until(SAY, "the chat takes a message")
        answer = f"(document.body.innerText.match(/count {count} pid (\\d+) end/) ?? [])[1]"
        pids.add(int(await page.until(answer, f"answer {count}")))
    return pids


PRODUCT = Product("chainlit", "chainlit", in_browsers(play))


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_each_chat_is_with_one_process(way: str) -> None:
    """Its polls carry the id that Socket.IO made, its uploads and pictures do not."""
    all_at_home(played(PRODUCT, "limpet", way))
