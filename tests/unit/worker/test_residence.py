"""Whose open websocket has to go when the number of slots changes: exactly those whose client's home has moved."""

from __future__ import annotations

from array import array

import pytest

from limpet.routing import buckets
from limpet.routing.hashing import Hasher
from limpet.routing.key_chain import KeyChain, Trust
from limpet.routing.learned_ids import CELLS, Learned
from limpet.routing.router import Router
from limpet.worker.residence import Residence

DIGESTS = range(1, buckets.BUCKETS + 1)  # one in each bucket


@pytest.fixture
def router() -> Router:
    """A router of four slots that fails over and learns."""
    chain, learned = KeyChain.parse("header:x-user", Trust.parse("")), Learned(memoryview(array("Q", [0] * CELLS)), 60)
    return Router(chain, Hasher(b"secret"), 4, failover=True, learned=learned)


def at_home(router: Router) -> dict[int, Residence]:
    """Return what each worker knows of its own clients' websockets."""
    return {digest: Residence(router, router.route_of(digest).slot, digest) for digest in DIGESTS}


def moved(residences: dict[int, Residence]) -> set[int]:
    """Return the digests of clients that have moved."""
    return {digest for digest, residence in residences.items() if residence.has_moved()}


def test_clients_of_a_new_slot_have_moved_until_it_is_gone(router: Router) -> None:
    """Going back before the websockets were closed moves nobody."""
    residences = at_home(router)
    assert moved(residences) == set()
    router.resize(5)
    assert moved(residences) == {digest for digest in DIGESTS if router.home_of(digest) == 4}
    router.resize(4)
    assert moved(residences) == set()


def test_learned_client_stays_where_it_was_learned(router: Router) -> None:
    """Its later requests go there, too, whatever the table says."""
    assert router.learned is not None
    after = buckets.table(5)
    digest = next(digest for digest in DIGESTS if after[router.hasher.bucket(digest)] == 4)
    router.learned.learn(digest, router.home_of(digest), 1, 0.0)
    residence = Residence(router, router.home_of(digest), digest)
    router.resize(5)
    assert not residence.has_moved()


def test_failover_moves_no_home(router: Router) -> None:
    """A client is served elsewhere meanwhile: neither that nor the end of it closes a websocket, nor does a scaling."""
    router.follow([True, False, True, True])
    away = {digest: each for digest, each in at_home(router).items() if router.home_of(digest) == 1}
    router.follow([True] * 4)
    assert moved(away) == set()
    router.resize(5)
    assert moved(away) == {digest for digest in away if router.home_of(digest) == 4}


def test_websocket_that_an_older_table_sent_here_has_moved(router: Router) -> None:
    """It waited in the channel while this worker heard of the new table."""
    before = {digest: router.home_of(digest) for digest in DIGESTS}
    router.resize(5)
    late = {digest: Residence(router, slot, digest) for digest, slot in before.items()}
    assert moved(late) == {digest for digest in DIGESTS if router.home_of(digest) == 4}
    router.resize(4)
    assert moved(late) == set()
