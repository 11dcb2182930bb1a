"""What waits in the kernel to be accepted, and what the kernel had to turn away.

Owns the reading of a listener's accept queue and the warning when one was full. Asked by the supervisor: for
`limpet status`, and at each tick.

1. A client that finds the queue full is not refused: the kernel drops its packet, and it tries again after a second,
   then two, four, .. So the server looks idle and its clients look slow; only these figures tell.
2. The kernel's own count of overflows is one for the whole machine. The count of packets dropped at one socket is not
   only for full queues, but the other reasons (a policy of IPsec, no memory) are rare, and a door that we closed
   (net/reuseport_group.py) is one only before the first look and after the last.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from limpet.ipc.scoreboard import Row
from limpet.logs import Hourly

_TCP_INFO: Final = struct.Struct("=24xII")  # of a listener: how many wait (tcpi_unacked), how many may (tcpi_sacked)
_SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("=9I")  # the last one counts the packets that were dropped
log = logging.getLogger("limpet")


class Backlog(NamedTuple):
    """The accept queue of one listening TCP socket."""

    waiting: int
    bound: int
    dropped: int  # since the socket was made


def backlog(sock: socket.socket) -> Backlog:
    """Return what waits at *sock*, a TCP socket that listens."""
    waiting, bound = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    meminfo = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
    return Backlog(waiting, bound, meminfo[-1])


class Watch:
    """Counts what the kernel drops at some listeners, and warns."""

    def __init__(self, doors: Sequence[tuple[str, socket.socket]], wanted: int, row: Row) -> None:
        """*doors* are TCP sockets that listen, each with what to call it; *wanted* is the setting `--backlog`."""
        self._doors = [(name, sock, backlog(sock).dropped) for name, sock in doors]
        self._wanted = wanted
        self._row = row
        self._hourly = Hourly()

    def look(self, now: float) -> None:
        """Count what was dropped since the last look, and warn at most once an hour. *now* is monotonic."""
        for number, (name, sock, before) in enumerate(self._doors):
            _, bound, dropped = backlog(sock)
            if dropped == before:
                continue
            self._doors[number] = (name, sock, dropped)
            more = (dropped - before) % (1 << 32)
            self._row.add("backlog_drops", more)
            if self._hourly.allows("backlog", now):
                log.warning(
                    "%s: %d attempts to connect were dropped, since its backlog of %d was full (hint: %s)",
                    *(name, more, bound, self._hint(bound)),
                )

    def _hint(self, bound: int) -> str:
        if bound < self._wanted:
            return f"`sysctl -w net.core.somaxconn={self._wanted}` allows what `--backlog` asks for"
        larger = 2 * bound
        return f"`--backlog {larger}` and `sysctl -w net.core.somaxconn={larger}`, or more workers if it goes on"
