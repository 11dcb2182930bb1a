"""Where clients come in: the sockets that a server listens on.

`Bind` is what a `--bind` means, `open` makes its socket, `Listener.listen` lets clients in. These are two steps:
an address that is taken is found out before a worker is started, but nobody is accepted before all are ready.
Called by the supervisor, which owns the listeners for life; dispatchers inherit the descriptors.

1. SO_REUSEADDR always: a restart need not wait for old connections to time out. SO_REUSEPORT never: a second server
   would share the port in silence. (net/reuseport_group.py sets it, once the kernel has seen that nobody else listens.)
2. Sockets are non-blocking, and no child inherits one that it is not given.
3. A path is unlinked only while the socket there is ours, or when no process has it open.
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
"""What to open to reach a socket that is bound to every address."""


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """A bound socket. Owns it, and the file of a unix socket; `close` gives both up."""

    sock: socket.socket
    bind: Bind
    backlog: int
    address_text: str
    """Where it really is, in the form of a `--bind`: with the port that port 0 became."""
    url: str
    """What to open to see the application; of a unix socket its *address_text*."""
    inode: tuple[int, int] | None
    """Device and inode of the socket file that `open` made; it is removed at the end."""
    stays: bool = False
    """Whether the service manager has it too: clients still come, and wait, when this server has ended."""

    def __repr__(self) -> str:
        return f"<listener {self.address_text}>"

    def twin(self, *, share: bool = False) -> Listener:
        """Return another listener of the same TCP address. Raises ListenError.

        As long as none of them listens that is allowed to all; once one does, only with *share* (SO_REUSEPORT).
        """
        try:
            sock = _bound(self.sock.family, self.sock.getsockname(), share=share)
        except OSError as error:
            raise _refusal(self.bind, error) from None
        sock.setblocking(False)
        return dataclasses.replace(self, sock=sock)

    def listen(self) -> None:
        """Let clients in. Raises ListenError when somebody else took the address since `open`. Blocks never."""
        try:
            # Two servers may both have found the same dead socket file and replaced it, one after the other.
            if self.inode and inode_of(self.bind.path) != self.inode:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            self.sock.listen(self.backlog)
        except OSError as error:
            raise _refusal(self.bind, error) from None

    def close(self) -> None:
        """Close the socket and remove its file, unless another server has replaced that. Twice is no harm."""
        # An open socket pins its inode, so equal numbers mean the same file; after `close` they would not.
        if self.sock.fileno() >= 0 and self.inode and inode_of(self.bind.path) == self.inode:
            with suppress(OSError):
                os.unlink(self.bind.path)
        self.sock.close()


def open(bind: Bind, backlog: int, *, umask: int | None = None, owner: Identity | None = None) -> Listener:  # noqa: A001 - reads `binds.open(bind, backlog)`
    """Return a listener that is bound, but lets nobody in yet. Raises ListenError. Blocks on the resolver.

    *backlog* is the number of connections that the kernel keeps until they are accepted. A socket file gets the rights
    that *umask* leaves, and is *owner*'s; by default it is as every file of this process.
    """
    before = None if umask is None else os.umask(umask)
    try:
        sock = {"tcp": _bind_address, "unix": _bind_path, "fd": _adopt}[bind.kind](bind)
        if owner is not None and bind.kind == "unix":
            give(bind.path, owner)
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
    """Return up to *most* listeners of *bind* that the service manager has kept, in the order of slots: they listen."""
    socks = [_adopted(fd) for fd in activation.kept(bind.text)[:most]]
    return [_listener(sock, bind, backlog, None, stays=True) for sock in socks]


def _listener(sock: socket.socket, bind: Bind, backlog: int, inode: tuple[int, int] | None, *, stays: bool) -> Listener:
    sock.setblocking(False)
    return Listener(sock, bind, backlog, *_names(sock.family, sock.getsockname()), inode, stays)


def _bind_address(bind: Bind) -> socket.socket:
    if bind.host:
        try:
            found = socket.getaddrinfo(bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except UnicodeError:  # a label of the name is empty or longer than 63 bytes
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
        if family == socket.AF_INET6:  # some systems have it on by default: net.ipv6.bindv6only
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_path(bind: Bind) -> socket.socket:
    """Return a socket bound to the path, from which the file that a killed server left behind is removed."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(bind.path).st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is not a socket")
        if is_open(bind.path):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        os.unlink(bind.path)
    return _bound(socket.AF_UNIX, bind.path)


