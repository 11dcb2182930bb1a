"""slowhttptest in its four modes against limpet: whoever is not slow is served throughout. `make slowhttp` runs it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import PATIENCE_S, Limpet, wait_until

TOOL = shutil.which("slowhttptest")
CONNECTIONS, RATE, SECONDS = 1000, 200, 30
MODES = {
    "slow headers": ["-H"],
    "slow bodies": ["-B", "-s", "8192"],
    "ranges": ["-R", "-a", "10", "-b", "3000"],
    "slow reading": ["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "3"],
}


class Honest:
    """A client that asks for something all the time, until it is told to stop; it notes what it got."""

    def __init__(self, server: Limpet) -> None:
        self.statuses: list[int] = []
        self._server = server
        self._stop = threading.Event()

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        thread = threading.Thread(target=self._ask)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(PATIENCE_S)

    def _ask(self) -> None:
        while not self._stop.wait(0.05):
            try:
                self.statuses.append(self._server.request(x_user="honest").status)
            except OSError:
                self.statuses.append(0)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(TOOL is None and not os.environ.get("CI"), reason="slowhttptest is not installed")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chain", ["header:x-user", "ip"])
def test_service_stays_available(mode: str, chain: str, tmp_path: Path) -> None:
    """The tool's own probe, and a client beside it, must get their answers while all its connections are open."""
    assert TOOL is not None, "slowhttptest is needed where CI is set"
    with Limpet("tests.wire_app:app", "--by", chain, "--workers", "1") as server:
        honest = Honest(server)
        command = [
            TOOL,
            *MODES[mode],
            "-c",
            str(CONNECTIONS),
            "-r",
            str(RATE),
            "-l",
            str(SECONDS),
            "-i",
            "5",
            "-p",
            "3",
        ]
        command += ["-g", "-o", str(tmp_path / "slow"), "-u", server.url + "/"]
        with honest.asking():
            run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert run.returncode == 0, run.stdout[-2000:]
        rows = (tmp_path / "slow.csv").read_text().splitlines()[1:]
        available = [int(row.split(",")[-1]) for row in rows]
        assert len(available) >= 3
        assert all(available), run.stdout[-2000:]
        assert len(honest.statuses) > 50
        assert set(honest.statuses) == {200}
        wait_until(lambda: server.worker(0)["connections"] == 0, "all connections have ended")
