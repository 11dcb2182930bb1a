"""examples/shop.py does what docs/shared-state.md says of it."""

from __future__ import annotations

import ast
import os
import signal

import pytest

from tests.harness import HERE, Limpet, wait_until
from tests.real.test_docs import BLOCKS, is_in, is_python, python

PAGE = "docs/shared-state.md"


def test_one_worker_sends_the_reminders_and_another_one_after_its_death() -> None:
    """Readers copy this for their scheduler."""
    with Limpet("examples.shop:app", "--workers", "3", "--by", "header:x-user") as server:
        keys = [str(number) for number in range(40)]
        users = {entry["slot"]: key for key, entry in zip(keys, server.where(*keys), strict=True)}

        def senders() -> list[int]:
            replies = [server.request("/reminders", x_user=user).json() for user in users.values()]
            return [reply["pid"] for reply in replies if reply["sent here"]]

        [first] = wait_until(senders, "reminders are sent")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: senders() not in ([], [first]), "another worker sends them")
        assert len(senders()) == 1


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.page == PAGE and is_python(each)], ids=str)
def test_code_of_the_page_is_that_of_the_example(block: object) -> None:
    """What readers copy is what runs."""
    shown = ast.parse(python(block))  # type: ignore[arg-type]
    assert is_in(shown.body, ast.parse((HERE.parent / "examples" / "shop.py").read_text()).body)
