"""The sessions of one worker: what it does for ids that clients will bring back to it.

Owns the three ways by which a session stays with its worker: limpet's own cookie (routing/affinity_cookie.py), ids
minted to hash home, and ids learned (routing/learned_ids.py); and what an application may call for them.
sessions/middleware.py asks it for each request and each response. Where a key lives is the router's business.

1. A learned id is in the table before `learned_from` returns, so before the response leaves.
2. Outside a worker `mint`, `learn` and `forget` do nothing that matters: an application runs unchanged without limpet.
3. An id is a key like any other: the same bytes have the same home whichever element of the chain finds them.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, TypeVar
from uuid import UUID

from limpet.config.learn_source import Source
from limpet.current import WorkerInfo
from limpet.protocol.request import Request, set_cookie_value
from limpet.routing.affinity_cookie import Jar, Opened
from limpet.routing.elements import Cookie
from limpet.routing.key_chain import Key
from limpet.routing.learned_ids import Outcome
from limpet.routing.placement import belongs_to_no_user

if TYPE_CHECKING:
    from limpet.config.settings import Settings
    from limpet.ipc.scoreboard import Row
    from limpet.routing.router import Router

Id = TypeVar("Id", str, bytes, UUID)
_TRIES: Final = 64  # for each slot there is: all fail once in 10^27 times
_SHARED: Final = re.compile(rb"(?:^|[,\s])(?:public|s-maxage\s*=)", re.IGNORECASE)
_MCP: Final = "header:mcp-session-id"  # its clients answer 404 with a new session, and end one with DELETE


class Sessions:
    """This worker's side of all sessions."""

    def __init__(self, settings: Settings, info: WorkerInfo, router: Router, row: Row) -> None:
        self._router = router
        self._row = row
        self._info = info
        self._refuses = settings.on_lost == "refuse"
        self._sources: dict[bytes, list[Source]] = {}
        for source in settings.learn_sources:
            self._sources.setdefault(source.header, []).append(source)
        # Cookies that are the key: the application is not expected to set them, and warned of it if it does.
        names = {each.spec for each in router.chain.elements if isinstance(each, Cookie)} - set(settings.learn)
        self._keys = [(spec, spec.partition(":")[2].encode()) for spec in names]
        self._watches = bool(self._sources) or self._refuses  # learned ids: those in use, and those that are lost
        self._lives_here = router.lives_at(info.slot)
        self._one_at_a_time = threading.Lock()  # a WSGI application has threads, and table and row one writer

    @property
    def router(self) -> Router:
        """What knows where keys live, as this worker does."""
        return self._router

    @property
    def is_idle(self) -> bool:
        """Whether neither requests nor responses are of interest, now and later."""
        return self.only_warns and not self._keys

    @property
    def only_warns(self) -> bool:
        """Whether responses are of interest for nothing but a warning, so that the server works without."""
        return self._router.jar is None and not self._watches

    def is_settled(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether a request with these *headers* and its response are of no interest: the usual case."""
        jar = self._router.jar
        if self._watches or self._keys:
            return False
        return jar is None or jar.is_good([value for name, value in headers if name == b"cookie"])

    @property
    def learns(self) -> bool:
        """Whether responses are looked at for ids, those that end included."""
        return self._watches or bool(self._keys)

    def refusal(self, request: Request) -> int:
        """Return the status with which to refuse *request*, 0 to serve it. Notes that its learned id is in use."""
        learned = self._router.learned
        if not self._watches or learned is None or learned.is_empty:
            return 0
        key = self._router.chain.find(request.peer, request)
        route = None if key is None else self._router.where(key)
        if key is None or route is None or route.learned is None:
            return 0
        self._count("learned_hits")
        entry, now = route.learned, time.monotonic()
        if entry.slot != self._info.slot:  # learned elsewhere since it was sent here
            return 0
        if self._refuses and not entry.is_by(self._info.generation):
            self._count("lost")
            return 404 if key.element == _MCP else 410
        if learned.is_due(entry, now):
            with self._one_at_a_time:
                learned.touch(route.digest, entry, now)
        return 0

    def cookie_for(self, request: Request, *, is_https: bool) -> str | None:
        """Return the Set-Cookie header with which to answer *request*, None when its client needs none."""
        jar, chain = self._router.jar, self._router.chain.at(request.peer.bind)
        if jar is None or not chain.has_affinity:
            return None
        opened = jar.find(request)
        if opened is not None and (not jar.is_due(opened) or self._is_renewed(opened, jar, request)):
            return None
        if opened is None and (jar.is_withheld(request) or belongs_to_no_user(request)):
            return None  # where the browser keeps its cookie back, a new one would replace it
        if chain.before_affinity(request.peer, request):
            return None
        lives_there = self._lives_here if opened is None else self._router.lives_at(self._router.home_of(opened.digest))
        value, born = jar.mint(lives_there, secrets.token_bytes, opened)
        return jar.header(value, born, is_https=is_https)

    def digest_of(self, cookie: str) -> int:
        """Return the digest of the client that gets *cookie*, which `cookie_for` has made; 0 if it is not valid."""
        opened = self._router.jar and self._router.jar.open(cookie.partition("=")[2].partition(";")[0].encode())
        return opened.digest if opened else 0

    def _is_renewed(self, opened: Opened, jar: Jar, request: Request) -> bool:
        """Return whether *request* has a newer cookie of the same home as *opened*.

        Then *opened* has a path or a domain of its own, and a renewal does not replace it.
        """
        home = self._router.home_of(opened.digest)
        return any(not jar.is_due(each) and self._router.home_of(each.digest) == home for each in jar.all_of(request))

    def may_set(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether a response with these *headers* may carry a cookie; no if shared caches may keep it."""
        shared = any(name.lower() == b"cache-control" and _SHARED.search(value) for name, value in headers)
        if not shared:
            self._count("cookies")
        return not shared

    def learned_from(self, headers: Iterable[tuple[bytes, bytes]], request: Request) -> None:
        """Learn the ids in the *headers* of the response to *request*."""
        if self._keys:
            self._note_keys(headers, request)
        for name, value in headers:
            for source in self._sources.get(name.lower(), ()):
                if found := source.find(value):
                    self.learn(found)

    def ended_by(self, request: Request, status: int) -> None:
        """Forget the id whose session *request* has ended, if *status* says that it has: with MCP a DELETE does."""
        if request.method == "DELETE" and 200 <= status < 300:
            key = self._router.chain.find(request.peer, request)
            if key is not None and key.element == _MCP:
                self.forget(key.value)

    def _note_keys(self, headers: Iterable[tuple[bytes, bytes]], request: Request) -> None:
        """Count a response that gives its client another key, and with it another worker; one is enough."""
        for line in (value for name, value in headers if name.lower() == b"set-cookie"):
            for spec, name in self._keys:
                value = set_cookie_value(line, name)
                if not value or value == request.cookie_bytes(name):
                    continue
                if self._router.where(Key(value, spec, False)).slot != self._info.slot:
                    self._keys = []
                    self._count("keys_set")
                    return

    def learn(self, value: bytes) -> None:
        """Note that the client who brings *value* as its key belongs to this worker."""
        if self._router.learned is None or not value:
            return
        digest = self._router.hasher.digest(value, is_address=False)
        with self._one_at_a_time:
            outcome = self._router.learned.learn(digest, self._info.slot, self._info.generation, time.monotonic())
            self._row.add("learned", outcome is not Outcome.KNOWN)
            self._row.add("learned_evicted", outcome is Outcome.EVICTED)

    def _count(self, name: str) -> None:
        with self._one_at_a_time:
            self._row.add(name)

    def forget(self, value: bytes) -> None:
        """Make *value* unknown again."""
        if self._router.learned is not None:
            digest = self._router.hasher.digest(value, is_address=False)
            slot, generation = self._info.slot, self._info.generation
            with self._one_at_a_time:
                self._router.learned.forget(digest, slot, generation, self._router.slots, time.monotonic())

    def mint(self, factory: Callable[[], Id]) -> Id:
        """Return the first id of *factory* that hashes home."""
        for _ in range(_TRIES * self._router.slots):
            made = factory()
            if self._lives_here(self._router.hasher.digest(_as_bytes(made), is_address=False)):
                self._count("minted")
                return made
        raise RuntimeError(f"no id of {factory!r} hashes home: does it return a new one each time?")


_here: Sessions | None = None


def become(sessions: Sessions) -> None:
    """Make *sessions* what this process's `mint`, `learn` and `forget` act on. Runs in a worker, before the import."""
    global _here
    _here = sessions


def here() -> Sessions | None:
    """Return the sessions of this worker, None outside of one."""
    return _here


def mint(factory: Callable[[], Id]) -> Id:
    """Return an id from *factory* that brings its client back to this worker, by whichever element finds it as its key.

    *factory* must return a new random id each time; it is called as often as there are slots, on average. The id is
    `str`, `bytes` or a `uuid.UUID`. Clients must send a UUID in the form of `str(id)`, with hyphens.
    """
    return factory() if _here is None else _here.mint(factory)


def learn(value: str | bytes | UUID) -> None:
    """Remember that the client who brings *value* as its key belongs to this worker, from the next request on."""
    if _here is not None:
        _here.learn(_as_bytes(value))


def forget(value: str | bytes | UUID) -> None:
    """Forget what `learn` or `--learn` remembered of *value*."""
    if _here is not None:
        _here.forget(_as_bytes(value))


def _as_bytes(value: str | bytes | UUID) -> bytes:
    """Return *value* as a client will send it; a UUID in the form with hyphens."""
    return value if isinstance(value, bytes) else str(value).encode()
