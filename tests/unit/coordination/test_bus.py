"""The bus: what is promised to publishers and subscribers, with several participants in one process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio

import limpet
from limpet.coordination import bus, interest, packet, subscription
from limpet.coordination.bus import Bus, Seat
from limpet.coordination.interest import Memory
from limpet.coordination.roster import Roster
from limpet.coordination.subscription import Message, Subscription
from limpet.ipc.boot import BusPlace
from limpet.ipc.scoreboard import Row, Scoreboard, position

PATIENCE_S = 10


class Server:
    """A supervisor's roster, and participants that are objects in this process instead of workers."""

    def __init__(self) -> None:
        self.roster = Roster(Memory.create())
        self.board = Scoreboard.create()
        self.serial = 0
        self._seats: list[Seat] = []

    def worker(self, row: int) -> Bus:
        """Return a new participant in *row*."""
        self.serial += 1
        with self.roster.admit(row, self.serial) as place:
            copies = BusPlace(
                place.memory_fds,
                row,
                place.serial,
                os.dup(place.receiving_fd),
                os.dup(place.line_fd),
                tuple((at, serial, os.dup(fd)) for at, serial, fd in place.peers),
            )
        seat = Seat(copies)
        self._seats.append(seat)
        return Bus(seat, self.board.worker(row))

    def close(self) -> None:
        """End all."""
        for seat in self._seats:
            seat.channel.close()
            seat.peers._line.close()
            for _, channel in seat.peers._channels.values():
                channel.close()
        for row in range(self.roster.memory.height):
            self.roster.dismiss(row)
        for fd in (*self.roster.memory.fds, self.board.fd):
            os.close(fd)

    def kill(self, row: int, worker: Bus) -> None:
        """End the process of *worker*, and reap it."""
        assert worker._seat is not None
        worker._seat.channel.close()
        self.roster.dismiss(row)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Return a server without workers; a subscription has room for a whole channel."""
    monkeypatch.setattr(subscription, "MOST_MESSAGES", 100_000)
    with contextlib.closing(Server()) as made:
        yield made


def figures(row: Row) -> dict[str, int]:
    """Return what *row* has counted of the bus."""
    return {name.removeprefix("bus_"): count for name, count in row.values().items() if name.startswith("bus_")}


def hear(worker: Bus, *topics: str) -> Subscription:
    """Return an entered subscription of *worker*. Nothing reads its channel but `taken`."""
    worker._reader.begin = lambda *_: None  # type: ignore[method-assign]
    return Subscription(lambda: worker, topics).__enter__()


def taken(messages: Subscription) -> list[Message]:
    """Return all that has come to *messages*."""
    assert isinstance(messages._bus, Bus)
    while not messages._bus.take():
        pass
    found = []
    while (message := messages.get(timeout_s=0)) is not None:
        found.append(message)
    return found


def channel_of(publisher: Bus) -> socket.socket:
    """Return the channel of the first receiver that *publisher* knows."""
    channel = publisher._receivers[0].channel
    assert channel is not None
    return channel


def fill(worker: Bus, topic: str) -> int:
    """Publish numbers to *topic* until the channel of its only receiver is full, and once more. Return how many."""
    assert worker._cells is not None
    dropped, count = position("bus_dropped"), 0
    before = worker._cells[dropped]
    while worker._cells[dropped] == before:
        worker.publish(topic, count)
        count += 1
    return count


@pytest.mark.parametrize("data", [b"\0\xff", "Grüße", {"n": [1, None, 2.5]}, [], None, b"", "", "x" * 100_000])
def test_data_arrives_as_it_was_published(server: Server, data: Any) -> None:
    """Bytes, text and JSON keep their kind, in the publisher's own worker, too, and beyond the size of a datagram."""
    one, two = server.worker(0), server.worker(1)
    near, far = hear(one, "room"), hear(two, "room")
    one.publish("room", data)
    assert taken(near) == taken(far) == [Message("room", data)]


