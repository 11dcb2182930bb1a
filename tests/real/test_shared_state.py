"""examples/shop.py does what docs/shared-state.md says of it."""

from __future__ import annotations

import ast
import os
import signal
import threading
from pathlib import Path

import pytest

from tests.harness import HERE, Limpet, wait_until
from tests.real.test_docs import BLOCKS, is_in, is_python, python
from tests.real.test_privileges import for_nobody

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


def test_cart_survives_its_worker_a_reload_an_upgrade_and_a_restart(tmp_path: Path) -> None:
    """What the shop has shown must still be there, whatever became of the processes."""
    arguments = ("--workers", "2", "--by", "header:x-user", "--stash", str(tmp_path / "stash"))
    with Limpet("examples.shop:app", *arguments) as server:
        assert server.request("/cart/ada/apple", x_user="ada").json() == {"apple": 1}
        server.kill_worker(server.where("ada")[0]["slot"])
        assert server.request("/cart/ada/apple", x_user="ada").json() == {"apple": 2}
        server.command("reload")
        assert server.request("/cart/ada/pear", x_user="ada").json() == {"apple": 2, "pear": 1}
        server.signal(signal.SIGUSR2)
        wait_until(lambda: "upgraded from version" in server.log, "it is upgraded")
        assert server.request("/cart/ada/pear", x_user="bob").json() == {"apple": 2, "pear": 2}
        assert server.request("/sold").json() == {"sold": 4}
        server.command("reload")
        assert server.request("/sold").json() == {"sold": 4}
        shared = folder_of(server)
        assert shared.exists()
    assert not shared.exists()
    with Limpet("examples.shop:app", *arguments) as server:
        assert server.request("/cart/ada/pear", x_user="ada").json() == {"apple": 2, "pear": 3}


def folder_of(server: Limpet) -> Path:
    """Return the folder that the workers of *server* share."""
    links = [os.readlink(path) for path in Path(f"/proc/{server.pid}/fd").iterdir() if path.is_symlink()]
    [found] = [link for link in links if "limpet-shared-" in link and "memfd" not in link]
    return Path(found)


def test_logins_are_limited_over_all_workers() -> None:
    """A limit that each worker has for itself is no limit."""
    with Limpet("examples.shop:app", "--workers", "4", "--by", "header:x-user") as server:
        replies: list[int] = []

        def ask(client: int) -> None:
            replies.extend(server.request("/login/ada", x_user=f"{client}").status for _ in range(2))

        clients = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert sorted(replies) == [200] * 5 + [429] * 27


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_workers_of_another_user_share_as_well(tmp_path: Path) -> None:
    """The supervisor makes what they share, and they may write it."""
    how = for_nobody()
    flags = ("--user", "nobody", "--workers", "2", "--by", "header:x-user")
    with Limpet("examples.shop:app", *flags, **how) as server:
        assert server.request("/cart/ada/apple", x_user="ada").json() == {"apple": 1}
        assert server.request("/cart/ada/apple", x_user="b").json() == {"apple": 2}
        assert server.request("/sold").json() == {"sold": 2}


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.page == PAGE and is_python(each)], ids=str)
def test_code_of_the_page_is_that_of_the_example(block: object) -> None:
    """What readers copy is what runs."""
    shown = ast.parse(python(block))  # type: ignore[arg-type]
    assert is_in(shown.body, ast.parse((HERE.parent / "examples" / "shop.py").read_text()).body)
