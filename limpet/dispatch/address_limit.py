"""How many connections each address has in this process, for `--max-connections-per-address`.

Pure. An address of IPv6 counts by its /64: whoever has one has all of them. A client behind a NAT64 translator counts
by its IPv4 address. A unix socket has no address and no limit.
Used by the dispatcher for connections whose head is awaited, and by uvicorn's adapter for those that it serves.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from limpet.routing.forwarded import behind_nat64, parse_address

_NETWORK_BITS = 64


class PerAddress:
    """Counts connections; *most* of an address are let in, 0 is no limit."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._counts: dict[str, int] = {}

    def enter(self, address: str | None) -> bool:
        """Count a connection from *address* if it may come in, which is returned; then it has to `leave`."""
        if not self.most or address is None:
            return True
        network = _network(address)
        count = self._counts.get(network, 0)
        if count >= self.most:
            return False
        self._counts[network] = count + 1
        return True

    def leave(self, address: str | None) -> None:
        """Count a connection from *address* that has entered no more."""
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