def test_only_the_topic_is_heard_and_only_while_subscribed(server: Server) -> None:
    """What nobody listens to is not sent at all."""
    one, two = server.worker(0), server.worker(1)
    two_hears = hear(two, "a", "b")
    one.publish("c", 1)
    assert figures(server.board.worker(0))["sent"] == 0
    one.publish("b", 2)
    assert taken(two_hears) == [Message("b", 2)]
    two_hears.close()
    one.publish("b", 3)
    assert figures(server.board.worker(0)) | {"published": 3, "sent": 1} == figures(server.board.worker(0))


def test_a_subscription_does_not_hear_what_was_published_before_it(server: Server) -> None:
    """What another subscription of the worker has still to take from the channel is not news."""
    one, two = server.worker(0), server.worker(1)
    first = hear(two, "room")
    one.publish("room", "old")
    second = hear(two, "room")
    one.publish("room", "new")
    assert [message.data for message in taken(second)] == ["new"]
    assert [message.data for message in taken(first)] == ["old", "new"]


def test_two_subscriptions_do_not_share_an_object(server: Server) -> None:
    """What one handler does to its list, another must not see."""
    one = server.worker(0)
    first, second = hear(one, "room"), hear(one, "room")
    one.publish("room", [1])
    [message] = taken(first)
    message.data.append(2)
    assert [each.data for each in taken(second)] == [[1]]


def test_successor_hears_nothing_of_its_predecessor_and_everything_after_its_subscription(server: Server) -> None:
    """A message for a session that has ended must not reach another one."""
    one, old = server.worker(0), server.worker(1)
    hear(old, "room")
    one.publish("room", "for the old one")
    new = server.worker(2)
    new_hears = hear(new, "room")
    one.publish("room", "for both")
    server.kill(1, old)
    again = server.worker(1)  # in the same row
    again_hears = hear(again, "room")
    one.publish("room", "for the new ones")
    assert [message.data for message in taken(new_hears)] == ["for both", "for the new ones"]
    assert [message.data for message in taken(again_hears)] == ["for the new ones"]
    assert figures(server.board.worker(0))["dropped"] == 0


def test_publisher_that_has_not_heard_of_a_worker_sends_to_it_at_once(server: Server) -> None:
    """Workers start while others are busy; nobody may have to wait until these have read something."""
    one = server.worker(0)
    hear(one, "mine")
    workers = [server.worker(row) for row in range(1, 40)]
    heard = [hear(worker, "room") for worker in workers]
    one.publish("room", 1)
    assert [len(taken(messages)) for messages in heard] == [1] * len(workers)


def test_full_channel_drops_the_newest_and_tells_the_receiver_where(server: Server) -> None:
    """The publisher must not wait for a worker that is stopped, and the subscriber must know what it missed."""
    one, two = server.worker(0), server.worker(1)
    messages, other = hear(two, "room"), hear(two, "other")
    count = fill(one, "room")
    one.publish("room", count)
    heard = taken(messages)
    assert [message.lost for message in heard] == [0] * len(heard)
    assert [message.data for message in heard][-1] == count - 2
    assert messages.lost == 2, "it is known before another message comes"
    one.publish("room", "next")
    assert taken(messages) == [Message("room", "next", lost=2)]
    assert other.lost == 0
    assert figures(server.board.worker(0))["dropped"] == figures(server.board.worker(1))["lost"] == 2


def test_loss_is_told_at_its_place_between_two_messages(server: Server) -> None:
    """Who counts a topic's numbers finds each gap where `lost` says."""
    one, two = server.worker(0), server.worker(1)
    messages = hear(two, "room")
    expected = fill(one, "room")
    assert two._seat is not None
    for _ in range(3):
        two._hear(two._seat, *two._seat.channel.recvmsg(packet.DATAGRAM_BYTES, 64, socket.MSG_DONTWAIT)[:3])
        one.publish("room", expected)
        one.publish("room", expected + 1)
        expected += 2
    next_one = 0
    for message in taken(messages):
        assert message.data == next_one + message.lost
        next_one = message.data + 1
    assert next_one < expected == next_one + messages._lost_after


