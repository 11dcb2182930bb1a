"""What a client may do to the server: each thing has its answer, is counted, and harms nobody else."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import keys
from tests.harness import Limpet, wait_until
from tests.wire import Address, Wire, portions, request, upgrade, wires

NOT_HTTP = {
    "garbage": b"\x00\xff\xfe\x01\x02" * 20,
    "words": b"hello there, what are you?\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "no method": b" / HTTP/1.1\r\nhost: h\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
}
AMBIGUOUS = {
    "length and chunks": b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nhost : h\r\n\r\n",
    "folded header": b"GET / HTTP/1.1\r\nhost: h\r\nx-a: b\r\n  c\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nhost: h\n\n",
}
UNFINISHED = b"GET / HTTP/1.1\r\nhost: h\r\nx-user: nob"
FAULTS = (
    "refused_",
    "address_refused",
    "crowded_out",
    "vanished",
    "key_errors",
    "head_timeouts",
    "heads_too_large",
    "accept_errors",
    "returns_refused",
)


def tcp(server: Limpet) -> Address:
    return "127.0.0.1", server.port


def faults(server: Limpet) -> dict[str, int]:
    """Return the totals that say that something went wrong."""
    return {name: count for name, count in server.totals().items() if count and name.startswith(FAULTS)}


def pids(server: Limpet) -> list[int]:
    """Return the processes of the server."""
    status = server.status()
    return [status["pid"]] + [entry["pid"] for entry in status["dispatchers"] + status["slots"]]


@contextlib.contextmanager
def unharmed(server: Limpet, **counted: int) -> Iterator[None]:
    """Demand that the same processes serve on after what happens within, and that just *counted* was counted."""
    before, processes = faults(server), pids(server)
    expected = before | {name: before.get(name, 0) + more for name, more in counted.items()}
    yield
    wait_until(lambda: len(faults(server)) >= len(expected) and faults(server) != before, f"{counted} is counted")
    assert faults(server) == expected
    assert pids(server) == processes
    assert server.request(x_user="somebody else").status == 200


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


# --- in the dispatcher: the head is read for the key


@pytest.fixture(scope="module")
def reading() -> Iterator[Limpet]:
    """A server that has to read heads: clients are told apart by a header."""
    limits = ["--head-timeout", "1", "--max-head", "4096"]
    with Limpet("tests.apps:echo", "--by", "header:x-user", "--workers", "2", *limits) as server:
        yield server


@pytest.mark.parametrize("name", [*NOT_HTTP, *AMBIGUOUS])
def test_what_is_not_http_gets_400(reading: Limpet, name: str) -> None:
    """The reference neither answered nor closed; two parsers that read a request differently are a way in."""
    with unharmed(reading, refused_400=1), Wire(tcp(reading)) as wire:
        reply = wire.send((NOT_HTTP | AMBIGUOUS)[name]).reply()
        assert (reply.status, wire.rest()) == (400, b"")
        assert name != "tls" or reply.body == b"TLS on a plain port\n"


def test_unfinished_head_gets_408_when_its_time_is_over(reading: Limpet) -> None:
    """Heads that are never finished were held for ever: 500 of 500 connections after 75 s."""
    with unharmed(reading, refused_408=2), wires(tcp(reading), 2) as (unfinished, dribbling):
        unfinished.send(UNFINISHED)
        dribbling.send(*portions(UNFINISHED, *range(1, len(UNFINISHED))))  # each byte is no new lease of life
        for wire in (unfinished, dribbling):
            assert (wire.reply().status, wire.rest()) == (408, b"")


def test_connection_that_was_only_opened_is_closed_without_a_word(reading: Limpet) -> None:
    """Browsers connect in advance: one that sends its request just then would take 408 for the answer, and show it."""
    with unharmed(reading, refused_408=1), Wire(tcp(reading)) as silent:
        assert silent.rest() == b""


def test_waiting_for_heads_costs_no_cpu(reading: Limpet) -> None:
    """A loop that spins on bytes it has seen already, or on a FIN, takes a core from everybody."""
    dispatcher = reading.status()["dispatchers"][0]["pid"]
    with unharmed(reading, refused_400=1, refused_408=4), wires(tcp(reading), 5) as (one, slow, silent, gone, last):
        one.send(UNFINISHED)
        slow.send(*portions(UNFINISHED, *range(1, len(UNFINISHED))))
        assert gone.send(UNFINISHED).half_close().reply().status == 400
        last.send(UNFINISHED)
        before = cpu_s(dispatcher)
        assert [wire.reply().status for wire in (one, slow, last)] == [408] * 3  # after a second of waiting
        assert silent.rest() == b""
        assert cpu_s(dispatcher) - before < 0.25


def test_waiting_for_many_large_heads_costs_no_cpu() -> None:
    """Bytes that were seen must not be copied again at each tick: a few thousand clients could slow down all others."""
    clients = 400
    flags = ["--workers", "1", "--by", "header:x-user", "--head-timeout", "60", "--keep-alive-timeout", "2"]
    start = b"GET / HTTP/1.1\r\nhost: h\r\nx-more: %b" % (b"m" * 60_000)
    with Limpet("tests.apps:echo", *flags) as server, wires(tcp(server), clients) as crowd, Wire(tcp(server)) as clock:
        for wire in crowd:
            wire.send(start)
        for _ in range(40):  # bytes that come one by one are looked at until there were too many
            for wire in crowd:
                wire.send(b"x")
            assert server.request().status == 200  # the dispatcher has turned to what came before this
        assert clock.send(request()).reply().status == 200
        dispatcher = server.status()["dispatchers"][0]
        assert dispatcher["pending"] == clients
        before = cpu_s(dispatcher["pid"])
        assert clock.rest() == b""  # after its keep-alive time
        assert cpu_s(dispatcher["pid"]) - before < 0.12  # copying them at each tick takes twice that


def test_head_that_is_cut_off_by_fin_gets_400(reading: Limpet) -> None:
    """Nothing more can come: there is no reason to wait for the deadline."""
    with unharmed(reading, refused_400=1), Wire(tcp(reading)) as wire:
        reply = wire.send(UNFINISHED).half_close().reply()
        assert (reply.status, reply.body) == (400, b"the connection was closed in the middle of the request head\n")
        assert wire.rest() == b""


def test_clients_that_vanish_are_counted(reading: Limpet) -> None:
    """A port scan, a health check that only connects, a reset in the middle of a head."""
    with unharmed(reading, vanished=3), wires(tcp(reading), 3) as (closed, half_closed, reset):
        reset.send(UNFINISHED)
        wait_until(lambda: reading.status()["dispatchers"][0]["pending"] == 3, "all of them are pending")
        reset.reset()
        closed.close()
        assert half_closed.half_close().rest() == b""


@pytest.mark.parametrize("size", [4096, 200_000, 5_000_000])
def test_head_that_is_too_large_gets_431(reading: Limpet, size: int) -> None:
    """The reference took 64 MB. A client that is still sending has its answer too, not a reset."""
    lines = b"GET / HTTP/1.1\r\nhost: h\r\n" + b"x-more: and more\r\n" * (size // 18 + 1)
    with unharmed(reading, refused_431=1), Wire(tcp(reading)) as wire:
        assert wire.send(lines).reply().status == 431
        assert wire.rest() == b""


def test_upload_behind_a_bad_head_is_drained_until_the_client_reads(reading: Limpet) -> None:
    """Closing with unread bytes would reset the connection and destroy the answer."""
    with unharmed(reading, refused_400=1), Wire(tcp(reading)) as wire:
        wire.send(AMBIGUOUS["length and chunks"], b"x" * 3_000_000)
        assert (wire.reply().status, wire.rest()) == (400, b"")


def test_more_silent_clients_than_allowed_make_the_oldest_leave() -> None:
    """The bound on what the dispatcher holds; a newcomer is more likely to be serious than who has said nothing yet."""
    flags = ["--workers", "1", "--max-pending", "8"]
    with (
        Limpet("tests.apps:echo", "--by", "header:x-user", *flags) as server,
        unharmed(server, refused_503=5, crowded_out=5),
        wires(tcp(server), 13) as clients,
    ):
        for wire in clients[:5]:
            reply = wire.reply()
            assert (reply.status, reply.headers["retry-after"], wire.rest()) == (503, "1", b"")
        assert {wire.send(request(x_user="late")).reply().status for wire in clients[5:]} == {200}


def test_honest_requests_are_served_while_hundreds_of_heads_run_out_of_time(reading: Limpet) -> None:
    """More answers are due at once than are given in one turn of the loop: each of them comes, and so do others'."""
    crowd, honest, before = 300, list[int](), reading.totals()["refused_408"]
    with unharmed(reading, refused_408=crowd), wires(tcp(reading), crowd) as clients:
        for wire in clients:
            wire.send(UNFINISHED)
        while reading.totals()["refused_408"] < before + crowd:
            honest.append(reading.request(x_user="honest").status)
        assert set(honest) == {200}
        assert {wire.reply().status for wire in clients} == {408}


