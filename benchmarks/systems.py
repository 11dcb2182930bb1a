"""The systems that the benchmarks compare, each with the same application on as many workers.

`SYSTEMS` says how each is started. A system is all its processes: what a front tier needs counts as well as the
workers.
"""

from __future__ import annotations

import contextlib
import csv
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Final, NamedTuple

from measure import birth, connections, cpu_s, free_port, pss_bytes, tree

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


class Plan(NamedTuple):
    """How a system is started: the command *lines* of its processes, and the ports that are not the clients'."""

    lines: list[list[str]]
    upstreams: Sequence[int] = ()  # where a balancer's workers are
    admin: int = 0  # where metrics are scraped


# From the port, the number of workers and a folder of its own.
Start = Callable[[int, int, Path], Plan]


def _limpet(backend: str, by: str, *more: str, admin: bool = False) -> Start:
    def plan(port: int, workers: int, where: Path) -> Plan:
        line = [sys.executable, "-m", "limpet", "run", "bench_app:app", "--workers", str(workers)]
        line += ["--bind", f"127.0.0.1:{port}", "--by", by, "--backend", backend, "--log-level", "warning"]
        line += ["--control", str(where / "control"), "--state-dir", str(where), *more]
        if not admin:
            return Plan([line])
        scraped = free_port()
        return Plan([[*line, "--admin", f"127.0.0.1:{scraped}"]], admin=scraped)

    return plan


def _uvicorn_line(port: int) -> list[str]:
    line = [sys.executable, "-m", "uvicorn", "bench_app:app", "--port", str(port), "--log-level", "warning"]
    return [*line, "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--timeout-keep-alive", "75"]


def _uvicorn(port: int, workers: int, where: Path) -> Plan:
    return Plan([[*_uvicorn_line(port), "--workers", str(workers)]])


def _gunicorn(port: int, workers: int, where: Path) -> Plan:
    line = [sys.executable, "-m", "gunicorn", "bench_app:app", "--bind", f"127.0.0.1:{port}", "--keep-alive", "75"]
    return Plan([[*line, "--workers", str(workers), "--worker-class", "uvicorn_worker.UvicornWorker"]])


def _granian(port: int, workers: int, where: Path) -> Plan:
    line = [str(Path(sys.executable).parent / "granian"), "--interface", "asgi", "--host", "127.0.0.1"]
    return Plan([[*line, "--port", str(port), "--workers", str(workers), "--no-log", "bench_app:app"]])


def _behind(config: str, server: str, command: list[str]) -> Start:
    """Return how to start *command* on *config*, before as many uvicorns as there are workers."""

    def plan(port: int, workers: int, where: Path) -> Plan:
        ports = [free_port() for _ in range(workers)]
        servers = "".join(server.format(port=each) for each in ports)
        file = where / f"{command[0]}.conf"
        file.write_text(config.format(where=where, port=port, workers=workers, servers=servers))
        return Plan([*map(_uvicorn_line, ports), [*command, str(file)]], upstreams=ports)

    return plan


def _node(kind: str) -> Start:
    def plan(port: int, workers: int, where: Path) -> Plan:
        return Plan([["node", str(HERE / "node" / "server.js"), kind, str(port), str(workers)]])

    return plan


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
    "node socket.io sticky": _node("socketio"),
    # What an operator's view costs: metrics that are scraped; those, and a line of JSON for each request.
    "limpet metrics": _limpet("dispatcher", "header:x-user", admin=True),
    "limpet everything": _limpet(
        "dispatcher", "header:x-user", "--access-log", "--log-format", "json", "--log-file", "requests.log", admin=True
    ),
}
# Whose requests on one connection reach a worker for each user, whose connections do, and whose do for each address.
PER_REQUEST: Final = {"limpet dispatcher", "limpet metrics", "limpet everything", "nginx", "haproxy"}
PER_CONNECTION: Final = PER_REQUEST | {"node sticky header"}
PER_ADDRESS: Final = {"limpet kernel", "node sticky ip"}


