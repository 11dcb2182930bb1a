"""Twisted's reactor on the slot's connections, and the life of a worker on it.

Owns the port, which Twisted's own would not be (it makes a socket of its own from a descriptor), the end of the worker,
and which responses of Twisted's HTTP end their connections. Called by the adapters for Twisted and Daphne.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

from twisted.internet import address, tcp, unix

from limpet.worker.listener_bridge import Door

_CHECK_S: Final = 0.05  # how often a worker that stops looks whether connections have ended


class _Listener:
    """One of the door's listeners for Twisted, which goes by the length of what `accept` says of the peer."""

    def __init__(self, listener: Any) -> None:
        self._listener = listener

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)

    def accept(self) -> tuple[Any, tuple[Any, ...]]:
        """Return the next connection and the address of its peer: of a unix socket one thing, the name it has."""
        connection, peer = self._listener.accept()
        return connection, peer if isinstance(peer, tuple) else (peer or None,)


class _Port(tcp.Port):
    """A port on one of the door's listeners, which may have connections of all families: those of all binds."""

    def __init__(self, listener: Any, factory: Any, reactor: Any) -> None:
        super().__init__(0, factory, reactor=reactor)
        self._preexistingSocket = _Listener(listener)  # type: ignore[assignment]

    def _buildAddr(self, peer: tuple[Any, ...]) -> Any:
        if len(peer) == 1:
            return address.UNIXAddress(*peer)
        return (address.IPv4Address if len(peer) == 2 else address.IPv6Address)("TCP", *peer)

    def transport(self, connection: Any, protocol: Any, peer: tuple[Any, ...], *rest: Any) -> Any:  # type: ignore[override]
        """Return the transport of a new connection: Twisted calls it like a class."""
        if len(peer) == 1:
            return unix.Server(connection, protocol, *peer, *rest)  # type: ignore[no-untyped-call]
        return tcp.Server(connection, protocol, peer, *rest)


class Life:
    """A worker on *reactor*, that serves connections by *factory*."""

    def __init__(self, door: Door, reactor: Any, factory: Any, stopping: Callable[[], object] = lambda: None) -> None:
        """*stopping* is called again and again from when no more connections are accepted until all have ended."""
        self._door = door
        self._reactor = reactor
        self._factory = factory
        self._stopping = stopping
        self._ports: list[_Port] = []
        self._channels: weakref.WeakSet[Any] = weakref.WeakSet()

    def end_with_responses(self, closes: Callable[[], bool]) -> None:
        """Let responses end their connections when *closes* says so, and idle ones when the worker stops."""
        build = self._factory.buildProtocol

        def build_protocol(address: Any) -> Any:
            protocol = build(address)
            channel = protocol._channel
            check = channel.checkPersistence

            def check_persistence(request: Any, version: bytes) -> bool:
                if not closes():
                    return bool(check(request, version))
                request.responseHeaders.setRawHeaders(b"connection", [b"close"])
                return False

            channel.checkPersistence = check_persistence
            self._channels.add(channel)
            return protocol

        self._factory.buildProtocol = build_protocol

    def run(self) -> None:
        """Serve until told to stop."""
        for listener in self._door.listeners():
            listener.listen()
            self._ports.append(_Port(listener, self._factory, self._reactor))
            self._ports[-1].startListening()
        self._door.on_stop(lambda: self._reactor.callFromThread(self._stop))
        self._reactor.run(installSignalHandlers=False)

    def _stop(self) -> None:
        for port in self._ports:
            port.stopListening()  # type: ignore[no-untyped-call]
        self._wait()

    def _wait(self) -> None:
        if not self._door.tally.open or not self._door.left_s:
            self._reactor.stop()
            return
        self._reactor.callLater(_CHECK_S, self._wait)  # first: what follows may raise
        self._stopping()
        for channel in list(self._channels):
            if channel.transport is not None and not channel.requests:
                channel.transport.loseConnection()
