"""The end of a connection that several workers have open reaches the other side at once, whoever brings it about.

A copy that stays open holds back the FIN of a plain close. So wherever the end must not wait for them, the workers
with the other copies are stopped: they could not close anything, however long the client waited.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Limpet, wait_until
from tests.traffic import (
    batches,
    events,
    expects,
    get,
    homes,
    huge,
    inhabitants,
    perform,
    post_large,
    serve,
    stopped,
    visit_all,
)
from tests.wire import CLOSE, Wire, frame, request, upgrade, wires

PLANS = [("httptools", "uvloop"), ("httptools", "asyncio"), ("h11", "uvloop"), ("h11", "asyncio")]
TWO_PLANS = [PLANS[0], PLANS[3]]


@pytest.fixture(scope="module", params=PLANS, ids="-".join)
def server(request: pytest.FixtureRequest, gates: Path) -> Iterator[Limpet]:
    """Four workers, users told apart by a header."""
    http, loop = request.param
    patient = ("--graceful-timeout", "1", "--keep-alive-timeout", "60")  # workers start slowly on a busy machine
    with serve("--http", http, "--loop", loop, *patient, gates=gates) as server:
        yield server


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the application looks for the gates of its requests."""
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def home(server: Limpet) -> dict[str, int]:
    """The slot of each user."""
    return homes(server)


@pytest.fixture
def wire(server: Limpet, home: dict[str, int]) -> Iterator[Wire]:
    """A connection that the worker in slot 0 reads, and of which all others have a copy."""
    with Wire(("127.0.0.1", server.port)) as wire:
        visit_all(wire, home, last=0)
        yield wire


def ended(wire: Wire) -> bool:
    """Wait for the end, whatever its manner; a client that waits in vain is an error."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        wire.rest()
    return True


def connections(server: Limpet) -> list[int]:
    """Return how many connections each slot's worker counts."""
    return [entry["connections"] for entry in server.status()["slots"]]


def moved(server: Limpet) -> int:
    """Return how many requests were passed on so far."""
    return server.totals()["returns"]


