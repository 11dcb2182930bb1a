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
        self._note(digest, slot, generation, forget=False)

    @rule(digest=st.sampled_from(DIGESTS), slot=st.integers(0, 3))
    def forget(self, digest: int, slot: int) -> None:
        """A worker says that an id is no more, whoever made it."""
        if self.expected(digest) is None:
            assert not self.table.forget(digest, slot, 1, 4, self.now)
        else:
            self._note(digest, slot, 1, forget=True)

    @rule(seconds=st.sampled_from([0.5, 30.0, IDLE_S + 1]))
    def wait(self, seconds: float) -> None:
        """Time passes; ids that nobody uses are forgotten."""
        self.now += seconds

    def _note(self, digest: int, slot: int, generation: int, *, forget: bool) -> None:
        self.now += 0.01  # so that there is one that was seen longest ago
        mine = self.seen[slot]
        had_room = digest in mine or len(mine) < WAYS
        oldest = min(mine, key=lambda known: mine[known], default=None)
        outcome = self.table.learn(digest, slot, generation, self.now, forget=forget)
        if had_room:
            assert outcome is (Outcome.KNOWN if digest in mine else Outcome.NEW)
        else:
            assert oldest is not None
            is_old = self.now - mine.pop(oldest)[0] > IDLE_S
            assert outcome is (Outcome.NEW if is_old else Outcome.EVICTED)
        mine[digest] = (self.now, forget)

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
