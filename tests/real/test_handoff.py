"""What passes between the processes of a server, on real sockets: connections, commands, an operator's questions."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import selectors
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limpet.errors import ControlError, ListenError
from limpet.ipc.channel import SIZE, Channel, ChannelFullError, Handoff, Outbox, Receiver
from limpet.ipc.control_link import Link, LinkClosedError
from limpet.ipc.scoreboard import Scoreboard
from limpet.operate import control_socket
from limpet.operate.control_socket import ControlServer, listen
from tests.harness import PATIENCE_S, Limpet, wait_until

DECIDED = Handoff(listener=1, slot=3, digest=2**64 - 1, accepted_ns=12345)
TAKER = """
import os, socket, sys
from limpet.ipc.channel import Receiver
receiver = Receiver(socket.socket(fileno=int(sys.argv[1])))
for _ in range(2):
    receiver.receive()
print("took two", flush=True)
os.read(0, 1)
"""


@pytest.fixture
def channel() -> Iterator[Channel]:
    """A channel as the supervisor makes it."""
    channel = Channel.create()
    with channel.sending, channel.receiving:
        yield channel


@pytest.fixture
def small_channel(channel: Channel) -> Channel:
    """A channel that is full after a few connections, as any channel is at some time."""
    channel.sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    return channel


@pytest.fixture
def outbox(small_channel: Channel) -> Iterator[Outbox]:
    """A dispatcher's side of the small channel."""
    outbox = Outbox(small_channel, Scoreboard.create().waiting(0, 0))
    yield outbox
    for left in outbox.flush(now=float("inf")):
        left.close()


BOUND = 10_000


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    """The client ends of the connections that `accepted` makes."""
    ends: list[socket.socket] = []
    yield ends
    for end in ends:
        end.close()


def accepted(clients: list[socket.socket]) -> socket.socket:
    """Return the server's end of a new connection."""
    client, ours = socket.socketpair()
    client.settimeout(PATIENCE_S)
    clients.append(client)
    return ours


def fill(outbox: Outbox, clients: list[socket.socket], more: int) -> int:
    """Put connections into *outbox* until the channel is full, and *more*; return how many are in the channel."""
    while not len(outbox):
        assert outbox.put(accepted(clients), DECIDED, deadline=10.0, bound=BOUND)
    for number in range(more):
        assert outbox.put(accepted(clients), DECIDED, deadline=11.0 + number, bound=BOUND)
    return len(clients) - 1 - more


# --- the line between the supervisor and a child


def test_child_that_does_not_read_gets_everything_later_and_only_the_latest_news(channel: Channel) -> None:
    """A stopped worker that missed a command would never drain, or serve by old news for ever."""
    ours, theirs = Link.pair()
    child = Link(theirs)
    ours.send({"do": "accept"})
    for number in range(1000):
        ours.send({"do": "workers", "number": number, "alive": [0] * 1000}, is_latest=True)
    ours.send({"do": "slot", "slot": 4}, channel.fds)
    ours.send({"do": "drain"})
    ours.send({"do": "workers", "number": 1000}, is_latest=True)
    assert 3 <= len(ours.unsent) <= 4, "it had no room, and what waits is bounded"
    heard = child.receive()
    while ours.unsent:
        ours.flush()
        heard += child.receive()
    assert [each["do"] for each in heard if each["do"] != "workers"] == ["accept", "slot", "drain"]
    assert heard[-1] == {"do": "workers", "number": 1000}
    [fds] = [each["fds"] for each in heard if each["do"] == "slot"]
    for fd in fds:
        os.close(fd)
    ours.close()
    child.close()


# --- connections: from a dispatcher to a worker


