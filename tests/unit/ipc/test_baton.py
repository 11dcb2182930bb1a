"""The baton: whatever is killed, evicted or delayed, a connection has one reader, or it has ended for its client.

The machine drives real movers over real socket pairs; a "process" is a mover with the descriptors that it has open,
and killing one closes them, as the kernel would.
"""

from __future__ import annotations

import os
import socket
import traceback
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from limpet.ipc.baton import CELLS_PER_WORKER, Baton, Batons, Verdict
from limpet.ipc.channel import Channel
from limpet.ipc.scoreboard import WORKER_CELLS, Row
from limpet.moving.messages import Arrived, shut_down
from limpet.moving.mover import Mover
from limpet.protocol.proxy_protocol import Origin

SLOTS = 3
PATIENCE_S = 30.0
MOST_COPIES = 2


class KilledError(Exception):
    """The process was killed at this very instruction."""


@dataclass(eq=False)
class Connection:
    """What the client has: its end, and which requests it knows to be served."""

    client: socket.socket
    number: int
    sent: int = 0
    served: list[bytes] = field(default_factory=list)

    def over(self) -> bool:
        """Whether the client has seen the end."""
        try:
            return self.client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True


@dataclass(eq=False)
class Held:
    """A protocol object: one process's descriptor of a connection, read or paused."""

    process: Process
    sock: socket.socket
    connection: Connection
    baton: Baton | None = None
    reads: bool = True
    had_by: int = 0
    digest: int = 0
    origin: Origin | None = None
    listener: int = 0
    light_head: bytes = b""

    @property
    def fd(self) -> int:
        return self.sock.fileno()

    def resume(self, leftover: bytes) -> None:
        self.reads = True
        self.connection.served.append(leftover)

    def drop(self, verdict: Verdict) -> None:
        if verdict is not Verdict.FORGET:
            shut_down(self.sock.fileno())
        self.close()

    def close(self) -> None:
        self.reads = False
        self.sock.close()
        self.process.held.remove(self)


class Process:
    """A worker: its mover, and every descriptor that it has open."""

    def __init__(self, slot: int, row: int, serial: int, cells: list[int], channels: list[Channel]) -> None:
        self.slot, self.serial = slot, serial
        self.held: list[Held] = []
        self.dies_in_take = False
        self.connections: dict[int, Connection] = {}
        segment = range(row * CELLS_PER_WORKER, row * CELLS_PER_WORKER + 4)
        self.batons = Batons(cells, segment, serial, PATIENCE_S)
        take = self.batons.take

        def take_or_die(baton: Baton) -> bool:
            if self.dies_in_take:
                raise KilledError
            return take(baton)

        self.batons.take = take_or_die  # type: ignore[method-assign]
        memory = memoryview(bytearray(8 * len(WORKER_CELLS))).cast("Q")
        self.mover = Mover(
            slot,
            self.batons,
            [channel.sending for channel in channels],
            channels[slot].receiving,
            Row(memory, WORKER_CELLS),
            MOST_COPIES,
        )

    def adopt(self, arrived: Arrived, connections: dict[int, Connection]) -> None:
        connection = connections[int(arrived.leftover.split(b"/")[0])]
        held = Held(self, arrived.connection, connection, arrived.baton, had_by=arrived.had_by)
        self.held.append(held)
        held.resume(arrived.leftover)

    def die(self) -> None:
        for held in self.held:
            held.sock.close()
        self.held = []


