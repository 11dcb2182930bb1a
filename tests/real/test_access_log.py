"""The access log, and logs as JSON: every request once, how it was routed, and no key."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from limpet.config.server_kinds import KINDS
from tests.harness import Limpet, fetch, wait_until
from tests.wire import Wire, request

JSON = ("--access-log", "--log-format", "json")
FIELDS = ("timestamp", "level", "event", "slot", "digest", "route", "method", "path", "status", "seconds", "waited")


def entries(server: Limpet) -> list[dict[str, Any]]:
    """Return all log lines, each of which has to be a JSON object."""
    found = [json.loads(line) for line in server.lines]
    assert all(entry["timestamp"] and entry["level"] and entry["event"] for entry in found)
    return found


def requests(server: Limpet, count: int) -> list[dict[str, Any]]:
    """Wait for *count* lines of requests; return them."""
    wait_until(lambda: sum('"event": "request"' in line for line in server.lines) >= count, f"{count} requests logged")
    found = [entry for entry in entries(server) if entry["event"] == "request"]
    assert len(found) == count
    return found


def serving(*args: str) -> Limpet:
    """Return a server that logs as JSON, to be entered."""
    return JsonLimpet("tests.apps:echo", *args, *JSON)


class JsonLimpet(Limpet):
    """Knows its port by the control socket, since the log is for machines."""

    @property
    def port(self) -> int:
        """The port of the first TCP bind."""
        return int(self.status()["binds"][0].rpartition(":")[2])


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_each_request_has_its_route(http: str) -> None:
    """Why a request is where it is can be read afterwards, for each one."""
    with serving("--workers", "2", "--by", "header:x-user", "--http", http) as server:
        users = ["ada", "bob", "cyd", "dan", "eve", "fay"]
        homes = dict(zip(users, server.where(*users), strict=True))
        with server.connection() as connection:
            for user in users:
                assert fetch(connection, f"/{user}?q=1", x_user=user).status == 200
        assert server.request("/none").status == 200
        found = {entry["path"]: entry for entry in requests(server, len(users) + 1)}
        for before, user in zip([None, *users], users, strict=False):
            entry, home = found[f"/{user}"], homes[user]
            assert tuple(entry) == FIELDS
            assert (entry["slot"], entry["digest"], entry["status"]) == (home["slot"], home["digest"], 200)
            moved = before is not None and homes[before]["slot"] != home["slot"]
            assert entry["route"] == ("returned" if moved else "hash")
        assert (found["/none"]["route"], found["/none"]["digest"]) == ("placed", "")
        assert found["/ada"]["waited"] > 0
        assert found["/bob"]["waited"] == 0


def test_key_is_in_no_line() -> None:
    """Keys are secrets of the users: neither path, query nor cookie may bring one into a log."""
    with serving("--workers", "2", "--by", "path:^/room/([^/]+),query:sid,cookie:user") as server:
        server.request("/room/s3cret%20room/chat?x=s3cret")
        server.request("/?sid=s3cret")
        server.request("/plain", cookie="user=s3cret")
        found = requests(server, 3)
        assert [entry["path"] for entry in sorted(found, key=lambda each: each["path"])] == [
            "/",
            "/plain",
            "/room/*/chat",
        ]
        assert all(len(entry["digest"]) == 16 for entry in found)
        assert "s3cret" not in server.log


def test_cookie_and_placement_are_told_apart() -> None:
    """A client that comes without a cookie each time has lost it on the way."""
    with serving("--workers", "2", "--by", "affinity") as server:
        cookie = server.request("/first").headers["set-cookie"].partition(";")[0]
        server.request("/second", cookie=cookie)
        found = {entry["path"]: entry["route"] for entry in requests(server, 2)}
        assert found == {"/first": "placed", "/second": "cookie"}


def test_pipelined_requests_and_the_kernel_backend() -> None:
    """Each has its own line and its own status, whoever knows of how many there are."""
    with serving("--workers", "1", "--backend", "kernel") as server, Wire(("127.0.0.1", server.port)) as wire:
        wire.send(request("/one") + request("/two") + request("/three"))
        for _ in range(3):
            wire.reply()
        found = requests(server, 3)
        assert [entry["path"] for entry in found] == ["/one", "/two", "/three"]
        assert {(entry["route"], entry["status"]) for entry in found} == {("hash", 200)}


def test_request_behind_one_that_is_served_changes_nothing_of_its_response() -> None:
    """A client that pipelines gets whole heads, and the line of each request has the status of its own response."""
    with JsonLimpet("tests.apps:slow", "--workers", "1", "--by", "ip", *JSON) as server:
        with Wire(("127.0.0.1", server.port)) as wire:
            wire.send(request("/one?0.5"))
            wait_until(lambda: server.totals()["received"] >= 1, "the first is being served")
            wire.send(request("/two"))
            replies = [wire.reply() for _ in range(2)]
        assert all("date" in reply.headers for reply in replies)
        found = requests(server, 2)
        assert [(entry["path"], entry["status"]) for entry in found] == [("/one", 200), ("/two", 200)]
        assert "Traceback" not in server.log


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_client_that_leaves_midway_has_a_line(http: str) -> None:
    """A request that the client gave up is the one that an operator looks for."""
    with JsonLimpet(
        "tests.apps:slow", "--workers", "1", "--by", "ip", "--http", http, "--graceful-timeout", "1", *JSON
    ) as server:
        with Wire(("127.0.0.1", server.port)) as wire:
            wire.send(request("/left?3"))
            wait_until(lambda: server.totals()["received"] >= 1, "it is being served")
            wire.reset()  # an end of stream alone would be a half-close, which is served
        [entry] = requests(server, 1)
        assert (entry["path"], entry["status"]) == ("/left", 499)


@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("path", ["begun", "half"])
def test_response_that_the_application_ends_midway_has_a_line(http: str, backend: str, path: str) -> None:
    """What the client has got half of is what it complains about."""
    by = "ip" if backend == "kernel" else "header:x-user"
    flags = ("--workers", "1", "--by", by, "--backend", backend, "--http", http, *JSON)
    with JsonLimpet("tests.wire_app:ending", *flags) as server:
        with Wire(("127.0.0.1", server.port)) as wire:
            wire.send(request(f"/{path}", x_user="ada"))
            while wire.sock.recv(65536):
                pass
        [entry] = requests(server, 1)
        assert (entry["path"], entry["status"]) == (f"/{path}", 206)


OF_ASGI = [name for name, kind in KINDS.items() if kind.interface == "asgi"]


@pytest.mark.parametrize("name", OF_ASGI)
def test_client_that_left_before_the_response_is_a_499_on_every_server_of_asgi(name: str) -> None:
    """500 would count as a fault of the application, and which server writes it must not matter."""
    args = ("--backend", "kernel") if name == "granian" else ("--by", "header:x-user")
    with JsonLimpet("tests.wire_app:polling", "--workers", "1", "--server", name, *args, *JSON) as server:
        with Wire(("127.0.0.1", server.port)) as wire:
            wire.send(request("/left", x_user="ada"))
            wait_until(lambda: "it is polled" in server.log, "the application waits")
            wire.reset()
        [entry] = requests(server, 1)
        assert (entry["path"], entry["status"]) == ("/left", 499)


OWN_LINES = [n for n, kind in KINDS.items() if kind.http and n not in ("script", "socketserver")]


@pytest.mark.parametrize("name", OWN_LINES)
def test_control_characters_of_a_client_reach_no_terminal(name: str) -> None:
    """A terminal obeys CSI as one byte (C1), too: a client would write what an operator sees."""
    interface = KINDS[name].interface
    app = f"tests.header_apps:{interface if interface in ('asgi', 'wsgi') else name}"
    flags = ("--workers", "1", "--by", "ip", "--backend", "kernel", "--server", name, "--access-log")
    with Limpet(app, *flags) as server:
        for target in (b"/\xc2\x9b2J", b"/\x9b2J", b"/\x1b[2J"):
            head = b"GET %b HTTP/1.1\r\nhost: h\r\nuser-agent: \xc2\x9b2J\x9b\r\nconnection: close\r\n\r\n"
            with Wire(("127.0.0.1", server.port)) as wire:
                wire.send(head % target)
                while wire.sock.recv(65536):  # some servers refuse it
                    pass
        assert server.request("/after").status in (200, 404)
        assert server.stop() == 0
        assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f]", server.log) == []


def test_application_that_fails_is_a_500() -> None:
    """The status that the client has got."""
    with JsonLimpet("tests.wire_app:broken", "--workers", "1", *JSON) as server:
        server.request("/")
        [entry] = requests(server, 1)
        assert entry["status"] == 500
        [error] = [entry for entry in entries(server) if "traceback" in entry]
        assert "ZeroDivisionError" in error["traceback"]


def test_websocket_is_logged_when_it_ends(tmp_path: Path) -> None:
    """How long it lasted is part of it."""
    from websockets.sync.client import connect

    with serving("--workers", "1", "--by", "header:x-user") as server:
        url = f"ws://127.0.0.1:{server.port}/socket"
        with connect(url, additional_headers={"x-user": "ada"}, proxy=None) as client:
            client.send("hello")
            client.recv()
            assert '"event": "request"' not in server.log
        [entry] = requests(server, 1)
        assert (entry["path"], entry["status"], entry["route"]) == ("/socket", 101, "hash")
        assert entry["digest"] == server.where("ada")[0]["digest"]


@pytest.mark.parametrize(
    "name", [n for n, kind in KINDS.items() if kind.interface in ("asgi", "wsgi") and n != "uvicorn"]
)
def test_other_servers_log_the_same(name: str) -> None:
    """Whatever serves, the lines have one form."""
    args = ("--backend", "kernel") if name == "granian" else ("--by", "header:x-user")
    app = "tests.apps:wsgi" if KINDS[name].interface == "wsgi" else "tests.apps:echo"
    with JsonLimpet(app, "--workers", "1", "--server", name, *args, *JSON) as server:
        assert server.request("/there?q=1", x_user="ada").status == 200
        [entry] = requests(server, 1)
        assert tuple(entry) == FIELDS
        assert (entry["path"], entry["status"], entry["route"], entry["slot"]) == ("/there", 200, "hash", 0)


def test_every_line_of_a_life_is_json() -> None:
    """A collector that stumbles over one line loses what comes next."""
    with serving("--workers", "2", "--by", "header:x-user") as server:
        server.kill_worker(0)
        server.command("reload")
        os.kill(server.dispatcher(), 9)
        wait_until(lambda: "was killed by SIGKILL" in server.log and "reload done" in server.log, "it is told")
        server.stop()
        found = entries(server)
    assert {entry["event"] for entry in found} >= {"ready", "serving", "crashed", "change_done", "stopping"}
    killed = next(entry for entry in found if "slot" in entry and "SIGKILL" in entry["message"])
    assert (killed["slot"], killed["level"]) == (0, "error")
    assert killed["pid"] > 0


def test_failed_start_is_json_too() -> None:
    """The reason why it did not start is what is looked for first."""
    server = Limpet("tests.apps:fails_to_start", "--workers", "1", *JSON)
    with server.launched():
        assert server.wait_ended() == 4
        assert entries(server)[-1]["message"] == "the start-up of `tests.apps:fails_to_start` failed"


def test_people_get_lines_for_people() -> None:
    """The same facts in words."""
    with Limpet("tests.apps:echo", "--workers", "1", "--by", "header:x-user", "--access-log") as server:
        server.request("/there?q=1", x_user="ada")
        digest = server.where("ada")[0]["digest"]
        line = rf"\d\d:\d\d:\d\d INFO    GET /there 200 in \d+\.\d ms, slot 0, hash {digest}, waited \d+\.\d ms\n"
        wait_until(lambda: re.search(line, server.log), "the line")