def give(path: str, owner: Identity) -> None:
    """Make *owner* the owner of the socket file at *path*, which this process has just made. Raises OSError.

    *owner* may be able to write the directory, and put a link to something of root's there: so the file is looked at
    and changed by one descriptor.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            raise PermissionError(errno.EPERM, "another file has taken the place of the socket")
        os.chown(f"/proc/self/fd/{fd}", owner.uid, owner.gid)
    finally:
        os.close(fd)


def is_open(path: str) -> bool:
    """Tell whether any process has the socket at *path* open, without a word to that process. Blocks never.

    A connection would be accepted by a server that listens, wait where the backlog is full, and be refused by
    one that has bound but not called listen(). So ask with the wrong type: a datagram socket is told EPROTOTYPE
    if there is a stream socket, whatever its state, and ECONNREFUSED only if the file is all that is left.
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
    """Return the socket that was inherited as the descriptor, and own it from now on."""
    return _adopted(_named(bind.name) if bind.name else bind.fd)


def _adopted(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    if fault := _fault(sock):
        sock.detach()  # not ours to close
        raise OSError(errno.EINVAL, fault)
    sock.set_inheritable(False)
    return sock


def _named(name: str) -> int:
    """Return the descriptor that was passed on under *name*. Raises OSError unless there is exactly one."""
    found = activation.named(name)
    if len(found) != 1:
        names = ", ".join(f"`{each.name}`" for each in activation.passed()) or "none at all"
        raise OSError(errno.EBADF, f"{len(found) or 'no'} sockets of that name were passed on, but {names}")
    return found[0]


def _fault(sock: socket.socket) -> str | None:
    """Return why nobody can listen on *sock*, None if one can."""
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
    """Return device and inode of the file at *path* itself, None if there is none."""
    with suppress(OSError):
        found = os.lstat(path)
        return found.st_dev, found.st_ino
    return None


def _names(family: int, address: Any) -> tuple[str, str]:
    """Return the text and the URL of a socket's own address."""
    if family == socket.AF_UNIX:
        text = f"unix:{os.fsdecode(address)}".replace("\0", "@")  # `ss` shows abstract names in this way, too
        return text, text
    host, port = address[:2]
    shown, reached = (f"[{name}]" if ":" in name else name for name in (host, REACHED_BY.get(host, host)))
    return f"{shown}:{port}", f"http://{reached}:{port}"


def _refusal(bind: Bind, error: OSError) -> ListenError:
    taken = error.errno == errno.EADDRINUSE and bind.kind == "tcp" and bind.port
    by = f" by {found}" if taken and (found := holder.who_has(bind.port)) else ""
    return ListenError(f"cannot listen on `{bind.text}`: {reason(error)}{by}", hint=_hint(bind, error))


def _hint(bind: Bind, error: OSError) -> str | None:
    """Return what can be done about *error*."""
    if bind.kind == "fd":
        return "`systemd-socket-activate -l 8000 limpet run APP --bind fd:3` passes a socket on: see docs/systemd.md"
    if bind.kind == "unix":
        folder, path = shlex.quote(os.path.dirname(bind.path) or "."), shlex.quote(bind.path)
        return {
            errno.EADDRINUSE: f"`ss -lxp src {path}` shows the owner",
            errno.EEXIST: f"`ls -l {path}` shows what it is",
            errno.ENOENT: f"`mkdir -p {folder}`",
            errno.EACCES: f"`ls -ld {folder}` shows who may write there",
        }.get(error.errno or 0)
    if isinstance(error, socket.gaierror):
        return f"`getent ahosts {shlex.quote(bind.host)}` asks the resolver; an address needs none"
    host = bind.text.rpartition(":")[0]
    free, usual = shlex.quote(f"{host}:0"), shlex.quote(f"{host}:8000")
    return {
        errno.EADDRINUSE: f"`ss -ltnp 'sport = :{bind.port}'` shows the owner; `--bind {free}` picks a free port",
        errno.EADDRNOTAVAIL: "`ip -brief address` shows the addresses of this machine",
        errno.EACCES: f"`--bind {usual}` needs no privilege; "
        f"`sysctl net.ipv4.ip_unprivileged_port_start={bind.port}` lets everybody use port {bind.port}",
    }.get(error.errno or 0)
