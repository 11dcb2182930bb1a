"""Any history of slots that come, go, fall and learn: what holds afterwards depends on where it ended alone."""

from __future__ import annotations

from array import array

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from limpet.routing import buckets, learned_ids
from limpet.routing.forwarded import Trust
from limpet.routing.hashing import Hasher
from limpet.routing.key_chain import KeyChain
from limpet.routing.learned_ids import CELLS, WAYS, Learned, Outcome
from limpet.routing.router import Router

SECRET = b"5a" * 32
IDLE_S = 100.0
MOST_SLOTS = 8
MEMORY = memoryview(array("Q", bytes(8 * CELLS)))
ROW = 7
DIGESTS = [(number + 1) << 40 | ROW << 20 for number in range(3 * WAYS)]  # of one row, which they overfill


class LearnedHistory(RuleBasedStateMachine):
    """One row of the learned table, beside a model that knows who saw which id last, and when."""

    @initialize()
    def begin(self) -> None:
        for start in (0, learned_ids._HEADER + ROW * learned_ids._OF_ROW):
            MEMORY[start : start + learned_ids._HEADER] = memoryview(array("Q", bytes(8 * learned_ids._HEADER)))
        self.table = Learned(MEMORY, IDLE_S)
        self.now = 1000.0
        self.seen: list[dict[int, tuple[float, bool]]] = [{} for _ in range(4)]  # of each slot: when, and forgotten?

    @rule(digest=st.sampled_from(DIGESTS), slot=st.integers(0, 3), generation=st.integers(1, 5))
    def learn(self, digest: int, slot: int, generation: int) -> None:
        """A worker makes an id, or makes it again."""
        self.now += 0.01  # so that there is one that was seen longest ago
        is_known, is_needed = digest in self.seen[slot], self._all_are_needed(slot)
        outcome = self.table.learn(digest, slot, generation, self.now)
        assert outcome is (Outcome.KNOWN if is_known else Outcome.EVICTED if is_needed else Outcome.NEW)
        self._see_who_made_room(slot, may_be_needed=outcome is Outcome.EVICTED)
        self.seen[slot][digest] = (self.now, False)

    @rule(digest=st.sampled_from(DIGESTS), slot=st.integers(0, 3))
    def forget(self, digest: int, slot: int) -> None:
        """A worker says that an id is no more, whoever made it."""
        self.now += 0.01
        is_known, mine, is_needed = self.expected(digest) is not None, self.seen[slot], self._all_are_needed(slot)
        is_elsewhere = any(not is_forgotten for _, is_forgotten in self._others(digest, slot))
        assert self.table.forget(digest, slot, 1, 4, self.now) is is_known
        if is_known and not is_elsewhere:
            del mine[digest]
        elif is_known and (digest in mine or not is_needed):
            self._see_who_made_room(slot, may_be_needed=False)
            mine[digest] = (self.now, True)

    @rule(digest=st.sampled_from(DIGESTS))
    def use(self, digest: int) -> None:
        """A request with the id comes to the worker that made it."""
        self.now += 0.01
        entry = self.table.find(digest, 4, self.now)
        if entry is not None:
            self.table.touch(digest, entry, self.now)
            self.seen[entry.slot][digest] = (self.now, False)

    @rule(seconds=st.sampled_from([0.5, 30.0, IDLE_S + 1]))
    def wait(self, seconds: float) -> None:
        """Time passes; ids that nobody uses are forgotten."""
        self.now += seconds

    def _others(self, digest: int, slot: int) -> list[tuple[float, bool]]:
        known = [seen[digest] for other, seen in enumerate(self.seen) if other != slot and digest in seen]
        return [each for each in known if self.now - each[0] <= IDLE_S]

    def _is_needed(self, digest: int, slot: int) -> bool:
        """Whether any answer, now or later, depends on what *slot* has of the id."""
        at, is_forgotten = self.seen[slot][digest]
        if self.now - at > IDLE_S:
            return False
        others = self._others(digest, slot)
        if is_forgotten:
            return any(other < at and not has_mark for other, has_mark in others)
        return all(other < at for other, _ in others)

    def _all_are_needed(self, slot: int) -> bool:
        mine = self.seen[slot]
        return len(mine) == WAYS and all(self._is_needed(digest, slot) for digest in mine)

    def _see_who_made_room(self, slot: int, *, may_be_needed: bool) -> None:
        """Take from the model what *slot* has no more: nothing that is needed, or the one seen longest ago."""
        mine = self.seen[slot]
        begin = learned_ids._HEADER + ROW * learned_ids._OF_ROW + slot * learned_ids._OF_SLOT
        gone = set(mine) - set(MEMORY[begin : begin + learned_ids._OF_SLOT : 2])
        assert len(gone) <= 1
        for digest in gone:
            assert not self._is_needed(digest, slot) or (may_be_needed and digest == min(mine, key=mine.__getitem__))
            del mine[digest]

    def expected(self, digest: int) -> int | None:
        """Return the slot to which the id belongs."""
        known = [(*mine[digest], slot) for slot, mine in enumerate(self.seen) if digest in mine]
        fresh = [each for each in known if self.now - each[0] <= IDLE_S]
        _, is_forgotten, slot = max(fresh, default=(0.0, True, 0))
        return None if is_forgotten else slot

    @invariant()
    def each_id_is_where_it_was_seen_last(self) -> None:
        for digest in DIGESTS:
            entry = self.table.find(digest, 4, self.now)
            assert (None if entry is None else entry.slot) == self.expected(digest)

    @invariant()
    def no_slot_has_more_than_its_share(self) -> None:
        assert [self.table.size(slot) for slot in range(4)] == [len(mine) for mine in self.seen]


class SlotHistory(RuleBasedStateMachine):
    """A router that hears of every change, beside one that is made for the slots that there are now."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router(KeyChain.parse("header:x", Trust()), Hasher(SECRET), 4, failover=True)
        self.is_up = [True] * 4

    @rule(slots=st.integers(1, MOST_SLOTS))
    def scale(self, slots: int) -> None:
        """The server gets more slots, or fewer."""
        self.router.resize(slots)
        self.is_up = (self.is_up + [True] * MOST_SLOTS)[:slots]
        self.router.follow(self.is_up)

    @precondition(lambda self: any(self.is_up))
    @rule(slot=st.integers(0, MOST_SLOTS - 1))
    def turn(self, slot: int) -> None:
        """The worker of a slot dies, or its next one is ready."""
        slot %= len(self.is_up)
        self.is_up = [up != (number == slot) for number, up in enumerate(self.is_up)]
        self.router.follow(self.is_up)

    @invariant()
    def nobody_can_tell_how_it_came_to_this(self) -> None:
        slots = len(self.is_up)
        assert self.router.owners == buckets.stand_ins(slots, self.is_up)
        fresh = Router(KeyChain.parse("header:x", Trust()), Hasher(SECRET), slots, failover=True)
        fresh.follow(self.is_up)
        for number in range(20):
            key = self.router.chain.from_text(f"user {number}")
            route = self.router.where(key)
            assert route == fresh.where(key)
            assert self.is_up[route.slot] or not any(self.is_up)
            assert not self.is_up[route.home] or route.slot == route.home


LearnedHistory.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
SlotHistory.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestLearnedHistory = LearnedHistory.TestCase
TestSlotHistory = SlotHistory.TestCase
