"""The two backends, `kernel` and `dispatcher`: how connections get to the workers, and which of the two a server uses.

This file owns the choice between them and the interface that the supervisor uses: sockets for the children to inherit,
the moment at which clients may come, and the end. The supervisor opens a backend and keeps it. What a group of
listeners is belongs to net/reuseport_group.py; what a dispatcher does belongs to dispatch/dispatcher.py.

1. Both backends put a client into the same slot. A backend gets the owner of each bucket, and never decides.
2. The backend is chosen before anything starts, by the settings and by a trial with real connections. The log names the
   backend and the reason.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from collections.abc import Sequence
from typing import Any, Protocol

from limpet.config import conflicts, privileges
from limpet.config.router import build_router
from limpet.config.server_kinds import kind
from limpet.config.settings import Settings
from limpet.errors import BackendError, reason
from limpet.net import listener, reuseport_group, tls
from limpet.net.accept_queue import backlog
from limpet.net.listener import Listener
from limpet.routing.bpf import Program, placing
from limpet.routing.router import Router

Inherited = tuple[tuple[int, str], ...]  # for each bind: a descriptor, or -1, and the text of the bind
Doors = Sequence[tuple[str, socket.socket]]
log = logging.getLogger("limpet")


class Backend(Protocol):
    """What the supervisor needs from a backend."""

    name: str
    dispatchers: int
    """How many dispatcher processes the backend needs."""
    terminators: int
    """How many terminator processes the backend needs."""
    urls: list[str]

    def inherited(self, slot: int | None) -> Inherited:
        """Return what the worker of *slot* inherits; with None, what a dispatcher or terminator inherits."""

    def listeners(self) -> list[list[Listener]]:
        """Return the listeners of each bind."""

    def listen(self) -> None:
        """Let clients in. Called when all workers are ready. Raises ListenError."""

    def grow(self, slots: int) -> None:
        """Make the listeners that *slots* slots need. Raises OSError and ListenError."""

    def follow(self, owners: Sequence[int]) -> None:
        """Send new clients of each bucket to its owner in *owners*."""

    def queued(self, slot: int) -> int:
        """Return how many connections wait in the kernel for the worker of *slot* and no other."""

    def doors(self) -> Doors:
        """Return the TCP sockets that listen, each with a name for log lines."""

    def close(self) -> None:
        """Let no new client in, and close the sockets. Children keep their copies. A second call does nothing."""


class DispatcherBackend:
    """One listener for each bind. The dispatchers inherit all of them, or the terminators do if there are any."""

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
                for bind in settings.addresses
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
        """Do nothing, because the dispatchers accept for all slots."""

    def follow(self, owners: Sequence[int]) -> None:
        """Do nothing, because the supervisor tells the dispatchers which workers are ready."""

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
    """One group of listeners for each bind. A group has a listener for each slot, which the slot's worker inherits."""

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
                for bind in settings.addresses
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
            except OSError as error:  # for example without memory; the old program stays in use
                log.error("cannot send clients to another slot: %s", reason(error), extra={"event": "failover_failed"})

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
    """Return whether *sock* is open and listens. TCP_INFO of a socket that does not listen means something else."""
    return sock.fileno() >= 0 and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def open(settings: Settings, router: Router) -> Backend:  # noqa: A001 - reads `backend.open(settings, router)`
    """Return the backend for *settings*, bound to its addresses, and log which. Raises BackendError and ListenError."""
    name, why = choose(settings, router)
    log.info("backend %s: %s", name, why, extra={"event": "backend_chosen"})
    _say_what_keep_alive_means(settings, router)
    return _spoken(
        KernelBackend.open(settings, router)
        if name == "kernel"
        else DispatcherBackend.open(settings, tls.terminators(settings, router.chain)),
        settings,
    )


def adopt(name: str, settings: Settings, router: Router, listeners: Sequence[list[Listener]]) -> Backend:
    """Return the backend *name* with *listeners*, which it had in the supervisor that this one replaces."""
    if name == "kernel":
        return _spoken(KernelBackend(router, [reuseport_group.Group(members) for members in listeners]), settings)
    firsts, terminators = [members[0] for members in listeners], tls.terminators(settings, router.chain)
    return _spoken(DispatcherBackend(settings.dispatchers, firsts, terminators), settings)


def _spoken(chosen: Backend, settings: Settings) -> Backend:
    """Return *chosen*, with `https:` in its URLs if the server speaks TLS."""
    if settings.tls_cert is not None:
        chosen.urls = [re.sub("^http:", "https:", url) for url in chosen.urls]
    return chosen


def _say_what_keep_alive_means(settings: Settings, router: Router) -> None:
    """Log what happens to a connection whose requests have different keys, if the server cannot move connections."""
    server = kind(settings.server)
    if not router.chain.needs_head or server.moves or not server.http:
        return
    if server.closes:
        log.info(
            "a client's key is in each request: each response closes its connection, because %s cannot move it",
            settings.server,
            extra={"event": "connections_end_with_responses"},
        )
    else:
        log.warning(
            "a client's key is in each request, but limpet sees only the first request of a connection: "
            "let %s close each connection with its response",
            settings.server,
            extra={"event": "only_first_requests_seen"},
        )


def choose(settings: Settings, router: Router) -> tuple[str, str]:
    """Return the name of the backend to use, and the reason. Raises BackendError if the wanted one is not possible."""
    conflicts.refuse(settings, router.chain)
    if settings.backend == "dispatcher":
        _refuse_dispatcher(settings)
        return "dispatcher", "chosen by `--backend dispatcher`"
    try:
        placing = program(router, router.owners)
        conflicts.refuse_kernel(settings, router.chain)
        reuseport_group.probe(placing)
    except BackendError as error:
        if settings.backend == "kernel":
            raise BackendError(f"the kernel backend is not available: {error.message}", hint=error.hint) from None
        _refuse_dispatcher(settings, error)
        return "dispatcher", error.message
    return "kernel", f"the key chain is `{router.chain.spec}`, and a trial showed that the kernel places connections"


def program(router: Router, owners: Sequence[int]) -> Program:
    """Return the program that routes as *router* does. Raises BackendError if *router* needs more than addresses."""
    if router.chain.prefixes is None:
        raise BackendError(
            f"the key chain `{router.chain.spec}` is not just `ip`, and the kernel sees only addresses",
            hint="`--backend dispatcher` serves every key chain; `--by ip` needs no dispatcher",
        )
    return placing(router.hasher.address_key, router.chain.prefixes, owners)


def listing(settings: Settings) -> str:
    """Return the program for *settings* as readable text. Raises BackendError."""
    router = build_router(settings, b"")  # the listing masks the key, and only the key depends on the secret
    placing = program(router, router.owners)
    return f"{placing.listing}\n; {len(placing)} instructions"


def _refuse_dispatcher(settings: Settings, why: BackendError | None = None) -> None:
    """Raise BackendError if the server cannot take connections from a channel.

    *why* says why the kernel backend is not available.
    """
    if kind(settings.server).takes == "accepted":
        reason = f", but {why.message}" if why else ""
        raise BackendError(
            f"{settings.server} serves only connections that it accepts itself, so it needs the kernel backend{reason}",
            hint="`--by ip --backend kernel`; `--server uvicorn` serves every key chain",
        )
