"""TLS where keys are in requests: it ends in a terminator, and each request of a connection is served at its home."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from limpet.config.settings import Settings
from limpet.dispatch.arrivals import Arrivals
from limpet.errors import ControlError
from limpet.ipc.scoreboard import Scoreboard
from limpet.protocol.proxy_protocol import Origin, write
from limpet.protocol.request import Peer
from limpet.routing.forwarded import Trust
from limpet.routing.key_chain import KeyChain
from limpet.system.proc import memory
from tests.harness import HERE, PATIENCE_S, Limpet, limpet_command, wait_until
from tests.public import Public, Seen, finished, reload
from tests.real.browser import PROGRAMS, chromium, until
from tests.secure import NAMES, ask, ask_for_no_text, client, flags, make_pair, secured, shown_name
from tests.traffic import Exchange, batches, get, homes, huge, large, perform, post_large
from tests.wire import Wire, request

CHAIN = "header:x-user,cookie:sid,sni,ip"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a certificate and its key."""
    folder = tmp_path_factory.mktemp("pair")
    make_pair(folder, "first.example")
    return folder


def serve(folder: Path, *more: str, app: str = "tests.moving_app:app", by: str = CHAIN, **how: Any) -> Limpet:
    """Return a server, not started, whose keys are in requests, with the certificate in *folder*."""
    return Limpet(app, "--workers", "3", "--by", by, "--debug-header", *flags(folder), *more, **how)


@pytest.fixture(scope="module")
def server(pair: Path) -> Iterator[Limpet]:
    with serve(pair) as started:
        yield started


@pytest.fixture(scope="module")
def hasty(pair: Path) -> Iterator[Limpet]:
    """A server whose clients have little time."""
    with serve(pair, "--head-timeout", "2") as started:
        yield started


def wire(server: Limpet, name: str | None = None) -> Wire:
    return Wire(("127.0.0.1", server.port), tls=client(), name=name)


def terminator(server: Limpet) -> dict[str, Any]:
    """Return what `status` says of the terminator."""
    entry: dict[str, Any] = server.status()["terminators"][0]
    return entry


def test_mixed_users_on_one_connection_are_at_home(server: Limpet) -> None:
    """A proxy or a mobile gateway pools connections of TLS, too; megabytes go both ways, and requests are pipelined."""
    at_home = homes(server)
    with wire(server) as connection:
        for batch in batches(60, seed=3):
            perform(connection, batch, at_home)
        perform(connection, [post_large("user-1", "/up"), large("user-2", "/down")], at_home)
    assert server.totals()["returns"] > 0
    assert server.totals()["misrouted"] == 0


def test_application_sees_client_and_scheme(server: Limpet) -> None:
    """It makes links, and limits by address, as if it had ended TLS itself."""
    for source in ("127.0.0.7", "127.0.0.8"):
        with secured(server, source=source) as connection:
            assert connection.selected_alpn_protocol() == "http/1.1"
            told = ask(connection, "/x").json()
            assert (told["client"], told["scheme"]) == ([source, connection.getsockname()[1]], "https")
            assert told["slot"] == server.where(f"ip={source}")[0]["slot"]
    assert f"at https://127.0.0.1:{server.port}" in server.log


HANGING = """
import sys
if "terminator" in sys.orig_argv:
    import select, limpet.net.tls
    remember = limpet.net.tls._remember
    def hang(connection, name, context):
        if name == "hang.example":
            select.select([], [], [])
        remember(connection, name, context)
    limpet.net.tls._remember = hang
"""


def test_terminator_that_hangs_is_replaced(pair: Path, tmp_path: Path) -> None:
    """A fault in it, or in OpenSSL, must not be the end of all TLS until somebody looks."""
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    env = {"PYTHONPATH": f"{tmp_path}:{HERE.parent}"}
    with serve(pair, "--hang-timeout", "2", env=env) as server, socket.socket() as plain:
        hung = terminator(server)["pid"]
        plain.connect(("127.0.0.1", server.port))
        with contextlib.suppress(OSError):
            client().wrap_socket(plain, server_hostname="hang.example")  # until its terminator is killed
        with wire(server) as connection:
            perform(connection, [get("user-1", "/x")], homes(server))
        assert terminator(server)["pid"] != hung
        assert f"(pid {hung}) has made no progress for 2 s; it is killed" in server.log