def test_losses_of_a_publisher_that_died_are_told(server: Server) -> None:
    """Nobody is left who could say it in a message, and a successor in the same row goes on counting."""
    one, two = server.worker(0), server.worker(1)
    messages = hear(two, "room")
    fill(one, "room")
    server.kill(0, one)
    assert len(taken(messages)) > 100
    assert messages.lost == 1
    fill(server.worker(0), "room")
    assert taken(messages)[0].lost == 1
    assert messages.lost == 2


def test_losses_of_a_predecessor_are_not_told_to_its_successor(server: Server) -> None:
    """The count stands in the same cell: the row and the entry are the same."""
    one, old = server.worker(0), server.worker(1)
    hear(old, "room")
    fill(one, "room")
    server.kill(1, old)
    messages = hear(server.worker(1), "room")
    one.publish("room", 1)
    assert taken(messages) == [Message("room", 1)]
    assert messages.lost == 0


def test_new_subscription_is_not_told_of_older_losses(server: Server) -> None:
    """It could not have heard those messages."""
    one, two = server.worker(0), server.worker(1)
    first = hear(two, "room")
    fill(one, "room")
    second = hear(two, "room")
    assert (first.lost, second.lost) == (1, 0)
    first.close()
    second.close()
    third = hear(two, "room")
    one.publish("room", 1)
    assert taken(third) == [Message("room", 1)]


def test_full_queue_loses_its_oldest_and_tells(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber that is slow hears the latest, and knows how much it has missed; the other one misses nothing."""
    monkeypatch.setattr(subscription, "MOST_MESSAGES", 10)
    one = server.worker(0)
    slow, quick = hear(one, "room"), hear(one, "room")
    for number in range(25):
        one.publish("room", number)
        assert taken(quick) == [Message("room", number)]
    assert taken(slow) == [Message("room", 15, lost=15), *(Message("room", number) for number in range(16, 25))]


def test_queue_is_bounded_in_bytes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of messages of 16 MiB would be more than the machine has."""
    monkeypatch.setattr(subscription, "MOST_BYTES", 1000)
    one = server.worker(0)
    messages = hear(one, "room")
    for number in range(5):
        one.publish("room", bytes([number]) * 400)
    assert [(message.data[0], message.lost) for message in taken(messages)] == [(3, 3), (4, 0)]


def test_bytes_of_memory_files_under_way_are_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not count in the socket's buffer: a stopped worker would keep thousands of files of 16 MiB."""
    monkeypatch.setattr(bus, "UNDER_WAY_BYTES", 250_000)
    one, two = server.worker(0), server.worker(1)
    messages = hear(two, "room")
    for number in range(4):
        one.publish("room", bytes([number]) * 100_000)
    assert [message.data[0] for message in taken(messages)] == [0, 1]
    one.publish("room", bytes([9]) * 100_000)
    assert [(message.data[0], message.lost) for message in taken(messages)] == [(9, 2)]
    assert two._seat is not None
    assert two._seat.memory.under_way(1) == 0


def test_memory_file_that_was_announced_and_never_sent_frees_its_room(server: Server) -> None:
    """A publisher may be killed between the two, and must not take the room of the others for ever."""
    one, two = server.worker(0), server.worker(1)
    messages = hear(two, "room")
    assert two._seat is not None
    two._seat.memory.send(1, 0, 1 << 20)
    two.account(100.0)
    assert two._seat.memory.under_way(1) == 1 << 20, "it may be about to come"
    two.account(101.5)
    assert two._seat.memory.under_way(1) == 0
    one.publish("room", bytes(100_000))
    assert len(taken(messages)) == 1


def test_full_row_hears_everything_and_delivers_what_was_asked_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of topics has no limit; beyond the entries it costs messages that nobody wanted."""
    one, two = server.worker(0), server.worker(1)
    named = [hear(two, f"topic:{number}") for number in range(interest.TOPICS)]
    beyond, more = hear(two, "beyond"), hear(two, "more")
    one.publish("beyond", 1)
    one.publish("nobody", 2)
    one.publish("topic:7", 3)
    assert (taken(beyond), taken(more), taken(named[7])) == ([Message("beyond", 1)], [], [Message("topic:7", 3)])
    beyond.close()
    more.close()
    before = figures(server.board.worker(0))["sent"]
    one.publish("nobody", 4)
    assert figures(server.board.worker(0))["sent"] == before


def test_losses_of_topics_without_an_entry_are_told_to_all_of_them(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows which one it was, and a loss that is told to nobody is worse."""
    one, two = server.worker(0), server.worker(1)
    two._free.clear()
    beyond, more = hear(two, "beyond"), hear(two, "more")
    fill(one, "beyond")
    taken(beyond)
    assert (beyond.lost, more.lost) == (1, 1)


def test_killed_worker_costs_its_publishers_nothing(server: Server) -> None:
    """Its death is noticed before the supervisor has reaped it."""
    one, two, three = server.worker(0), server.worker(1), server.worker(2)
    hear(two, "room")
    messages = hear(three, "room")
    assert two._seat is not None
    two._seat.channel.close()
    for number in range(3):
        one.publish("room", number)
    assert len(taken(messages)) == 3
    assert figures(server.board.worker(0))["dropped"] == 0


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\1",
        bytes(range(100)),
        packet.pack(1, b"room", 0, 0, 7, b""),
        packet.pack(1, b"\xff\xfe", 0, 0, packet.TEXT, b""),
        packet.pack(65535, b"room", 0, 0, packet.BYTES, bytes(packet.INLINE_BYTES + 1)),
        struct.pack("=BBHHHII", 1, packet.BYTES, 60_000, 1, 0, 0, 0),
        struct.pack("=BBHHHII", 1, packet.BYTES | 0x10, 4, 1, 0, 0, (1 << 32) - 1) + b"room",
    ],
)
def test_datagram_that_is_no_message_is_dropped_and_counted(server: Server, datagram: bytes) -> None:
    """A worker that was taken over sends what it likes, and must not end the others."""
    one, two = server.worker(0), server.worker(1)
    messages = hear(two, "room")
    one.publish("room", 1)
    channel = channel_of(one)
    channel.send(datagram)
    one.publish("room", 2)
    assert [message.data for message in taken(messages)] == [1, 2]
    assert figures(server.board.worker(1))["invalid"] == 1


