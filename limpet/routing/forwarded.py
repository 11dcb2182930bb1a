"""The client's address behind trusted proxies: X-Forwarded-For and Forwarded, read from the right.

Owns which hops are believed (`Trust`) and how addresses are written on the wire. Refuses to know keys and
prefixes: routing/key_chain.py masks and packs what is found here. Pure.

How it works
------------

Each proxy appends the address that it was called from, so only the right end of the list is beyond the client's
reach. The walk begins at the peer and goes left for as long as the hop it stands on is trusted:

1. A peer that is not trusted is the client, whatever it says.
2. The first entry that is not trusted is the client. If all are, it is the leftmost, or the last one that is looked at
   (_MOST_HOPS): a trusted client that writes thousands of entries must not keep a dispatcher busy.
3. An entry that is no address (`unknown`, `_hidden`, garbage, nothing) ends the walk: nobody knows what is left
   of it. The hop that wrote it, the last one stood on, is the client. A unix-socket peer has no address: then
   there is none. `unix:`, which nginx writes for such a peer of its own, is a hop like that one, trusted by `unix`.
4. `Forwarded` is read when there is no X-Forwarded-For. A proxy that writes only `Forwarded` must remove an
   X-Forwarded-For that comes from outside, or its clients choose their own addresses.
5. Lists are split at every comma, in quotes too. Addresses have none, and respecting quotes would allow a client
   to swallow what the proxy appends by sending a single quote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from limpet.errors import SettingsError
from limpet.protocol.request import Peer, Request

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NODES: Final = 16384  # spellings kept, and trust decisions per `Trust`: with _NODE_LENGTH some 5 MB
_MOST_HOPS: Final = 64  # entries looked at in one request; chains of proxies are a few long
_NODE_LENGTH: Final = 100  # bytes of the longest entry: quoted, with brackets, zone and port; more is garbage

_NODE: Final = re.compile(
    r"""
    (?P<quote>"?)
    (?: \[ (?P<bracketed> [0-9A-Fa-f:.]+ ) (?: %[^\]]* )? \] (?: :(?:[0-9]{1,5}|_[\w.-]+) )?
      | (?P<dotted> [0-9.]+ ) (?: :(?:[0-9]{1,5}|_[\w.-]+) )?
      | (?P<bare> [0-9A-Fa-f:.]+ ) (?: %[^"]* )?
    )
    (?P=quote)
    """,
    re.VERBOSE | re.ASCII,
)
_NAT64: Final = IPv6Network("64:ff9b::/96")
_UNIX: Final = b"unix:"
_FOR: Final = re.compile(rb"(?:^|;)[ \t]*for[ \t]*=[ \t]*([^;]*)", re.IGNORECASE)


class Trust:
    """The hops whose word about where a request came from is believed."""

    def __init__(self, networks: Iterable[Network] = (), *, unix: bool = False) -> None:
        self._networks = tuple(networks)
        self._unix = unix
        self._believes = lru_cache(maxsize=_NODES)(self._contains)

    @classmethod
    def parse(cls, text: str) -> Trust:
        """Return the trust written as comma-separated networks and `unix`. Raises SettingsError."""
        words = [word for word in (part.strip() for part in text.split(",")) if word]
        return cls((_network(word) for word in words if word != "unix"), unix="unix" in words)

    def __contains__(self, address: str | None) -> bool:
        """Return whether a hop is trusted; None is the peer of a unix socket."""
        return self._unix if address is None else self._believes(address)

    def _contains(self, text: str) -> bool:
        address = parse_address(text)
        return address is not None and any(address in network for network in self._networks)


def client_address(peer: Peer, request: Request, trust: Trust) -> str | None:
    """Return the address that the request came from, as far as *trust* reaches; None when nobody knows."""
    client = peer.address
    if client not in trust:
        return client
    for entry in reversed(_entries(request)[-_MOST_HOPS:]):
        address = _node(entry) if len(entry) <= _NODE_LENGTH else None
        if address is None and entry.strip(b'"') != _UNIX:
            return client
        client = address
        if client not in trust:
            break
    return client


def parse_address(text: str) -> Address | None:
    """Return the address that *text* is, None if it is none; without zone, and IPv4 where IPv6 maps it."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def behind_nat64(address: Address) -> Address:
    """Return the IPv4 address that a translator has put into *address* (64:ff9b::/96, RFC 6052), else *address*.

    All IPv4 clients of a translator share one /64. For keys and limits only: `--trust 10.0.0.0/8` means the network,
    and not what somebody writes into an IPv6 address.
    """
    if isinstance(address, IPv6Address) and address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        try:
            hint = f"`--trust {ip_network(text, strict=False)}` trusts the network that it lies in"
        except ValueError:
            hint = "`--trust 10.0.0.0/8,fd00::/8` trusts two networks, `--trust unix` a proxy on a unix socket"
        raise SettingsError(f"cannot trust `{text}`: {error}", hint=hint) from None


def _entries(request: Request) -> list[bytes]:
    """Return what the proxies wrote, in wire order."""
    if line := request.header_bytes(b"x-forwarded-for"):
        return [entry.strip(b" \t") for entry in line.split(b",")]
    if line := request.header_bytes(b"forwarded"):
        return [_for(element) for element in line.split(b",")]
    return []


def _for(element: bytes) -> bytes:
    """Return the `for` of one hop; nothing when it is missing, or there twice and so open to doubt."""
    found = _FOR.findall(element)
    return found[0].strip(b" \t") if len(found) == 1 else b""


@lru_cache(maxsize=_NODES)
def _node(entry: bytes) -> str | None:
    """Return the address of one entry as canonical text, None if it is no address."""
    match = _NODE.fullmatch(entry.decode("latin-1"))
    if match is None:
        return None
    address = parse_address(match["bracketed"] or match["dotted"] or match["bare"])
    return None if address is None else str(address)