@pytest.mark.parametrize("chain", ["header:x-user", "ip"])
def test_address_with_too_many_connections_gets_429_and_others_are_served(chain: str) -> None:
    """One client's sockets must not be everybody's; what it may have in a dispatcher it may have in a worker too."""
    flags = ["--workers", "1", "--max-connections-per-address", "3", "--keep-alive-timeout", "60"]
    with Limpet("tests.wire_app:app", "--by", chain, *flags) as server:
        counted = (
            {"refused_429": 1, "address_refused": 1, "refused_400": 3} if chain != "ip" else {"address_refused": 1}
        )
        with unharmed(server, **counted):
            with contextlib.ExitStack() as stack:
                served, *more = (stack.enter_context(Wire(tcp(server))) for _ in range(3))
                served.send(upgrade(x_user="u")).head()
                for wire in more:
                    assert wire.send(request(x_user="u")).reply().status == 200
                with Wire(tcp(server)) as late:
                    reply = late.send(request(x_user="u")).reply()
                    assert (reply.status, reply.headers["retry-after"], late.rest()) == (429, "1", b"")
                with Wire(tcp(server), "127.0.0.2") as other:
                    assert other.send(request(x_user="u")).reply().status == 200
            wait_until(lambda: server.worker(0)["connections"] == 0, "all have gone")
            if chain != "ip":
                with wires(tcp(server), 3) as slow:
                    for wire in slow:
                        wire.send(UNFINISHED)
                    wait_until(lambda: server.status()["dispatchers"][0]["pending"] == 3, "all are awaited")
                    with Wire(tcp(server)) as late:
                        assert late.send(UNFINISHED).reply().status == 429
                wait_until(lambda: server.status()["dispatchers"][0]["pending"] == 0, "all have gone")


