"""Bucket tables: balance, movement and stand-ins hold for every number of slots, and never change."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.routing import buckets
from limpet.routing.buckets import BUCKETS, MAX_SLOTS, rank, stand_ins, table

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "buckets.json").read_text())
EVERY_NUMBER = range(1, MAX_SLOTS + 1)


def score(bucket: int, slot: int) -> int:
    """Return the score of a pair as the docstring of `buckets` has it."""
    stream = hashlib.shake_128(f"limpet.slot.{slot}".encode()).digest(8 * BUCKETS)
    return int.from_bytes(stream[8 * bucket : 8 * bucket + 8], "big")


def short(data: bytes) -> str:
    """Return what the vectors hold of *data*."""
    return hashlib.sha256(data).hexdigest()[:16]


def test_tables_are_those_of_every_release() -> None:
    """A table that changes sends clients of a running cluster to other workers."""
    assert {slots: short(table(int(slots))) for slots in VECTORS["tables"]} == VECTORS["tables"]


def test_ranks_are_those_of_every_release() -> None:
    """Machines and processes must agree on who stands in, too."""
    found = {
        slots: short(bytes(slot for bucket in range(BUCKETS) for slot in rank(bucket, int(slots))))
        for slots in VECTORS["ranks"]
    }
    assert found == VECTORS["ranks"]


def test_every_slot_owns_floor_or_ceil_of_its_share() -> None:
    """Balance is a property of the table, not luck, for all numbers of slots."""
    for slots in EVERY_NUMBER:
        owned = Counter(table(slots))
        assert set(owned) == set(range(slots))
        assert set(owned.values()) <= {BUCKETS // slots, -(-BUCKETS // slots)}


def test_one_more_slot_moves_its_share_and_no_bucket_more() -> None:
    """Who scales by one disturbs as few clients as any balanced table could, and no two old slots swap any."""
    for slots in EVERY_NUMBER[:-1]:
        gained = [new for old, new in zip(table(slots), table(slots + 1), strict=True) if old != new]
        assert gained == [slots] * (BUCKETS // (slots + 1))


@given(st.integers(1, MAX_SLOTS), st.integers(1, MAX_SLOTS))
def test_only_buckets_of_slots_that_come_or_go_move(one: int, other: int) -> None:
    """Scaling by several slots at once must not move more clients than step by step."""
    fewer, more = sorted((one, other))
    for before, after in zip(table(fewer), table(more), strict=True):
        assert before == after or after >= fewer


@pytest.mark.parametrize("slots", [1, 2, 3, 6, 15, 63])
def test_new_slot_takes_the_best_bucket_of_those_who_own_most_each_time(slots: int) -> None:
    """The one sort in the code must be the rule that balance and movement are proved for."""
    owners, new = list(table(slots)), slots
    scores = [score(bucket, new) for bucket in range(BUCKETS)]
    for _ in range(BUCKETS // (slots + 1)):
        owned = Counter(owner for owner in owners if owner != new)
        most = max(owned.values())
        givers = {slot for slot in owned if owned[slot] == most}
        taken = max((bucket for bucket in range(BUCKETS) if owners[bucket] in givers), key=scores.__getitem__)
        owners[taken] = new
    assert bytes(owners) == table(slots + 1)


def test_no_two_scores_are_equal() -> None:
    """A tie would be broken by the order of a sort, which other implementations need not share."""
    rows = [(b"limpet.slot.%d" % slot, BUCKETS) for slot in range(MAX_SLOTS)]
    rows += [(b"limpet.rank.%d" % bucket, MAX_SLOTS) for bucket in range(BUCKETS)]
    assert all(len(set(buckets._scores(row, count))) == count for row, count in rows)


@given(st.integers(0, BUCKETS - 1), st.integers(1, MAX_SLOTS))
def test_rank_starts_at_the_owner_and_names_every_slot_once(bucket: int, slots: int) -> None:
    """A client is only turned away when no slot at all is left."""
    order = rank(bucket, slots)
    assert order[0] == table(slots)[bucket]
    assert sorted(order) == list(range(slots))


@given(st.integers(0, BUCKETS - 1), st.integers(2, MAX_SLOTS), st.integers(2, MAX_SLOTS))
def test_stand_ins_keep_their_order_at_any_number_of_slots(bucket: int, one: int, other: int) -> None:
    """Scaling while a slot is down must not send its clients from one stand-in to the next."""
    owners = {table(one)[bucket], table(other)[bucket]}
    common = [
        [slot for slot in rank(bucket, slots) if slot not in owners and slot < min(one, other)]
        for slots in (one, other)
    ]
    assert common[0] == common[1]


def test_buckets_of_a_slot_that_is_down_spread_over_all_others() -> None:
    """One crash must not double the load of one neighbour: of 8 slots, none inherits more than a quarter."""
    for down in range(8):
        stand_ins = Counter(rank(bucket, 8)[1] for bucket in range(BUCKETS) if table(8)[bucket] == down)
        assert set(stand_ins) == set(range(8)) - {down}
        assert max(stand_ins.values()) <= 128 / 4


@pytest.mark.parametrize("slots", [-1, 0, MAX_SLOTS + 1])
def test_numbers_of_slots_out_of_range_are_refused(slots: int) -> None:
    """A slot is one byte of the table: a 257th would silently be slot 0."""
    with pytest.raises(ValueError, match="1 to 256"):
        table(slots)


@given(st.integers(1, MAX_SLOTS), st.data())
def test_only_buckets_of_slots_that_are_down_go_to_a_stand_in(slots: int, data: st.DataObject) -> None:
    """A crash must not disturb the clients of those who live; and who is down gets nobody."""
    is_up = data.draw(st.lists(st.booleans(), min_size=slots, max_size=slots))
    owners = stand_ins(slots, is_up)
    for bucket, (home, owner) in enumerate(zip(table(slots), owners, strict=True)):
        if is_up[home] or not any(is_up):
            assert owner == home
        else:
            assert owner == next(slot for slot in rank(bucket, slots) if is_up[slot])
