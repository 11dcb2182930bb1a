"""How many connections each client address has in this process, for `--max-connections-per-address`.

This file owns the counts and what counts as one address. It does not know connections. The dispatcher counts those that
wait for their request head, the terminator those in their handshake, and uvicorn's adapter those that it serves. Pure.

1. An IPv6 address counts by its /64, because a client usually has a whole one. A client behind a NAT64 translator
   counts by its IPv4 address.
2. A unix socket has no address and no limit.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from limpet.routing.forwarded import behind_nat64, parse_address

_NETWORK_BITS = 64


class PerAddress:
    """Counts connections by address. At most *most* from one address may enter; 0 means no limit."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._counts: dict[str, int] = {}

    def enter(self, address: str | None) -> bool:
        """Return whether a connection from *address* may enter. If so, it is counted until `leave`."""
        if not self.most or address is None:
            return True
        network = _network(address)
        count = self._counts.get(network, 0)
        if count >= self.most:
            return False
        self._counts[network] = count + 1
        return True

    def leave(self, address: str | None) -> None:
        """Stop counting one connection from *address* that has entered."""
        if not self.most or address is None:
            return
        network = _network(address)
        count = self._counts.pop(network, 0) - 1
        if count > 0:
            self._counts[network] = count


def _network(address: str) -> str:
    if ":" not in address:
        return address
    parsed = parse_address(address)
    if parsed is None:
        return address
    parsed = behind_nat64(parsed)
    return str(parsed) if isinstance(parsed, IPv4Address) else str(int(parsed) >> _NETWORK_BITS)
