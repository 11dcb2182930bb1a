"""The keyed hash: as published, as pinned, and even."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.routing import digests
from limpet.routing.buckets import BUCKETS
from limpet.routing.hashing import Hasher, half_sip_hash

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "keys.json").read_text())

# Published digests of the bytes 0, 1, .. under the key 0, 1, .. 7, of messages of 0, 4, 8, .. 28 bytes.
PUBLISHED_KEY = (0x03020100, 0x07060504)
PUBLISHED = {
    (2, 4): (  # by the authors of SipHash, who print the bytes of the digest
        *(0x5B9F35A9, 0x89466E2A, 0x8F84B8D0, 0x2F87F057),
        *(0x84ACB5D9, 0x45104DE3, 0x630C4027, 0x004064B0),
    ),
    (1, 3): (  # by Linux, of hsiphash on 32-bit machines
        *(0x5814C896, 0x7E059EA6, 0x577999B1, 0x6B28096C),
        *(0x8B31D501, 0x911BB605, 0x57150AD7, 0x0A4100D0),
    ),
}

word = st.integers(0, 2**32 - 1)
address = st.binary(min_size=4, max_size=4) | st.binary(min_size=8, max_size=8)


@pytest.mark.parametrize(("c", "d"), PUBLISHED)
def test_half_sip_hash_is_the_published_function(c: int, d: int) -> None:
    """A home-made variant would have an unknown strength; the kernel's program is made from this function."""
    for count, digest in enumerate(PUBLISHED[c, d]):
        words = struct.unpack(f"<{count}I", bytes(range(4 * count)))
        assert half_sip_hash(PUBLISHED_KEY, words, 4 * count, c, d) == digest


@given(st.tuples(word, word), st.lists(word, max_size=4))
def test_half_sip_hash_is_one_32_bit_word(key: tuple[int, int], words: list[int]) -> None:
    """A carry that is not cut off would give another digest than the registers of the kernel."""
    assert 0 <= half_sip_hash(key, words, 4 * len(words)) < 2**32


@given(st.binary(max_size=100), address)
def test_address_is_the_published_function_of_its_bytes_with_each_word_reversed(secret: bytes, packed: bytes) -> None:
    """Whoever writes another implementation can start from a library if he knows the order of bytes."""
    hasher = Hasher(secret)
    reversed_words = b"".join(packed[at : at + 4][::-1] for at in range(0, len(packed), 4))
    words = struct.unpack(f"<{len(packed) // 4}I", reversed_words)
    assert hasher.digest(packed, is_address=True) == half_sip_hash(hasher.address_key, words, len(packed))


@pytest.mark.parametrize("vectors", VECTORS, ids=["short secret", "long secret"])
def test_digests_and_buckets_are_those_of_every_release(vectors: dict[str, Any]) -> None:
    """A digest that changes sends clients of a running cluster to other workers."""
    hasher = Hasher(bytes.fromhex(vectors["secret"]))
    assert [f"{part:08x}" for part in hasher.address_key] == vectors["address_key"]
    for vector in vectors["keys"] + vectors["addresses"]:
        digest = hasher.digest(bytes.fromhex(vector["value"]), is_address="address" in vector)
        assert (hasher.show(digest), hasher.bucket(digest)) == (vector["digest"], vector["bucket"]), vector


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_ordinary_key_is_hashed_as_documented(secret: bytes, value: bytes) -> None:
    """The copied state is a short cut that must not change the function."""
    key = hashlib.blake2b(secret, digest_size=32, person=b"limpet.key").digest()
    digest = hashlib.blake2b(value, key=key, digest_size=8, person=b"limpet.key").digest()
    assert Hasher(secret).digest(value, is_address=False) == int.from_bytes(digest, "big")


@given(st.binary(), st.booleans(), address)
def test_digest_is_the_same_every_time(value: bytes, is_address: bool, packed: bytes) -> None:
    """Neither what was hashed before nor what is remembered may show in a digest."""
    hasher = Hasher(b"secret")
    key = (packed, True) if is_address else (value, False)
    first = hasher.digest(*key)
    hasher.digest(value + b".", is_address=False)
    assert first == hasher.digest(*key) == Hasher(b"secret").digest(*key)


@given(address, st.binary(min_size=16), st.binary(min_size=16))
def test_another_secret_gives_another_key_for_addresses(packed: bytes, one: bytes, other: bytes) -> None:
    """Two servers must not share weak spots that somebody found in one of them."""
    assert (Hasher(one).address_key == Hasher(other).address_key) == (one == other)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_address_that_is_not_whole_words_is_refused(size: int) -> None:
    """A part that is left out would give many clients one home."""
    with pytest.raises(struct.error):
        Hasher(b"secret").digest(bytes(size), is_address=True)


def test_neighbouring_addresses_fill_buckets_evenly() -> None:
    """The clients of one office differ in a few low bits: 16 per bucket, chi-square within 3 deviations."""
    hasher = Hasher(b"a fixed secret")
    addresses = (b"\x0a\x00" + number.to_bytes(2, "big") for number in range(16 * BUCKETS))
    filled = Counter(hasher.bucket(hasher.digest(packed, is_address=True)) for packed in addresses)
    chi_square = sum((filled[bucket] - 16) ** 2 / 16 for bucket in range(BUCKETS))
    assert abs(chi_square - (BUCKETS - 1)) < 3 * (2 * (BUCKETS - 1)) ** 0.5


@given(st.binary(), address)
def test_shown_digest_reads_back(value: bytes, packed: bytes) -> None:
    """An operator who finds a digest in a log can compute its bucket from it."""
    hasher = Hasher(b"secret")
    for digest, digits in ((hasher.digest(value, False), 16), (hasher.digest(packed, True), 8)):
        assert int(hasher.show(digest), 16) == digest
        assert len(hasher.show(digest)) == digits


def test_hashes_are_pythons_own_and_bring_no_openssl_in() -> None:
    """libcrypto is 3.5 MB in supervisor and dispatcher, which need nothing of it; another hash moves everybody."""
    imported = "limpet.cli.commands, limpet.supervisor.bootstrap, limpet.entry.child"
    line = f"import sys, {imported}; print({{'_hashlib', '_ssl'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout == "set()\n"
    assert digests.blake2b is hashlib.blake2b
    assert digests.shake_128(b"x").digest(32) == hashlib.shake_128(b"x").digest(32)
    assert digests.compare_digest(b"same", b"same")
    assert not digests.compare_digest(b"same", b"other")
