"""A monitor that scrapes metrics once a second, and whether they and the access log have counted the same."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from pathlib import Path
from typing import Final

OPENMETRICS: Final = {"Accept": "application/openmetrics-text; version=1.0.0"}
PATIENCE_S: Final = 10.0


class Scraper(threading.Thread):
    """Scrapes the admin process at *port* while it is a context."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=OPENMETRICS)
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(1):
            self.requests()

    def __enter__(self) -> Scraper:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def requests(self) -> int:
        """Scrape; return how many requests have been counted."""
        with urllib.request.urlopen(self._request, timeout=PATIENCE_S) as response:
            lines = response.read().decode().splitlines()
        return sum(int(float(line.split()[1])) for line in lines if line.startswith("limpet_slot_requests_total{"))

    def check(self, log: Path) -> None:
        """Raise RuntimeError unless each request that was counted gets its line in *log*, in time."""
        deadline = time.monotonic() + PATIENCE_S
        while (logged := _requests_in(log)) != (counted := self.requests()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{logged} lines in the log, {counted} requests counted")
            time.sleep(0.2)


def _requests_in(log: Path) -> int:
    whole = log.read_text().rpartition("\n")[0]
    return sum(json.loads(line)["event"] == "request" for line in whole.splitlines())