def test_full_queue_gets_503_and_what_was_queued_is_served() -> None:
    """A worker that has stopped must not take the others with it, nor whoever waits for it."""
    flags = ["--workers", "2", "--queue", "5", "--wait-timeout", "1"]
    with Limpet("tests.apps:echo", "--by", "header:x-user", *flags) as server:
        users = [f"user {number}" for number in range(20)]
        slots = [home["slot"] for home in server.where(*users)]
        stuck, free = users[slots.index(0)], users[slots.index(1)]
        worker = server.worker(0)["pid"]
        os.kill(worker, signal.SIGSTOP)
        try:
            with wires(tcp(server), 3) as patient:
                for wire in patient:
                    wire.send(request(x_user=stuck))
                fill(server, request(x_user=stuck))
                with Wire(tcp(server)) as late:
                    reply = late.send(request(x_user=stuck)).reply()
                    assert (reply.status, reply.headers["retry-after"], late.rest()) == (503, "1", b"")
                assert server.request(x_user=free).json()["slot"] == 1

                os.kill(worker, signal.SIGCONT)
                assert {wire.reply().json()["pid"] for wire in patient} == {worker}
        finally:
            os.kill(worker, signal.SIGCONT)
        wait_until(lambda: server.worker(0)["queued"] == 0, "the queue is empty")
        assert server.request(x_user=stuck).json()["pid"] == worker


