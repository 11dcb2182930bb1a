"""What one connection costs: memory and descriptors of a worker, CPU time of the dispatcher and of the worker.

Opens connections from 127.0.0.2 on, each with a cookie of its own and one request, keeps them open, and reads /proc
before and after. CPU time is that of the process, so other work on the machine changes it little.

    make capacity

writes benchmarks/results/capacity.json, and its figures into docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from limpet.operate.control_socket import ask

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PORT = re.compile(r"serving .*?http://\S*:(\d+)")


def seen(pid: int) -> dict[str, float]:
    """Return what the process *pid* has and has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return {
        "cpu_s": (int(fields[11]) + int(fields[12])) * TICK_S,
        "memory_bytes": pages * resource.getpagesize(),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
    }


def connect(port: int, number: int) -> socket.socket:
    """Return a connection that has had a response."""
    client = socket.create_connection(("127.0.0.1", port), 30, source_address=(f"127.0.0.{2 + number % 200}", 0))
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nCookie: user=user-%d\r\n\r\n" % number)
    assert client.recv(4096).startswith(b"HTTP/1.1 200")
    return client


def measured(control: str, port: int, connections: int) -> dict[str, Any]:
    """Return what each of *connections* has cost."""
    warm = [connect(port, number) for number in range(200)]
    status = ask(control, {"command": "status"})
    workers = [slot["pid"] for slot in status["slots"]]
    pids = {"dispatcher": [status["dispatchers"][0]["pid"]], "workers": workers}
    before = {kind: [seen(pid) for pid in each] for kind, each in pids.items()}
    open_now = [connect(port, number) for number in range(200, 200 + connections)]
    after = {kind: [seen(pid) for pid in each] for kind, each in pids.items()}
    for client in warm + open_now:
        client.close()
    return {
        kind: {
            name: round(sum(a[name] - b[name] for a, b in zip(after[kind], before[kind], strict=True)) / connections, 7)
            for name in after[kind][0]
        }
        for kind in pids
    }


def renewed(page: str, cost: dict[str, dict[str, float]]) -> str:
    """Return *page*, docs/scaling.md, with the figures of *cost*."""
    front, workers = cost["dispatcher"], cost["workers"]
    new_us = f"{front['cpu_s'] * 1e6:.0f} us"
    a_second = f"{round(1 / front['cpu_s'], -2):,.0f}" if front["cpu_s"] else "?"
    for pattern, text in (
        (r"(?<=first request \| ).* us(?= \|)", f"{new_us} | {workers['cpu_s'] * 1e6:.0f} us"),
        (
            r"(?<=while it is open \| ).* KiB(?=, without)",
            f"{front['memory_bytes'] / 1024:.1f} KiB | {workers['memory_bytes'] / 1024:.1f} KiB",
        ),
        (r"(?<=10,000 open connections are )\S+(?= MB)", f"{workers['memory_bytes'] * 10_000 / 1e6:.0f}"),
        (r"\d+ us(?= for each \*new\*)", new_us),
        (r"(?<=are at most )\S+(?= in a second)", a_second),
    ):
        page, number = re.subn(pattern, text, page)
        assert number == 1, pattern
    return page


def main() -> None:
    """Start a server, measure, print; or write what was measured into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--page", nargs=2, type=Path, metavar=("RESULTS", "PAGE"), help="measure nothing")
    given = parser.parse_args()
    connections = given.connections
    if given.page:
        results, page = given.page
        page.write_text(renewed(page.read_text(), json.loads(results.read_text())["per_connection"]))
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * connections)), hard))
    with tempfile.TemporaryDirectory() as folder:
        control = f"{folder}/control"
        words = [
            "limpet",
            "run",
            "examples.hello:app",
            "--bind",
            "127.0.0.1:0",
            "--workers",
            "2",
            "--by",
            "cookie:user",
        ]
        words += ["--state-dir", folder, "--control", control, "--keep-alive-timeout", "600"]
        server = subprocess.Popen([sys.executable, "-m", *words], stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        port = 0
        for line in server.stderr:
            if found := PORT.search(line):
                port = int(found[1])
                break
        try:
            result = measured(control, port, connections)
        finally:
            server.terminate()
            server.stderr.read()
            server.wait(60)
    told = {"connections": connections, "python": platform.python_version(), "kernel": platform.release()}
    print(json.dumps({**told, "per_connection": result}, indent=1))


if __name__ == "__main__":
    main()
