"""Reuseport groups: one listener for each slot, among which a program in the kernel chooses.

This file owns the sockets of a group and the program attached to them. routing/bpf.py owns what a program says. The
supervisor makes the groups and keeps them; each worker inherits its slot's listener, and accepts from it as any server
does.

How it works: several listeners of one address with SO_REUSEPORT form a group. The kernel numbers them in the order in
which they began to listen. For each new connection it runs the program, and uses the listener whose number the program
returns.

1. Members listen in the order of the slots, and are never closed while the server lives: the kernel would give the
   number of a closed member to the last one. Clients of a dead worker wait in its listener for the next worker.
2. If the program returns a number without a member, the kernel chooses by a hash that includes ports. So the door stays
   closed until the group is complete and has its program. A client that knocks before tries again a second later. (A
   filter that drops all packets would do the same, but newer kernels allow none on TCP sockets without CAP_NET_ADMIN.)
3. The first member listens without SO_REUSEPORT, which is set only afterwards. So the kernel itself ensures that no
   other process listens: of two servers that start at once, one gets EADDRINUSE. A lock file cannot do that. Later only
   a program that sets SO_REUSEPORT itself can bind the address, and one of the same user that does gets no client.
4. Never `shutdown` a member: that ends it for all processes.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import select
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import Final

from limpet.config.bind import Bind
from limpet.errors import BackendError, LimpetError, reason
from limpet.net import listener
from limpet.net.listener import Listener
from limpet.routing import buckets
from limpet.routing.bpf import Program, placing
from limpet.routing.hashing import Hasher
from limpet.system import activation

# Options of Linux. The module `socket` has none of them.
_SO_ATTACH_REUSEPORT_CBPF: Final = 51
_IP_MINTTL: Final = 21
_IPV6_MINHOPCOUNT: Final = 73
_MOST_HOPS: Final = 255

_TRIAL_SLOTS: Final = 4
_TRIAL_SOURCES: Final = {
    "127.0.0.1": ("127.0.0.1", *(f"127.{number}.0.{number + 1}" for number in range(1, 8))),
    "::1": ("::1",),
}
_TRIAL_S: Final = 1.0  # the longest wait for one connection over loopback, which takes 0.1 ms


class Group:
    """The listeners of one bind, by slot. Owns: the listeners."""

    def __init__(self, members: list[Listener]) -> None:
        self.members = members

    @classmethod
    def open(cls, bind: Bind, slots: int, backlog: int, kept: Sequence[Listener] = ()) -> Group:
        """Return a group that is bound to an address, but does not let clients in yet. Raises ListenError.

        *kept* are the first members of a group that has listened before. They become members of this one.
        """
        group = cls([*kept] or [listener.open(bind, backlog)])
        try:
            for member in kept:
                member.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Port 0 has become a real port by now. With SO_REUSEADDR others can bind it too, until one of them listens.
            first, more = group.members[0], slots - len(group.members)
            group.members += [first.twin(share=bool(kept)) for _ in range(more)]
        except BaseException:
            group.close()
            raise
        return group

    @property
    def url(self) -> str:
        """The URL of the application."""
        return self.members[0].url

    def listen(self, program: Program) -> None:
        """Let clients in, each to the slot that *program* returns. Raises ListenError if another process listens."""
        first, *others = self.members
        for member in self.members:
            close_door(member.sock)
        first.listen()  # rule 3
        for member in self.members:
            member.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for member in others:
            member.listen()
        self.place(program)
        for member in self.members:
            open_door(member.sock)

    def place(self, program: Program) -> None:
        """Send new clients to the slots that *program* returns. Waiting clients stay where they are. Raises OSError."""
        if len(self.members) > 1:  # the kernel makes a group when the second member listens
            code = ctypes.create_string_buffer(program.code, len(program.code))
            option = struct.pack("@HP", len(program), ctypes.addressof(code))
            self.members[0].sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, option)

    def grow(self, slots: int) -> None:
        """Add a listening member for each new slot up to *slots* slots. The next program sends clients to them."""
        for _ in range(slots - len(self.members)):
            member = self.members[0].twin(share=True)
            self.members.append(member)
            member.listen()

    def close(self) -> None:
        """Close the door and this process's copies. Workers keep theirs, to accept clients that have come already."""
        for member in self.members:
            if member.sock.fileno() >= 0 and not member.stays:
                close_door(member.sock)
        for member in self.members:
            member.close()


