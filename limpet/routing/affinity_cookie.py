"""Limpet's own cookie: the key of clients that bring none (`--by affinity`).

Pure. Owns the value, its proof, its name and its attributes. Refuses to know where a bucket lives and what a response
is: `mint` is told which buckets will do, sessions/sessions.py sets what `header` returns. routing/elements.py asks
`find`.

How it works: a value is 27 bytes in base64, 36 characters:

    random 7 | born 4 | seen 4 | proof 12        born, seen: seconds since 1970

The proof is the first part of a keyed BLAKE2b of what stands before it. The next 8 bytes of the same hash, which nobody
sees, are the digest of the client: a worker draws random bytes until their bucket is its own (N tries for N slots). So
a cookie needs no state anywhere, a client cannot make one, and of those that it is given it cannot tell which live
together.

1. What was not made here counts as no cookie at all: forged, cut, changed, too old, or of another cluster. Of several
   values each is tried, in the order of the Cookie header, and the first that is proven counts. Browsers keep that
   order (longest path first, then the oldest), and a renewed cookie keeps its place, so the answer is stable.
   A value that is due may be one that this server cannot replace: another path's, or another domain's. It is renewed
   once; from then on its renewal stands beside it.
2. Each line of the secret has a name and a key of its own. The first makes cookies, all are accepted. The digest comes
   from the key that made the cookie, so its home survives a change of the secret: a value under an old line is replaced
   by one under the first, minted for the same slot.
3. The layout, the name and the digest are wire format: a change sends clients elsewhere.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

from limpet.errors import SettingsError
from limpet.protocol.request import Request, cookie_values
from limpet.routing.digests import blake2b, compare_digest
from limpet.routing.hashing import derive

DEFAULT: Final = "Path=/; HttpOnly; SameSite=Lax"
MAX_AGE_S: Final = 400 * 86_400  # browsers keep no cookie for longer
_BODY: Final = struct.Struct(">7sII")
_PROOF_BYTES: Final = 12
_DIGEST_BYTES: Final = 8
_CHARACTERS: Final = (_BODY.size + _PROOF_BYTES) * 4 // 3  # a multiple of 3 bytes, so that each has one spelling
_OPENED: Final = 16_384  # values remembered: a client that comes back costs no hash
TRIED: Final = 16  # values of one name that are tried in a request: each costs a hash
_TRIES: Final = 1 << 14  # to mint: with 256 slots all fail once in 10^28 times
_RENEWALS: Final = 4  # in the time that a cookie may be idle
_SAME_SITE: Final = {"strict": "Strict", "lax": "Lax", "none": "None"}
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_SWITCH: Final = {"": True, "yes": True, "no": False}
_PATH: Final = re.compile(r"/[\x21-\x3a\x3c-\x7e]*")
_DOMAIN: Final = re.compile(r"\.?[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*")
_HINT: Final = "`--affinity-cookie 'Max-Age=86400; SameSite=None; Secure; Partitioned'`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """How the cookie is set."""

    max_age: int = 0
    """Seconds since it was first set after which it counts as none; 0: until the browser ends."""
    max_idle: int = 0
    """Seconds in which it was not sent after which it counts as none; 0: for ever."""
    path: str = "/"
    domain: str = ""
    same_site: str = "Lax"
    secure: bool | None = None
    """None: where the request came by https."""
    http_only: bool = True
    partitioned: bool = False

    @classmethod
    def parse(cls, text: str) -> Attributes:
        """Return what *text* says, as in Set-Cookie; what it leaves out is the default. Raises SettingsError."""
        given: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(";"))):
            name, _, value = part.partition("=")
            field, read = _FIELDS.get(name.strip().lower(), ("", None))
            value = value.strip()
            if read is None:
                raise SettingsError(f"`{name.strip()}` is no attribute of a cookie: {_ALLOWED} are allowed", hint=_HINT)
            try:
                given[field] = read(value)
            except (KeyError, ValueError):
                raise SettingsError(f"`{part}` is no value of that attribute", hint=_HINT) from None
        found = cls(**given)
        if (found.same_site == "None" or found.partitioned) and not found.secure:
            raise SettingsError("browsers take `SameSite=None` and `Partitioned` with `Secure` only", hint=_HINT)
        return found


def _seconds(value: str) -> int:
    if not 0 <= int(value) <= MAX_AGE_S:
        raise ValueError
    return int(value)


def _matching(pattern: re.Pattern[str]) -> Callable[[str], str]:
    def read(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError
        return value

    return read


_FIELDS: Final[dict[str, tuple[str, Callable[[str], Any] | None]]] = {
    "max-age": ("max_age", _seconds),
    "max-idle": ("max_idle", _seconds),
    "path": ("path", _matching(_PATH)),
    "domain": ("domain", _matching(_DOMAIN)),
    "samesite": ("same_site", lambda value: _SAME_SITE[value.lower()]),
    "secure": ("secure", lambda value: _SWITCH[value.lower()]),
    "httponly": ("http_only", lambda value: _SWITCH[value.lower()]),
    "partitioned": ("partitioned", lambda value: _SWITCH[value.lower()]),
}
_ALLOWED: Final = "`Max-Age`, `Max-Idle`, `Path`, `Domain`, `SameSite`, `Secure`, `HttpOnly` and `Partitioned`"


class Opened(NamedTuple):
    """What a valid cookie says."""

    digest: int
    born: int
    seen: int
    is_current: bool  # made under the first line of the secret


class _Line:
    """What one line of the secret names and proves."""

    def __init__(self, secret: bytes, cluster: str) -> None:
        name = blake2b(cluster.encode(), key=derive(secret, b"limpet.cookie.id", 32), digest_size=4)
        self.name = b"limpet_" + name.hexdigest().encode()
        size = _PROOF_BYTES + _DIGEST_BYTES
        key = derive(secret, b"limpet.cookie", 32)
        self._keyed = blake2b(cluster.encode() + b"\0", key=key, digest_size=size, person=b"limpet.cookie")

    def seal(self, body: bytes) -> tuple[bytes, int]:
        """Return the proof of *body*, and the digest of the client that has it."""
        state = self._keyed.copy()
        state.update(body)
        sealed = state.digest()
        return sealed[:_PROOF_BYTES], int.from_bytes(sealed[_PROOF_BYTES:], "big")


class Jar:
    """Makes and opens the cookies of one cluster. *clock* tells seconds since 1970."""

    def __init__(
        self, secrets: Sequence[bytes], cluster: str, attributes: Attributes, clock: Callable[[], float]
    ) -> None:
        self._lines = [_Line(secret, cluster) for secret in secrets]
        self._attributes = attributes
        self._clock = clock
        self._open = lru_cache(maxsize=_OPENED)(self._opened)
        self.name = self._lines[0].name.decode()

    @property
    def names(self) -> list[str]:
        """The names of cookies that count, in the order in which they are looked for."""
        return [line.name.decode() for line in self._lines]

    def find(self, request: Request) -> Opened | None:
        """Return what the cookie of *request* says, None when it has none that counts."""
        return next(self.all_of(request), None)

    def all_of(self, request: Request) -> Iterator[Opened]:
        """Yield what each cookie of *request* says that counts: the first is the client's."""
        for number, line in enumerate(self._lines):
            if values := request.cookie_values(line.name):
                yield from self._those_of(number, values)

    def is_good(self, lines: list[bytes]) -> bool:
        """Return whether the Cookie headers *lines* hold a cookie that counts and is not due: the usual case."""
        values = cookie_values(lines, self._lines[0].name)
        opened = self._first_of(0, values) if values else None
        return opened is not None and not self.is_due(opened)

    def _first_of(self, number: int, values: list[bytes]) -> Opened | None:
        """Return what the first of *values* says that the line *number* proves and that is not too old."""
        return next(self._those_of(number, values), None)

    def _those_of(self, number: int, values: list[bytes]) -> Iterator[Opened]:
        for value in values[:TRIED]:
            if len(value) == _CHARACTERS:  # before it is remembered: others may be large
                opened = self._open(number, value)
                if opened is not None and not self._is_stale(opened):
                    yield opened

    def open(self, value: bytes) -> Opened | None:
        """Return what the cookie *value* says, None if it was not made here or no longer counts."""
        found = (self._first_of(number, [value]) for number in range(len(self._lines)))
        return next((opened for opened in found if opened is not None), None)

    def is_withheld(self, request: Request) -> bool:
        """Return whether a browser that sends *request* keeps its cookie back, if it has one: SameSite says so."""
        same_site = self._attributes.same_site
        if same_site == "None" or (same_site == "Lax" and request.method in _SAFE):
            return False
        return request.header_bytes(b"sec-fetch-site") == b"cross-site"

    def is_due(self, opened: Opened) -> bool:
        """Return whether a new value should take the place of this one."""
        idle = self._attributes.max_idle
        return not opened.is_current or (idle > 0 and self._clock() - opened.seen > idle / _RENEWALS)

    def mint(
        self, lives_here: Callable[[int], bool], random: Callable[[int], bytes], old: Opened | None = None
    ) -> tuple[str, int]:
        """Return a new value whose digest *lives_here* accepts, and when it was born: with *old*, when that was."""
        now = int(self._clock())
        born = now if old is None else old.born
        for _ in range(_TRIES):
            body = _BODY.pack(random(7), born, now)
            proof, digest = self._lines[0].seal(body)
            if lives_here(digest):
                return base64.urlsafe_b64encode(body + proof).decode(), born
        raise RuntimeError(f"no cookie of {_TRIES} lives here: does this slot own any bucket?")

    def header(self, value: str, born: int, *, is_https: bool) -> str:
        """Return the text of a Set-Cookie header."""
        given = self._attributes
        parts = [f"{self.name}={value}", f"Path={given.path}", f"SameSite={given.same_site}"]
        if given.max_age:
            parts.append(f"Max-Age={max(0, born + given.max_age - int(self._clock()))}")
        if given.domain:
            parts.append(f"Domain={given.domain}")
        if given.http_only:
            parts.append("HttpOnly")
        if is_https if given.secure is None else given.secure:
            parts.append("Secure")
        if given.partitioned:
            parts.append("Partitioned")
        return "; ".join(parts)

    def _opened(self, number: int, value: bytes) -> Opened | None:
        try:
            raw = base64.urlsafe_b64decode(value)
        except ValueError:
            return None
        if base64.urlsafe_b64encode(raw) != value:  # decoding skips what is not in its alphabet
            return None
        body, proof = raw[: _BODY.size], raw[_BODY.size :]
        wanted, digest = self._lines[number].seal(body)
        if not compare_digest(proof, wanted):
            return None
        _, born, seen = _BODY.unpack(body)
        return Opened(digest, born, seen, is_current=number == 0)

    def _is_stale(self, opened: Opened) -> bool:
        age, idle = self._attributes.max_age, self._attributes.max_idle
        return (age > 0 and self._clock() - opened.born > age) or (idle > 0 and self._clock() - opened.seen > idle)
