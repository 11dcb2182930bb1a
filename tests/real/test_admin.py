"""The admin process: metrics and health at an address of their own, and that it costs the server nothing."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric, parser
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from limpet.operate.admin.metrics import FAMILIES
from tests.harness import HERE, PATIENCE_S, Limpet, Reply, fetch, free_port, wait_until

ROOT = HERE.parent
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
DASHBOARD = json.loads((ROOT / "examples" / "grafana.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
ADDED_BY_SCRAPER = {"job", "instance"}


@pytest.fixture(scope="module")
def server() -> Iterator[Limpet]:
    """A server of two workers behind dispatchers, with an admin process."""
    with Limpet("tests.apps:echo", "--workers", "2", "--by", "header:x-user", "--admin", "127.0.0.1:0") as server:
        yield server


def admin(server: Limpet, path: str, accept: str = "") -> Reply:
    """Return what the admin process answers; the first time this waits until it is there."""
    address = server.status()["admin"].removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)
    try:
        return fetch(connection, path, accept=accept)
    finally:
        connection.close()


def scraped(server: Limpet) -> dict[str, Metric]:
    """Return a scrape by the name of the metric, read as a monitor reads it."""
    reply = admin(server, "/metrics", accept=OPENMETRICS)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    read = text_string_to_metric_families(reply.body.decode())  # type: ignore[no-untyped-call]
    return {family.name: family for family in read}


def pid_of_admin(server: Limpet) -> int | None:
    """Return the pid of the admin process."""
    for pid in server.processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"limpet.operate.admin" in words:
            return pid
    return None


def test_every_declared_figure_is_in_a_scrape(server: Limpet) -> None:
    """What is declared and not shown is forgotten by who declared it; what is shown is in docs/metrics.md."""
    wait_until(lambda: scraped(server)["limpet_slot_heartbeat_age_seconds"].samples, "workers had a heartbeat")
    families = scraped(server)
    assert families.keys() == {family.name for family in FAMILIES}
    page = (ROOT / "docs" / "metrics.md").read_text()
    for family in FAMILIES:
        found = families[family.name]
        assert (found.type, found.unit, found.documentation) == (family.kind, family.unit, family.meaning)
        assert found.samples, family.name
        assert f"| `{family.shown}` |" in page
    labels = {label for family in families.values() for sample in family.samples for label in sample.labels}
    assert labels == {"slot", "status", "table", "le"}


def test_metrics_count_what_happened(server: Limpet) -> None:
    """A figure that looks right and counts something else is worse than none."""

    def total(name: str) -> float:
        family = scraped(server)[name]
        return sum(s.value for s in family.samples if s.name.endswith(("_total", "_count")))

    before = {name: total(name) for name in ("limpet_slot_requests", "limpet_slot_handoff_seconds")}
    for number in range(20):
        assert server.request(x_user=f"user{number}").status == 200
    wait_until(lambda: all(total(name) == value + 20 for name, value in before.items()), "both count 20 more")
    assert total("limpet_dispatcher_accepted") == total("limpet_slot_received")
    [workers] = [s for s in scraped(server)["limpet_table_used"].samples if s.labels["table"] == "workers"]
    assert workers.value == 2


def test_older_monitors_get_the_text_format(server: Limpet) -> None:
    """A Prometheus that asks for nothing else, and curl."""
    reply = admin(server, "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    assert list(parser.text_string_to_metric_families(reply.body.decode()))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_dashboard_asks_for_what_there_is(server: Limpet, expression: str) -> None:
    """A panel on a metric, or by a label, that does not exist stays empty and looks like peace."""
    known: dict[str, set[str]] = {}
    for family in scraped(server).values():
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    asked = re.findall(r"(limpet_\w+)\{([^}]*)\}", expression)
    assert len(asked) == expression.count("limpet_")
    grouped = {word for group in re.findall(r"by \(([^)]*)\)", expression) for word in re.findall(r"\w+", group)}
    for name, selector in asked:
        assert name in known
        assert set(re.findall(r"(\w+)=", selector)) <= known[name] | ADDED_BY_SCRAPER
        assert grouped <= known[name] or any(grouped <= known[other] for other, _ in asked)


def test_health_of_a_server_that_serves(server: Limpet) -> None:
    """What a balancer and an orchestrator ask."""
    assert admin(server, "/live").body == b"live\n"
    assert (admin(server, "/ready").status, admin(server, "/ready").body) == (200, b"ready\n")
    assert admin(server, "/nothing").status == 404


def test_admin_process_that_dies_is_replaced_and_nobody_else_notices(server: Limpet) -> None:
    """It may be killed at any moment: who connects meanwhile waits for the next one."""
    admin(server, "/live")
    workers = [slot["pid"] for slot in server.status()["slots"]]
    pid = pid_of_admin(server)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert server.request(x_user="ada").status == 200
    assert admin(server, "/live").status == 200
    assert pid_of_admin(server) not in (None, pid)
    assert [slot["pid"] for slot in server.status()["slots"]] == workers


def test_admin_process_that_is_stopped_is_replaced() -> None:
    """A monitor that gets no answer takes the whole server for one that hangs."""
    flags = ("--workers", "1", "--admin", "127.0.0.1:0", "--hang-timeout", "1")
    with Limpet("tests.apps:echo", *flags) as server:
        assert admin(server, "/live").status == 200
        pid = pid_of_admin(server)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert admin(server, "/live").status == 200
        assert pid_of_admin(server) not in (None, pid)
        assert "the admin process was stopped for 1 s" in server.log


def test_pause_of_the_supervisor_is_not_the_admin_process_s_fault() -> None:
    """Nobody has heard its heartbeats meanwhile: whoever is replaced after each pause answers to nobody then."""
    flags = ("--workers", "1", "--admin", "127.0.0.1:0", "--hang-timeout", "1")
    with Limpet("tests.apps:echo", *flags) as server:
        assert admin(server, "/live").status == 200
        pid = pid_of_admin(server)
        assert pid is not None
        for process in (server.pid, pid):
            os.kill(process, signal.SIGSTOP)
        over = time.monotonic() + 3
        wait_until(lambda: time.monotonic() > over, "the pause is over")
        for process in (server.pid, pid):
            os.kill(process, signal.SIGCONT)
        wait_until(lambda: "this process could not run" in server.log, "the supervisor has noticed")
        for _ in range(8):
            assert admin(server, "/live").status == 200
        assert pid_of_admin(server) == pid


_SAYS = """
import json, os, sys
if "limpet.operate.admin" in sys.orig_argv:
    told = json.loads(os.pread(int(sys.orig_argv[-1]), 1 << 20, 0))
    os.write(told["line"], {said})
