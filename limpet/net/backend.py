"""The backends: how connections get to the workers, and which way a server takes.

Owns the choice between `kernel` and `dispatcher`, and what they have in common for the supervisor, which opens one and
keeps it: sockets for the children to inherit, a moment at which clients may come, and an end. What a group of listeners
is belongs to net/reuseport_group.py, what a dispatcher does to dispatch/dispatcher.py.

1. Both put a client into the same slot: a backend gets the owners of all buckets and never decides.
2. The choice is made before anything is started, by the settings and a trial with real connections, and is logged
   with its reason.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from collections.abc import Sequence
from typing import Any, Protocol

from limpet.config import conflicts, privileges
from limpet.config.bind import Bind
from limpet.config.router import build_router
from limpet.config.server_kinds import kind
from limpet.config.settings import Settings
from limpet.errors import BackendError, reason
from limpet.net import listener, reuseport_group, tls
from limpet.net.accept_queue import backlog
from limpet.net.listener import Listener
from limpet.routing.bpf import Program, placing
from limpet.routing.router import Router

Inherited = tuple[tuple[int, str], ...]  # for each bind a descriptor, -1 for none, and its text
Doors = Sequence[tuple[str, socket.socket]]
log = logging.getLogger("limpet")


class Backend(Protocol):
    """What the supervisor asks of either backend."""

    name: str
    dispatchers: int
    """How many dispatcher processes it needs."""
    terminators: int
    """How many processes end TLS before the dispatchers."""
    urls: list[str]

    def inherited(self, slot: int | None) -> Inherited:
        """Return what the worker of *slot* inherits, or with None a dispatcher."""

    def listeners(self) -> list[list[Listener]]:
        """Return the listeners of each bind."""

    def listen(self) -> None:
        """Let clients in; all members are ready. Raises ListenError."""

    def grow(self, slots: int) -> None:
        """Make what *slots* slots need. Raises OSError and ListenError."""

    def follow(self, owners: Sequence[int]) -> None:
        """Send new clients of each bucket to its owner in *owners*."""

    def queued(self, slot: int) -> int:
        """Return how many connections wait in the kernel for the worker of *slot* alone."""

    def doors(self) -> Doors:
        """Return the TCP sockets that listen, each with what to call it."""

    def close(self) -> None:
        """Let no new client in, and give up the sockets: children have their own copies. Twice is no harm."""


class DispatcherBackend:
    """One listener for each bind, all of them for the dispatchers."""

    name = "dispatcher"

    def __init__(self, dispatchers: int, listeners: Sequence[Listener], terminators: int) -> None:
        """Owns *listeners*."""
        self.dispatchers = dispatchers
        self.terminators = terminators
        self._listeners = listeners
        self.urls = [item.url for item in listeners]

    @classmethod
    def open(cls, settings: Settings, terminators: int) -> DispatcherBackend:
        """Return the backend for *settings*, bound to its addresses. Raises ListenError."""
        backlog = settings.backlog
        umask = None if settings.umask is None else int(settings.umask, 8)
        rights: dict[str, Any] = {"umask": umask, "owner": privileges.wanted(settings)}
        with contextlib.ExitStack() as stack:
            listeners = [
                stack.enter_context(
                    contextlib.closing((listener.kept(bind, backlog, 1) or [listener.open(bind, backlog, **rights)])[0])
                )
                for bind in map(Bind.parse, settings.bind)
            ]
            stack.pop_all()
        return cls(settings.dispatchers, listeners, terminators)

    def listeners(self) -> list[list[Listener]]:
        return [[item] for item in self._listeners]

    def inherited(self, slot: int | None) -> Inherited:
        return tuple((item.sock.fileno() if slot is None else -1, item.bind.text) for item in self._listeners)

    def listen(self) -> None:
        for item in self._listeners:
            item.listen()

    def grow(self, slots: int) -> None:
        """Do nothing: the dispatchers accept for all slots."""

    def follow(self, owners: Sequence[int]) -> None:
        """Do nothing: dispatchers hear which workers are ready, and follow."""

    def queued(self, slot: int) -> int:
        return 0

    def doors(self) -> Doors:
        return [(item.url, item.sock) for item in self._listeners if item.sock.family != socket.AF_UNIX]

    def close(self) -> None:
        for item in self._listeners:
            if item.bind.kind == "tcp" and not item.stays and _listens(item.sock):
                reuseport_group.close_door(item.sock)
        for item in self._listeners:
            item.close()


class KernelBackend:
    """One group of listeners for each bind: in each, one for each slot, inherited by its worker."""

    name = "kernel"
    dispatchers = terminators = 0

    def __init__(self, router: Router, groups: Sequence[reuseport_group.Group]) -> None:
        """Owns *groups*."""
        self._router = router
        self._groups = groups
        self.urls = [group.url for group in groups]

    @classmethod
    def open(cls, settings: Settings, router: Router) -> KernelBackend:
        """Return the backend for *settings*, bound to its addresses. Raises ListenError."""
        backlog = settings.backlog
        with contextlib.ExitStack() as stack:
            groups = [
                stack.enter_context(
                    contextlib.closing(
                        reuseport_group.Group.open(
                            bind, settings.workers, backlog, listener.kept(bind, backlog, settings.workers)
                        )
                    )
                )
                for bind in map(Bind.parse, settings.bind)
            ]
            stack.pop_all()
        return cls(router, groups)

    def listeners(self) -> list[list[Listener]]:
        return [group.members for group in self._groups]

    def inherited(self, slot: int | None) -> Inherited:
        assert slot is not None, "there are no dispatchers"
        members = [group.members[slot] for group in self._groups]
        return tuple((member.sock.fileno(), member.bind.text) for member in members)

    def listen(self) -> None:
        for group in self._groups:
            group.listen(program(self._router, self._router.owners))

    def grow(self, slots: int) -> None:
        for group in self._groups:
            group.grow(slots)

    def follow(self, owners: Sequence[int]) -> None:
        placing = program(self._router, owners)
        for group in self._groups:
            try:
                group.place(placing)
            except OSError as error:  # as without memory; the old program stays
                log.error("cannot send clients to another slot: %s", reason(error))

    def queued(self, slot: int) -> int:
        members = [group.members[slot].sock for group in self._groups]
        return sum(backlog(sock).waiting for sock in members if _listens(sock))

    def doors(self) -> Doors:
        return [
            (f"slot {slot} at {group.url}", member.sock)
            for group in self._groups
            for slot, member in enumerate(group.members)
        ]

    def close(self) -> None:
        for group in self._groups:
            group.close()


def _listens(sock: socket.socket) -> bool:
    """Return whether *sock* is open and lets clients in; on one that does not, TCP_INFO means something else."""
    return sock.fileno() >= 0 and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def open(settings: Settings, router: Router) -> Backend:  # noqa: A001 - reads `backend.open(settings, router)`
    """Return the backend for *settings*, bound to its addresses. Raises BackendError and ListenError."""
    name, why = choose(settings, router)
    log.info("backend %s: %s", name, why)
    _say_what_keep_alive_means(settings, router)
    return _spoken(
        KernelBackend.open(settings, router)
        if name == "kernel"
        else DispatcherBackend.open(settings, tls.terminators(settings, router.chain)),
        settings,
    )


def adopt(name: str, settings: Settings, router: Router, listeners: Sequence[list[Listener]]) -> Backend:
    """Return the backend *name* with the *listeners* that it had in the supervisor before this one."""
    if name == "kernel":
        return _spoken(KernelBackend(router, [reuseport_group.Group(members) for members in listeners]), settings)
    firsts, terminators = [members[0] for members in listeners], tls.terminators(settings, router.chain)
    return _spoken(DispatcherBackend(settings.dispatchers, firsts, terminators), settings)


def _spoken(chosen: Backend, settings: Settings) -> Backend:
    """Return *chosen* with the scheme in its URLs that is spoken there."""
    if settings.tls_cert is not None:
        chosen.urls = [re.sub("^http:", "https:", url) for url in chosen.urls]
    return chosen


def _say_what_keep_alive_means(settings: Settings, router: Router) -> None:
    """Log what becomes of connections whose requests have different keys."""
    server = kind(settings.server)
    if not router.chain.needs_head or server.moves or not server.http:
        return
    if server.closes:
        log.info(
            "a client's key is in each request: each response closes its connection, since %s cannot move them",
            settings.server,
        )
    else:
        log.warning(
            "a client's key is in each request, and only the first of a connection is looked at: "
            "let %s close each connection with its response",
            settings.server,
        )


def choose(settings: Settings, router: Router) -> tuple[str, str]:
    """Return the name of the backend to take, and why. Raises BackendError if the one that was asked for cannot be."""
    conflicts.refuse(settings, router.chain)
    if settings.backend == "dispatcher":
        _refuse_dispatcher(settings)
        return "dispatcher", "asked for by `--backend dispatcher`"
    try:
        placing = program(router, router.owners)
        conflicts.refuse_kernel(settings, router.chain)
        reuseport_group.probe(placing)
    except BackendError as error:
        if settings.backend == "kernel":
            raise BackendError(f"there is no kernel backend here: {error.message}", hint=error.hint) from None
        _refuse_dispatcher(settings, error)
        return "dispatcher", error.message
    return "kernel", f"the key chain is `{router.chain.spec}`, and a trial showed that the kernel places connections"


def program(router: Router, owners: Sequence[int]) -> Program:
    """Return the program that does what *router* does with addresses. Raises BackendError if it asks for more."""
    if router.chain.prefixes is None:
        raise BackendError(
            f"the key chain `{router.chain.spec}` is not `ip` alone, and the kernel sees nothing but addresses",
            hint="`--backend dispatcher` serves every key chain; `--by ip` needs no dispatcher",
        )
    return placing(router.hasher.address_key, router.chain.prefixes, owners)


def listing(settings: Settings) -> str:
    """Return the program for *settings* as people read it. Raises BackendError."""
    router = build_router(settings, b"")  # the key is masked, and nothing else comes from the secret
    placing = program(router, router.owners)
    return f"{placing.listing}\n; {len(placing)} instructions"


def _refuse_dispatcher(settings: Settings, why: BackendError | None = None) -> None:
    """Raise BackendError if the server cannot be handed connections; *why* there is no kernel backend here."""
    if kind(settings.server).takes == "accepted":
        reason = f", and {why.message}" if why else ""
        raise BackendError(
            f"{settings.server} serves only connections that it accepts itself, on the kernel backend{reason}",
            hint="`--by ip --backend kernel`; `--server uvicorn` serves every key chain",
        )
