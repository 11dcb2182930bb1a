"""Gradio: state, queue and uploads are one process's, and the session's name is in the body of its requests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.products.browsers import Page
from tests.products.programs import by_program
from tests.products.stage import Product, all_at_home, in_browsers, pid_in, played

MESSAGES = 3


async def play(page: Page, url: str, file: Path) -> set[int]:
    """Say something and be answered, several times; send a file."""
    await page.open(url, "#say")
    pids: set[int] = set()
    for count in range(1, MESSAGES + 1):
        await page.type("#say textarea, #say input", f"word-{count}")
        pids.add(pid_in(await page.value("#answer textarea, #answer input", f"count {count} of word-{count} ")))
    await page.choose("#given input[type=file]", file)
    pids.add(pid_in(await page.value("#arrived textarea, #arrived input", f"{file.name}:{file.stat().st_size} ")))
    return pids


PRODUCT = Product("gradio", "gradio", in_browsers(play), env={"GRADIO_ANALYTICS_ENABLED": "False"})


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_each_session_chats_with_one_process(way: str) -> None:
    """The count of the chat is in a `gr.State`, which is in the memory of one process."""
    all_at_home(played(PRODUCT, "limpet", way))


@pytest.mark.products
def test_each_session_of_its_python_client_stays_with_one_process() -> None:
    """It keeps the cookie of its first answer; what drives an application without a browser must work too."""
    clients = dataclasses.replace(PRODUCT, client=by_program("gradio_sessions.py"))
    all_at_home(played(clients, "limpet", "nginx"))


@pytest.mark.products
def test_each_curl_fetches_the_result_of_its_call() -> None:
    """Gradio documents its API with curl, which keeps no cookie: the id of the event has to bring it home."""
    clients = dataclasses.replace(PRODUCT, client=by_program("gradio_curl.py"))
    all_at_home(played(clients, "limpet", "plain"))
