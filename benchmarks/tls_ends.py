"""CPU per request where TLS ends in limpet's terminator and keys are in requests, against nginx that ends TLS.

    python benchmarks/tls_ends.py [--workers 2] [--rounds 10] [--seconds 3] [--output FILE]

Three systems run the same application on as many uvicorn workers (uvloop, httptools), with one certificate (P-256):

- `limpet` ends TLS itself: `--by header:x-user --tls-cert ...`, one terminator, one dispatcher.
- `nginx, uvicorn`: nginx ends TLS and hashes the header, with keep-alive connections to uvicorns that know of nothing.
- `nginx, limpet`: nginx ends TLS and has keep-alive connections to one limpet, which decides for each request.

They are loaded in turn by wrk, in one run, in another order in each round; 32 connections, of two threads. In `one
user` each thread has a user, at different workers, in `mixed` each request has a random one of 200, in `new` each
request has a connection with a full handshake. What counts is the CPU time of all processes of the system under test
(user + system, from /proc), divided by the requests that were answered; never the load's own, never a wall clock. The
ratio is formed within each round. Reported is its geometric mean over the rounds, with the 95 % interval of a
bootstrap over rounds.

Before the measurement each user is asked three times on one connection: it must meet one worker.

Sends to 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from measure import APP, cpu_s, free_port, interval, machine

SYSTEMS: Final = ("limpet", "nginx, uvicorn", "nginx, limpet")
KINDS: Final = ("one user", "mixed", "new")
PATIENCE_S: Final = 60.0
USERS: Final = 200
NGINX: Final = """
daemon off; worker_processes {workers}; pid {where}/nginx.pid; error_log {where}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000;
  client_body_temp_path {where}; proxy_temp_path {where}; fastcgi_temp_path {where}; uwsgi_temp_path {where};
  scgi_temp_path {where};
  upstream app {{ hash $http_x_user consistent; {servers} keepalive 64; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port} ssl backlog=2048; ssl_certificate {where}/cert.pem;
    ssl_certificate_key {where}/key.pem; ssl_protocols TLSv1.2 TLSv1.3; location / {{
    proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}
}}
"""
LUA: Final = """
local threads, kind, user = 0, nil, nil
function setup(thread) threads = threads + 1; thread:set("number", threads) end
function init(args) math.randomseed(number); kind, user = args[1], args[1 + number] end
function request()
  local headers = {["X-User"] = kind == "one" and user or "user-" .. math.random(200) - 1}
  if kind == "new" then headers["Connection"] = "close" end
  return wrk.format("GET", "/", headers)
end
"""


def make_pair(where: Path) -> None:
    """Write a certificate and its key into *where*."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=bench", "-days", "2"]
    files = ["-keyout", str(where / "key.pem"), "-out", str(where / "cert.pem")]
    subprocess.run(["openssl", "req", "-x509", *curve, *files], check=True, capture_output=True)


