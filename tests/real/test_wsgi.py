"""WSGI on the default server, held against gunicorn's threads and waitress where more than one answer is right."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness import Limpet, limpet_command, wait_until
from tests.wire import Wire, chunked, request
from tests.wsgi_app import seen

PROBE = "tests.wsgi_app:probe"
LARGE = 3_000_000
BOUNDARY = b"limpet--boundary"


@pytest.fixture(scope="module")
def server() -> Iterator[Limpet]:
    with Limpet(PROBE, "--workers", "1", "--threads", "10") as running:
        yield running


@pytest.fixture(scope="module", params=["uvicorn", "gunicorn", "waitress"])
def any_server(request: pytest.FixtureRequest) -> Iterator[Limpet]:
    with Limpet(PROBE, "--workers", "1", "--threads", "4", "--server", request.param) as running:
        yield running


def wire(server: Limpet) -> Wire:
    """Return a new connection to *server*."""
    return Wire(("127.0.0.1", server.port))


def slow_wire(server: Limpet) -> Wire:
    """Return one whose client has little room for what it does not read."""
    made = wire(server)
    made.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return made


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_validator_finds_nothing(http: str) -> None:
    """`wsgiref.validate` is PEP 3333 as a program."""
    flags = ("--factory", "--interface", "wsgi", "--root-path", "/app")
    with Limpet("tests.wsgi_app:validated", "--workers", "1", "--http", http, *flags) as server:
        with wire(server) as client:
            for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
                assert client.send(request("/facts?a=%20b", method)).reply(to=method).status == 200
            for method in ("POST", "PUT", "PATCH"):
                assert client.send(request("/body/1000", method, b"x" * 1000)).reply().json() == seen(b"x" * 1000)
                assert client.send(request("/body", method, b"")).reply().json()["size"] == 0
            coded = request("/body", "POST", transfer_encoding="chunked") + chunked([b"one", b"two"])
            assert client.send(coded).reply().json() == seen(b"onetwo")
            assert client.send(request("/stream/3")).reply().body == bytes(3 * 65_536)
            assert client.send(request("/length/10")).reply().body == b"0123456789"
            assert client.send(request("/unread", "POST", b"body")).reply().status == 401
        assert "Error" not in server.log, server.log


def upload() -> tuple[bytes, bytes]:
    """Return a form with a file of many short and some long lines, and that file."""
    chosen = random.Random(7)
    lines = [chosen.randbytes(chosen.choice((0, 1, 80, 5_000, 70_000))) + b"\r\n" for _ in range(400)]
    file = b"".join(lines * 2)[:LARGE]
    assert len(file) == LARGE
    parts = (
        b'Content-Disposition: form-data; name="word"\r\n\r\nhello',
        b'Content-Disposition: form-data; name="file"; filename="f"\r\nContent-Type: application/x\r\n\r\n' + file,
    )
    body = b"".join(b"--%b\r\n%b\r\n" % (BOUNDARY, part) for part in parts)
    return body + b"--%b--\r\n" % BOUNDARY, file


@pytest.mark.parametrize("parser", ["by_werkzeug", "by_django", "by_python_multipart", "by_lines"])
def test_upload_has_the_same_bytes_by_each_parser(parser: str) -> None:
    """Parsers read by lines, by blocks and to the end; a read that ends early truncates an upload in silence."""
    body, file = upload()
    flags = ("--factory", "--interface", "wsgi") if parser == "by_django" else ()
    content_type = f"multipart/form-data; boundary={BOUNDARY.decode()}"
    with Limpet(f"tests.wsgi_app:{parser}", "--workers", "1", *flags) as server, wire(server) as client:
        client.send(request("/", "POST", content_type=content_type, content_length=str(len(body))))
        sizes, at = random.Random(8), 0
        while at < len(body):  # the first pieces are small, and come one by one
            size = sizes.choice((1, 7, 100)) if at < 3_000 else sizes.choice((1_000, 30_000, 200_000))
            client.send(body[at : at + size])
            at += size
        found = client.reply().json()
    assert found == (seen(body) if parser == "by_lines" else {"word": "hello", "file": seen(file)})


def test_clients_that_leave_or_do_not_read_take_no_thread_from_others(server: Limpet) -> None:
    """Ten threads and twenty such clients: the next one is served at once."""
    with ExitStack() as stack:
        for _ in range(10):
            leaver = stack.enter_context(slow_wire(server))
            leaver.send(request("/stream/100000"))
            assert leaver.head()[0] == 200
            leaver.close()
        for _ in range(10):
            stack.enter_context(slow_wire(server)).send(request("/stream/200"))
        for _ in range(10):
            stack.enter_context(wire(server)).send(request("/body", "POST", content_length="9"), b"half")
        began = time.monotonic()
        assert server.request("/facts").status == 200
        assert time.monotonic() - began < 2
        closed = server.request("/facts").json()["closed"]
        assert closed >= 10  # the leavers' streams
    wait_until(lambda: server.request("/facts").json()["closed"] >= closed, "streams are closed")


def test_large_response_waits_for_its_client(server: Limpet) -> None:
    """A worker's memory is everybody's: an application is held back while its client does not read."""

    def resident() -> int:
        pages = Path(f"/proc/{server.worker(0)['pid']}/statm").read_text().split()[1]
        return int(pages) * 4096

    before, made = resident(), server.request("/facts").json()["yielded"]
    number = 1_600  # of 64 KiB
    with wire(server) as client:
        client.send(request(f"/stream/{number}"))
        client.head()

        def stands() -> bool:
            first = server.request("/facts").json()["yielded"]
            threading.Event().wait(0.1)
            return bool(first == server.request("/facts").json()["yielded"])

        wait_until(stands, "the application waits for its client")
        assert server.request("/facts").json()["yielded"] - made < 200
        assert resident() - before < 30_000_000
        assert sum(map(len, iter(client.chunk, b""))) == number * 65_536
        assert resident() - before < 30_000_000


@pytest.mark.parametrize(("threads", "at_least_s", "at_most_s"), [(64, 0, 4), (16, 3.9, 9)])
def test_threads_is_how_many_requests_are_served_at_once(threads: int, at_least_s: float, at_most_s: float) -> None:
    """64 requests of a second: at once, or in four rounds."""
    with Limpet(PROBE, "--workers", "1", "--threads", str(threads)) as server, ThreadPoolExecutor(64) as clients:
        began = time.monotonic()
        replies = list(clients.map(lambda _: server.request("/wait/1000").status, range(64)))
        took = time.monotonic() - began
    assert set(replies) == {200}
    assert at_least_s <= took < at_most_s


def test_number_of_threads_is_shown() -> None:
    """A number that nobody sees is one that nobody can doubt."""
    checked = limpet_command("check", PROBE)
    assert "tests.wsgi_app:probe: wsgi, in 32 threads of each worker" in checked.stdout
    with Limpet(PROBE, "--workers", "2", "--threads", "7") as server:
        assert server.log.count("tests.wsgi_app:probe is WSGI: each worker serves it in up to 7 threads") == 1


def test_100_continue_is_sent_when_the_application_reads(any_server: Limpet) -> None:
    """A client that asks before it sends learns by it that its body is wanted."""
    with wire(any_server) as client:
        client.send(request("/body/5", "POST", expect="100-continue", content_length="5"))
        assert client.head()[0] == 100
        assert client.send(b"hello").reply().json() == seen(b"hello")


def test_refusal_spares_the_client_its_body(server: Limpet) -> None:
    """An application that does not read does not want it."""
    with wire(server) as client:
        client.send(request("/unread", "POST", expect="100-continue", content_length="5"))
        assert client.reply().status == 401


def test_answer_may_come_before_the_body(any_server: Limpet) -> None:
    """An application may refuse by the head, and a client may wait for its answer."""
    if "waitress" in any_server.arguments:
        pytest.skip("waitress reads requests whole")
    with wire(any_server) as client:
        client.send(request("/unread", "POST", content_length="5"))
        assert client.head()[0] == 401


def test_head_has_the_head_of_get_and_no_body(any_server: Limpet) -> None:
    """The next response on the connection would begin with the body."""
    with wire(any_server) as client:
        status, headers = client.send(request("/length/10", "HEAD")).head()
        assert (status, headers["content-length"]) == (200, "10")
        if "waitress" not in any_server.arguments:  # leaves it to the application
            assert client.send(request("/length/10")).reply().body == b"0123456789"


def test_chunked_body_is_read_to_its_end(any_server: Limpet) -> None:
    """Nothing says how long it is, so an application reads until there is no more."""
    with wire(any_server) as client:
        client.send(request("/body", "POST", transfer_encoding="chunked"))
        assert client.send(chunked([b"one", b"two" * 10_000])).reply().json() == seen(b"one" + b"two" * 10_000)


def test_body_longer_than_declared_ends_where_it_was_declared(any_server: Limpet) -> None:
    """The rest would be taken for the next response."""
    with wire(any_server) as client:
        reply = client.send(request("/length/4")).reply()
        assert (reply.status, reply.body) == (200, b"0123")


def test_header_with_an_underscore_is_not_taken_for_one_with_a_hyphen(any_server: Limpet) -> None:
    """A proxy removes `X-User`, not `X_User`, and both have one name in an environ."""
    with wire(any_server) as client:
        found = client.send(b"GET /facts HTTP/1.1\r\nHost: a\r\nX_User: evil\r\nX-Me: me\r\n\r\n").reply().json()
    assert found["HTTP_X_ME"] == "me"
    assert "HTTP_X_USER" not in found


@pytest.mark.parametrize("when", ["fail/0", "fail/1"])
def test_exception_before_the_head_has_left_is_500(any_server: Limpet, when: str) -> None:
    """Nothing has been sent, so the client can be told."""
    assert any_server.request(f"/{when}").status == 500
    assert "KeyError: 'failed'" in any_server.log


def test_exception_after_the_head_ends_the_connection(any_server: Limpet) -> None:
    """A part of a response must not look like all of it."""
    with wire(any_server) as client:
        client.send(request("/midway"))
        assert client.head()[0] == 200
        assert client.chunk() == b"begun"
        assert client.rest() == b""


def test_client_that_has_closed_its_sending_side_gets_all(server: Limpet) -> None:
    """FIN says that nothing more will be sent, not that nobody reads."""
    with wire(server) as client:
        assert client.send(request("/stream/40")).half_close().reply().body == bytes(40 * 65_536)
    with wire(server) as client:
        assert client.send(request("/body", "POST", b"x" * 9)).half_close().reply().json() == seen(b"x" * 9)


def test_stop_waits_for_requests_in_threads() -> None:
    """What was accepted is served."""
    with Limpet(PROBE, "--workers", "1") as server, wire(server) as client:
        client.send(request("/wait/1500"))
        wait_until(lambda: server.request("/facts").json()["running"] == 1, "it is being served")
        server.signal()
        assert client.reply().body == b"waited"
        assert server.wait_ended() == 0


def test_stop_does_not_wait_longer_than_the_graceful_timeout() -> None:
    """A thread that never ends must not hold up a stop, nor the end of its process."""
    with Limpet(PROBE, "--workers", "1", "--graceful-timeout", "1") as server, wire(server) as client:
        client.send(request("/wait/60000"))
        wait_until(lambda: server.request("/facts").json()["running"] == 1, "it is being served")
        began = time.monotonic()
        assert server.stop() == 0
        assert 0.9 < time.monotonic() - began < 8


def test_access_log_has_the_requests_of_wsgi() -> None:
    """Status and path, as for any application."""
    with Limpet(PROBE, "--workers", "1", "--access-log", "--log-format", "json") as server:
        for path, status in (("/facts", 200), ("/fail/0", 500), ("/unread", 401)):
            assert server.request(path).status == status
        wait_until(lambda: server.log.count('"event": "request"') == 3, "the lines are there")
        found = [json.loads(line) for line in server.lines if '"event": "request"' in line]
    assert [(line["path"], line["status"]) for line in found] == [("/facts", 200), ("/fail/0", 500), ("/unread", 401)]


OTHERS = {  # that call ASGI
    "hypercorn": ("--server", "hypercorn"),
    "daphne": ("--server", "daphne"),
    "granian": ("--server", "granian", "--backend", "kernel"),
    "asgi": ("--server", "gunicorn", "--worker-class", "asgi"),
    "uvicorn-worker": ("--server", "gunicorn", "--worker-class", "uvicorn-worker"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_servers_of_asgi_serve_wsgi_too(name: str) -> None:
    """Bodies, streams, and streams to clients that leave: their threads are free afterwards."""
    with Limpet(PROBE, "--workers", "1", "--threads", "2", *OTHERS[name]) as server:
        with wire(server) as client:
            client.send(request("/body", "POST", transfer_encoding="chunked"))
            assert client.send(chunked([b"one", b"two" * 100_000])).reply().json() == seen(b"one" + b"two" * 100_000)
        assert server.request("/body", "POST", b"x" * 500_000).json() == seen(b"x" * 500_000)
        assert server.request("/stream/40").body == bytes(40 * 65_536)
        assert server.request("/fail/0").status == 500
        for _ in range(4):
            with wire(server) as leaver:
                leaver.send(request("/stream/100000"))
                assert leaver.head()[0] == 200
        wait_until(lambda: server.request("/facts").json()["closed"] == 5, "the streams are closed")


def test_trio_and_wsgi_do_not_go_together() -> None:
    """The adapter is asyncio's, so the start ends with what to do, not the first request with a traceback."""
    checked = limpet_command("check", PROBE, "--server", "hypercorn", "--loop", "trio")
    assert checked.returncode != 0
    assert "is a WSGI application, and `--loop trio` serves ASGI alone" in checked.stderr
