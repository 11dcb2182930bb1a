"""Key functions as the reference's README has them: of a parsed request, and of the socket alone."""

from __future__ import annotations

import limpet


def of_request(request: limpet.Request) -> bytes | str | int | tuple[int, ...] | None:
    """Return the key in the form that the client asks for."""
    value = request.query.get("key", "")
    assert request.method == "GET"
    match request.headers.get("x-form"):
        case "bytes":
            return value.encode()
        case "int":
            return int(value)
        case "ints":
            return tuple(int(part) for part in value.split(","))
        case "nothing":
            return None
    return value


def of_peer(peer: limpet.Peer) -> int | None:
    """Return the third number of the client's address, and see what else a peer tells."""
    assert peer.port is not None
    assert peer.listener
    return int(peer.address.split(".")[2]) if peer.address else None
