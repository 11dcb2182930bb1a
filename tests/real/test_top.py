"""`limpet top` in a real terminal: tmux is one, at the widths that people have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.harness import HERE, Limpet, fetch, limpet_command, wait_until

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Terminal:
    """A terminal of its own, with one command in it."""

    def __init__(self, width: int, height: int, command: list[str]) -> None:
        self._tmux = ["tmux", "-u", "-L", f"limpet-{uuid.uuid4().hex[:8]}", "-f", "/dev/null"]
        size = ["-x", str(width), "-y", str(height)]
        session = ["new-session", "-d", *size, "-c", str(HERE.parent), *command]
        env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}  # of another one
        subprocess.run([*self._tmux, *session], check=True, env={**env, "LC_ALL": "C.UTF-8"})

    def text(self) -> str:
        """Return what is on the screen."""
        run = subprocess.run([*self._tmux, "capture-pane", "-p"], capture_output=True, text=True, check=False)
        return run.stdout

    def press(self, *keys: str) -> None:
        """Press *keys*."""
        subprocess.run([*self._tmux, "send-keys", *keys], check=True)

    def close(self) -> None:
        """End it, and what runs in it."""
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)


@contextmanager
def top(server: Limpet, width: int, height: int = 24) -> Iterator[Terminal]:
    """Run `limpet top` in a terminal of that size."""
    terminal = Terminal(width, height, [sys.executable, "-m", "limpet", "top", "--control", server.control])
    try:
        yield terminal
    finally:
        terminal.close()


@contextmanager
def loaded(server: Limpet) -> Iterator[None]:
    """Send requests of many users meanwhile."""
    stop = threading.Event()

    def send() -> None:
        with server.connection() as connection:
            number = 0
            while not stop.wait(0.005):
                number += 1
                fetch(connection, x_user=f"user{number % 50}")

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Limpet]:
    """A server of four workers."""
    with Limpet("tests.apps:echo", "--workers", "4", "--by", "header:x-user") as server:
        yield server


@pytest.mark.parametrize("width", [80, 160])
def test_screen_fits_its_terminal(server: Limpet, width: int) -> None:
    """Over ssh there are 80 columns, and no line may break; wider ones are used."""
    with loaded(server), top(server, width) as terminal:

        def drawn() -> str | None:
            text = terminal.text()
            return text if "busiest slot" in text and sum(text.count(level) for level in "▂▃▄▅▆▇█") > 30 else None

        text = wait_until(drawn, "the slots and some history are drawn")
        terminal.press("q")
    lines = text.splitlines()
    titles = next(line for line in lines if line.startswith("slot"))
    assert titles.split() == [
        "slot",
        "state",
        "conns",
        "req/s",
        "history",
        "load",
        "moved",
        "queue",
        *("lag", "ms", "cpu", "%", "MiB"),
    ]
    slots = [line for line in lines if line.split()[1:2] == ["ready"]]
    assert [line.split()[0] for line in slots] == ["0", "1", "2", "3"]
    assert max(map(len, lines)) <= width
    assert len(titles) > width * 0.85
    assert "…" not in titles + "".join(slots)
    assert "busiest slot" in text
    [dispatcher] = server.status()["dispatchers"]
    assert [line for line in lines if line.startswith(f"dispatcher 0 ready, pid {dispatcher['pid']}, cpu ")]
    assert "ready after" in text  # events
    assert "q quit" in text


def test_keys_act_on_the_selected_slot(server: Limpet) -> None:
    """Whoever sees trouble acts where it is seen."""
    before = [slot["pid"] for slot in server.status()["slots"]]
    with top(server, 80) as terminal:
        wait_until(lambda: terminal.text().count("ready") >= 4, "the slots are drawn")
        terminal.press("Down")
        terminal.press("d")
        wait_until(lambda: server.worker(1)["state"] == "draining", "slot 1 gets no new clients")
        wait_until(lambda: "drain slot 1: begun" in terminal.text(), "it says so")
        wait_until(lambda: " draining " in terminal.text(), "the state is seen")
        terminal.press("d")
        wait_until(lambda: server.worker(1)["state"] == "ready", "it does again")
        terminal.press("Down")
        terminal.press("r")
        wait_until(lambda: server.worker(2)["generation"] == 2, "slot 2 has a new worker")
        wait_until(lambda: "reload of worker 2 done" in terminal.text(), "the event is seen")
        terminal.press("q")
    after = [slot["pid"] for slot in server.status()["slots"]]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True]


def test_once_prints_a_table() -> None:
    """For a ticket, a script, or a terminal without the extra."""
    with Limpet("tests.apps:echo", "--workers", "2") as server:
        run = limpet_command("top", "--once", "--control", server.control)
        assert run.returncode == 0, run.stderr
        titles, first, second, *_ = run.stdout.splitlines()
        assert titles.split()[:4] == ["slot", "state", "pid", "conns"]
        assert [line.split()[:2] for line in (first, second)] == [["0", "ready"], ["1", "ready"]]


def test_reload_of_one_slot_by_command(server: Limpet) -> None:
    """The same from a script."""
    before = [slot["pid"] for slot in server.status()["slots"]]
    assert server.command("reload", "3")["state"] == "done"
    after = [slot["pid"] for slot in server.status()["slots"]]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, True, False]
