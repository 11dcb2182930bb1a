"""Where clients without a key go: to who has least to do, however fast they come, and to nobody who is not there."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from limpet.ipc.scoreboard import Row, Scoreboard
from limpet.protocol.request import Peer, Request
from limpet.routing.hashing import Hasher
from limpet.routing.key_chain import KeyChain, Trust
from limpet.routing.placement import Placement, belongs_to_no_user
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
        self.placement = Placement(policy, router, board, lambda slot: self.waiting[slot], random.Random(7), most)
        self.placement.follow(list(range(SLOTS)))

    def place(self, peer: Peer = PEER, request: Request | None = None) -> int:
        slot = self.placement.place(peer, request)
        assert slot is not None
        return slot


def peer(number: int) -> Peer:
    return Peer(f"192.0.2.{number}", 4711, "127.0.0.1:8000")


def asks(method: str, path: str = "/", **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request(method, path, PEER, raw)


PREFLIGHT = asks("OPTIONS", "/chat", origin="https://limpet.test", access_control_request_method="POST")
USER = asks("GET", "/chat")


def test_clients_that_come_one_after_another_spread() -> None:
    """Each has gone before the next comes: of four that follow each other, each slot gets one."""
    slots = Slots()
    for _ in range(20):
        assert sorted(slots.place() for _ in range(SLOTS)) == list(range(SLOTS))


def test_order_in_which_clients_spread_is_random() -> None:
    """A fixed order meets patterns: where each user brings three requests without a key, all users had one slot."""
    slots = Slots()
    assert set(Counter([slots.place() for _ in range(SLOTS)][3] for _ in range(100))) == set(range(SLOTS))


@pytest.mark.parametrize("before", range(6))
@pytest.mark.parametrize(
    "bystander",
    [PREFLIGHT, asks("GET", "/healthz"), asks("GET", "/", user_agent="kube-probe/1.31")],
    ids=["preflight", "path", "agent"],
)
def test_requests_of_no_user_do_not_decide_where_users_go(before: int, bystander: Request) -> None:
    """Browsers send a preflight before each new user's first request, and balancers check health all the time."""
    slots = Slots()
    for _ in range(20):
        found = []
        for _ in range(SLOTS):
            for _ in range(before):
                slots.place(PEER, bystander)
            found.append(slots.place(PEER, USER))
        assert sorted(found) == list(range(SLOTS))


@pytest.mark.parametrize("figure", ["cookies", "learned", "minted"])
@pytest.mark.parametrize("before", range(6))
def test_users_spread_by_the_sessions_that_workers_have_begun(figure: str, before: int) -> None:
    """Other requests without a key begin no session, and what they are no list of paths can tell."""
    slots = Slots()
    users: Counter[int] = Counter()
    for _ in range(10 * SLOTS):
        for _ in range(before):
            slots.place(PEER, asks("GET", "/robots.txt"))
        users[slot := slots.place(PEER, USER)] += 1
        slots.workers[slot].add(figure)
    assert users == dict.fromkeys(range(SLOTS), 10)


def test_slot_that_comes_back_does_not_get_all_clients() -> None:
    """It has missed thousands, and would get as many in a row: a replacement begins as an equal."""
    slots = Slots()
    slots.placement.follow([0, 1, 2, None])
    for _ in range(300):
        slots.workers[slots.place()].add("cookies")
    slots.placement.follow([0, 1, 2, 3])
    assert Counter(slots.place() for _ in range(40)) == dict.fromkeys(range(SLOTS), 10)


def test_slot_that_was_held_back_does_not_get_all_clients() -> None:
    """The same without a new worker: an operator has drained the slot, and lets clients in again."""
    slots = Slots()
    slots.placement.follow([0, 1, 2, 3], held=[3])
    assert 3 not in {slots.place() for _ in range(300)}
    slots.placement.follow([0, 1, 2, 3])
    assert Counter(slots.place() for _ in range(40)) == dict.fromkeys(range(SLOTS), 10)


def test_news_that_change_nothing_do_not_begin_anew() -> None:
    """They come with every change of any slot's state."""
    slots = Slots()
    found = []
    for _ in range(40):
        slots.placement.follow(list(range(SLOTS)))
        found.append(slots.place())
    assert Counter(found) == dict.fromkeys(range(SLOTS), 10)


def test_slot_with_a_burst_of_sessions_gets_clients_again() -> None:
    """One client that begins a million sessions in one worker must not empty it of others for ever."""
    slots = Slots()
    slots.workers[2].add("learned", 1_000_000)
    found = [slots.place() for _ in range(400)]
    assert found.index(2) < 65 * SLOTS


@pytest.mark.parametrize(
    ("request_", "is_nobodys"),
    [
        (PREFLIGHT, True),
        (asks("OPTIONS", "/", origin="https://limpet.test"), False),
        (asks("OPTIONS", "/", access_control_request_method="GET"), False),
        (asks("POST", "/", origin="https://limpet.test", access_control_request_method="GET"), False),
        (asks("GET", "/healthz"), True),
        (asks("HEAD", "/api/v1/health/?full=1"), True),
        (asks("GET", "/ready"), True),
        (asks("GET", "/users/ready"), False),
        (asks("GET", "/live", upgrade="websocket"), False),
        (asks("GET", "/health", cookie="theme=dark"), False),
        (asks("POST", "/health"), False),
        (asks("GET", "/my-health"), False),
        (asks("GET", "/anything", user_agent="ELB-HealthChecker/2.0"), True),
        (asks("GET", "/", user_agent="Mozilla/5.0"), False),
        (asks("GET", "/"), False),
    ],
)
def test_request_of_no_user_is_told_by_its_head(request_: Request, is_nobodys: bool) -> None:
    """What is taken for one and is not costs a user its cookie for this response, and its place in the count."""
    assert belongs_to_no_user(request_) is is_nobodys


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