@contextlib.contextmanager
def under_way(server: Limpet, slot: int, number: int = 1) -> Iterator[int]:
    """Stop the worker in *slot* until *number* requests that the block sends are in its channel; yield its pid."""
    before, pid = moved(server), server.worker(slot)["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
        wait_until(lambda: moved(server) >= before + number, "the requests are in the channel")
    except BaseException:
        os.kill(pid, signal.SIGCONT)
        raise


# --- the server ends it


def test_client_that_asks_for_the_end_has_it_behind_its_answer(
    server: Limpet, home: dict[str, int], wire: Wire
) -> None:
    """`Connection: close`: who reads until the end must not wait for copies."""
    with stopped(server, {1, 2, 3}):
        reply = wire.send(request("/", x_user=inhabitants(home)[0], connection="close")).reply()
        assert int(reply.headers["x-limpet-slot"]) == 0
        assert wire.rest() == b""


def test_bad_request_ends_the_connection(server: Limpet, home: dict[str, int], wire: Wire) -> None:
    """400, then FIN."""
    bad = get(inhabitants(home)[0], "/").data.replace(b"host:", b"host :")
    with stopped(server, {1, 2, 3}):
        assert wire.send(bad).reply().status == 400
        assert wire.rest() == b""


def test_application_that_breaks_off_ends_the_connection(server: Limpet, home: dict[str, int], wire: Wire) -> None:
    """Half a response: the end is all that tells the client that nothing more will come."""
    with stopped(server, {1, 2, 3}):
        assert wire.send(request("/breaks", x_user=inhabitants(home)[0])).head()[0] == 200
        assert wire.rest() == b"half"


@pytest.mark.parametrize(("http", "loop"), TWO_PLANS)
def test_idle_connection_ends_when_its_time_is_over(http: str, loop: str) -> None:
    """The worker that read it last keeps the clock. A head that has begun to come in time is waited for."""
    with serve("--http", http, "--loop", loop, "--keep-alive-timeout", "0.5") as server:
        home = homes(server)
        address = "127.0.0.1", server.port
        data = get(inhabitants(home)[1], "/late").data
        with Wire(address) as begun, Wire(address) as idle:
            visit_all(begun, home, last=0)
            begun.send(data[:20])
            visit_all(idle, home, last=0)
            with stopped(server, {1, 2, 3}):
                assert idle.rest() == b""
            assert int(begun.send(data[20:]).reply().headers["x-limpet-slot"]) == 1


def test_request_that_fails_after_its_response_ends_no_connection_that_has_moved_on(
    server: Limpet, home: dict[str, int], wire: Wire, gates: Path
) -> None:
    """A background task may fail long after the response; uvicorn then closes the connection."""
    a, b, *_ = inhabitants(home).values()
    gate = gates / f"background-{server.pid}"
    wire.send(request(f"/fails?{gate.name}", x_user=a)).reply()
    perform(wire, [get(b, "/1")], home)
    gate.touch()
    wait_until(lambda: "in the background" in server.log, "it has failed")
    for user in (a, b, a):
        perform(wire, [get(user, "/2")], home)


def test_request_that_fails_after_its_response_ends_no_request_of_another(
    server: Limpet, home: dict[str, int], wire: Wire, gates: Path
) -> None:
    """On a pooled connection the next request is somebody else's, and at home here too."""
    a = inhabitants(home)[0]
    b = next(user for user in home if home[user] == home[a] and user != a)
    gate = gates / f"failure-{server.pid}"
    wire.send(request(f"/fails?{gate.name}", x_user=a)).reply()
    asked = expects(b, "/served")
    assert wire.send(asked.data[: asked.waits]).reply().status == 100  # so it is being served
    seen = server.log.count("in the background")
    gate.touch()
    wait_until(lambda: server.log.count("in the background") > seen, "the first has failed")

    wire.send(asked.data[asked.waits :])
    asked.check(wire.reply(), home)


# --- the client ends it


@pytest.mark.parametrize("end", ["close", "reset"])
def test_end_of_the_client_reaches_the_application(server: Limpet, home: dict[str, int], wire: Wire, end: str) -> None:
    """A long poll that nobody waits for any more must not live until other workers do something."""
    user = inhabitants(home)[0]
    wait_until(lambda: sum(connections(server)) == 1, "earlier connections are gone")
    with Wire(("127.0.0.1", server.port)) as other, stopped(server, {1, 2, 3}):
        wire.send(request("/wait", x_user=user))
        wait_until(lambda: connections(server)[0] == 1, "it waits")
        wire.close() if end == "close" else wire.reset()
        assert other.send(request("/wait", "POST", b"", x_user=user)).reply().body == b"left"
        wait_until(lambda: connections(server)[0] == 1, "only the other connection is left")
    wait_until(lambda: sum(connections(server)) == 0, "nobody is left")


@pytest.mark.parametrize("end", ["close", "reset"])
def test_client_that_leaves_while_its_request_is_under_way_leaves_nothing_behind(
    server: Limpet, home: dict[str, int], wire: Wire, end: str
) -> None:
    """The message arrives with the descriptor of a dead connection: it and all copies must go."""
    user = inhabitants(home)[1]
    for _ in range(3):
        with Wire(("127.0.0.1", server.port)) as leaving:
            visit_all(leaving, home, last=0)
            with under_way(server, 1) as pid:
                leaving.send(get(user, "/").data)
            leaving.close() if end == "close" else leaving.reset()
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: sum(connections(server)) == 1, "only the other connection is left")
    wait_until(lambda: copies(server) <= 3, "no copies are left but those of the other connection")


def copies(server: Limpet) -> int:
    """Return how many copies all workers have."""
    return sum(entry["copies"] for entry in server.status()["slots"])


@pytest.mark.parametrize("far", [False, True], ids=["at home", "elsewhere"])
def test_client_that_half_closes_has_all_of_its_answers(
    server: Limpet, home: dict[str, int], wire: Wire, gates: Path, far: bool
) -> None:
    """FIN says that no more requests come, not that those which came are not wanted; they may take their time."""
    a, b, *_ = inhabitants(home).values()
    gate = gates / f"half-{far}-{server.pid}"
    slow = request(f"/held?{gate.name}", "POST", b"body", x_user=b if far else a)
    rest = [get(a, "/1"), get(b, "/2"), events(b, "/3"), get(a, "/4")]
    with stopped(server, {home[a], home[b]}):  # they find requests and FIN together
        wire.send(slow + b"".join(exchange.data for exchange in rest)).half_close()
    for user in (a, b, a):  # by now they have read both
        server.request(x_user=user)
    gate.touch()
    assert wire.reply().headers["x-path"] == "/held"
    for exchange in rest:
        exchange.check(wire.reply(), home)
    assert wire.rest() == b""


def test_upload_of_another_user_before_a_half_close_is_served(home: dict[str, int], wire: Wire) -> None:
    """The event loop may find the FIN in the same turn as the rest of a body that has to move."""
    _, b, *_ = inhabitants(home).values()
    exchange = post_large(b, "/")
    exchange.check(wire.send(exchange.data).half_close().reply(), home)
    assert wire.rest() == b""


# --- a worker dies


