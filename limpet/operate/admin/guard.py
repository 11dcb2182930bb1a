"""Who may act through the admin page and ask where a key is served.

Owns this decision. Pure: it only looks at headers. app.py calls it.

1. A request with the token of `--admin-token` may act. The token comes in a header, which no browser sends by itself,
   so another page cannot make an operator's browser act.
2. On a unix socket, the owner may act without a token: a process that can connect there could also use the control
   socket. The request must name this machine as its host and must be JSON. A page from elsewhere cannot send such a
   request, whatever its name resolves to.
3. Otherwise no request may act, and the answer says why.
4. Every client that can connect may read. If only this machine can connect, a page from elsewhere could give its own
   name this machine's address (DNS rebinding) and read through an operator's browser. There the request must be for an
   IP address or `localhost`.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

_LOCAL: Final = ("localhost", "127.0.0.1", "::1")
READ_ONLY: Final = "read only: start the server with --admin-token FILE, or with --admin unix:PATH"


class Refusal(NamedTuple):
    """Why a request is refused, as a status and a line."""

    status: int
    why: str


def _part(url: str, name: Literal["netloc", "hostname"]) -> str | None:
    """Return the part *name* of *url*, or None if the URL has no such part or is invalid."""
    try:
        found: str | None = getattr(urlsplit(url), name)
    except ValueError:  # for example `http://[`
        return None
    return found


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


class Guard:
    """Decides for each request."""

    def __init__(self, token: str | None, *, is_unix: bool, is_local: bool = False) -> None:
        """*is_unix*: only the owner can connect. *is_local*: only processes of this machine can."""
        self._is_local = is_unix or is_local
        self._token = token
        self.how: Literal["token", "socket", "nothing"] = "token" if token else "socket" if is_unix else "nothing"

    def unreadable(self, headers: Mapping[str, str]) -> Refusal | None:
        """Return why a request with these *headers* may not read, or None if it may (rule 4)."""
        host = _part(f"//{headers.get('host', '')}", "hostname") or ""
        if not self._is_local or host in _LOCAL or _is_address(host):
            return None
        return Refusal(
            403, f"use one of the hosts {', '.join(_LOCAL)}, or an IP address: another name could be another site's"
        )

    def refusal(self, headers: Mapping[str, str]) -> Refusal | None:
        """Return why a request with these *headers* may not act, or None if it may."""
        if self.how == "nothing":
            return Refusal(403, READ_ONLY)
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and _part(origin, "netloc") != host:
            return Refusal(403, "this request comes from another page")
        if headers.get("content-type") != "application/json":
            return Refusal(415, "send JSON, as content-type: application/json")
        if self.how == "socket":
            local = _part(f"//{host}", "hostname") in _LOCAL
            return None if local else Refusal(403, f"use one of the hosts {', '.join(_LOCAL)}")
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), (self._token or "").encode()):
            return None
        return Refusal(
            401, "wrong token: expected the one in the file of --admin-token" if given else "a token is needed"
        )
