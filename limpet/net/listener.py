"""Listeners: the sockets on which a server listens.

This file owns how a bind becomes a listening socket. config/bind.py says what a `--bind` means; `open` makes its
socket, and `Listener.listen` lets clients in. These are two steps, so that an address in use is found before a worker
starts, and no client is accepted before all workers are ready. The supervisor calls both and owns the listeners for
life; children inherit the descriptors.

1. SO_REUSEADDR is always set, so that a restart need not wait for old connections to time out. SO_REUSEPORT is never
   set here, because a second server would silently share the port. (net/reuseport_group.py sets it, after the kernel
   has confirmed that no other process listens.)
2. Sockets are non-blocking, and a child inherits only the sockets that it is given.
3. A socket file is removed only while it is our own, or when no process has its socket open.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shlex
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from limpet.config.bind import Bind
from limpet.config.privileges import Identity
from limpet.errors import ListenError, reason
from limpet.system import activation, holder

REACHED_BY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""For an address that means every address: the host by which to reach it."""


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """A bound socket. Owns: the socket, and the file of a unix socket. `close` closes the one and removes the other."""

    sock: socket.socket
    bind: Bind
    backlog: int
    address_text: str
    """The actual address, in the form of a `--bind`: with the port that port 0 became."""
    url: str
    """The URL of the application; for a unix socket the same as *address_text*."""
    inode: tuple[int, int] | None
    """Device and inode of the socket file that `open` made, which `close` removes; None if there is no such file."""
    stays: bool = False
    """Whether the service manager has the socket too. Then clients can still connect when this server has ended."""

    def __repr__(self) -> str:
        return f"<listener {self.address_text}>"

    def twin(self, *, share: bool = False) -> Listener:
        """Return another listener bound to the same TCP address. Raises ListenError.

        While none of them listens, the kernel always allows this. Once one listens, it needs *share* (SO_REUSEPORT).
        """
        try:
            sock = _bound(self.sock.family, self.sock.getsockname(), share=share)
        except OSError as error:
            raise _refusal(self.bind, error) from None
        sock.setblocking(False)
        return dataclasses.replace(self, sock=sock)

    def listen(self) -> None:
        """Let clients in. Raises ListenError if another process has taken the address since `open`. Blocks never."""
        try:
            # Two servers may have found the same dead socket file, and replaced it one after the other.
            if self.inode and inode_of(self.bind.path) != self.inode:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            self.sock.listen(self.backlog)
        except OSError as error:
            raise _refusal(self.bind, error) from None

    def close(self) -> None:
        """Close the socket and remove its file, unless another server has replaced it. A second call does nothing."""
        # While the socket is open, the kernel does not reuse its inode, so equal numbers mean the same file.
        if self.sock.fileno() >= 0 and self.inode and inode_of(self.bind.path) == self.inode:
            with suppress(OSError):
                os.unlink(self.bind.path)
        self.sock.close()


def open(bind: Bind, backlog: int, *, umask: int | None = None, owner: Identity | None = None) -> Listener:  # noqa: A001 - reads `binds.open(bind, backlog)`
    """Return a listener that is bound, but does not let clients in yet. Raises ListenError. Blocks on the resolver.

    *backlog* is the number of connections that the kernel keeps until they are accepted. A socket file gets the
    permissions that *umask* leaves, and the owner *owner*. The default is that of any file of this process.
    """
    before = None if umask is None else os.umask(umask)
    try:
        sock = {"tcp": _bind_address, "unix": _bind_path, "fd": _adopt}[bind.kind](bind)
        if owner is not None and bind.kind == "unix":
            _give(sock, bind.path, owner)
    except OSError as error:
        raise _refusal(bind, error) from None
    finally:
        if before is not None:
            os.umask(before)
    stays = bind.kind == "fd" or activation.keeps()
    return _listener(
        sock, bind, backlog, inode_of(bind.path) if bind.kind == "unix" and not stays else None, stays=stays
    )


def kept(bind: Bind, backlog: int, most: int) -> list[Listener]:
    """Return up to *most* listeners of *bind* that the service manager kept, by slot. They listen already."""
    socks = [_adopted(fd) for fd in activation.kept(bind.text)[:most]]
    return [_listener(sock, bind, backlog, None, stays=True) for sock in socks]


def _listener(sock: socket.socket, bind: Bind, backlog: int, inode: tuple[int, int] | None, *, stays: bool) -> Listener:
    sock.setblocking(False)
    return Listener(sock, bind, backlog, *_names(sock.family, sock.getsockname()), inode, stays)