@pytest.mark.parametrize(("http", "loop", "bound"), [(*PLANS[0], "1024"), (*PLANS[3], "1024"), (*PLANS[1], "0")])
def test_client_sees_the_end_when_its_worker_is_killed(http: str, loop: str, bound: str, gates: Path) -> None:
    """Copies keep the connection open, so the kernel does not end it: those who have them must, and soon."""
    with serve("--http", http, "--loop", loop, "--max-copies", bound, gates=gates) as server:
        home = homes(server)
        user = inhabitants(home)[0]
        for asked in (b"", b"GET / HTTP/1.1\r\nhost", request("/held?never", "POST", b"", x_user=user)):
            with Wire(("127.0.0.1", server.port)) as wire:
                visit_all(wire, home, last=0)
                wire.send(asked)
                server.request(x_user=user)  # it has come to what was asked by now
                server.kill_worker(0)
                assert ended(wire)
        with Wire(("127.0.0.1", server.port)) as wire:
            visit_all(wire, home, last=1)
            assert wire.send(upgrade("/", x_user=user)).head()[0] == 101
            wire.frame()
            server.kill_worker(0)
            assert ended(wire)
        wait_until(lambda: copies(server) == 0, "no copies are left")


def test_client_sees_nothing_when_a_worker_is_killed_that_does_not_read_it(
    server: Limpet, home: dict[str, int], wire: Wire, gates: Path
) -> None:
    """Neither between requests nor within one; the next worker has no copy, and is sent the connection itself."""
    users = inhabitants(home)
    gate = gates / f"killed-{server.pid}"
    wire.send(request(f"/held?{gate.name}", "POST", b"", x_user=users[0]))
    for slot in (1, 2, 3):
        server.kill_worker(slot)
    gate.touch()
    assert wire.reply().headers["x-limpet-slot"] == "0"
    for slot in (1, 0, 2, 0, 3, 1, 2, 0):
        perform(wire, [get(users[slot], "/")], home)
        if slot == 2:
            server.kill_worker(1)


def test_request_under_way_from_a_worker_that_leaves_is_served() -> None:
    """In a rolling reload its receiver is new and has no copy, and what it needs of the sender must outlive that."""
    with serve("--keep-alive-timeout", "60") as server, Wire(("127.0.0.1", server.port)) as wire:
        home = homes(server)
        visit_all(wire, home, last=0)
        leaving = server.worker(0)["pid"]
        server.kill_worker(1)
        before = moved(server)
        with stopped(server, {1}):
            asked = get(inhabitants(home)[1], "/late")
            wire.send(asked.data)
            wait_until(lambda: moved(server) > before, "it is in the channel")
            os.kill(leaving, signal.SIGTERM)
            server.wait_ready(0, other_than=leaving)

        asked.check(wire.reply(), home)
        wait_until(lambda: leaving not in server.processes(), "it has left")  # until then its responses say `close`
        for user in inhabitants(home).values():
            perform(wire, [get(user, "/after")], home)


@pytest.mark.parametrize("size", [10, 300_000])
def test_request_under_way_to_a_worker_that_is_killed_is_served_by_the_next(
    server: Limpet, home: dict[str, int], wire: Wire, size: int
) -> None:
    """The channel is the slot's, not the worker's: what it had not read when it died is its successor's."""
    user = inhabitants(home)[1]
    with under_way(server, 1) as pid:
        wire.send(request("/", "POST", b"x" * size, x_user=user))
    server.kill_worker(1)
    reply = wire.reply().json()
    assert (reply["slot"], reply["size"]) == (1, size)
    assert reply["pid"] != pid
    visit_all(wire, home, last=1)


# --- bounds


@pytest.mark.parametrize(("http", "loop", "bound"), [(*PLANS[0], 0), (*PLANS[0], 3), (*PLANS[3], 1)])
def test_copies_are_bounded_and_moving_goes_on_without_them(http: str, loop: str, bound: int) -> None:
    """Copies cost descriptors. A connection of which none is left moves by its descriptor."""
    with serve("--http", http, "--loop", loop, "--max-copies", str(bound)) as server:
        home = homes(server)
        with wires(("127.0.0.1", server.port), 8) as clients:
            traffic = [batches(60, seed, heavy_every=1_000_000) for seed in range(len(clients))]
            for round_ in zip(*traffic, strict=False):
                for client, batch in zip(clients, round_, strict=True):
                    perform(client, batch, home)
            wait_until(
                lambda: max(entry["copies"] for entry in server.status()["slots"]) <= bound,
                "no more are kept than may be, but for those under way",
            )
            assert bound == 0 or wait_until(lambda: copies(server), "copies are counted")
        wait_until(lambda: copies(server) + sum(connections(server)) == 0, "nothing is left")


