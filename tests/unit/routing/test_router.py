"""Where a key is served: at home, or in a failover at its stand-in."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import pytest

from limpet.protocol.request import Peer, Request
from limpet.routing.buckets import rank
from limpet.routing.hashing import Hasher
from limpet.routing.key_chain import Key, KeyChain, Trust
from limpet.routing.learned_ids import CELLS, Learned
from limpet.routing.router import Router

SLOTS = 4


def router(*, failover: bool) -> Router:
    """Return a router of four slots."""
    return Router(KeyChain.parse("cookie:user", Trust.parse("")), Hasher(b"secret"), SLOTS, failover=failover)


def keys() -> Iterator[Key]:
    """Yield enough keys for all slots."""
    for number in range(200):
        yield Key(f"user-{number}".encode(), "cookie:user", False)


def test_route_does_not_depend_on_who_is_up() -> None:
    """By default a slot keeps its clients: they wait for the replacement."""
    waiting = router(failover=False)
    before = [waiting.where(key) for key in keys()]
    assert not waiting.follow([True, False, False, True])
    assert [waiting.where(key) for key in keys()] == before


def test_failover_sends_clients_of_a_slot_that_is_down_to_the_next_in_rank_and_back() -> None:
    """Everybody who asks gets the same answer, since all of them follow the same news."""
    moving = router(failover=True)
    before = [moving.where(key) for key in keys()]
    assert moving.follow([True, False, True, True])
    for home, away in zip(before, (moving.where(key) for key in keys()), strict=True):
        assert away.home == home.slot
        assert away.slot == (rank(home.bucket, SLOTS)[1] if home.slot == 1 else home.slot)
    assert not moving.follow([True, False, True, True])
    assert moving.follow([True] * SLOTS)
    assert [moving.where(key) for key in keys()] == before


def test_workers_may_differ_once_one_of_them_could_know_more_than_another() -> None:
    """Whether a request that another worker has sent is at home here is asked only then: it costs time."""
    waiting, moving = router(failover=False), router(failover=True)
    for each in (waiting, moving):
        assert not each.follow([True] * SLOTS)
        assert not each.may_differ
        each.follow([True, False, True, True])
    assert (waiting.may_differ, moving.may_differ) == (False, True)
    now = 1000.0
    moving._now = lambda: now
    moving.follow([True] * SLOTS)
    assert moving.may_differ  # with one that has not heard of it yet
    now += 3600
    assert not moving.may_differ

    asking = KeyChain.parse("cookie:user,python:site:key", Trust.parse(""))
    assert Router(asking, Hasher(b"secret"), SLOTS).may_differ
    waiting.learned = Learned(memoryview(array("Q", bytes(8 * CELLS))), 60.0)
    assert not waiting.may_differ
    waiting.learned.learn(1, 0, 1, 0.0)
    assert waiting.may_differ


def test_without_any_worker_clients_wait_at_home() -> None:
    """While a server starts, or all of it restarts, nobody is moved for nothing."""
    moving = router(failover=True)
    assert not moving.follow([False] * SLOTS)


@pytest.mark.parametrize(
    ("chain", "prefixes"),
    [
        ("ip", (32, 64)),
        ("ip/24", (24, 64)),
        ("ip/24/56", (24, 56)),
        ("ip,cookie:user", None),
        ("forwarded", None),
        ("cookie:user", None),
    ],
)
def test_only_a_chain_of_addresses_can_be_given_to_the_kernel(chain: str, prefixes: tuple[int, int] | None) -> None:
    """The kernel sees no byte of a request, and believes no header."""
    assert KeyChain.parse(chain, Trust.parse("")).prefixes == prefixes


def with_table(*, failover: bool) -> tuple[Router, Learned]:
    """Return a router with a learned table in which nothing is yet."""
    found = router(failover=failover)
    found.learned = Learned(memoryview(array("Q", bytes(8 * CELLS))), idle_s=60)
    return found, found.learned


def test_learned_id_wins_over_its_hash_and_keeps_its_slot() -> None:
    """It was made by that worker, which alone knows it; also when the same key was asked for before."""
    asked, table = with_table(failover=False)
    for key in keys():
        hashed = asked.where(key)
        assert hashed.learned is None
        wanted = (hashed.slot + 1) % SLOTS
        table.learn(hashed.digest, wanted, 1, now=0.0)
        learned = asked.where(key)
        assert (learned.slot, learned.home, learned.digest) == (wanted, wanted, hashed.digest)
        assert learned.learned is not None


def test_learned_id_of_a_slot_that_is_down_goes_by_its_hash_in_a_failover_alone() -> None:
    """Waiting is the default for everybody; with failover a session that cannot be reached is served somewhere."""
    for failover in (False, True):
        asked, table = with_table(failover=failover)
        [key] = list(keys())[:1]
        hashed = asked.where(key)
        owner = (hashed.slot + 1) % SLOTS
        table.learn(hashed.digest, owner, 1, now=0.0)
        asked.follow([slot != owner for slot in range(SLOTS)])
        assert asked.where(key).slot == (hashed.slot if failover else owner)
        asked.follow([True] * SLOTS)
        assert asked.where(key).slot == owner


def test_addresses_are_never_learned() -> None:
    """Their digests are short: one that equals half of an id must not be taken for it."""
    asked, table = with_table(failover=False)
    key = Key(b"\x7f\x00\x00\x01", "ip", True)
    home = asked.where(key)
    table.learn(home.digest, (home.slot + 1) % SLOTS, 1, now=0.0)
    assert asked.where(key) == home


def test_long_keys_are_not_remembered() -> None:
    """A client that sends 16,384 keys of 60 KB each must not fill the memory of a dispatcher."""
    asked = router(failover=False)
    before = asked._hashed.cache_info().currsize
    long = Key(b"x" * 60_000, "cookie:user", False)
    assert asked.where(long) == asked.where(long)
    assert asked._hashed.cache_info().currsize == before
    asked.where(Key(b"x" * 100, "cookie:user", False))
    assert asked._hashed.cache_info().currsize == before + 1


@pytest.mark.parametrize(("by", "element"), [("header:x-user", None), ("header:x-user,ip", "ip")])
def test_connection_without_a_request_is_routed_by_what_needs_none(by: str, element: str | None) -> None:
    """A protocol that is not HTTP has no head, and must neither end the process nor get a key that is not there."""
    asked = Router(KeyChain.parse(by, Trust()), Hasher(b"secret"), SLOTS)
    peer = Peer("10.0.0.1", 4711, "")
    route = asked.route(peer, None)
    assert (route is None) is (element is None)
    assert route is None or route == asked.where(Key(b"\x0a\x00\x00\x01", "ip", True))


def test_route_of_a_request_is_computed_once_for_each_key() -> None:
    """Behind a proxy each request is routed, and the hash is the dearest part of that."""
    asked = Router(KeyChain.parse("header:x-user", Trust()), Hasher(b"secret"), SLOTS)
    peer = Peer("10.0.0.1", 4711, "")
    routes = [asked.route(peer, Request("GET", "/", peer, [(b"x-user", b"ada")])) for _ in range(5)]
    assert routes == [asked.where(Key(b"ada", "header:x-user", False))] * 5
    assert asked._known.cache_info().hits == 4
