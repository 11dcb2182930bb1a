"""Who chooses keys, and sees which worker answers, does not know better than chance where the next key lives.

Each adversary below knows limpet's source, has seen thousands of keys of its choice with their slots, and says where
keys live that it has not seen. None is the best there could be; each breaks a hash that is a little worse: one that
is not keyed, that keeps what is near together, or that is linear.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limpet.routing import buckets
from limpet.routing.hashing import Hasher

SLOTS = 4
SEEN, ASKED = 1500, 1500
CHANCE = ASKED / SLOTS
TOO_GOOD = CHANCE + 6 * (ASKED * (1 / SLOTS) * (1 - 1 / SLOTS)) ** 0.5  # six standard deviations: one in 10^9
TABLE = buckets.table(SLOTS)

Place = Callable[[bytes], int]
Pairs = Sequence[tuple[bytes, int]]
Guess = Callable[[bytes], int]


def by_limpet(secret: bytes, *, addresses: bool) -> Place:
    """Return where limpet serves a key, as a client finds out by trying."""
    hasher = Hasher(secret)
    return lambda key: TABLE[hasher.bucket(hasher.digest(key, addresses))]


def guess_without_the_key(seen: Pairs) -> Guess:
    """The source is public: hash as limpet does, with the secrets that somebody might have left in place."""
    secrets = [b"", b"0" * 64, b"limpet", bytes(32), *(b"%d" % number for number in range(20))]
    addresses = len(seen[0][0]) % 4 == 0
    places = [by_limpet(secret, addresses=addresses) for secret in secrets]
    return max(places, key=lambda place: sum(place(key) == slot for key, slot in seen[:200]))


def guess_what_is_common(seen: Pairs) -> Guess:
    """Say the slot that was seen most often for keys with the same last byte, else the most common of all."""
    counts: dict[int, Counter[int]] = {}
    for key, slot in seen:
        counts.setdefault(key[-1], Counter())[slot] += 1
        counts.setdefault(-1, Counter())[slot] += 1
    return lambda key: counts.get(key[-1], counts[-1]).most_common(1)[0][0]


def guess_the_neighbour(seen: Pairs) -> Guess:
    """Say the slot of the seen key that is nearest as a number."""
    ordered = sorted((int.from_bytes(key, "big"), slot) for key, slot in seen)
    return lambda key: min(ordered, key=lambda pair: abs(pair[0] - int.from_bytes(key, "big")))[1]


def guess_by_steps(seen: Pairs) -> Guess:
    """Say what the commonest difference of slots between a key and the next one makes of the last key seen."""
    slots = {int.from_bytes(key, "big"): slot for key, slot in seen}
    steps = Counter((slots[number + 1] - slot) % SLOTS for number, slot in slots.items() if number + 1 in slots)
    step = steps.most_common(1)[0][0] if steps else 0
    return lambda key: (slots.get(int.from_bytes(key, "big") - 1, 0) + step) % SLOTS


def guess_linearly(seen: Pairs) -> Guess:
    """Solve each bit of the slot as a sum of bits of the key: what a CRC, or a hash of xor and shifts alone, is."""
    solved = [_solve([(int.from_bytes(key, "big") << 1 | 1, slot >> bit & 1) for key, slot in seen]) for bit in (0, 1)]

    def guess(key: bytes) -> int:
        number = int.from_bytes(key, "big") << 1 | 1
        return sum(((number & row).bit_count() & 1) << bit for bit, row in enumerate(solved))

    return guess


def _solve(equations: list[tuple[int, int]]) -> int:
    """Return the bits whose sum is the value of each equation, as far as they are not at odds: Gauss over GF(2)."""
    pivots: list[tuple[int, int, int]] = []
    for row, value in equations:
        for bit, other, other_value in pivots:
            if row >> bit & 1:
                row, value = row ^ other, value ^ other_value
        if row:
            pivots.append((row.bit_length() - 1, row, value))
    answer = 0
    for bit, row, value in reversed(pivots):
        if ((row & answer).bit_count() & 1) != value:
            answer ^= 1 << bit
    return answer


ADVERSARIES = [guess_without_the_key, guess_what_is_common, guess_the_neighbour, guess_by_steps, guess_linearly]


def keys(kind: str, dice: random.Random) -> list[bytes]:
    """Return keys as an adversary would choose them: in a row, so that what is regular shows."""
    start = dice.randrange(1 << 30)
    if kind == "IPv4":
        return [(start + number).to_bytes(4, "big") for number in range(SEEN + ASKED)]
    if kind == "IPv6":
        return [(0x20010DB8 << 32 | start + number).to_bytes(8, "big") for number in range(SEEN + ASKED)]
    return [b"user-%09d" % (start + number) for number in range(SEEN + ASKED)]


def hits(place: Place, adversary: Callable[[Pairs], Guess], kind: str, seed: int) -> int:
    """Return how often *adversary* is right about keys that it has not seen."""
    dice = random.Random(seed)
    chosen = keys(kind, dice)
    dice.shuffle(chosen)
    guess = adversary([(key, place(key)) for key in chosen[:SEEN]])
    asked = chosen[SEEN:][:300] if adversary is guess_the_neighbour else chosen[SEEN:]
    return sum(guess(key) == place(key) for key in asked) * ASKED // len(asked)


@pytest.mark.parametrize("kind", ["IPv4", "IPv6", "header"])
@pytest.mark.parametrize("adversary", ADVERSARIES)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret=st.binary(min_size=16, max_size=64), seed=st.integers(0, 2**32))
def test_where_an_unseen_key_lives_is_anybodys_guess(
    adversary: Callable[[Pairs], Guess], kind: str, secret: bytes, seed: int
) -> None:
    """Else a client sends thousands of keys to one worker, which serves nobody then, without trying each of them."""
    scale = 2 if adversary is guess_the_neighbour else 1  # it is asked less, and so may be luckier
    found = hits(by_limpet(secret, addresses=kind != "header"), adversary, kind, seed)
    assert found < CHANCE + (TOO_GOOD - CHANCE) * scale * 1.2


@pytest.mark.parametrize(
    ("adversary", "place"),
    [
        (guess_without_the_key, by_limpet(b"limpet", addresses=False)),
        (guess_what_is_common, lambda key: key[-1] % SLOTS),
        (guess_the_neighbour, lambda key: int.from_bytes(key, "big") >> 9 & 3),
        (guess_by_steps, lambda key: int.from_bytes(key, "big") % SLOTS),
        (guess_linearly, lambda key: zlib.crc32(key) >> 7 & 3),
    ],
)
def test_each_adversary_breaks_a_hash_that_is_a_little_worse(adversary: Callable[[Pairs], Guess], place: Place) -> None:
    """An adversary that could never win would prove nothing above."""
    assert hits(place, adversary, "header", seed=7) > TOO_GOOD


def test_one_bit_of_the_secret_moves_everybody() -> None:
    """Nobody comes closer by being nearly right about the secret."""
    one, other = (by_limpet(secret, addresses=False) for secret in (b"secret 0", b"secret 1"))
    chosen = keys("header", random.Random(3))
    assert sum(one(key) == other(key) for key in chosen[:ASKED]) < TOO_GOOD