def test_worker_without_free_descriptors_gives_up_copies_before_clients() -> None:
    """Copies save time, and no more than that: they must not keep anybody out."""
    with serve() as server, contextlib.ExitStack() as stack:
        home = homes(server)
        users, pid = inhabitants(home), server.worker(1)["pid"]
        now = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (now + 30, now + 30))
        opened = [stack.enter_context(Wire(("127.0.0.1", server.port))) for _ in range(60)]
        for client in opened:
            perform(client, [get(users[1], "/1"), get(users[0], "/2")], home)
        for client in opened[:20]:
            perform(client, [get(users[1], "/3")], home)
        assert server.request(x_user=users[1]).json()["slot"] == 1


def test_full_channel_is_waited_for_and_then_the_answer_is_503(gates: Path) -> None:
    """A worker that hangs: who fits into its channel and who does not both hear of it, and nothing is served late."""
    with serve("--wait-timeout", "2", "--head-timeout", "1", "--workers", "2", gates=gates) as server:
        home = homes(server)
        users = inhabitants(home)
        with contextlib.ExitStack() as stack:
            clients = []
            for _ in range(250):  # one by one: each has a second for its first request
                clients.append(stack.enter_context(Wire(("127.0.0.1", server.port))))
                perform(clients[-1], [get(users[0], "/")], home)
            wait_until(lambda: server.totals()["requests"] == len(clients), "the last one is counted, too")
            before = server.totals()
            with stopped(server, {1}):
                for client in clients:
                    client.send(request("/", "POST", b"x" * 50_000, x_user=users[1]))
                replies = [client.reply() for client in clients]
                totals = server.totals()
            assert {reply.status for reply in replies} == {503}
            assert replies[0].headers["retry-after"] == "1"
            assert 0 < totals["returns"] - before["returns"] < len(clients)
            assert totals["returns_refused"] > 0
        assert server.request(x_user=users[1]).json()["slot"] == 1
        wait_until(lambda: server.totals()["requests"] == before["requests"] + 1, "only the last one was served")


def test_moving_connection_waits_for_its_slow_reader_and_not_only_for_a_head() -> None:
    """The clock for request heads runs while one is awaited, not while an earlier answer leaves."""
    with serve("--head-timeout", "0.5") as server:
        home = homes(server)
        a, b, *_ = inhabitants(home).values()
        address = "127.0.0.1", server.port
        with Wire(address) as wire:
            batch = [huge(a, "/slow"), get(b, "/behind")]
            visit_all(wire, home, last=home[a])
            wire.send(b"".join(exchange.data for exchange in batch))
            for _ in range(2):  # two times as long as a head may take
                with Wire(address) as silent:
                    visit_all(silent, home, last=home[a])
                    assert silent.send(b"GET ").reply().status == 408
            for exchange in batch:
                exchange.check(wire.reply(), home)


# --- the server stops


@pytest.mark.parametrize(
    ("http", "loop", "end"), [(*PLANS[0], signal.SIGTERM), (*PLANS[3], signal.SIGTERM), (*PLANS[0], signal.SIGKILL)]
)
def test_stop_answers_what_is_in_flight_on_connections_that_have_moved(
    http: str, loop: str, end: signal.Signals, gates: Path
) -> None:
    """Neither the requests being served nor those behind them may be lost, and what cannot move any more is refused.

    A GET by the end of the connection alone: a front repeats that on another machine, and would pass on a 503.
    """
    gate = gates / f"stop-{http}-{end.name}"
    with serve("--http", http, "--loop", loop, "--graceful-timeout", "20", gates=gates) as server:
        home = homes(server)
        users = inhabitants(home)
        address = "127.0.0.1", server.port
        with wires(address, 16) as clients, wires(address, 4) as sockets:
            for slot, socket in enumerate(sockets):
                visit_all(socket, home, last=(slot + 1) % 4)
                assert socket.send(upgrade("/", x_user=users[slot])).head()[0] == 101
                socket.frame()
            for number, client in enumerate(clients):
                visit_all(client, home, last=number % 4)
                client.send(request(f"/held?{gate.name}", "POST", b"", x_user=users[number % 4]))
                if number >= 4:  # another one behind it, of the same user or of another
                    user = users[(number + (number >= 8)) % 4]
                    client.send(request("/behind", "POST" if number >= 12 else "GET", x_user=user))
            for user in users.values():
                server.request(x_user=user)  # all have read what was sent
            server.signal(end)
            for socket in sockets:  # each worker knows
                assert socket.frame().opcode == CLOSE
                socket.send(frame(b"\x03\xf4", CLOSE))
            gate.touch()
            for number, client in enumerate(clients):
                assert client.reply().headers["x-limpet-slot"] == str(number % 4)
                if 4 <= number < 8 or number >= 12:
                    assert client.reply().status == (200 if number < 8 else 503)
                assert client.rest() == b""
        assert server.wait_ended() == (0 if end is signal.SIGTERM else -end)
        server.wait_gone()
