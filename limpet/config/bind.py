"""What a `--bind` means: an address, and what is served there if it differs from the other binds.

Owns the text of a bind, `127.0.0.1:8001=admin:app?by=ip&server=stream`. `Bind` is the address at its front, `Served` is
everything. Pure. net/listener.py makes the socket; config/settings.py and routing/key_chain.py know the applications
and key chains.

1. A path may contain `=` and `?`. Only text that reads as an application or as an option (_OPTIONS) is not part of the
   address.
2. `%2C` stands for a comma, because lists of binds are split at each comma.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple
from urllib.parse import quote, unquote

from limpet.errors import SettingsError

MAX_PATH_BYTES = 107
"""The longest path of a unix socket, in bytes: the kernel takes 108, including a NUL at the end."""


_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[^\s\0:/\[\]]*)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Bind:
    """The address of a `--bind`.

    `HOST:PORT` is one address; a host name stands for the first address that the resolver returns when the socket is
    opened. `:PORT` is every address of the machine: `[::]:PORT`, which also takes IPv4, or `0.0.0.0:PORT` if the kernel
    has no IPv6. Port 0 is any free port. `unix:PATH` makes a socket file with the permissions that the umask leaves.
    `fd:N` is an inherited stream socket, bound or already listening. `fd:NAME` is one that the service manager passes
    under that name.
    """

    text: str
    kind: Literal["tcp", "unix", "fd"]
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int = -1
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Bind:
        """Return the address in *text*, ignoring what is served there. Raises SettingsError."""
        text = Served.parse(text).address
        kind, _, rest = text.partition(":")
        if kind == "unix" and rest and "\0" not in rest:
            if (size := len(os.fsencode(rest))) > MAX_PATH_BYTES:
                raise SettingsError(
                    f"the path of `{text}` has {size} bytes: unix sockets allow {MAX_PATH_BYTES}",
                    hint="a path that is relative to the current directory may be shorter",
                )
            return cls(text, "unix", path=rest)
        if kind == "fd" and re.fullmatch("[0-9]{1,7}", rest):
            return cls(text, "fd", fd=int(rest))
        if kind == "fd" and re.fullmatch(r"[A-Za-z_][\w.-]{0,254}", rest, re.ASCII):
            return cls(text, "fd", name=rest)
        found = _ADDRESS.fullmatch(text)
        if kind in ("unix", "fd") or not found or int(found["port"]) > 65535:
            forms = "`HOST:PORT`, `[IPV6]:PORT`, `:PORT`, `unix:PATH`, `fd:N` or `fd:NAME`"
            raise SettingsError(f"`{text}` is not an address: expected {forms}", hint=f"`--bind {_guess(text)}`")
        return cls(text, "tcp", host=found["ipv6"] or found["host"], port=int(found["port"]))


def _guess(text: str) -> str:
    """Return the bind that was most likely meant by *text*, which is not one."""
    kind = text.partition(":")[0]
    if kind in ("unix", "fd"):
        return "unix:/run/limpet.sock" if kind == "unix" else "fd:3"
    if text.isdecimal() and int(text) <= 65535:
        return f"127.0.0.1:{text}"
    if text.count(":") > 1 and re.fullmatch("[0-9A-Fa-f:.]+", text):
        return f"'[{text}]:8000'"
    host = re.sub(r"^\w+://|[:/].*$", "", text)
    return f"{host}:8000" if re.fullmatch(r"[\w.-]+", host) else "127.0.0.1:8000"


_OPTIONS: Final = ("by", "server", "proxy-protocol")
_TEXT: Final = re.compile(
    rf"(?P<address>.+?)(?:=(?P<app>[\w.]+:[\w.]+))?(?:\?(?P<own>(?:{'|'.join(_OPTIONS)})=.*))?", re.DOTALL
)
_KEPT: Final = ":/^()[]{}|*.$~!@;"  # of a chain or a name: readable without quoting


class Served(NamedTuple):
    """One bind: its address and what is served there. "" stands for what is set for all binds."""

    address: str
    app: str = ""
    by: str = ""
    server: str = ""
    proxy_protocol: str = ""

    @classmethod
    def parse(cls, text: str) -> Served:
        """Return what *text* says. Raises SettingsError for an option that is unknown or set twice."""
        found = _TEXT.fullmatch(text)
        if found is None:
            return cls(text)
        own: dict[str, str] = {}
        for part in found["own"].split("&") if found["own"] else ():
            name, _, value = part.partition("=")
            field = name.replace("-", "_")
            if name not in _OPTIONS or field in own or not value:
                raise SettingsError(
                    f"invalid option `{part}` in `{text}`: expected `by=CHAIN`, `server=NAME` or "
                    "`proxy-protocol=required`, each at most once",
                    hint="`127.0.0.1:8001=admin:app?by=ip&server=uvicorn`; write `&` as `%26` and a comma as `%2C`",
                )
            own[field] = unquote(value)
        return cls(found["address"], found["app"] or "", **own)

    def __str__(self) -> str:
        own = {name: getattr(self, name.replace("-", "_")) for name in _OPTIONS}
        options = "&".join(f"{name}={quote(value, safe=_KEPT)}" for name, value in own.items() if value)
        return self.address + (f"={self.app}" if self.app else "") + (f"?{options}" if options else "")


def served(binds: Sequence[str], standard: Served) -> list[Served]:
    """Return what each of *binds* serves. *standard* is used for everything that a bind does not set."""
    found = [Served.parse(text) for text in binds]
    return [Served._make(own or usual for own, usual in zip(each, standard, strict=True)) for each in found]