def fill(server: Limpet, asked: bytes) -> None:
    """Send *asked* on new connections, each closed at once, until there is no room: the kernel takes thousands."""
    dispatcher = server.status()["dispatchers"][0]["pid"]
    while not server.totals()["refused_503"]:
        for _ in range(500):
            with Wire(tcp(server)) as wire:
                wire.send(asked)
        wait_until(lambda: server.status()["dispatchers"][0]["pending"] == 0, "the dispatcher has dealt with them")
    assert server.status()["dispatchers"][0]["pid"] == dispatcher


# --- in the key chain


@pytest.fixture(scope="module")
def behind_proxy() -> Iterator[Limpet]:
    """A server that believes what 127.0.0.1 forwards."""
    chain = ["--by", "forwarded", "--trust", "127.0.0.1"]
    with Limpet("tests.apps:echo", *chain, "--workers", "2") as server:
        yield server


def other_home(server: Limpet, network: str, than: str = "127.0.0.1") -> str:
    """Return an address in *network* that has another home than *than*."""
    candidates = [network.format(number) for number in range(1, 40)]
    peer, *homes = (home["slot"] for home in server.where(than, *candidates))
    return next(address for address, slot in zip(candidates, homes, strict=True) if slot != peer)


def slot_of(server: Limpet, head: bytes, source: str = "127.0.0.1") -> int:
    with Wire(tcp(server), source) as wire:
        slot: int = wire.send(head).reply().json()["slot"]
        return slot


@pytest.mark.parametrize(
    "written",
    [
        *("{}", "{}:4711", "198.51.100.7, {}", "{}, 127.0.0.1", "unknown, {}", "::ffff:{}", "[::ffff:{}]:80", ' "{}" '),
        *("{}\r\nx-forwarded-for: 127.0.0.1", "not-an-ip\r\nx-forwarded-for: {}", "{},127.0.0.1 ,127.0.0.1"),
    ],
)
@pytest.mark.parametrize("network", ["203.0.113.{}", "2001:db8:0:{:x}::7"])
def test_forwarded_address_is_the_key(behind_proxy: Limpet, written: str, network: str) -> None:
    """Ports, brackets, lists, mapped addresses: proxies write all of these, and mean the same client."""
    if ":" in network and ("ffff" in written or "4711" in written):
        written = "[{}]:4711"
    client = other_home(behind_proxy, network)
    head = request(x_forwarded_for=written.format(client))
    assert slot_of(behind_proxy, head) == behind_proxy.where(client)[0]["slot"]


@pytest.mark.parametrize(
    "written",
    [
        *("unknown", "not-an-ip", "", ",", ", ,,", "999.1.1.1", "203.0.113", "1e3", "[", "[]", "[2001:db8::1", "::::"),
        *("{}, unknown", "{},", "{};", "{}x", "{}:port", "{}/24", "'{}'", "x" * 9000, "\xff\xfe", "\u0661.1.1.1", "%s"),
    ],
)
def test_junk_in_the_header_leaves_the_proxy_as_the_client(behind_proxy: Limpet, written: str) -> None:
    """One `X-Forwarded-For: not-an-ip` killed the master of the reference."""
    head = request(x_forwarded_for=written.replace("{}", other_home(behind_proxy, "203.0.113.{}")))
    assert slot_of(behind_proxy, head) == behind_proxy.where("127.0.0.1")[0]["slot"]
    assert faults(behind_proxy) == {}