class Crew(RuleBasedStateMachine):
    """Three slots, their workers, and connections that move between them."""

    @initialize()
    def start(self) -> None:
        self.cells = [0] * (CELLS_PER_WORKER * SLOTS)
        self.channels = [Channel.create() for _ in range(SLOTS)]
        self.serial = 0
        self.disturbed = False  # somebody was killed, or waited for too long
        self.now = 1000.0
        self.connections: dict[int, Connection] = {}
        self.workers = [self.spawn(slot) for slot in range(SLOTS)]
        self.tell()

    def spawn(self, slot: int) -> Process:
        self.serial += 1
        return Process(slot, slot, self.serial, self.cells, self.channels)

    def tell(self) -> None:
        for worker in self.workers:
            worker.mover.alive([each.serial for each in self.workers], self.serial, self.now)

    def readers(self) -> list[Held]:
        return [held for worker in self.workers for held in worker.held if held.reads]

    def in_channels(self) -> int:
        waiting = 0
        for channel in self.channels:
            try:
                channel.receiving.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                waiting += 1
            except BlockingIOError:
                pass
        return waiting

    @precondition(lambda self: len(self.connections) < 6)
    @rule(slot=st.integers(0, SLOTS - 1))
    def connect(self, slot: int) -> None:
        client, server = socket.socketpair()
        connection = Connection(client, len(self.connections))
        self.connections[connection.number] = connection
        self.workers[slot].held.append(Held(self.workers[slot], server, connection))

    @precondition(lambda self: self.readers())
    @rule(data=st.data(), slot=st.integers(0, SLOTS - 1))
    def move(self, data: st.DataObject, slot: int) -> None:
        held = data.draw(st.sampled_from(self.readers()))
        leftover = b"%d/%d" % (held.connection.number, held.connection.sent)
        held.connection.sent += 1
        done, held.baton = held.process.mover.pass_on(held, held.baton, slot, leftover, self.now)
        assert done
        held.reads = False
        if held.baton is None:
            held.close()

    @rule(slot=st.integers(0, SLOTS - 1))
    def deliver(self, slot: int) -> None:
        worker = self.workers[slot]
        worker.mover.receive(lambda arrived: worker.adopt(arrived, self.connections))

    @precondition(lambda self: any(held.baton for held in self.readers()))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from([held for held in self.readers() if held.baton]))
        assert held.baton is not None
        held.process.mover.ended(held.sock.fileno(), held.baton)
        held.close()
        assert held.connection.over(), "a plain end must reach the client at once, whatever copies there are"

    @rule(slot=st.integers(0, SLOTS - 1), in_take=st.booleans())
    def kill(self, slot: int, in_take: bool) -> None:
        self.disturbed = True
        worker = self.workers[slot]
        if in_take:
            worker.dies_in_take = True
            try:
                worker.mover.receive(lambda arrived: worker.adopt(arrived, self.connections))
            except KilledError as error:  # the descriptors that it had received died with it
                frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
                if frames[-2].f_code.co_name == "_take_whole":
                    os.close(frames[-2].f_locals["fd"])
        reading = [held.connection for held in worker.held if held.reads and held.baton]
        worker.die()
        self.workers[slot] = self.spawn(slot)
        self.tell()
        for connection in reading:
            assert connection.over(), "the client of a worker that died must not hang"

    @rule(seconds=st.sampled_from([0.1, 5.0, PATIENCE_S + 1]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.disturbed |= seconds > PATIENCE_S

    @rule(slot=st.integers(0, SLOTS - 1))
    def sweep(self, slot: int) -> None:
        self.workers[slot].mover.sweep(self.now)

    @invariant()
    def one_reader(self) -> None:
        """No connection is read by two processes, and no request is served twice."""
        if not hasattr(self, "workers"):
            return
        reading = [held.connection.number for held in self.readers()]
        assert len(reading) == len(set(reading))
        places = [held.baton[0] for held in self.readers() if held.baton]
        assert len(places) == len(set(places)), "two connections in one cell"
        for connection in self.connections.values():
            assert len(connection.served) == len(set(connection.served))

    def teardown(self) -> None:
        """In the end everybody is served or sees the end: deliver what is under way, and let the patience pass."""
        if not hasattr(self, "workers"):
            return
        while self.in_channels():
            for slot in range(SLOTS):
                self.deliver(slot)
        for connection in [] if self.disturbed else self.connections.values():
            assert connection.over() or len(connection.served) == connection.sent, "a request was lost, and nobody died"
        self.now += PATIENCE_S + 1
        for worker in self.workers:
            worker.mover.sweep(self.now)
        reading = {held.connection.number for held in self.readers()}
        for connection in self.connections.values():
            assert connection.number in reading or connection.over(), f"client {connection.number} hangs"
        for held in [held for worker in self.workers for held in worker.held]:
            assert not held.connection.over(), "a connection that has ended is read, or its copy is still open"
        for connection in self.connections.values():
            connection.client.close()
        for worker in self.workers:
            worker.die()
        for channel in self.channels:
            channel.sending.close()
            channel.receiving.close()


TestCrew = Crew.TestCase
TestCrew.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def batons(cells: list[int], serial: int = 1, *, claims: bool = True) -> Batons:
    view = Batons(cells, range(len(cells) if claims else 0), serial, PATIENCE_S)
    view.alive([1, 2], 2)
    return view


def test_all_cells_in_use_means_no_baton() -> None:
    """The bound on connections that keep copies: more than that move without."""
    view = batons([0, 0])
    assert {view.claim(0.0), view.claim(0.0)} == {(0, 1), (1, 1)}
    assert view.claim(0.0) is None


def test_cell_that_another_worker_has_ended_is_found_after_a_while() -> None:
    """All cells are looked at now and then only: with a full segment every move would have to pay for it."""
    cells = [0]
    view, other = batons(cells), batons(cells, serial=2, claims=False)
    baton = view.claim(0.0)
    assert baton is not None
    view.send(baton, 0.0)
    assert other.take(baton)
    assert view.claim(0.5) is None
    other.end(baton)
    assert view.claim(0.9) is None
    assert view.claim(1.5) == (0, 2)


def test_ended_cell_is_used_again_with_a_new_epoch() -> None:
    """A copy of the earlier connection must notice that its baton is stale."""
    view = batons([0])
    first = view.claim(0.0)
    assert first is not None
    view.end(first)
    assert view.claim(0.0) == (0, 2)
    assert view.verdict(first, 0.0) is Verdict.FORGET


def test_ending_twice_frees_the_cell_once() -> None:
    """Two connections in one cell would be read by whoever looks at it."""
    view = batons([0, 0])
    first = view.claim(0.0)
    assert first is not None
    view.end(first)
    view.end(first)
    second, third = view.claim(0.0), view.claim(0.0)
    assert second is not None
    assert third is not None
    assert second[0] != third[0]
    assert view.claim(0.0) is None


def test_cell_of_a_dead_holder_is_free_again() -> None:
    """Cells of killed workers must not leak."""
    cells = [0, 0]
    origin, other = batons(cells), batons(cells, serial=2, claims=False)
    for _ in range(2):
        baton = origin.claim(0.0)
        assert baton is not None
        origin.send(baton, 0.0)
        assert other.take(baton)
    assert origin.claim(0.0) is None
    origin.alive([1], 2)
    assert origin.claim(0.0) is not None


def test_worker_that_is_newer_than_the_news_counts_as_alive() -> None:
    """The news of a new worker may come after its first baton."""
    cells = [0]
    origin = batons(cells)
    baton = origin.claim(0.0)
    assert baton is not None
    origin.send(baton, 0.0)
    assert batons(cells, serial=3, claims=False).take(baton)
    assert origin.verdict(baton, 0.0) is Verdict.KEEP


def test_message_that_arrives_after_the_connection_was_given_up_is_refused() -> None:
    """Its client has seen the end: serving the request now would do things nobody hears of."""
    cells = [0]
    origin = batons(cells)
    baton = origin.claim(0.0)
    assert baton is not None
    origin.send(baton, 0.0)
    assert origin.verdict(baton, PATIENCE_S + 1) is Verdict.REFUSE
    origin.end(baton)
    assert not batons(cells, serial=2, claims=False).take(baton)


def test_message_of_an_earlier_connection_in_the_same_cell_is_refused() -> None:
    """It would take the baton away from a connection that it has nothing to do with."""
    cells = [0]
    origin = batons(cells)
    stale = origin.claim(0.0)
    assert stale is not None
    origin.send(stale, 0.0)
    origin.end(stale)
    fresh = origin.claim(0.0)
    assert fresh is not None
    origin.send(fresh, 0.0)
    other = batons(cells, serial=2, claims=False)
    assert not other.take(stale)
    assert other.take(fresh)


@pytest.mark.parametrize("epochs", [1 << 24])
def test_epoch_wraps_inside_its_cell(epochs: int) -> None:
    """After 16 million uses the epoch starts again; it must not spill into the other fields."""
    cells = [(epochs - 1) << 40]
    baton = batons(cells).claim(0.0)
    assert baton == (0, 0)
    assert cells[0] >> 40 == 0
