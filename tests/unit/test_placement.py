"""Where clients without a key go: to who has least to do, however fast they come, and to nobody who is not there."""

from __future__ import annotations

from collections import Counter

import pytest

from limpet.ipc.scoreboard import Row, Scoreboard
from limpet.protocol.request import Peer
from limpet.routing.hashing import Hasher
from limpet.routing.key_chain import KeyChain, Trust
from limpet.routing.placement import Placement
from limpet.routing.router import Router

SLOTS = 4
PEER = Peer("192.0.2.1", 4711, "127.0.0.1:8000")


class Slots:
    """The slots of a server: each has a worker, connections, and clients that wait."""

    def __init__(self, policy: str = "least", most: int = 0) -> None:
        board = Scoreboard.create()
        self.workers: list[Row] = [board.worker(row) for row in range(SLOTS)]
        self.waiting = [0] * SLOTS
        router = Router(KeyChain.parse("ip", Trust.parse("")), Hasher(b"secret" * 4), SLOTS)
        self.placement = Placement(policy, router, board, lambda slot: self.waiting[slot], most)
        self.placement.follow(list(range(SLOTS)))

    def place(self, peer: Peer = PEER) -> int:
        slot = self.placement.place(peer)
        assert slot is not None
        return slot


def peer(number: int) -> Peer:
    return Peer(f"192.0.2.{number}", 4711, "127.0.0.1:8000")


def test_clients_that_come_one_after_another_spread() -> None:
    """Each has gone before the next comes: with ties always to slot 0 it would do all the work."""
    slots = Slots()
    assert [slots.place() for _ in range(8)] == [0, 1, 2, 3] * 2


def test_client_goes_where_the_fewest_connections_are() -> None:
    """The point of `--place least`: a worker with a hundred websockets gets no more while another has none."""
    slots = Slots()
    for slot, connections in enumerate((3, 5, 2, 9)):
        slots.workers[slot].set("connections", connections)
    assert slots.place() == 2


def test_clients_who_wait_for_a_slot_count_as_its_own() -> None:
    """A burst comes faster than workers take from their channels, and would go to one slot as a whole."""
    slots = Slots()
    for _ in range(40):
        slots.waiting[slots.place()] += 1
    assert slots.waiting == [10] * SLOTS


def test_slot_without_a_worker_gets_nobody_while_another_has_one() -> None:
    """Who has no key is at home anywhere; a dead worker has no connections, which must not look like leisure."""
    slots = Slots()
    for worker in slots.workers:
        worker.set("connections", 100)
    slots.placement.follow([0, None, 2, None])
    assert {slots.place() for _ in range(20)} == {0, 2}


def test_clients_are_placed_when_no_slot_has_a_worker() -> None:
    """They wait in the channels for the replacements, as everybody does."""
    slots = Slots()
    slots.placement.follow([None] * SLOTS)
    assert {slots.place() for _ in range(SLOTS)} == set(range(SLOTS))


def test_replacement_counts_from_its_own_row() -> None:
    """The successor begins with no connections, whatever its predecessor had."""
    slots = Slots()
    for worker in slots.workers:
        worker.set("connections", 5)
    slots.placement.follow([0, 1, 2, 17])
    assert slots.place() == 3


def test_hash_gives_an_address_one_slot_and_uses_all_of_them() -> None:
    """Without a key the address decides, as `--by ip` does."""
    slots = Slots("hash")
    first = [slots.place(peer(number)) for number in range(100)]
    assert first == [slots.place(peer(number)) for number in range(100)]
    assert set(first) == set(range(SLOTS))


def test_hash_gives_clients_of_a_unix_socket_one_slot() -> None:
    """They have no address: one home is as good as another, but it must be one."""
    slots = Slots("hash")
    assert len({slots.place(Peer(None, None, "unix:/run/x")) for _ in range(20)}) == 1


def test_random_uses_all_slots() -> None:
    """With 400 clients no slot stays empty but once in 10^50 runs."""
    slots = Slots("random")
    assert set(Counter(slots.place() for _ in range(400))) == set(range(SLOTS))


def test_unknown_policy_is_a_bug() -> None:
    """The settings allow no other: to go on with a default would hide it."""
    with pytest.raises(KeyError):
        Slots("nearest")


@pytest.mark.parametrize("policy", ["least", "random", "hash"])
def test_full_slot_gets_nobody_while_another_has_room(policy: str) -> None:
    """Who has no key is at home anywhere, so it need not queue behind a worker that has all it may have."""
    slots = Slots(policy, most=3)
    for slot, connections in enumerate((3, 0, 4, 2)):
        slots.workers[slot].set("connections", connections)
    slots.waiting = [0, 3, 0, 0]
    assert {slots.place(peer(number)) for number in range(40)} == {3}


@pytest.mark.parametrize("policy", ["least", "random", "hash"])
def test_when_all_slots_are_full_nobody_is_placed(policy: str) -> None:
    """The dispatcher then answers 503: a limit that gives way under load is none."""
    slots = Slots(policy, most=1)
    slots.waiting = [1] * SLOTS
    assert slots.placement.place(PEER) is None


def test_hash_gives_those_of_a_full_slot_one_stand_in_each() -> None:
    """The next in rank: the same client comes to the same worker as long as the same slot is full."""
    slots = Slots("hash", most=1)
    before = [slots.place(peer(number)) for number in range(60)]
    slots.waiting[2] = 1
    after = [slots.place(peer(number)) for number in range(60)]
    assert after == [slots.place(peer(number)) for number in range(60)]
    assert [new for old, new in zip(before, after, strict=True) if old != 2] == [old for old in before if old != 2]
    assert {new for old, new in zip(before, after, strict=True) if old == 2} == {0, 1, 3}