def _bind_address(bind: Bind) -> socket.socket:
    if bind.host:
        try:
            found = socket.getaddrinfo(bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except UnicodeError:  # a label of the name is empty, or longer than 63 bytes
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
        return _bound(found[0][0], found[0][4])
    try:
        return _bound(socket.AF_INET6, ("::", bind.port))
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _bound(socket.AF_INET, ("0.0.0.0", bind.port))


def _bound(family: int, address: Any, *, share: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # some systems turn it on by default, with net.ipv6.bindv6only
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_path(bind: Bind) -> socket.socket:
    """Return a socket bound to the path of *bind*. A file there that a killed server left behind is removed first."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(bind.path).st_mode):
            raise FileExistsError(errno.EEXIST, "the path is a file that is not a socket")
        if is_open(bind.path):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        os.unlink(bind.path)
    return _bound(socket.AF_UNIX, bind.path)


def _give(sock: socket.socket, path: str, owner: Identity) -> None:
    """As `give`; close *sock* if that raises OSError."""
    try:
        give(path, owner)
    except OSError:
        sock.close()
        raise


def give(path: str, owner: Identity) -> None:
    """Give the socket file at *path*, which this process has just made, to *owner*. Raises OSError.

    *owner* may be allowed to write the directory, and could put a link to a file of root's there. So one descriptor
    serves both to check the file and to change it.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            raise PermissionError(errno.EPERM, "another file has replaced the socket")
        os.chown(f"/proc/self/fd/{fd}", owner.uid, owner.gid)
    finally:
        os.close(fd)


def is_open(path: str) -> bool:
    """Return whether any process has the socket at *path* open, without disturbing that process. Blocks never.

    A real connection would disturb: a listening server accepts it, a full backlog makes it wait, and a server that has
    bound but not yet called listen() refuses it. So this tries a datagram socket. The kernel answers EPROTOTYPE if
    there is a stream socket in any state, and ECONNREFUSED only if the file is all that is left.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
        return True


def _adopt(bind: Bind) -> socket.socket:
    """Return the socket that *bind* names by descriptor or by name. Owns: the listener owns it from now on."""
    return _adopted(_named(bind.name) if bind.name else bind.fd)


def _adopted(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    if fault := _fault(sock):
        sock.detach()  # the descriptor is not ours to close
        raise OSError(errno.EINVAL, fault)
    sock.set_inheritable(False)
    return sock


def _named(name: str) -> int:
    """Return the descriptor that was passed under *name*. Raises OSError unless there is exactly one."""
    found = activation.named(name)
    if len(found) != 1:
        names = ", ".join(f"`{each.name}`" for each in activation.passed()) or "none"
        raise OSError(errno.EBADF, f"{len(found) or 'no'} sockets of that name were passed; all names: {names}")
    return found[0]


def _fault(sock: socket.socket) -> str | None:
    """Return why *sock* cannot be used as a listener; None if it can."""
    if sock.type != socket.SOCK_STREAM:
        return "it is not a stream socket"
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        return "it is neither a TCP nor a unix socket"
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return None
    with suppress(OSError):
        sock.getpeername()
        return "it is a connection"
    name = sock.getsockname()
    return None if (name if sock.family == socket.AF_UNIX else name[1]) else "it is not bound to an address"


def inode_of(path: str) -> tuple[int, int] | None:
    """Return device and inode of the file at *path*, without following links; None if there is no file."""
    with suppress(OSError):
        found = os.lstat(path)
        return found.st_dev, found.st_ino
    return None


def _names(family: int, address: Any) -> tuple[str, str]:
    """Return the text and the URL for *address*, a socket's own address."""
    if family == socket.AF_UNIX:
        text = f"unix:{os.fsdecode(address)}".replace("\0", "@")  # `ss` shows abstract names in the same way
        return text, text
    host, port = address[:2]
    shown, reached = (f"[{name}]" if ":" in name else name for name in (host, REACHED_BY.get(host, host)))
    return f"{shown}:{port}", f"http://{reached}:{port}"


def _refusal(bind: Bind, error: OSError) -> ListenError:
    taken = error.errno == errno.EADDRINUSE and bind.kind == "tcp" and bind.port
    by = f" by {found}" if taken and (found := holder.who_has(bind.port)) else ""
    return ListenError(f"cannot listen on `{bind.text}`: {reason(error)}{by}", hint=_hint(bind, error))


def _hint(bind: Bind, error: OSError) -> str | None:
    """Return what the user can do about *error*; None if nothing is known."""
    if bind.kind == "fd":
        return "`systemd-socket-activate -l 8000 limpet run APP --bind fd:3` passes a socket: see docs/systemd.md"
    if bind.kind == "unix":
        folder, path = shlex.quote(os.path.dirname(bind.path) or "."), shlex.quote(bind.path)
        return {
            errno.EADDRINUSE: f"`ss -lxp src {path}` shows the owner",
            errno.EEXIST: f"`ls -l {path}` shows what it is",
            errno.ENOENT: f"`mkdir -p {folder}`",
            errno.EACCES: f"`ls -ld {folder}` shows which user may write there",
        }.get(error.errno or 0)
    if isinstance(error, socket.gaierror):
        return f"`getent ahosts {shlex.quote(bind.host)}` asks the resolver; an IP address needs no resolver"
    host = bind.text.rpartition(":")[0]
    free, usual = shlex.quote(f"{host}:0"), shlex.quote(f"{host}:8000")
    return {
        errno.EADDRINUSE: f"`ss -ltnp 'sport = :{bind.port}'` shows the owner; `--bind {free}` picks a free port",
        errno.EADDRNOTAVAIL: "`ip -brief address` shows the addresses of this machine",
        errno.EACCES: f"`--bind {usual}` needs no privilege; "
        f"`sysctl net.ipv4.ip_unprivileged_port_start={bind.port}` lets every user bind port {bind.port}",
    }.get(error.errno or 0)