@pytest.mark.parametrize("payload", [b"[" * 10_000, b"{", b"1" * 5000, b"\xff"])
def test_payload_that_is_no_json_raises_in_no_handler(server: Server, payload: bytes) -> None:
    """The `async for` of an innocent handler would end with an error that it did not make."""
    one, two = server.worker(0), server.worker(1)
    messages = hear(two, "room")
    one.publish("room", 1)
    channel = channel_of(one)
    channel.send(packet.pack(0, b"room", 0, 0, packet.JSON, payload))
    one.publish("room", 2)
    assert [message.data for message in taken(messages)] == [1, 2]


def test_descriptor_that_is_no_sealed_memory_file_is_not_read(server: Server) -> None:
    """Reading a pipe would wait for ever, and reading a file that is shortened meanwhile would end the process."""
    one, two = server.worker(0), server.worker(1)
    messages = hear(two, "room")
    one.publish("room", 1)
    channel = channel_of(one)
    before = len(os.listdir("/proc/self/fd"))
    size = packet.INLINE_BYTES + 1
    datagram = packet.pack(0, b"room", 0, 0, packet.BYTES, bytes(size))
    pipe = os.pipe()
    open_file = os.memfd_create("open", os.MFD_ALLOW_SEALING)
    os.ftruncate(open_file, size)
    for fds in ([pipe[0]], [open_file], [], [open_file] * 20):
        socket.send_fds(channel, [datagram], fds)
    for fd in (*pipe, open_file):
        os.close(fd)
    assert [message.data for message in taken(messages)] == [1]
    assert len(os.listdir("/proc/self/fd")) == before
    assert figures(server.board.worker(1))["invalid"] >= 3