def _connects(counter: Path) -> int:
    """Return how many connections HAProxy has opened to its workers, by its socket *counter*."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(counter))
        sock.sendall(b"show stat\n")
        rows = csv.DictReader(sock.makefile("r"))
        return sum(int(row["connect"]) for row in rows if row["svname"] == "BACKEND")


class System:
    """A running system under test."""

    def __init__(self, name: str, workers: int, where: Path, prefix: Sequence[str] = ()) -> None:
        """Start it, by *prefix* if that is given; wait until all its workers have answered.

        *where* is a folder of its own. What does not come up is ended again. Raises OSError.
        """
        self.name, self.workers, self.where, self.port = name, workers, where, free_port()
        self.plan = SYSTEMS[name](self.port, workers, where)
        self._patience_s = 4 * PATIENCE_S if prefix else PATIENCE_S
        self._log = open(where / "log", "w+")  # noqa: SIM115 -- closed in `stop`
        self._processes: list[subprocess.Popen[bytes]] = []
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPATH"] = str(HERE)
        try:
            for line in self.plan.lines:
                started = subprocess.Popen(
                    [*prefix, *line], cwd=where, env=env, stdout=self._log, stderr=self._log, start_new_session=True
                )
                self._processes.append(started)
            self._wait_up()
        except BaseException:  # a signal, too
            self.stop()
            raise

    def _wait_up(self) -> None:
        seen: set[int] = set()
        deadline = time.monotonic() + self._patience_s
        for number in cycle(range(7 * 251)):
            try:
                seen.add(self.ask(f"10.1.{number % 7}.{number % 251}", f"127.2.{number % 7}.{number % 251}"))
            except (OSError, ValueError, http.client.HTTPException):
                time.sleep(0.05)
            if len(seen) == self.workers:
                return
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                raise TimeoutError(f"{len(seen)} of {self.workers} workers have answered; {self.last_words()}")

    def last_words(self) -> str:
        """Return the last line of its log."""
        self._log.seek(0)
        return f"its log ends in {self._log.read().strip().rpartition(chr(10))[2]!r}"

    def ask(self, user: str, address: str = "127.0.0.1", connection: http.client.HTTPConnection | None = None) -> int:
        """Return which process answers *user*, on *connection* or a new one from *address*."""
        kept = connection is not None
        connection = connection or http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=self._patience_s, source_address=(address, 0)
        )
        try:
            connection.request("GET", "/", headers={"X-User": user, "X-Forwarded-For": user})
            return int(json.loads(connection.getresponse().read())["pid"])
        finally:
            if not kept:
                connection.close()

    def check_sticky(self) -> None:
        """Raise RuntimeError unless each user, or address, has one worker, where that is what this system promises."""
        kept = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self._patience_s)
        homes: dict[str, int] = {}
        with contextlib.closing(kept):
            for number in range(USERS * 3):
                user, address = f"10.0.0.{number * 7919 % USERS}", f"127.3.0.{1 + number * 7919 % USERS}"
                if self.name in PER_ADDRESS:
                    pid = self.ask(f"10.0.0.{number}", address)
                elif self.name in PER_CONNECTION:
                    pid = self.ask(user, connection=kept if self.name in PER_REQUEST else None)
                else:
                    return
                if homes.setdefault(user, pid) != pid:
                    raise RuntimeError(f"{user} was sent to two workers")
        if len(set(homes.values())) != self.workers:
            raise RuntimeError(f"{USERS} users were sent to {len(set(homes.values()))} of {self.workers} workers")

    def check_reuse(self, answered: int) -> None:
        """Raise RuntimeError if a balancer has not kept its connections to its workers, after *answered* requests."""
        counter = self.where / "haproxy.sock"  # it ends connections without a trace in the kernel, but counts them
        made = _connects(counter) if counter.exists() else sum(map(connections, self.plan.upstreams))
        if made * 10 > answered:
            raise RuntimeError(f"{made} connections to the workers for {answered} requests: they are not re-used")

    def processes(self) -> Iterator[int]:
        """Yield the pids of all its processes."""
        for process in self._processes:
            yield from tree(process.pid)

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes."""
        return sum(cpu_s(process.pid) for process in self._processes)

    def pss_bytes(self) -> int:
        """Return the memory of all its processes; what several share is counted once."""
        return sum(map(pss_bytes, self.processes()))

    def stop(self) -> None:
        """End it, and what it would leave behind."""
        born = {pid: birth(pid) for pid in self.processes()}
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        while left := [pid for pid, since in born.items() if since and birth(pid) == since]:
            for pid in left if time.monotonic() > deadline else []:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        for process in self._processes:
            process.wait()
        self._log.close()
