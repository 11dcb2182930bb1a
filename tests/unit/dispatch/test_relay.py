"""One TLS connection and the inner connection to which it is decrypted, driven by hand."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from limpet.dispatch.refusals import LINGER_S
from limpet.dispatch.relay import READ_BYTES, Relay
from limpet.net import tls
from tests.harness import PATIENCE_S
from tests.secure import client, make_pair


class Between:
    """A relay, the client on one side of it and the far end of the inner connection on the other."""

    def __init__(self, pem: str) -> None:
        ours, theirs = socket.socketpair()
        shaking = threading.Thread(target=self._shake, args=(theirs,))
        shaking.start()
        served = tls.context(pem).wrap_socket(ours, server_side=True)
        shaking.join(PATIENCE_S)
        served.setblocking(False)
        inner, self.worker = socket.socketpair()
        inner.setblocking(False)
        self.epoll = select.epoll()
        self.relay = Relay(served, inner, self.epoll)
        self.relay._watch()

    def _shake(self, end: socket.socket) -> None:
        self.client = client().wrap_socket(end, server_hostname="limpet.test")
        self.client.settimeout(PATIENCE_S)

    def turn(self) -> int:
        """Let the relay do what epoll reports; return how much that was."""
        events = self.epoll.poll(0.2)
        for fd, mask in events:
            if not self.relay.is_over:
                self.relay.go_on(fd, mask)
        return len(events)

    def close(self) -> None:
        """Close everything."""
        self.relay.close()
        self.client.close()
        self.worker.close()
        self.epoll.close()


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A certificate and its key."""
    folder: Path = tmp_path_factory.mktemp("pair")
    make_pair(folder, "limpet.test")
    return (folder / "cert.pem").read_text() + (folder / "key.pem").read_text()


@pytest.fixture
def between(pem: str) -> Iterator[Between]:
    """A connection whose handshake is over."""
    found = Between(pem)
    yield found
    found.close()


def test_bytes_pass_in_both_directions(between: Between) -> None:
    """That is all that it is for."""
    between.client.sendall(b"request")
    between.turn()
    assert between.worker.recv(100) == b"request"
    between.worker.sendall(b"response")
    between.turn()
    assert between.client.recv(100) == b"response"


def test_side_that_does_not_read_holds_the_other_back(between: Between) -> None:
    """Memory has a bound, however slow a client or a worker is."""
    between.client.setblocking(False)
    with contextlib.suppress(ssl.SSLWantWriteError):
        for _ in range(10_000):
            between.client.send(bytes(16_384))
            between.turn()
        pytest.fail("160 MB were taken, and nobody read them")
    assert len(between.relay._up) <= READ_BYTES


def test_end_of_the_worker_is_told_as_the_end_of_tls(between: Between) -> None:
    """Without close_notify a client could not tell a whole response from a cut one."""
    between.worker.sendall(b"response")
    between.worker.close()
    while between.turn() and not between.relay._end_sent:
        pass
    assert between.client.recv(100) == b"response"
    assert between.client.recv(100) == b""  # an SSLEOFError without close_notify


def test_client_that_does_not_close_is_closed_after_a_while(between: Between) -> None:
    """It would keep two descriptors for ever."""
    between.worker.close()
    while not between.relay._end_sent:
        between.turn()
    between.relay.expire(1.0, 60.0)
    between.relay.expire(1.0 + LINGER_S / 2, 60.0)
    assert not between.relay.is_over
    between.relay.expire(1.1 + LINGER_S, 60.0)
    assert between.relay.is_over


def test_end_of_the_client_is_told_to_the_worker_and_its_response_still_comes(between: Between) -> None:
    """A client that has sent its request may close its side, and still wants the answer."""
    between.client.sendall(b"request")
    between.turn()
    assert between.worker.recv(100) == b"request"
    shaking = threading.Thread(target=between.client.unwrap)  # it waits for the answer to its close_notify
    shaking.start()
    while not between.relay._client_ended:
        between.turn()
    assert between.worker.recv(100) == b""
    between.worker.close()
    while between.turn() and not between.relay.is_over:
        pass
    shaking.join(PATIENCE_S)
    assert between.relay.is_over


def test_worker_that_is_gone_costs_the_client_no_byte_that_it_sent_before(between: Between) -> None:
    """A refusal, as 413, is sent before the rest of the request is read, and the reset must not overtake it."""
    between.worker.sendall(b"too large")
    between.client.sendall(b"x" * 10_000)
    between.worker.close()  # with unread bytes later: the next write of the relay fails
    for _ in range(5):
        between.turn()
    assert between.client.recv(100) == b"too large"
    assert between.client.recv(100) == b""


def test_client_that_sends_what_is_no_tls_is_closed(between: Between) -> None:
    """Nothing after it can be trusted."""
    raw = socket.socket(fileno=between.client.detach())
    with raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        while between.turn() and not between.relay.is_over:
            pass
    assert between.relay.is_over
    between.client = client().wrap_socket(socket.socket(), do_handshake_on_connect=False)


def stall(between: Between) -> None:
    """Have the worker send until the client, which does not read, holds it up."""
    between.worker.setblocking(False)
    while not between.relay._down:
        with contextlib.suppress(BlockingIOError):
            between.worker.send(bytes(65_536))
        between.turn()


def test_client_that_stops_reading_is_closed_only_when_its_worker_is_gone(between: Between) -> None:
    """While the worker lives, its own deadlines decide."""
    stall(between)
    between.relay.expire(1.0, 60.0)
    between.relay.expire(100.0, 60.0)
    assert not between.relay.is_over
    between.worker.close()
    between.relay.expire(101.0, 60.0)
    assert between.relay.is_over


def test_client_that_reads_again_is_given_its_time_anew(between: Between) -> None:
    """A slow client is no dead one."""
    stall(between)
    between.relay.expire(1.0, 60.0)
    assert between.relay.stalled_since == 1.0
    while between.relay.stalled_since is not None:
        between.client.recv(65_536)
        between.turn()
    between.relay.expire(1000.0, 60.0)
    assert not between.relay.is_over
