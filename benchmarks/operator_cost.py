"""What the operator's view costs: CPU per request with metrics, an access log and JSON, against none of it.

    python benchmarks/operator_cost.py [--rounds 9] [--seconds 3] [--output benchmarks/results/operator_cost.json]

Three servers of the same application and key chain run side by side. `on` has `--admin`, whose `/metrics` is scraped
once a second in OpenMetrics, and `--access-log --log-format json --log-file FILE`; `off` has nothing of it, `metrics`
only the former. They are loaded in turn by wrk with 32 keep-alive connections: `mixed` is one of 200 users at random
for each request, `single` one user for each of 8 threads. What counts is the CPU time of all processes of a server, its
admin process included, divided by the requests answered; the ratio is formed within each round, in which the order
alternates, and the median of rounds is reported. Afterwards each request has to have its line in the log, each line has
to be JSON, and the scrapes must have counted all.

Needs wrk on the path. Sends to 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

from measure import APP, free_port
from mixed import LUA, USERS, System, check_sticky, load

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


class Scraper(threading.Thread):
    """Scrapes once a second, as a monitor does, while it is a context."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=OPENMETRICS)
        self._done = threading.Event()
        self.latest = ""
        self.count = 0

    def scrape(self) -> None:
        """Scrape once."""
        with urllib.request.urlopen(self._request, timeout=10) as response:
            self.latest = response.read().decode()
        self.count += 1

    def run(self) -> None:
        while not self._done.wait(1):
            self.scrape()

    def __enter__(self) -> Scraper:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def requests(self) -> int:
        """Return how many requests the latest scrape has counted."""
        lines = [line for line in self.latest.splitlines() if line.startswith("limpet_slot_requests_total{")]
        return sum(int(float(line.split()[1])) for line in lines)


def start(workers: int, where: Path) -> tuple[list[System], list[int], Path]:
    """Start the servers; return them, the ports of the admin processes and the log."""
    (where / "bench_app.py").write_text(APP)
    admin, also, log, systems = free_port(), free_port(), where / "requests.log", []
    on = ["--admin", f"127.0.0.1:{admin}", "--access-log", "--log-format", "json", "--log-file", str(log)]
    for name, extra in (("on", on), ("off", []), ("metrics", ["--admin", f"127.0.0.1:{also}"])):
        port = free_port()
        command = [sys.executable, "-m", "limpet", "run", "bench_app:app", "--workers", str(workers)]
        command += ["--by", "header:x-user", "--bind", f"127.0.0.1:{port}", "--control", str(where / f"{name}.sock")]
        systems.append(System(name, port, [[*command, "--state-dir", str(where), *extra]], where))
    return systems, [admin, also], log


def check(log: Path, scraper: Scraper) -> int:
    """Fail unless all that was switched on has done its work; return how many requests it was."""
    scraper.scrape()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    logged = sum(line["event"] == "request" for line in lines)
    assert logged == scraper.requests(), f"{logged} lines, {scraper.requests()} requests counted"
    return logged


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        script = where / "users.lua"
        script.write_text(LUA.replace("USERS", str(USERS)))
        systems, admins, log = start(options.workers, where)
        rounds = []
        try:
            for system in systems:
                system.wait_up()
                check_sticky(system)
            with Scraper(admins[0]) as scraper, Scraper(admins[1]):
                for number in range(options.rounds):
                    for kind in ("mixed", "single"):
                        order = systems if number % 2 else systems[::-1]
                        result = {system.name: load(system, script, number, kind, options.seconds) for system in order}
                        rounds.append({"round": number, "kind": kind, **result})
                        print(
                            kind,
                            {name: round(value["us_per_request"], 1) for name, value in result.items()},
                            flush=True,
                        )
            threading.Event().wait(1)  # until the last lines are written, 0.2 s later
            print(f"{check(log, scraper)} requests logged and counted, {scraper.count} scrapes")
        finally:
            for system in systems:
                system.stop()
    summary = {}
    for name, kind in ((name, kind) for name in ("on", "metrics") for kind in ("mixed", "single")):
        of_kind = [each for each in rounds if each["kind"] == kind]
        ratios = [each[name]["us_per_request"] / each["off"]["us_per_request"] for each in of_kind]
        found = {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        summary[f"{name}, {kind}"] = found
        print(f"{name}, {kind}: {found['median']:.3f} x the CPU per request of everything off")
    if options.output:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.release()}
        result = {"machine": machine, "workers": options.workers, "summary": summary, "rounds": rounds}
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
