"""The systems that the benchmarks compare, each with the same application on as many workers.

`SYSTEMS` says how each is started. A system is all its processes: what a front tier needs counts as well as the
workers.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from measure import cpu_s, free_port, pss_bytes, tree

HERE: Final = Path(__file__).parent
PATIENCE_S: Final = 30.0
USERS: Final = 200
NGINX: Final = """
daemon off; worker_processes {workers}; worker_rlimit_nofile 65536; pid {where}/nginx.pid; error_log {where}/error.log;
events {{ worker_connections 30000; }}
http {{
  access_log off; keepalive_requests 1000000; client_max_body_size 0;
  client_body_temp_path {where}; proxy_temp_path {where}; fastcgi_temp_path {where}; uwsgi_temp_path {where};
  scgi_temp_path {where};
  map $http_upgrade $upgrade {{ default upgrade; "" ""; }}
  upstream app {{ hash $http_x_user consistent; {servers} keepalive 64; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port} backlog=2048; location / {{
    proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection $upgrade;
    proxy_set_header Upgrade $http_upgrade; proxy_set_header Host $host; proxy_read_timeout 1h; }} }}
}}
"""
HAPROXY: Final = """
global
  nbthread {workers}
  maxconn 8000
  stats socket {where}/haproxy.sock
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  option http-keep-alive
frontend front
  bind 127.0.0.1:{port}
  default_backend app
backend app
  balance hdr(x-user)
  hash-type consistent
  http-reuse always
{servers}
"""


# From the port, the number of workers and a folder to the command lines of a system's processes.
Start = Callable[[int, int, Path], list[list[str]]]


def _limpet(backend: str, by: str) -> Start:
    def commands(port: int, workers: int, where: Path) -> list[list[str]]:
        line = ["-m", "limpet", "run", "bench_app:app", "--workers", str(workers), "--bind", f"127.0.0.1:{port}"]
        line += ["--by", by, "--backend", backend, "--control", str(where / "control"), "--state-dir", str(where)]
        return [[sys.executable, *line, "--log-level", "warning"]]

    return commands


def _uvicorn_line(port: int) -> list[str]:
    line = [sys.executable, "-m", "uvicorn", "bench_app:app", "--port", str(port), "--log-level", "warning"]
    return [*line, "--loop", "uvloop", "--http", "httptools", "--no-access-log"]


def _uvicorn(port: int, workers: int, where: Path) -> list[list[str]]:
    return [[*_uvicorn_line(port), "--workers", str(workers)]]


def _gunicorn(port: int, workers: int, where: Path) -> list[list[str]]:
    line = [sys.executable, "-m", "gunicorn", "bench_app:app", "--bind", f"127.0.0.1:{port}", "--keep-alive", "75"]
    return [[*line, "--workers", str(workers), "--worker-class", "uvicorn_worker.UvicornWorker"]]


def _granian(port: int, workers: int, where: Path) -> list[list[str]]:
    line = [str(Path(sys.executable).parent / "granian"), "--interface", "asgi", "--host", "127.0.0.1"]
    line += ["--port", str(port), "--workers", str(workers), "--no-log", "bench_app:app"]
    return [line]


def _behind(config: str, server: str, command: list[str]) -> Start:
    """Return how to start *command* on *config*, before as many uvicorns as there are workers."""

    def commands(port: int, workers: int, where: Path) -> list[list[str]]:
        ports = [free_port() for _ in range(workers)]
        servers = "".join(server.format(port=each) for each in ports)
        file = where / f"{command[0]}.conf"
        file.write_text(config.format(where=where, port=port, workers=workers, servers=servers))
        return [*map(_uvicorn_line, ports), [*command, str(file)]]

    return commands


def _node(kind: str) -> Start:
    def commands(port: int, workers: int, where: Path) -> list[list[str]]:
        return [["node", str(HERE / "node" / "server.js"), kind, str(port), str(workers)]]

    return commands


SYSTEMS: Final[dict[str, Start]] = {
    "limpet kernel": _limpet("kernel", "ip"),
    "limpet dispatcher": _limpet("dispatcher", "header:x-user"),
    "uvicorn": _uvicorn,
    "gunicorn": _gunicorn,
    "granian": _granian,
    "nginx": _behind(NGINX, "server 127.0.0.1:{port} max_fails=0; ", ["nginx", "-c"]),
    "haproxy": _behind(HAPROXY, "  server s{port} 127.0.0.1:{port}\n", ["haproxy", "-f"]),
    "node cluster": _node("cluster"),
    "node sticky ip": _node("ip"),
    "node sticky header": _node("header"),
}
# Whose requests on one connection reach a worker for each user, and whose connections do.
PER_REQUEST: Final = {"limpet dispatcher", "nginx", "haproxy"}
PER_CONNECTION: Final = PER_REQUEST | {"node sticky header"}


class System:
    """A running system under test."""

    def __init__(self, name: str, workers: int, where: Path) -> None:
        """Start it; wait until all its workers have answered. *where* is a folder of its own."""
        self.name, self.workers, self.where, self.port = name, workers, where, free_port()
        self._log = open(where / "log", "w")  # noqa: SIM115 -- closed in `stop`
        lines = SYSTEMS[name](self.port, workers, where)
        env = {**os.environ, "PYTHONPATH": str(HERE)}
        self.processes = [
            subprocess.Popen(line, cwd=where, env=env, stdout=self._log, stderr=self._log) for line in lines
        ]
        self._wait_up()

    def _wait_up(self) -> None:
        seen: set[int] = set()
        deadline = time.monotonic() + PATIENCE_S
        number = 0
        while len(seen) < self.workers:
            number += 1
            try:
                seen.add(self.ask(f"10.1.{number % 7}.{number % 251}", f"127.2.{number % 7}.{number % 251}"))
            except (OSError, ValueError, http.client.HTTPException):
                time.sleep(0.05)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: {len(seen)} of {self.workers} workers have answered")

    def ask(self, user: str, address: str = "127.0.0.1", connection: http.client.HTTPConnection | None = None) -> int:
        """Return which process answers *user*, on *connection* or a new one from *address*."""
        kept = connection is not None
        connection = connection or http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=10, source_address=(address, 0)
        )
        connection.request("GET", "/", headers={"X-User": user, "X-Forwarded-For": user})
        pid = int(json.loads(connection.getresponse().read())["pid"])
        if not kept:
            connection.close()
        return pid

    def check_sticky(self) -> None:
        """Fail unless each user has one worker, where that is what this system promises."""
        kept = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10) if self.name in PER_REQUEST else None
        homes: dict[str, int] = {}
        for number in range(USERS * 3 if self.name in PER_CONNECTION else 0):
            user = f"10.0.0.{number * 7919 % USERS}"
            pid = self.ask(user, connection=kept)
            if homes.setdefault(user, pid) != pid:
                raise AssertionError(f"{self.name} sent {user} to two workers")
        if kept:
            kept.close()

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes."""
        return sum(cpu_s(process.pid) for process in self.processes)

    def pss_bytes(self) -> int:
        """Return the memory of all its processes; what several share is counted once."""
        return sum(pss_bytes(pid) for process in self.processes for pid in tree(process.pid))

    def stop(self) -> None:
        """End it."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()
