"""The hash functions of keys, tables and cookies, and the comparison of proofs, without OpenSSL.

Owns nothing but where they come from. They are what `hashlib` and `hmac` offer, and the same objects; but those load
OpenSSL's libcrypto, which takes 3.5 MB of memory in each process and is used for none of them. A Python that has moved
the modules gives them as ever. Called by the pure modules that hash.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import blake2b, shake_128
    from hmac import compare_digest
else:
    try:
        from _blake2 import blake2b
        from _operator import _compare_digest as compare_digest
        from _sha3 import shake_128
    except ImportError:
        from hashlib import blake2b, shake_128
        from hmac import compare_digest

__all__ = ["blake2b", "compare_digest", "shake_128"]