def close_door(sock: socket.socket) -> None:
    """Let no new client in at listener *sock*, in all processes that have it. A connection that is accepted continues.

    This demands the largest TTL, 255. A packet has less if it came through a router, or from a system that sends the
    usual 64 or 128. A connection that is accepted while the door is closed inherits the demand: use `open_door` on it.
    """
    _ask_for_hops(sock, _MOST_HOPS)


def close_behind(sock: socket.socket) -> None:
    """Close the door at *sock*, whose server has ended, unless the service manager keeps *sock* for the next server."""
    if not activation.keeps():
        close_door(sock)


def open_door(sock: socket.SocketType) -> None:
    """Undo `close_door` for *sock*, a listener or an accepted connection."""
    _ask_for_hops(sock, 0)


def _ask_for_hops(sock: socket.SocketType, hops: int) -> None:
    sock.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, hops)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, hops)


def probe(program: Program) -> None:
    """Raise BackendError unless the kernel places connections correctly and accepts *program*.

    It makes groups on loopback addresses and connects to them. Blocks about 50 ms; more than a second only if it fails.
    """
    hint = "`--backend dispatcher` needs nothing special"
    if not sys.platform.startswith("linux"):
        raise BackendError(f"`{sys.platform}` cannot place connections: that needs Linux", hint=hint)
    hosts = [host for host in _TRIAL_SOURCES if _exists(host)]
    try:
        faults = [fault for host in hosts for fault in _trial(host, program)]
    except LimpetError as error:
        faults = [error.message]
    except OSError as error:
        if error.errno == errno.ENOMEM:
            hint = "`sysctl -w net.core.optmem_max=131072`; `--backend dispatcher` needs no program"
        faults = [f"a program of {len(program)} instructions: {reason(error)}"]
    if not hosts:
        faults = ["it has no loopback address for a trial"]
    if faults:
        raise BackendError(f"this system cannot place connections: {faults[0]}", hint=hint)


def _exists(host: str) -> bool:
    """Return whether this system has the loopback address *host*."""
    with suppress(OSError), socket.socket(_family(host)) as sock:
        sock.bind((host, 0))
        return True
    return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _trial(host: str, program: Program) -> Iterator[str]:
    """Yield each fault that a trial with a group on *host* finds. Raises OSError."""
    hasher = Hasher(b"trial")
    with closing(Group.open(Bind.parse(f"[{host}]:0" if ":" in host else f"{host}:0"), _TRIAL_SLOTS, 16)) as group:
        for turn in (0, 1):  # the second program replaces the first, and moves every address
            owners = [(owner + turn) % _TRIAL_SLOTS for owner in buckets.table(_TRIAL_SLOTS)]
            trial = placing(hasher.address_key, (32, 64), owners)
            group.place(trial) if turn else group.listen(trial)
            for source in _TRIAL_SOURCES[host]:
                packed = ipaddress.ip_address(source).packed[:8]
                slot = owners[hasher.bucket(hasher.digest(packed, is_address=True))]
                if (found := _landing(group, host, source)) not in (slot, None):
                    yield f"a connection from {source} came to listener {found}, not {slot}"
        group.place(program)


def _landing(group: Group, host: str, source: str) -> int | None:
    """Return the number of the member that gets a connection from *source*; None if *source* is not an address here."""
    with socket.socket(_family(host)) as client:
        # Close without TIME_WAIT, so that the trial leaves no trace.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.settimeout(_TRIAL_S)
        try:
            client.bind((source, 0))
        except OSError:
            return None
        client.connect(group.members[0].sock.getsockname())
        poll = select.poll()
        numbers = {member.sock.fileno(): number for number, member in enumerate(group.members)}
        for fd in numbers:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(_TRIAL_S * 1000):
            group.members[numbers[fd]].sock.accept()[0].close()
            return numbers[fd]
    raise TimeoutError(errno.ETIMEDOUT, f"no listener got the connection from {source}")