def test_nobody_but_the_proxy_is_believed(behind_proxy: Limpet) -> None:
    """Else each client picks its worker, and its address, by a header."""
    head = request(x_forwarded_for=other_home(behind_proxy, "203.0.113.{}", than="127.0.0.2"))
    assert slot_of(behind_proxy, head, "127.0.0.2") == behind_proxy.where("127.0.0.2")[0]["slot"]


@pytest.fixture(scope="module")
def with_function() -> Iterator[Limpet]:
    """A server whose first key element is a function that does what clients say."""
    with Limpet("tests.apps:echo", "--by", "python:tests.keys:told,header:x-user", "--workers", "2") as server:
        yield server


@pytest.mark.parametrize("told", keys.FAULTS)
def test_key_function_that_fails_costs_no_more_than_its_key(with_function: Limpet, told: str) -> None:
    """A user's function that threw, or returned nonsense, killed the master of the reference. Nothing may do that."""
    with unharmed(with_function, key_errors=2):  # `unharmed` makes a request without the header: that is a fault too
        for user in ("alice", "bob"):
            ask = "alice" if user == "alice" else "bob"
            reply = with_function.request(x_key=told, x_user=ask)
            assert reply.json()["slot"] == with_function.where(f"header:x-user={ask}")[0]["slot"]


@pytest.mark.parametrize("told", keys.NOTHINGS)
def test_key_function_without_an_answer_leaves_it_to_the_next_element(with_function: Limpet, told: str) -> None:
    """No key is no fault."""
    before = faults(with_function)
    slots = {with_function.request(x_key=told, x_user=f"user {number}").json()["slot"] for number in range(20)}
    assert slots == {0, 1}
    assert faults(with_function) == before


# --- in the worker: nobody reads the head before it


@pytest.fixture(scope="module", params=["httptools-uvloop", "h11-asyncio"])
def unread(request: pytest.FixtureRequest) -> Iterator[Limpet]:
    """A server that does not read heads, so that the worker meets all that clients do."""
    http, loop = request.param.split("-")
    limits = ["--head-timeout", "1", "--max-head", "4096", "--keep-alive-timeout", "30"]
    with Limpet(
        "tests.wire_app:app", "--by", "ip", "--workers", "1", "--http", http, "--loop", loop, *limits
    ) as server:
        yield server


def test_worker_answers_408_to_unfinished_heads(unread: Limpet) -> None:
    """Without a dispatcher that reads heads, the adapter has to have the deadline."""
    with unharmed(unread, head_timeouts=2), wires(tcp(unread), 2) as (unfinished, dribbling):
        unfinished.send(UNFINISHED)
        dribbling.send(*portions(UNFINISHED, *range(1, len(UNFINISHED))))
        for wire in (unfinished, dribbling):
            assert (wire.reply().status, wire.rest()) == (408, b"")


def test_worker_closes_a_connection_that_was_only_opened_without_a_word(unread: Limpet) -> None:
    """As the dispatcher does where it reads heads."""
    with unharmed(unread, head_timeouts=1), Wire(tcp(unread)) as silent:
        assert silent.rest() == b""


def test_worker_answers_408_to_an_unfinished_second_head(unread: Limpet) -> None:
    """A first request in full is no licence to hold the connection for ever."""
    with unharmed(unread, head_timeouts=1), Wire(tcp(unread)) as wire:
        assert wire.send(request()).reply().status == 200
        assert wire.send(UNFINISHED).reply().status == 408
        assert wire.rest() == b""


def test_idle_connection_is_not_an_unfinished_head(unread: Limpet) -> None:
    """Between two requests the keep-alive time counts; here it is longer than the time for a head."""
    with unharmed(unread, head_timeouts=1), wires(tcp(unread), 2) as (idle, silent):
        assert idle.send(request()).reply().status == 200
        assert silent.rest() == b""  # after this, *idle* has been idle for longer than a head may take
        assert idle.send(request()).reply().status == 200