def test_nonsense_in_the_shared_memory_raises_nowhere(server: Server) -> None:
    """Every worker can write all of it."""
    one, two = server.worker(0), server.worker(1)
    messages = hear(two, "room")
    cells = server.roster.memory.cells
    random = os.urandom(len(cells) // 100 * 8)
    cells[8 : 8 + len(random) // 8] = memoryview(random).cast("Q")
    for _ in range(3):
        one.publish("room", 1)
        one.publish("other", bytes(100_000))
        taken(messages)
        hear(two, "another").close()
        two.account(100.0)
    server.kill(1, two)
    fresh = server.worker(1)
    hear(fresh, "room")


def test_wrong_calls_say_what_is_wrong() -> None:
    """Before anything is sent."""
    with pytest.raises(TypeError, match="a topic is text"):
        limpet.publish_sync(b"room", 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not JSON serializable"):
        limpet.publish_sync("room", object())
    with pytest.raises(ValueError, match="at most"):
        limpet.publish_sync("room", bytes(packet.LARGEST_BYTES + 1))
    with pytest.raises(ValueError, match="at least one topic"):
        limpet.subscribe()
    with pytest.raises(RuntimeError, match="`async with` or `with`"):
        limpet.subscribe("room").get()


def test_upgrade_in_place_keeps_all_participants(server: Server) -> None:
    """The supervisor is replaced, and its workers go on talking to each other and to new ones."""
    one, two = server.worker(0), server.worker(1)
    messages = hear(two, "room")
    kept = server.roster.pack()
    before, server.roster = server.roster, Roster.adopt(kept)
    three = server.worker(2)
    more = hear(three, "room")
    one.publish("room", 1)
    assert len(taken(messages)) == len(taken(more)) == 1
    for participant in before._participants.values():  # the exec has ended these objects, and not their descriptors
        participant.sending.detach()
        participant.line.detach()


def test_upgrade_from_another_form_begins_a_new_bus(server: Server) -> None:
    """Two forms in one memory would be worse than workers that do not hear each other until the reload."""
    hear(server.worker(0), "room")
    for kept in (None, server.roster.pack() | {"form": ["another"]}):
        roster = Roster.adopt(kept)
        assert roster.memory.height == 0
        for fd in roster.memory.fds:
            os.close(fd)


def test_bus_works_outside_limpet_in_tasks_of_asyncio() -> None:
    """A test of an application, or uvicorn with one worker, needs no limpet."""

    async def run() -> list[Any]:
        async with asyncio.timeout(PATIENCE_S), limpet.subscribe("room") as messages:
            waiting = asyncio.ensure_future(anext(messages))
            await asyncio.sleep(0)
            await limpet.publish("room", {"text": "hi"})
            return [await waiting]
        return []

    assert asyncio.run(run()) == [Message("room", {"text": "hi"})]


def test_bus_works_outside_limpet_in_tasks_of_trio() -> None:
    """Hypercorn and plain handlers run on trio, too."""

    async def run() -> Message:
        with trio.fail_after(PATIENCE_S):
            async with limpet.subscribe("room") as messages, trio.open_nursery() as nursery:
                nursery.start_soon(limpet.publish, "room", 1)
                return await anext(messages)
        raise AssertionError

    assert trio.run(run) == Message("room", 1)


def test_bus_works_outside_limpet_in_threads() -> None:
    """A thread waits in `for`, and ends when its subscription is closed by another one."""
    heard: list[Message] = []
    with limpet.subscribe("room") as messages:
        thread = threading.Thread(target=lambda: heard.extend(messages))
        thread.start()
        for number in range(3):
            limpet.publish_sync("room", number)
        thread.join(0.01)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_thread_publishes_to_a_task_that_waits() -> None:
    """The task's loop must wake up: a thread cannot finish its future."""

    async def run() -> Message:
        async with limpet.subscribe("room") as messages, asyncio.timeout(PATIENCE_S):
            asyncio.get_running_loop().call_soon(threading.Thread(target=limpet.publish_sync, args=("room", 1)).start)
            return await anext(messages)
        raise AssertionError

    assert asyncio.run(run()) == Message("room", 1)


def test_flood_of_a_task_lets_a_subscriber_of_the_same_loop_read() -> None:
    """A publisher never waits, so it must make room for others by itself."""

    async def run() -> tuple[int, int]:
        heard = 0
        async with limpet.subscribe("room") as messages:

            async def read() -> None:
                nonlocal heard
                async for _ in messages:
                    heard += 1

            reading = asyncio.create_task(read())
            for number in range(3 * subscription.MOST_MESSAGES):
                await limpet.publish("room", number)
            await asyncio.sleep(0)
            reading.cancel()
            return heard, messages.lost

    assert asyncio.run(run()) == (3 * subscription.MOST_MESSAGES, 0)


def test_channel_is_read_by_the_loop_of_the_first_subscription_and_then_by_a_thread(server: Server) -> None:
    """The loop needs no thread for it; when its subscriptions have ended, those of threads must go on hearing."""
    one, two = server.worker(0), server.worker(1)
    threads: list[Subscription] = []

    async def run() -> None:
        async with Subscription(lambda: two, ("room",)) as messages, asyncio.timeout(PATIENCE_S):
            assert two._reader._thread is None
            threads.append(await asyncio.to_thread(Subscription(lambda: two, ("room",)).__enter__))
            one.publish("room", 1)
            assert (await anext(messages)).data == 1
        assert two._reader._thread is not None

    asyncio.run(run())
    one.publish("room", 2)
    heard = [threads[0].get(PATIENCE_S) for _ in range(2)]
    assert [message and message.data for message in heard] == [1, 2]


def test_loop_that_has_ended_is_replaced_as_the_reader(server: Server) -> None:
    """A program may run several loops, one after the other."""
    one, two = server.worker(0), server.worker(1)

    async def run(number: int) -> Message:
        async with Subscription(lambda: two, ("room",)) as messages, asyncio.timeout(PATIENCE_S):
            one.publish("room", number)
            return await anext(messages)
        raise AssertionError

    assert [asyncio.run(run(number)).data for number in range(2)] == [0, 1]


def test_forked_process_has_a_bus_of_its_own() -> None:
    """Two processes that read one channel would take each other's messages."""
    with limpet.subscribe("room") as messages:
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                limpet.publish_sync("room", 1)
                os._exit(0 if bus.here() is not messages._bus else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert messages.get(timeout_s=0) is None


def test_late_count_of_a_loss_for_a_predecessor_is_not_told_to_its_successor(server: Server) -> None:
    """A publisher may be between its failed attempt to send and the count while the row changes hands."""
    one, old = server.worker(0), server.worker(1)
    hear(old, "room")
    assert old._seat is not None
    serial = old._seat.serial
    server.kill(1, old)
    messages = hear(server.worker(1), "room")
    assert one._seat is not None
    one._seat.memory.lose(1, 0, 0, interest.tag(interest.digest("room"), serial), 5)
    taken(messages)
    assert messages.lost == 0


def test_losses_add_up_when_a_message_that_tells_some_is_lost_itself(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was heard and what is told to be lost is what was published, whichever bound was met."""
    one, two = server.worker(0), server.worker(1)
    messages = hear(two, "room")
    published = fill(one, "room")
    assert two._seat is not None
    while not two.take():
        pass
    monkeypatch.setattr(subscription, "MOST_MESSAGES", 5)
    for number in range(20):
        one.publish("room", number)
    heard = taken(messages)
    assert len(heard) + sum(message.lost for message in heard) == published + 20
    assert messages.lost == sum(message.lost for message in heard)


def test_nobody_sends_to_a_worker_that_was_reaped(server: Server) -> None:
    """Its row is free, and a publisher must not spend time on it."""
    one, two = server.worker(0), server.worker(1)
    hear(two, "room")
    one.publish("room", 1)
    assert len(one._receivers) == 1
    server.kill(1, two)
    one.publish("room", 2)
    assert one._receivers == []