class System:
    """One system under test: its processes and its port."""

    def __init__(self, name: str, workers: int, where: Path) -> None:
        """Start it. *where* has the application and the certificate."""
        self.name, self.port, self._workers, self._where = name, free_port(), workers, where
        lines = [self._limpet(self.port, workers, "--tls-cert", "cert.pem", "--tls-key", "key.pem")]
        if name != "limpet":
            ports = [free_port() for _ in range(workers if name == "nginx, uvicorn" else 1)]
            lines = [self._uvicorn(port) for port in ports]
            if name == "nginx, limpet":
                lines = [self._limpet(ports[0], workers)]
            servers = "".join(f"server 127.0.0.1:{port} max_fails=0; " for port in ports)
            file = where / f"{name.replace(', ', '-')}.conf"
            file.write_text(NGINX.format(where=where, port=self.port, workers=workers, servers=servers))
            lines.append(["nginx", "-c", str(file)])
        self.processes = [subprocess.Popen(line, cwd=where) for line in lines]

    def _limpet(self, port: int, workers: int, *more: str) -> list[str]:
        line = [
            sys.executable,
            "-m",
            "limpet",
            "run",
            "bench_app:app",
            "--workers",
            str(workers),
            "--by",
            "header:x-user",
        ]
        line += ["--bind", f"127.0.0.1:{port}", "--state-dir", str(self._where), "--log-level", "warning", *more]
        return [*line, "--control", str(self._where / f"control-{port}"), "--loop", "uvloop"]

    def _uvicorn(self, port: int) -> list[str]:
        line = [sys.executable, "-m", "uvicorn", "bench_app:app", "--port", str(port), "--log-level", "warning"]
        return [*line, "--loop", "uvloop", "--http", "httptools", "--no-access-log"]

    def wait_up(self) -> None:
        """Wait until all workers answer, and each user meets one."""
        self._homes: dict[str, int] = {}
        deadline = time.monotonic() + PATIENCE_S
        while len(set(self._homes.values())) != self._workers:  # while one is missing, nginx asks another in its place
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: not {self._workers} workers have answered")
            try:
                self._homes = self._ask_all()
            except (OSError, ValueError, http.client.HTTPException, RuntimeError):
                time.sleep(0.1)

    def _ask_all(self) -> dict[str, int]:
        """Return which process serves each user. Raises RuntimeError if there are two."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=context)
        homes: dict[str, int] = {}
        for number in range(3 * USERS):
            user = f"user-{number * 7919 % USERS}"
            connection.request("GET", "/", headers={"X-User": user})
            pid = int(json.loads(connection.getresponse().read())["pid"])
            if homes.setdefault(user, pid) != pid:
                raise RuntimeError(f"{self.name} sent {user} to two workers")
        connection.close()
        return homes

    def measure(self, kind: str, seconds: float) -> dict[str, float]:
        """Load it once; return requests and CPU microseconds per request."""
        before = self._cpu_s()
        command = ["wrk", "-t", "2", "-c", "32", "-d", str(seconds), "-s", str(self._where / "load.lua")]
        neighbours = list({home: user for user, home in self._homes.items()}.values())  # at different workers
        command += [f"https://127.0.0.1:{self.port}/", "--", kind.partition(" ")[0], neighbours[0], neighbours[-1]]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = re.search(r"(\d+) requests in", said)
        if found is None or "Non-2xx" in said or "Socket errors" in said:
            raise RuntimeError(f"{self.name}, {kind}: {said}")
        return {"requests": int(found[1]), "us_per_request": (self._cpu_s() - before) / int(found[1]) * 1e6}

    def _cpu_s(self) -> float:
        return sum(cpu_s(process.pid) for process in self.processes)

    def stop(self) -> None:
        """End it."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(PATIENCE_S)


def compare(systems: list[System], kind: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Return all rounds of one *kind*, and what they amount to."""
    for system in systems:
        system.measure(kind, 1)  # for warmth
    measured: list[dict[str, dict[str, float]]] = []
    for number in range(rounds):
        shift = number % len(systems)
        order = [*systems[shift:], *systems[:shift]]
        measured.append({system.name: system.measure(kind, seconds) for system in order})
    summary: dict[str, Any] = {
        name: statistics.median(each[name]["us_per_request"] for each in measured) for name in SYSTEMS
    }
    for name in SYSTEMS[1:]:
        ratios = [each["limpet"]["us_per_request"] / each[name]["us_per_request"] for each in measured]
        ratio, low, high = interval(ratios, statistics.geometric_mean)
        summary[f"limpet / {name}"] = {"ratio": ratio, "low": low, "high": high}
        print(f"{kind}: limpet / {name} {ratio:.2f} ({low:.2f} to {high:.2f}) in {rounds} rounds")
    print(f"{kind}: " + ", ".join(f"{name} {summary[name]:.0f} us" for name in SYSTEMS), flush=True)
    return {"summary": summary, "rounds": measured}


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        (where / "bench_app.py").write_text(APP)
        (where / "load.lua").write_text(LUA)
        make_pair(where)
        systems: list[System] = []
        try:
            for name in SYSTEMS:
                systems.append(System(name, options.workers, where))
                systems[-1].wait_up()
            results = {kind: compare(systems, kind, options.rounds, options.seconds) for kind in options.kind or KINDS}
        finally:
            for system in systems:
                system.stop()
    if options.output:
        told = {"machine": machine(), "workers": options.workers, "kinds": results}
        options.output.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