def test_status_shows_the_terminator(server: Limpet) -> None:
    """Whoever looks for the process that is busy must find it."""
    with wire(server) as connection:
        perform(connection, [get("user-1", "/x")], homes(server))
        shown = limpet_command("status", "--control", server.control).stdout
    pid, most = terminator(server)["pid"], terminator(server)["max_connections"]
    assert f"terminator ready: pid {pid}, 1 connections and 0 handshakes of {most}" in shown
    figures = server.ask(command="figures")["processes"][0]
    assert (figures["name"], figures["pid"], figures["room"]) == ("terminator 0", pid, most)
    assert figures["resident_bytes"] > 0


def test_name_that_the_client_asks_for_is_a_key(server: Limpet) -> None:
    """One worker for each tenant, unless the request says more."""
    for name in NAMES[:4]:
        with wire(server, name) as connection:
            told = connection.send(request("/x")).reply().json()
            assert told["slot"] == server.where(f"sni={name}")[0]["slot"]
            perform(connection, [get("user-9", "/y")], homes(server))


def test_websocket_over_tls_is_at_home(server: Limpet) -> None:
    """wss is what every page on https needs."""
    for user, home in homes(server, ["user-1", "user-2", "user-3"]).items():
        url = f"wss://127.0.0.1:{server.port}/"
        with connect(url, ssl=client(), additional_headers={"x-user": user}) as websocket:
            told = json.loads(websocket.recv())
            assert (told["scheme"], told["client"][0], told["slot"]) == ("wss", "127.0.0.1", home)
            websocket.send("x" * 100_000)
            assert websocket.recv() == "x" * 100_000