def test_rest_of_a_body_that_nobody_reads_is_not_an_unfinished_head(unread: Limpet) -> None:
    """An upload that was refused early may end as slowly as it likes; a second answer on it would be one too many."""
    data = request("/early", "POST", b"x" * 100_000)
    with unharmed(unread, head_timeouts=1), wires(tcp(unread), 2) as (silent, slow):
        assert slow.send(data[:50_000]).reply().status == 413
        assert silent.rest() == b""  # after this, *slow* has been at it for about as long as a head may take
        slow.send(data[50_000:-1])
        assert slow.send(data[-1:] + request()).reply().status == 200


@pytest.mark.parametrize(
    "name", [name for name in NOT_HTTP if name != "http2"]
)  # which h11 takes for a request with the method `PRI`
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_worker_answers_400_to_what_is_not_http(unread: Limpet, name: str, first: bool) -> None:
    """The parser of the worker is the only one here."""
    with Wire(tcp(unread)) as wire:
        if not first:
            wire.send(request()).reply()
        assert wire.send(NOT_HTTP[name]).reply().status == 400
        assert wire.rest() == b""
    assert unread.request().status == 200


@pytest.mark.parametrize("size", [4096, 200_000, 5_000_000])
@pytest.mark.parametrize("line", [b"x-more: and more\r\n", b"x"], ids=["lines", "line"])
def test_worker_answers_431_to_a_head_that_is_too_large(unread: Limpet, size: int, line: bytes) -> None:
    """uvicorn's parsers take as much as a client sends, or less than the dispatcher does."""
    head = b"GET / HTTP/1.1\r\nhost: h\r\n" + line * (size // len(line) + 1)
    with unharmed(unread, heads_too_large=1), wires(tcp(unread), 1) as [wire]:
        wire.send(request()).reply()
        assert wire.send(head[:1000], head[1000:]).reply().status == 431
        assert wire.rest() == b""


@pytest.mark.parametrize("lines", [[b"x: %b" % (b"y" * 5000)], [b"x-%d: y" % number for number in range(256)]])
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_worker_answers_431_to_a_head_that_comes_whole(unread: Limpet, lines: list[bytes], first: bool) -> None:
    """A head that is read at once was never an unfinished one; 300 headers, or 200 KB of them, reached applications."""
    with unharmed(unread, heads_too_large=1), Wire(tcp(unread)) as wire:
        if not first:
            wire.send(request()).reply()
        wire.send(b"GET / HTTP/1.1\r\nhost: h\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + request("/next"))
        assert (wire.reply().status, wire.rest()) == (431, b"")


def test_body_may_be_larger_than_a_head(unread: Limpet) -> None:
    """Both may come in one segment."""
    with Wire(tcp(unread)) as wire:
        assert wire.send(request("/", "POST", b"x" * 50_000)).reply().json()["size"] == 50_000


def test_upgrade_that_nobody_knows_leaves_the_next_request_alone(unread: Limpet) -> None:
    """Java's client asks each server for h2c; what it sends behind that is no HTTP/2 unless the server agrees."""
    headers = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAEAAEAAAAIAAAAB"}
    offer, post = request(**headers), request("/", "POST", request(), **headers)
    with Wire(tcp(unread)) as wire:
        wire.send(offer + post + request("/last"))
        assert [wire.reply().json()["size"] for _ in range(3)] == [0, len(request()), 0]


def test_worker_serves_on_when_clients_vanish(unread: Limpet) -> None:
    """Connections that end before, within and behind a head."""
    with wires(tcp(unread), 4) as (closed, half_closed, reset, within):
        reset.send(UNFINISHED).reset()
        closed.close()
        assert half_closed.half_close().rest() == b""
        assert within.send(UNFINISHED).half_close().rest() == b""
    wait_until(lambda: unread.worker(0)["connections"] == 0, "the worker knows that they have gone")
    assert unread.request().status == 200