def test_connection_arrives_with_what_was_decided_and_all_its_bytes(
    channel: Channel, clients: list[socket.socket]
) -> None:
    """The worker cannot come to another decision, and reads what the dispatcher has only peeked at."""
    with accepted(clients) as connection:
        connection.setblocking(True)
        clients[0].sendall(b"GET / HTTP/1.1\r\n")
        connection.recv(100, socket.MSG_PEEK)
        channel.send(connection, DECIDED)
    found, handoff = Receiver(channel.receiving).receive()
    with found.whole() as received:
        assert handoff == DECIDED
        assert received.recv(100) == b"GET / HTTP/1.1\r\n"
        assert not os.get_blocking(received.fileno())
        assert fcntl.fcntl(received, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert clients[0].recv(1) == b""  # both copies are closed: this is the FIN


def test_sender_keeps_its_copy_until_it_closes_it(channel: Channel, clients: list[socket.socket]) -> None:
    """Who holds the descriptor closes it: a copy left open would hold back the FIN at the end of the connection."""
    with accepted(clients) as connection:
        channel.send(connection, DECIDED)
        Receiver(channel.receiving).receive()[0].close()
        clients[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            clients[0].recv(1)
    assert clients[0].recv(1) == b""


def test_empty_channel_says_so(channel: Channel) -> None:
    """The worker reads until nothing waits."""
    with pytest.raises(BlockingIOError):
        Receiver(channel.receiving).receive()


def test_connections_in_the_channel_survive_the_worker(channel: Channel, clients: list[socket.socket]) -> None:
    """What was accepted is served: by the successor, if the worker is killed. The kernel counts what waits."""
    for _ in range(5):
        with accepted(clients) as connection:
            channel.send(connection, DECIDED)
    assert channel.queued() == 5
    command = [sys.executable, "-c", TAKER, str(channel.receiving.fileno())]
    fds = [channel.receiving.fileno()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds) as taker:
        assert taker.stdout is not None
        assert taker.stdout.readline() == b"took two\n"
        taker.send_signal(signal.SIGKILL)
    assert channel.queued() == 3
    receiver = Receiver(channel.receiving)
    for client in clients[2:]:
        with receiver.receive()[0] as connection:
            connection.sendall(b"served")
        assert client.recv(100) == b"served"
    assert [client.recv(1) for client in clients] == [b""] * 5


def test_worker_without_free_descriptor_leaves_the_connection_in_the_channel(
    channel: Channel, clients: list[socket.socket]
) -> None:
    """The kernel drops a descriptor that finds no number, without a word: the client would wait for ever."""
    with accepted(clients) as connection:
        channel.send(connection, DECIDED)
    receiver = Receiver(channel.receiving)
    with no_free_descriptor():
        for _ in range(3):
            with pytest.raises(OSError, match="Too many open files"):
                receiver.receive()
    assert channel.queued() == 1
    receiver.receive()[0].close()
    assert clients[0].recv(1) == b""


@contextlib.contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Let this process open nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_message_that_is_no_handover_is_a_bug_and_leaks_nothing(channel: Channel, clients: list[socket.socket]) -> None:
    """Nobody else can write into a channel; if it happens all the same, it is heard of."""
    with accepted(clients) as one, accepted(clients) as two:
        socket.send_fds(channel.sending, [b"x" * SIZE], [one.fileno(), two.fileno()])
        socket.send_fds(channel.sending, [b"x"], [one.fileno()])
        channel.sending.send(b"x" * SIZE)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="not a handoff"):
            Receiver(channel.receiving).receive()
    assert [client.recv(1) for client in clients] == [b"", b""]


def test_full_channel_refuses_without_taking_the_connection(
    small_channel: Channel, clients: list[socket.socket]
) -> None:
    """Whoever cannot hand over still owns the connection, and may try again."""
    with pytest.raises(ChannelFullError):  # noqa: PT012  # it is not known before which one is too many
        while True:
            with accepted(clients) as connection:
                small_channel.send(connection, DECIDED)
    assert small_channel.queued() == len(clients) - 1
    assert clients[-1].recv(1) == b""  # the last one was closed by its owner, and by nobody else before


def test_outbox_hands_over_in_order_when_there_is_room_again(
    outbox: Outbox, small_channel: Channel, clients: list[socket.socket]
) -> None:
    """Clients of a slot that is busy wait in the order in which they came; nobody overtakes."""
    fill(outbox, clients, more=3)
    assert (len(outbox), outbox.queued(), outbox.row["waiting"]) == (4, len(clients), 4)
    receiver = Receiver(small_channel.receiving)
    for client in list(clients):
        with receiver.receive()[0] as connection:
            connection.sendall(b"your turn")
        assert client.recv(100) == b"your turn"
        assert outbox.flush(now=0.0) == []
    assert (len(outbox), outbox.queued(), outbox.row["waiting"]) == (0, 0, 0)


def test_newcomer_waits_behind_those_who_wait_already(
    outbox: Outbox, small_channel: Channel, clients: list[socket.socket]
) -> None:
    """Room in the channel belongs to the first in the outbox, not to whoever happens to come then."""
    fill(outbox, clients, more=0)
    Receiver(small_channel.receiving).receive()[0].close()
    assert outbox.put(accepted(clients), DECIDED, deadline=10.0, bound=BOUND)
    assert len(outbox) == 2


@pytest.mark.parametrize("bound", [1, 2, 100])
def test_queue_has_a_bound_whoever_holds_it(
    outbox: Outbox, small_channel: Channel, clients: list[socket.socket], bound: int
) -> None:
    """Every queue ends somewhere: the channel's part of it, which takes thousands, counts too."""
    for _ in range(bound):
        assert outbox.put(accepted(clients), DECIDED, deadline=20.0, bound=bound)
    receiver = Receiver(small_channel.receiving)
    for _ in range(3):
        with accepted(clients) as refused:
            assert not outbox.put(refused, DECIDED, deadline=20.0, bound=bound)
        receiver.receive()[0].close()
        assert outbox.put(accepted(clients), DECIDED, deadline=20.0, bound=bound)
        assert outbox.queued() == bound


def test_outbox_has_a_deadline(outbox: Outbox, clients: list[socket.socket]) -> None:
    """What waits for too long goes back to be answered."""
    fill(outbox, clients, more=2)
    assert outbox.flush(now=9.9) == []
    for now, waiting in ((10.0, 2), (11.5, 1), (12.0, 0)):
        [late] = outbox.flush(now)
        late.close()
        assert (len(outbox), outbox.row["waiting"]) == (waiting, waiting)


# --- commands: between the supervisor and a child


@pytest.fixture
def line() -> Iterator[tuple[Link, Link]]:
    """Both ends of a line."""
    ours, theirs = Link.pair()
    there = Link(theirs)
    yield ours, there
    ours.close()
    there.close()


def test_messages_arrive_one_by_one_however_they_are_read(line: tuple[Link, Link]) -> None:
    """A stream knows no messages: several come at once, and one comes in pieces."""
    here, there = line
    here.send({"do": "accept"})
    here.send({"do": "drain", "timeout": None})
    assert there.receive() == [{"do": "accept"}, {"do": "drain", "timeout": None}]
    assert there.receive() == []
    raw = socket.socket(fileno=os.dup(here.fileno()))
    with raw:
        raw.sendall(b'{"news": "fai')
        assert there.receive() == []
        raw.sendall(b'led"}\n{"n')
        assert there.receive() == [{"news": "failed"}]


def test_end_of_the_line_is_seen_behind_the_last_message(line: tuple[Link, Link]) -> None:
    """What a child says right before its death, why it failed, must not get lost with it."""
    here, there = line
    here.send({"news": "failed"})
    here.close()
    assert here.closed
    assert there.receive() == [{"news": "failed"}]
    with pytest.raises(LinkClosedError):
        there.receive()
    there.send({"do": "drain"})  # to nobody: that is no error


def test_side_that_does_not_read_loses_whole_messages_only(line: tuple[Link, Link]) -> None:
    """The supervisor never waits for a child that hangs; half a line would make all that follow unreadable."""
    here, there = line
    message = {"do": "workers", "rows": list(range(1000))}
    for _ in range(500):
        here.send(message)
    seen = 0
    while messages := there.receive():
        assert messages == [message] * len(messages)
        seen += len(messages)
    assert 0 < seen < 500
    here.send(message)
    assert there.receive() == [message]


# --- questions: from the operator to the supervisor


@pytest.fixture(scope="module")
def limpet() -> Iterator[Limpet]:
    """A running server."""
    with Limpet("tests.apps:echo", "--workers", "1", "--by", "cookie:sid") as server:
        yield server


class Server:
    """A control socket that is served in a thread, as the supervisor serves it."""

    def __init__(self, path: Path | None = None, name: str = "test") -> None:
        self.selector = selectors.DefaultSelector()
        self.control = ControlServer(*listen(str(path) if path else None, name), self.answer, self.selector)
        self.now = 0.0
        self.asked = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Say the request back, or refuse it."""
        self.asked += 1
        return {"error": "no", "hint": "ask for something else"} if "refuse" in request else {"asked": request}

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.control.close()
        self.selector.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            for key, _ in self.selector.select(0.01):
                key.data(self.now)
            self.control.expire(self.now)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the control socket is."""
    return tmp_path / "control.sock"


def caller(path: Path) -> socket.socket:
    """Return a connection to the control socket at *path*."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(path))  # blocking: it waits for room in the backlog
    sock.settimeout(PATIENCE_S)
    return sock


def test_question_is_answered_to_its_owner_only(path: Path) -> None:
    """Whoever can stop the server must be its user; the file is gone with the server."""
    with Server(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert control_socket.ask(str(path), {"command": "status"}) == {"asked": {"command": "status"}}
        with pytest.raises(ControlError, match="no") as refused:
            control_socket.ask(str(path), {"refuse": True})
        assert refused.value.hint == "ask for something else"
    assert not path.exists()


@pytest.mark.parametrize(
    "junk", [b"\n", b"{\n", b"[1]\n", b"\xff\xfe\n", b'"status"\n', b"1e999\n", b"[" * 9000 + b"\n"]
)
def test_junk_is_told_so(path: Path, junk: bytes) -> None:
    """Whatever is written into the socket, the supervisor lives on."""
    with Server(path):
        with caller(path) as sock:
            sock.sendall(junk)
            assert b"not a JSON object" in sock.recv(1000)
        assert control_socket.ask(str(path), {}) == {"asked": {}}


@pytest.mark.parametrize(
    "nonsense",
    [{}, {"command": None}, {"command": ["status"]}, {"command": "where"}]
    + [{"command": "where", "keys": keys} for keys in (None, "alice", [1], [None], ["\ud800"], [""], {"alice": 1})],
)
def test_nonsense_in_a_question_is_refused(limpet: Limpet, nonsense: dict[str, Any]) -> None:
    """A script with a mistake gets an error; the server that it asks about goes on."""
    with pytest.raises(ControlError):
        limpet.ask(**nonsense)
    assert limpet.status()["pid"] == limpet.pid


def test_question_in_pieces_is_put_together(path: Path) -> None:
    """`limpet where` may carry more keys than fit into one read."""
    with Server(path), caller(path) as sock:
        for part in (b'{"comm', b'and": "', b'x"}', b"\n"):
            sock.sendall(part)
        assert b'"x"' in sock.recv(1000)
        assert len(control_socket.ask(str(path), {"keys": ["k" * 100] * 5000})["asked"]["keys"]) == 5000


def test_caller_that_says_nothing_or_too_much_is_dropped(path: Path) -> None:
    """Nobody may fill the supervisor's memory or descriptors, by mistake either."""
    with Server(path) as server, caller(path) as silent, caller(path) as half, caller(path) as endless:
        half.sendall(b'{"command": ')
        with pytest.raises(OSError):  # noqa: PT012  # reset or broken pipe, at some point of the way
            for _ in range(50):
                endless.sendall(b"x" * 100_000)
            endless.recv(1)
        wait_until(lambda: control_socket.ask(str(path), {}), "the server has seen all of them")
        server.now = 6.0
        assert (silent.recv(1), half.recv(1)) == (b"", b"")


def test_caller_that_was_answered_stays_until_the_end(path: Path) -> None:
    """`limpet stop` returns when the server has stopped, which may take longer than anybody's patience."""
    with contextlib.ExitStack() as stack:
        with Server(path) as server:
            waiting = stack.enter_context(caller(path))
            waiting.sendall(b"{}\n")
            assert waiting.recv(1000) == b'{"asked": {}}\n'
            server.now = 1000.0
            control_socket.ask(str(path), {})
            waiting.setblocking(False)
            with pytest.raises(BlockingIOError):
                waiting.recv(1)
        waiting.settimeout(PATIENCE_S)
        assert waiting.recv(1) == b""


def test_asking_until_the_end_returns_when_the_server_has_closed(path: Path) -> None:
    """The exit code of `limpet stop` means that the server is gone, not that it has heard."""
    answers: list[dict[str, Any]] = []
    with Server(path) as server:
        asking = threading.Thread(
            target=lambda: answers.append(control_socket.ask(str(path), {"command": "stop"}, until_end=PATIENCE_S))
        )
        asking.start()
        wait_until(lambda: server.asked, "the server was asked")
        assert not answers
    asking.join(PATIENCE_S)
    assert answers == [{"asked": {"command": "stop"}}]


def test_more_callers_than_allowed_push_out_the_oldest(path: Path) -> None:
    """The bound on conversations: an operator's script that forgets to close must not lock the operator out."""
    with Server(path), contextlib.ExitStack() as stack:
        callers = [stack.enter_context(caller(path)) for _ in range(70)]
        assert control_socket.ask(str(path), {}) == {"asked": {}}
        assert [sock.recv(1) for sock in callers[:6]] == [b""] * 6


def test_file_of_a_dead_server_is_replaced_and_a_living_one_is_not(path: Path) -> None:
    """A server that was killed must not keep its successor from starting, nor be robbed of its name while it lives."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Server(path):
        with pytest.raises(ListenError, match="address already in use"):
            Server(path)
        assert control_socket.ask(str(path), {}) == {"asked": {}}


def test_commands_find_the_only_server_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one server there is nothing to choose; with several nobody may stop the wrong one."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(ControlError, match="no server is running"):
        control_socket.ask(None, {})
    with Server(name="one"):
        assert stat.S_IMODE((tmp_path / "limpet").stat().st_mode) == 0o700
        assert control_socket.ask(None, {}) == {"asked": {}}
        with Server(name="two"), pytest.raises(ControlError, match=r"2 servers are running: .*one-.*two-"):
            control_socket.ask(None, {})
        assert control_socket.ask(None, {}) == {"asked": {}}


def test_runtime_directory_that_others_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory of somebody else a command could talk to somebody else's socket."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "limpet").mkdir()
    (tmp_path / "limpet").chmod(0o777)
    with pytest.raises(ListenError, match="not a directory that only this user can write to"):
        Server()


def test_server_that_ends_before_it_answers_is_reported(path: Path) -> None:
    """An operator learns that nothing is known of the outcome, in words."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(ControlError, match=r"(ended before it answered|to the server was lost)"):
            control_socket.ask(str(path), {})
        thread.join()