@pytest.mark.parametrize(("version", "accepted"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_openssl_gets_modern_tls_alone(server: Limpet, version: str, accepted: bool) -> None:
    """TLS 1.1 is broken; what a client of today speaks is served."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", version, "-alpn", "http/1.1"]
    more = ["-cipher", "DEFAULT@SECLEVEL=0", "-ign_eof", "-quiet"]
    data = request("/x", connection="close").decode()
    ended = subprocess.run(
        [*command, *more], input=data, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ("HTTP/1.1 200 OK" in ended.stdout) == accepted, ended.stderr


@pytest.mark.slow
def test_cookie_of_limpet_is_secure_and_brings_the_client_home(pair: Path) -> None:
    """Affinity by a cookie needs the head of each request, also of those on one connection."""
    with serve(pair, by="affinity") as server:
        cookies = {}
        for _ in range(6):
            with wire(server) as connection:
                reply = connection.send(request("/x")).reply()
                assert "; Secure" in reply.headers["set-cookie"]
                cookies[reply.headers["set-cookie"].partition(";")[0]] = reply.json()["slot"]
        assert len(set(cookies.values())) > 1
        with wire(server) as connection:
            for cookie, slot in cookies.items():
                assert connection.send(request("/x", cookie=cookie)).reply().json()["slot"] == slot


def test_end_of_a_response_is_said_by_tls(server: Limpet) -> None:
    """A client must be able to tell the end from a cut: that is what close_notify is for."""
    with wire(server) as connection:  # an end without it raises SSLEOFError
        reply = connection.send(request("/large", connection="close")).reply()
        assert len(reply.body) == 3_000_000
        assert connection.rest() == b""


def test_answer_to_a_client_that_still_sends_arrives_whole(server: Limpet) -> None:
    """A server that refuses an upload closes at once; a reset would destroy the answer before the client reads it."""
    for _ in range(5):
        with wire(server) as connection:
            head = request("/early", "POST", connection="close", content_length="2000000", x_user="user-1")
            connection.send(head, bytes(1_000_000), bytes(1_000_000))
            assert connection.reply().status == 413
            assert connection.rest() == b""


def test_client_that_has_said_all_gets_its_answer(server: Limpet) -> None:
    """close_notify ends one direction in TLS 1.3, as FIN does in TCP."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    spoken = client().wrap_bio(incoming, outgoing)
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as plain:
        while True:
            try:
                spoken.do_handshake()
                break
            except ssl.SSLWantReadError:
                plain.sendall(outgoing.read())
                incoming.write(plain.recv(65536))
        spoken.write(request("/events", x_user="user-1"))
        with contextlib.suppress(ssl.SSLError):
            spoken.unwrap()
        plain.sendall(outgoing.read())
        plain.shutdown(socket.SHUT_WR)
        answer = b""
        while data := plain.recv(65536):
            incoming.write(data)
        with contextlib.suppress(ssl.SSLError):
            while data := spoken.read(65536):
                answer += data
    assert b"data: 4\n" in answer
    assert answer.endswith(b"\r\n0\r\n\r\n")


def test_client_that_reads_slowly_costs_bounded_memory(server: Limpet) -> None:
    """What a client does not read stays with the worker: else one client could fill this process, which serves all."""
    pid = terminator(server)["pid"]
    with wire(server) as warm:
        perform(warm, [large("user-1", "/x")], homes(server))
    before = memory(pid)
    exchanges: list[Exchange] = []
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(wire(server)) for _ in range(4)]
        for number, each in enumerate(stalled):
            exchanges.append(huge("user-1", f"/{number}"))
            each.send(exchanges[-1].data)
        with wire(server) as other:
            perform(other, [large("user-1", "/x")] * 3, homes(server))
        assert memory(pid) - before < 4 << 20
        for each, exchange in zip(stalled, exchanges, strict=True):
            exchange.check(each.reply(), homes(server))


def test_who_does_not_finish_a_handshake_delays_nobody_and_is_closed(hasty: Limpet) -> None:
    """Slow clients, and such as speak no TLS, cost a descriptor until their time is over."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Wire(("127.0.0.1", hasty.port))) for _ in range(100)]
        for number, each in enumerate(slow):
            each.send(b"\x16\x03\x01\x02\x00\x01"[: number % 7])
        wait_until(lambda: terminator(hasty)["handshakes"] == 100, "all wait for their handshake")
        with wire(hasty) as connection:
            perform(connection, [get("user-1", "/x")], homes(hasty))
        with Wire(("127.0.0.1", hasty.port)) as plain, contextlib.suppress(ConnectionResetError):
            assert b"HTTP" not in plain.send(request()).rest()
        ask_for_no_text(hasty)
        assert "UnicodeDecodeError" not in hasty.log
        wait_until(lambda: terminator(hasty)["handshakes"] == 0, "their time is over")
        assert hasty.totals()["tls_failures"] == 102
        assert all(each.rest() == b"" for each in slow)


def test_client_that_says_nothing_after_its_handshake_is_closed(hasty: Limpet) -> None:
    """What it then sends would be a request head: the same deadline and figure as without TLS."""
    with wire(hasty) as silent, wire(hasty) as stuck:
        assert b" 408 " in stuck.send(b"GET / HTTP/1.1\r\n").rest()
        assert silent.rest() == b""
    assert hasty.totals()["refused_408"] == 2
    wait_until(lambda: terminator(hasty)["connections"] == 0, "no connection is left")


@pytest.mark.slow
def test_header_of_a_proxy_comes_before_tls(pair: Path) -> None:
    """A balancer in TCP mode passes TLS on as it is, behind a PROXY header, in however many pieces."""
    more = ["--proxy-protocol", "required", "--trust", "127.0.0.1"]
    with serve(pair, *more) as server:
        plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
        header = write(Origin("203.0.113.7", 4711))
        plain.sendall(header[:20])
        wait_until(lambda: terminator(server)["handshakes"] == 1, "half of the header is there")
        plain.sendall(header[20:])
        with client().wrap_socket(plain, server_hostname=NAMES[0]) as connection:
            told = ask(connection, "/x").json()
        assert (told["client"], told["scheme"]) == (["203.0.113.7", 4711], "https")
        for source in (None, "127.0.0.9"):
            with Wire(("127.0.0.1", server.port), source) as bad, contextlib.suppress(ConnectionResetError):
                assert bad.send(request()).rest() == b""
        totals = server.totals()
        assert (totals["proxy_headers_bad"], totals["proxy_untrusted"]) == (1, 1)


def test_new_certificate_comes_with_a_reload_that_nobody_notices(tmp_path: Path) -> None:
    """Certificates of today last weeks. Connections go on, pooled ones too; a pair that is none is refused."""
    make_pair(tmp_path, "first.example")
    with serve(tmp_path, "--keep-alive-timeout", "60", app="tests.apps:echo") as server:
        public, old = Public(server, by_address=False, clients=8, sockets=4, tls=client()), terminator(server)["pid"]

        async def both() -> Seen:
            async with public.present() as seen:
                make_pair(tmp_path, "other.example")
                change = await asyncio.to_thread(reload, server)
                assert change["state"] == "done"
            return seen

        with secured(server) as lasting:
            ask(lasting)
            seen = asyncio.run(both())
            assert ask(lasting).status == 200
        assert seen.failures == []
        assert shown_name(server) == "other.example"
        assert terminator(server)["pid"] == old
        (tmp_path / "key.pem").write_text("not a key")
        with pytest.raises(ControlError, match="no certificate and matching key"):
            server.ask(command="reload")
        assert shown_name(server) == "other.example"


@pytest.mark.slow
def test_upgrade_brings_a_new_terminator_and_nobody_notices(pair: Path) -> None:
    """The old one ends with its connections, however long these last: their TLS is in it."""
    with serve(pair, app="tests.apps:echo") as server:
        public, old = Public(server, by_address=False, clients=8, sockets=4, tls=client()), terminator(server)["pid"]

        async def both() -> Seen:
            async with public.present() as seen:
                server.signal(signal.SIGUSR2)
                await asyncio.to_thread(
                    wait_until, lambda: terminator(server)["pid"] not in (None, old), "another one is in charge"
                )
                await public.served()
                assert [each["pid"] for each in terminator(server)["draining"]] == [old]
            return seen

        assert asyncio.run(both()).failures == []
        wait_until(lambda: terminator(server)["draining"] == [], "the old one has ended")
        with wire(server) as connection:
            assert connection.send(request("/x")).reply().status == 200


def test_killed_terminator_is_replaced_and_its_connections_end(server: Limpet) -> None:
    """They cannot be saved, but must not hang either; workers and homes stay, and who comes meanwhile waits."""
    old, workers = terminator(server)["pid"], [entry["pid"] for entry in server.status()["slots"]]
    with wire(server) as lost:
        perform(lost, [get("user-1", "/x")], homes(server))
        os.kill(old, signal.SIGKILL)
        with wire(server) as next_one:
            perform(next_one, [get("user-1", "/y")], homes(server))
        with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
            lost.rest()
    assert terminator(server)["pid"] != old
    assert [entry["pid"] for entry in server.status()["slots"]] == workers
    wait_until(lambda: server.totals()["connections"] == 0, "the workers have let their connections go")


def test_as_many_are_let_in_as_there_are_descriptors_for(pair: Path) -> None:
    """Half a connection is worse than one that waits: its request is read, and cannot be passed on."""
    with serve(pair, descriptors=(100, 100)) as server, contextlib.ExitStack() as stack:
        most = terminator(server)["max_connections"]
        there = [stack.enter_context(wire(server)) for _ in range(most)]
        for number, connection in enumerate(there):
            perform(
                connection, [get(f"user-{number % 4}", "/x")], homes(server, ["user-0", "user-1", "user-2", "user-3"])
            )
        failed = server.totals()["accept_errors"]
        late = stack.enter_context(Wire(("127.0.0.1", server.port)))
        wait_until(lambda: server.totals()["accept_errors"] > failed, "it is not let in")
        assert (terminator(server)["connections"], terminator(server)["handshakes"]) == (most, 0)
        assert server.log.count(f"clients wait in the backlog: {most} connections use two descriptors each") == 1
        there.pop().close()
        late.sock = client().wrap_socket(late.sock)
        late._file = late.sock.makefile("rb")
        perform(late, [get("user-1", "/x")], homes(server))


def test_without_descriptors_who_comes_waits(server: Limpet) -> None:
    """Running out of them must not cost the connections that are there, nor spin."""
    pid = terminator(server)["pid"]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with wire(server) as connection:
        perform(connection, [get("user-1", "/x")], homes(server))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
        failed = server.totals()["accept_errors"]
        with Wire(("127.0.0.1", server.port)) as waits:
            wait_until(lambda: server.totals()["accept_errors"] > failed, "it cannot be accepted")
            perform(connection, [get("user-2", "/x")], homes(server))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            waits.sock = client().wrap_socket(waits.sock)
            waits._file = waits.sock.makefile("rb")
            perform(waits, [get("user-3", "/x")], homes(server))


def test_half_a_head_on_an_inner_connection_wakes_a_dispatcher_once() -> None:
    """The PROXY header is there before the request: a loop that it wakes again and again would call the client slow."""
    settings, row = Settings(app="app:app", by="header:x-user"), Scoreboard.create().dispatcher(0)
    ours, theirs = socket.socketpair()
    with ours, theirs, select.epoll() as epoll:
        arrivals = Arrivals(settings, KeyChain.parse("header:x-user", Trust()), epoll, row, is_inner=True)
        ours.send(write(Origin("203.0.113.7", 4711, is_tls=True)))
        arrival = arrivals.begin(theirs, Peer(None, None, ""), 0.0)
        assert arrival is not None
        for part, is_complete in ((b"GET / HTTP/1.1\r\n", False), (b"x-user: a\r\n\r\n", True)):
            assert not arrival.look()
            arrivals.keep(arrival)
            epoll.poll(0)
            assert epoll.poll(0) == []
            ours.send(part)
            assert [fd for fd, _ in epoll.poll(PATIENCE_S)] == [theirs.fileno()]
            assert arrival.look() == is_complete


@pytest.mark.parametrize("number", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_stop_answers_what_has_begun(pair: Path, tmp_path: Path, number: str) -> None:
    """A request under way, and one whose connection waits in the backlog, are answered before the server ends."""
    more = ["--terminators", number]
    with serve(pair, *more, app="tests.apps:slow") as server:
        with wire(server) as busy, Wire(("127.0.0.1", server.port)) as _silent:
            busy.send(request("/?1"))
            wait_until(lambda: server.totals()["handed"] == 1, "a worker has it")
            server.signal(signal.SIGTERM)
            assert busy.reply().status == 200
            assert busy.rest() == b""
        assert server.wait_ended() == 0


@pytest.mark.slow
def test_end_of_the_supervisor_ends_all_after_what_has_begun(pair: Path) -> None:
    """Nobody is left to tell the terminator: it must see that itself, and not cut off what workers still answer."""
    server = serve(pair, "--graceful-timeout", "5", app="tests.apps:slow")
    with server.launched():
        server.wait_serving()
        with wire(server) as busy:
            busy.send(request("/?1"))
            wait_until(lambda: server.totals()["handed"] == 1, "a worker has it")
            server.signal(signal.SIGKILL)
            assert busy.reply().status == 200
        server.wait_gone()


@pytest.mark.slow
def test_nobody_notices_what_changes_behind_the_terminator(pair: Path) -> None:
    """Workers and dispatchers come and go as without TLS: what they have are client connections like any others."""
    with serve(pair, app="tests.apps:echo") as server:
        public = Public(server, by_address=False, clients=16, sockets=8, tls=client())

        async def play() -> Seen:
            async with public.present() as seen:
                await asyncio.to_thread(reload, server)
                await public.served()
                for slot in range(3):
                    worker = server.worker(slot)["pid"]
                    os.kill(worker, signal.SIGTERM)
                    await asyncio.to_thread(server.wait_ready, slot, worker)
                    await public.served()
                public.homes_may_change = True
                for number in (4, 3):
                    change = server.ask(command="scale", slots=number)["change"]
                    assert (await asyncio.to_thread(finished, server, change))["state"] == "done"
                await public.at_home(public.homes)
            return seen

        assert asyncio.run(play()).failures == []


@pytest.mark.slow
def test_killed_dispatcher_costs_no_connection_that_has_a_worker(server: Limpet) -> None:
    """What terminators pass on meanwhile waits in the inner channel, which the supervisor keeps."""
    at_home, old = homes(server), server.dispatcher()
    with wire(server) as lasting:
        perform(lasting, [get("user-1", "/x")], at_home)
        os.kill(old, signal.SIGKILL)
        with contextlib.ExitStack() as stack:
            for number in range(20):
                waits = stack.enter_context(wire(server))
                waits.send(get(f"user-{number}", "/y").data)
                perform(lasting, [get("user-2", "/z")], at_home)
                get(f"user-{number}", "/y").check(waits.reply(), at_home)
    assert server.dispatcher() != old


@pytest.mark.slow
def test_connections_of_an_address_are_counted_by_the_client(pair: Path) -> None:
    """All inner connections have the terminator at their other end; who counts is who stands in the PROXY header."""
    with serve(pair, "--max-connections-per-address", "2") as server, contextlib.ExitStack() as stack:
        for address, statuses in (("127.0.0.5", [200, 200, 429]), ("127.0.0.6", [200])):
            for status in statuses:
                each = Wire(("127.0.0.1", server.port), address, tls=client())
                stack.enter_context(each)
                assert each.send(request("/x", x_user="user-1")).reply().status == status


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)) and not os.environ.get("CI"), reason="no Chromium")
def test_browser_keeps_its_worker_over_tls(pair: Path, tmp_path: Path) -> None:
    """A real browser opens several connections, resumes sessions of TLS, and sends limpet's cookie on each."""
    with (
        serve(pair, by="affinity", app="tests.apps:echo") as server,
        chromium(tmp_path, "--ignore-certificate-errors") as driver,
    ):
        slots = set()
        for _ in range(5):
            driver.get(f"https://127.0.0.1:{server.port}/")
            text = until(driver, "the page is there", lambda page: page.find_element("tag name", "body").text)
            told = json.loads(text)
            slots.add(told["slot"])
            assert told["scheme"] == "https"
        assert len(slots) == 1
        script = f"""
            const done = arguments[0], socket = new WebSocket("wss://127.0.0.1:{server.port}/");
            socket.onmessage = event => done(event.data); socket.onerror = () => done("error");
        """
        assert json.loads(driver.execute_async_script(script))["slot"] in slots