"""  # a module that each Python imports when it starts


def test_what_the_admin_process_says_is_not_believed(tmp_path: Path) -> None:
    """It runs as `--user` and is reached from outside: no word of it may end the supervisor."""
    said = r'b"garbage\n[1]\n5\n{\"do\": \"stop\"}\n\xff\n\n" + b"x" * 10_000'
    (tmp_path / "sitecustomize.py").write_text(_SAYS.format(said=said))
    env = {"PYTHONPATH": str(tmp_path)}
    with Limpet("tests.apps:echo", "--workers", "1", "--admin", "127.0.0.1:0", env=env) as server:
        assert admin(server, "/live").status == 200
        assert "the admin process" not in server.log


def test_admin_process_that_never_stops_talking_is_ended(tmp_path: Path) -> None:
    """Else the supervisor would be busy with nothing but listening to it."""
    (tmp_path / "sitecustomize.py").write_text(_SAYS.format(said='b"x" * 10_000_000'))
    env = {"PYTHONPATH": str(tmp_path)}
    with Limpet("tests.apps:echo", "--workers", "1", "--admin", "127.0.0.1:0", env=env) as server:
        wait_until(lambda: "the admin process has said more than" in server.log, "it was ended")
        assert server.request("/").status == 200


def test_events_are_there_to_follow(server: Limpet) -> None:
    """What happened to the workers, for who was not there to see it."""
    events = server.ask(command="events")["events"]
    ready = [event for event in events if event["event"] == "ready"]
    assert {event["slot"] for event in ready} == {0, 1}
    assert server.ask(command="events", after=events[-1]["number"])["events"] == []


def test_server_that_starts_or_cannot_serve_a_slot_is_not_ready(tmp_path: Path) -> None:
    """New clients must not be sent where they would wait for long, or for nothing."""
    gate = tmp_path / "gate"
    port = free_port()
    server = Limpet(
        "tests.apps:gated_start", "--workers", "4", "--admin", f"127.0.0.1:{port}", env={"TEST_GATE": str(gate)}
    )
    with server.launched():
        wait_until(lambda: "admin at" in server.log, "the admin process is started")
        assert admin(server, "/live").status == 200
        reply = admin(server, "/ready")
        assert (reply.status, reply.body) == (503, b"the server is starting\n")
        gate.touch()
        server.wait_serving()
        wait_until(lambda: admin(server, "/ready").status == 200, "it is ready")


def test_unix_socket_is_for_its_owner(tmp_path: Path) -> None:
    """Its owner may ask the control socket as well, and so acts without a token; nobody else connects."""
    path = tmp_path / "admin.sock"
    with Limpet("tests.apps:echo", "--workers", "1", "--admin", f"unix:{path}") as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(path))
            client.sendall(b"GET /live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
        pid, body = server.worker(0)["pid"], b'{"command": "reload"}'
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(path))
            head = f"host: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(b"POST /do HTTP/1.1\r\n" + head.encode() + body)
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
        server.wait_ready(0, other_than=pid)
    assert not path.exists()


def test_address_that_is_taken_ends_the_start() -> None:
    """Else a server would run that nobody can look into."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = Limpet("tests.apps:echo", "--workers", "1", "--admin", address)
        with server.launched():
            assert server.wait_ended() == 3
            assert f"cannot listen on `{address}`" in server.log
            assert not Path(server.control).exists()


def test_admin_process_goes_with_a_supervisor_that_is_killed() -> None:
    """It must not answer for a server that is no more."""
    server = Limpet("tests.apps:echo", "--workers", "1", "--admin", "127.0.0.1:0")
    with server.launched():
        server.wait_serving()
        admin(server, "/live")
        os.kill(server.pid, signal.SIGKILL)
        server.wait_gone()


def test_upgrade_keeps_the_address() -> None:
    """Who scrapes meanwhile waits for a moment, and is not refused."""
    with Limpet("tests.apps:echo", "--workers", "1", "--admin", "127.0.0.1:0") as server:
        before = server.status()["admin"]
        server.signal(signal.SIGUSR2)
        wait_until(lambda: "workers keep serving" in server.log, "the supervisor was replaced")
        assert server.status()["admin"] == before
        assert admin(server, "/ready").status == 200
        [upgrades] = scraped(server)["limpet_upgrades"].samples
        assert upgrades.value == 1
