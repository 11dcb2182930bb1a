"""Writes the test vectors that pin keyed hash and bucket tables: `python -m tests.vectors.make`.

The files are the contract with released versions, other machines and other implementations: the tests compare, and
nothing but a deliberate break of that contract runs this script again. If a vector changes, clients move.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from pathlib import Path
from typing import Final

from limpet.routing import buckets
from limpet.routing.hashing import Hasher

HERE: Final = Path(__file__).parent
SECRETS: Final = (b"0123456789abcdef", b"a secret may be longer than any key of BLAKE2b, " * 4)
KEYS: Final = (b"", b"alice", "zoë".encode(), b"10.1.2.3", b"\x7f\x00\x00\x01", bytes(range(256)), b"x" * 300)
ADDRESSES: Final = (
    "0.0.0.0/32",
    "10.1.2.3/32",
    "127.0.0.1/32",
    "192.0.2.0/24",
    "255.255.255.255/32",
    "::/64",
    "2001:db8::/64",
    "2001:db8:1:2::/64",
    "fe80::/64",
    "2001:db8:1::/48",
    "2001:db8:1:2:8000::/65",
    "2001:db8::1/128",
)
TABLES: Final = (1, 2, 3, 4, 5, 7, 8, 16, 31, 64, 100, 255, 256)
RANKS: Final = (1, 2, 3, 4, 8, 16)


def packed(network: str) -> bytes:
    """Return the value of the key of an address: as many whole 32-bit words as its prefix needs."""
    address, prefix = network.split("/")
    return ipaddress.ip_address(address).packed[: -(-int(prefix) // 32) * 4]


def entry(hasher: Hasher, value: bytes, text: str | None) -> dict[str, object]:
    """Return the vector of one key; *text* is that of an address."""
    digest = hasher.digest(value, is_address=text is not None)
    address = {} if text is None else {"address": text}
    return {**address, "value": value.hex(), "digest": hasher.show(digest), "bucket": hasher.bucket(digest)}


def keys() -> list[dict[str, object]]:
    """Return the vectors of keys: for each secret the key of the address hash, and digests and buckets."""
    result: list[dict[str, object]] = []
    for secret in SECRETS:
        hasher = Hasher(secret)
        result.append(
            {
                "secret": secret.hex(),
                "address_key": [f"{word:08x}" for word in hasher.address_key],
                "keys": [entry(hasher, value, None) for value in KEYS],
                "addresses": [entry(hasher, packed(text), text) for text in ADDRESSES],
            }
        )
    return result


def tables() -> dict[str, dict[str, str]]:
    """Return SHA-256 by number of slots: of the table, one byte per bucket; of the ranks of all buckets in order."""
    return {
        "tables": {str(slots): short(buckets.table(slots)) for slots in TABLES},
        "ranks": {
            str(slots): short(bytes(slot for bucket in range(buckets.BUCKETS) for slot in buckets.rank(bucket, slots)))
            for slots in RANKS
        },
    }


def short(data: bytes) -> str:
    """Return the first 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


if __name__ == "__main__":
    for name, vectors in (("keys.json", keys()), ("buckets.json", tables())):
        (HERE / name).write_text(json.dumps(vectors, indent=1) + "\n")
