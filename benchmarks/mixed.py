"""CPU per request behind pooled connections: limpet against nginx `hash` with keep-alive upstreams.

    python benchmarks/mixed.py [--workers 2] [--rounds 5] [--seconds 4] [--output benchmarks/results/mixed.json]

Both systems run the same application on as many uvicorn processes (uvloop, httptools), by the same header, and are
loaded in turn, in one run, by wrk with 32 keep-alive connections: `mixed` picks one of 200 users at random for each
request, `single` gives the 4 connections of each of its 8 threads one user for life. What counts is the CPU time of
all processes of the system under test (user + system, from /proc), divided by the requests that wrk saw answered;
never wrk's own, never a wall clock. The ratio is formed within each round, the median over rounds is reported. Before
the measurement each system is checked to bring each user to one worker.

Needs wrk and nginx on the path. Sends to 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import APP, cpu_s, free_port

USERS = 200
CONNECTIONS = 32
THREADS = 8
LUA = """
local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end
function init(args)
  math.randomseed(tonumber(args[1]) * 1000 + number)
  mixed = args[2] == "mixed"
end
function request()
  local user = mixed and math.random(USERS) or number
  return wrk.format("GET", "/", {["X-User"] = "user" .. user})
end
"""
NGINX = """
daemon off; worker_processes {workers}; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000;
  client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir}; uwsgi_temp_path {dir};
  scgi_temp_path {dir};
  upstream app {{ hash $http_x_user consistent; {servers} keepalive 64; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; }} }}
}}
"""


class System:
    """One system under test: its processes and its port."""

    def __init__(self, name: str, port: int, commands: list[list[str]], cwd: Path) -> None:
        self.name, self.port = name, port
        self.log = open(cwd / f"{name}.log", "w")  # noqa: SIM115 -- closed in `stop`
        self.processes = [subprocess.Popen(command, cwd=cwd, stderr=self.log, stdout=self.log) for command in commands]

    def wait_up(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + 120  # under callgrind; else 2
        while True:
            try:
                if ask(self.port, "probe")["pid"]:
                    return
            except (OSError, ValueError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes."""
        return sum(cpu_s(process.pid) for process in self.processes)

    def stop(self) -> None:
        """End it."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)
        self.log.close()


def ask(port: int, user: str, connection: http.client.HTTPConnection | None = None) -> dict[str, int]:
    """Return what the application says to *user*."""
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/", headers={"X-User": user})
    answer: dict[str, int] = json.loads(connection.getresponse().read())
    return answer


def check_sticky(system: System) -> int:
    """Fail unless each user has one worker on a mixed connection; return how many workers were used."""
    connection = http.client.HTTPConnection("127.0.0.1", system.port, timeout=10)
    homes: dict[str, int] = {}
    for number in range(USERS * 5):
        user = f"user{number * 7919 % USERS}"
        pid = ask(system.port, user, connection)["pid"]
        assert homes.setdefault(user, pid) == pid, f"{system.name} sent {user} to two workers"
    connection.close()
    return len(set(homes.values()))


def load(system: System, script: Path, seed: int, kind: str, seconds: float) -> dict[str, float]:
    """Load *system* once; return requests, CPU microseconds per request and errors."""
    before = system.cpu_s()
    command = [
        "wrk",
        f"-t{THREADS}",
        f"-c{CONNECTIONS}",
        f"-d{seconds:g}s",
        "-s",
        str(script),
        f"http://127.0.0.1:{system.port}/",
    ]
    run = subprocess.run([*command, "--", str(seed), kind], capture_output=True, text=True, check=True)
    used = system.cpu_s() - before
    found = re.search(r"(\d+) requests in", run.stdout)
    assert found, run.stdout
    requests = int(found[1])
    errors = re.search(r"Socket errors: (.*)|Non-2xx or 3xx responses: (.*)", run.stdout)
    return {"requests": requests, "us_per_request": used / requests * 1e6, "errors": 0 if errors is None else 1}


def start_systems(workers: int, where: Path, prefix: list[str] | None = None) -> list[System]:
    """Start limpet, by *prefix* if that is given, and nginx before as many uvicorns."""
    (where / "bench_app.py").write_text(APP)
    limpet_port, nginx_port = free_port(), free_port()
    ports = [free_port() for _ in range(workers)]
    servers = " ".join(f"server 127.0.0.1:{port};" for port in ports)
    (where / "nginx.conf").write_text(NGINX.format(dir=where, servers=servers, port=nginx_port, workers=workers))
    uvicorn = [sys.executable, "-m", "uvicorn", "bench_app:app", "--log-level", "warning", "--no-access-log"]
    uvicorns = [[*uvicorn, "--port", str(port), "--loop", "uvloop", "--http", "httptools"] for port in ports]
    limpet = [*(prefix or []), sys.executable, "-m", "limpet", "run", "bench_app:app", "--workers", str(workers)]
    limpet += [
        "--by",
        "header:x-user",
        "--bind",
        f"127.0.0.1:{limpet_port}",
        "--control",
        str(where / "control"),
        "--state-dir",
        str(where),
    ]
    return [
        System("limpet", limpet_port, [limpet], where),
        System("nginx", nginx_port, [*uvicorns, ["nginx", "-c", str(where / "nginx.conf"), "-p", str(where)]], where),
    ]


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        os.chmod(where, 0o755)  # nginx's workers are another user
        script = where / "users.lua"
        script.write_text(LUA.replace("USERS", str(USERS)))
        systems = start_systems(options.workers, where)
        try:
            for system in systems:
                system.wait_up()
                print(f"{system.name}: each user one worker, {check_sticky(system)} workers used")
            rounds = []
            for number in range(options.rounds):
                for kind in ("mixed", "single"):
                    order = systems if number % 2 else systems[::-1]
                    result = {system.name: load(system, script, number, kind, options.seconds) for system in order}
                    rounds.append({"round": number, "kind": kind, **result})
                    print(kind, {name: round(value["us_per_request"], 1) for name, value in result.items()})
        finally:
            for system in systems:
                system.stop()
    summary = {}
    for kind in ("mixed", "single"):
        ratios = [r["limpet"]["us_per_request"] / r["nginx"]["us_per_request"] for r in rounds if r["kind"] == kind]
        summary[kind] = {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        print(f"{kind}: limpet needs {summary[kind]['median']:.2f} x the CPU of nginx + uvicorn per request")
    if options.output:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.release()}
        result = {"machine": machine, "workers": options.workers, "summary": summary, "rounds": rounds}
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
