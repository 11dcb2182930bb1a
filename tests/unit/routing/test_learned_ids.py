"""The learned table: what was stored is found at once by everybody, and being full is harmless."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limpet.routing import learned_ids
from limpet.routing.learned_ids import CELLS, ROWS, WAYS, Learned, Outcome

SLOTS = 4
IDLE_S = 100.0
digests = st.integers(0, 2**64 - 1)


@pytest.fixture(scope="module")
def memory() -> memoryview[int]:
    return memoryview(array("Q", bytes(8 * CELLS)))


@pytest.fixture
def table(memory: memoryview[int]) -> Learned:
    """An empty table."""
    for place in range(0, learned_ids._HEADER):
        memory[place] = 0
    for row in range(ROWS):
        begin = learned_ids._HEADER + row * learned_ids._OF_ROW
        memory[begin : begin + SLOTS * learned_ids._OF_SLOT] = memoryview(
            array("Q", bytes(8 * SLOTS * learned_ids._OF_SLOT))
        )
    return Learned(memory, IDLE_S)


def slot_of(table: Learned, digest: int, now: float = 0.0) -> int | None:
    entry = table.find(digest, SLOTS, now)
    return None if entry is None else entry.slot


def in_one_row(count: int) -> list[int]:
    """Return digests that share a row."""
    return [(number + 1) << 40 | 7 << 20 for number in range(count)]


@pytest.mark.parametrize("digest", [0, 1, 2**64 - 1, 0x0101010101010101])
def test_learned_id_is_found_in_its_slot(table: Learned, digest: int) -> None:
    """Whatever its bytes are: they must not be mistaken for an empty place, nor for half of a neighbour."""
    for slot in range(SLOTS):
        table.learn(digest, slot, 3, now=float(slot))
        entry = table.find(digest, SLOTS, float(slot))
        assert entry is not None
        assert (entry.slot, entry.generation) == (slot, 3)


def test_nobody_looks_before_anything_was_learned(table: Learned) -> None:
    """Servers that learn nothing pay nothing."""
    assert table.is_empty
    table.learn(5, 0, 1, 0.0)
    assert not table.is_empty


def test_id_that_is_learned_again_takes_no_more_room(table: Learned) -> None:
    """MCP servers send it with each response."""
    assert table.learn(5, 3, 1, now=1.0) is Outcome.NEW
    assert table.learn(5, 3, 1, now=2.0) is Outcome.KNOWN
    assert table.size(3) == 1


def test_newest_owner_counts(table: Learned) -> None:
    """An id that another worker has made since belongs to that one."""
    table.learn(5, 3, 1, now=1.0)
    table.learn(5, 1, 1, now=2.0)
    assert slot_of(table, 5, 3.0) == 1
    table.learn(5, 3, 1, now=4.0)
    assert slot_of(table, 5, 5.0) == 3


def test_forgotten_id_is_unknown_whoever_had_learned_it(table: Learned) -> None:
    """The request that ends a session may be served by another worker than the one that made it."""
    table.learn(5, 3, 1, now=1.0)
    assert table.forget(5, 0, 1, SLOTS, now=2.0)
    assert slot_of(table, 5, 3.0) is None
    assert not table.forget(5, 0, 1, SLOTS, now=3.0)
    table.learn(5, 3, 1, now=4.0)
    assert slot_of(table, 5, 5.0) == 3


def test_unused_id_is_forgotten_and_a_used_one_is_not(table: Learned) -> None:
    """Clients that never say goodbye fill the table otherwise."""
    table.learn(5, 2, 1, now=0.0)
    table.learn(6, 2, 1, now=0.0)
    entry = table.find(5, SLOTS, 90.0)
    assert entry is not None
    assert table.is_due(entry, 90.0)
    table.touch(5, entry, 90.0)
    assert slot_of(table, 5, 150.0) == 2
    assert slot_of(table, 6, 150.0) is None


def test_touch_keeps_who_made_it(table: Learned) -> None:
    """A successor that serves the session has not made it: `--on-lost refuse` has to see that."""
    table.learn(5, 2, 1, now=0.0)
    entry = table.find(5, SLOTS, 50.0)
    assert entry is not None
    table.touch(5, entry, 50.0)
    assert table.find(5, SLOTS, 50.0) == entry._replace(seen_ms=50_000)


def test_ended_sessions_leave_room_for_those_that_live(table: Learned) -> None:
    """A thousand sessions that begin and end with DELETE must not push out the one that stays, nor be counted."""
    stays, *others = in_one_row(1000)
    table.learn(stays, 0, 1, now=0.0)
    for at, digest in enumerate(others):
        assert table.learn(digest, 0, 1, now=1 + at / 1000) is Outcome.NEW
        assert table.forget(digest, 0, 1, SLOTS, now=1 + at / 1000)
        assert table.size(0) == 1
    assert slot_of(table, stays, 3.0) == 0


def test_id_that_is_forgotten_where_it_was_made_last_does_not_go_back_to_an_older_place(table: Learned) -> None:
    """To free the entry of the one that forgets would bring an entry of another slot back to life."""
    table.learn(5, 3, 1, now=1.0)
    table.learn(5, 0, 1, now=2.0)
    assert table.forget(5, 0, 1, SLOTS, now=3.0)
    assert slot_of(table, 5, 4.0) is None


def test_forgotten_id_stays_unknown_when_a_slot_comes_back(table: Learned) -> None:
    """With fewer workers nobody looks at the entries of the last ones, but there may be more workers again."""
    table.learn(5, 3, 1, now=1.0)
    table.learn(5, 0, 1, now=2.0)
    assert table.forget(5, 0, 1, slots=2, now=3.0)
    assert slot_of(table, 5, 4.0) is None


def test_id_is_forgotten_in_the_millisecond_in_which_it_was_made(table: Learned) -> None:
    """The clock is not fine enough to tell which of the two came first."""
    table.learn(5, 0, 1, now=1.0)
    assert table.forget(5, 3, 1, SLOTS, now=1.0)
    assert slot_of(table, 5, 1.0) is None


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_note_that_an_id_is_in_use_does_not_bring_it_back(table: Learned, is_elsewhere: bool) -> None:
    """Two threads may serve a request of the session and the DELETE that ends it at the same time."""
    if is_elsewhere:
        table.learn(5, 3, 1, now=0.5)
    table.learn(5, 2, 1, now=1.0)
    entry = table.find(5, SLOTS, 3.0)
    assert entry is not None
    table.forget(5, 2, 1, SLOTS, now=3.0)
    table.touch(5, entry, 4.0)
    assert slot_of(table, 5, 4.0) is None


def test_mark_of_a_forgotten_id_pushes_out_no_id_that_lives(table: Learned) -> None:
    """A lost id is a lost session; one that stays known goes to the worker that made it, which knows that it ended."""
    mine, [theirs] = in_one_row(WAYS + 1)[:-1], in_one_row(WAYS + 1)[-1:]
    for digest in mine:
        table.learn(digest, 0, 1, now=1.0)
    table.learn(theirs, 3, 1, now=1.0)
    assert table.forget(theirs, 0, 1, SLOTS, now=2.0)
    assert [slot_of(table, digest, 3.0) for digest in mine] == [0] * WAYS


def test_marks_and_old_places_make_room_before_an_id_that_lives(table: Learned) -> None:
    """Ids that wander between workers and end elsewhere than they began leave entries that answer nothing any more."""
    *wandered, mine, new = in_one_row(WAYS + 1)
    table.learn(mine, 0, 1, now=1.0)
    for at, digest in enumerate(wandered):
        table.learn(digest, 0, 1, now=2.0 + at)
        table.learn(digest, 1 + at % 2, 1, now=20.0 + at)
    assert table.learn(new, 0, 1, now=50.0) is Outcome.NEW
    assert [slot_of(table, digest, 51.0) for digest in (mine, new)] == [0, 0]
    assert [slot_of(table, digest, 51.0) for digest in wandered] == [1 + at % 2 for at in range(len(wandered))]


def test_id_used_longest_ago_makes_room_whatever_the_time_of_a_day(table: Learned) -> None:
    """With a day of `--learn-idle` the use of an id has to count after seconds, not after an hour and a half."""
    table = Learned(table.cells, 86_400)
    first, *others, new = in_one_row(WAYS + 1)
    table.learn(first, 0, 1, now=0.0)
    for at, digest in enumerate(others):
        table.learn(digest, 0, 1, now=1.0 + at)
    entry = table.find(first, SLOTS, 60.0)
    assert entry is not None
    if table.is_due(entry, 60.0):
        table.touch(first, entry, 60.0)
    assert table.learn(new, 0, 1, now=61.0) is Outcome.EVICTED
    assert slot_of(table, first, 61.0) == 0
    assert slot_of(table, others[0], 61.0) is None


def test_note_that_an_id_is_in_use_is_one_store_and_not_for_each_request(table: Learned) -> None:
    """It is paid while a request waits: once a second for an id, and with no search."""
    digest = in_one_row(1)[0]
    table = Learned(table.cells, 86_400)
    table.learn(digest, 2, 1, now=1.0)
    entry = table.find(digest, SLOTS, 2.0)
    assert entry is not None
    assert not table.is_due(entry, 1.9)
    assert table.is_due(entry, 2.0)
    Learned(_Stops(table.cells, 1), 86_400).touch(digest, entry, 2.0)  # type: ignore[arg-type]
    assert table.find(digest, SLOTS, 2.0) == entry._replace(seen_ms=2000)


def test_full_row_makes_room_and_says_so(table: Learned) -> None:
    """The table is bounded: the one seen longest ago goes, and the operator sees the count."""
    digests = in_one_row(WAYS + 1)
    assert all(table.learn(digest, 0, 1, now=float(at)) is Outcome.NEW for at, digest in enumerate(digests[:-1]))
    assert table.size(0) == WAYS
    assert table.learn(digests[-1], 0, 1, now=99.0) is Outcome.EVICTED
    assert slot_of(table, digests[0], 99.0) is None
    assert [slot_of(table, digest, 99.0) for digest in digests[1:]] == [0] * WAYS
    assert table.size(0) == WAYS


def test_entries_too_old_make_room_first_and_are_no_loss(table: Learned) -> None:
    """What has expired is not missed, so it is not counted as evicted."""
    digests = in_one_row(WAYS + 1)
    for digest in digests[:-1]:
        table.learn(digest, 0, 1, now=0.0)
    assert table.learn(digests[-1], 0, 1, now=IDLE_S + 1) is Outcome.NEW


def test_slots_do_not_take_room_from_each_other(table: Learned) -> None:
    """One writer for each entry: that is why there is no lock."""
    digests = in_one_row(WAYS * SLOTS)
    for number, digest in enumerate(digests):
        table.learn(digest, number % SLOTS, 1, now=0.0)
    assert [slot_of(table, digest) for digest in digests] == [number % SLOTS for number in range(len(digests))]


def test_ten_thousand_ids_are_all_found(table: Learned) -> None:
    """Of what fills a sixth of the table nothing is lost to rows that happen to be full."""
    draw = random.Random(7)
    known = {draw.getrandbits(64): draw.randrange(SLOTS) for _ in range(10_000)}
    assert all(table.learn(digest, slot, 1, now=1.0) is Outcome.NEW for digest, slot in known.items())
    assert all(slot_of(table, digest, 2.0) == slot for digest, slot in known.items())
    assert sum(table.size(slot) for slot in range(SLOTS)) == len(known)


def test_id_of_a_slot_that_is_gone_is_unknown(table: Learned) -> None:
    """With fewer workers than before nobody may be sent to a slot that does not exist."""
    table.learn(5, 3, 1, now=0.0)
    assert table.find(5, 3, 0.0) is None
    assert table.find(5, 4, 0.0) is not None


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(range(24)), st.sampled_from(range(SLOTS)), st.booleans()), max_size=80))
def test_table_says_what_a_dictionary_says(memory: memoryview[int], steps: list[tuple[int, int, bool]]) -> None:
    """Any order of learning and forgetting by any slots, in one row that is never full."""
    begin = learned_ids._HEADER + 7 * learned_ids._OF_ROW
    memory[begin : begin + SLOTS * learned_ids._OF_SLOT] = memoryview(
        array("Q", bytes(8 * SLOTS * learned_ids._OF_SLOT))
    )
    table, model = Learned(memory, IDLE_S), dict[int, int]()
    names = in_one_row(24)[: WAYS - 1]
    for at, (name, slot, forgets) in enumerate(steps):
        digest, now = names[name % len(names)], at / 1000
        if forgets:
            assert table.forget(digest, slot, 1, SLOTS, now) == (model.pop(digest, None) is not None)
        else:
            table.learn(digest, slot, 1, now)
            model[digest] = slot
        assert [slot_of(table, name, now) for name in names] == [model.get(name) for name in names]


class Dying(Exception):
    """A process ends between two stores."""


class _Stops:
    """Cells in which only so many stores are made."""

    def __init__(self, cells: memoryview[int], stores: int) -> None:
        self.cells, self._left = cells, stores

    def __getitem__(self, place: int) -> int:
        return self.cells[place]

    def __setitem__(self, place: int, value: int) -> None:
        if not self._left:
            raise Dying
        self._left -= 1
        self.cells[place] = value


@pytest.mark.parametrize("stores", range(6))
def test_writer_that_dies_between_two_stores_harms_only_what_it_replaced(table: Learned, stores: int) -> None:
    """kill -9 comes at any moment: no id may ever be found where it is not."""
    digests = in_one_row(WAYS + 1)
    for at, digest in enumerate(digests[:-1]):
        table.learn(digest, 0, 1, now=float(at))
    died = False
    try:
        Learned(_Stops(table.cells, stores), IDLE_S).learn(digests[-1], 0, 1, now=50.0)  # type: ignore[arg-type]
    except Dying:
        died = True
    assert died == (stores < 4)
    found = [slot_of(table, digest, 50.0) for digest in digests]
    assert found[1:-1] == [0] * (WAYS - 1)
    assert found[0] in (0, None)
    assert found[-1] == (None if stores < 3 else 0)


def test_entry_whose_halves_do_not_belong_together_is_unknown(table: Learned) -> None:
    """A reader on a machine that reorders loads may see the digest of one entry with the rest of another."""
    mine, other = 1 << 60 | 7 << 20, 2 << 60 | 7 << 20
    table.learn(mine, 0, 1, now=1.0)
    assert slot_of(table, mine, 1.0) == 0
    table.cells[table._row(mine)] = other
    assert slot_of(table, other, 1.0) is None


def test_digest_is_found_at_the_beginning_of_an_entry_alone(table: Learned) -> None:
    """The search goes over bytes: the second half of one entry, or a part of two, may read like another id."""
    digest = 5 << 55 | 7 << 20
    begin = table._row(digest)
    table.cells[0] = 1
    table.cells[begin], table.cells[begin + 1] = 9, digest
    table.cells[begin + 2] = 5 << 55 | 1000
    assert slot_of(table, digest, 1.0) is None
