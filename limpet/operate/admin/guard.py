"""Who may act by the admin page, and ask where a key lives.

Owns that decision, and nothing else: pure.

1. Whoever knows the token of `--admin-token` may; it comes in a header, which no browser sends by itself, so that no
   other page can make an operator's browser act.
2. On a unix socket its owner may, without a token: who can connect could as well ask the control socket. Then the
   request has to be for this machine by name, and of JSON: a page elsewhere cannot send such a one, whatever its name
   resolves to.
3. Else nobody may, and the answer says why.
4. Whoever can connect may read. But where only this machine can, a page elsewhere could give its name this machine's
   address (DNS rebinding) and read by an operator's browser: there the request has to be for an address or `localhost`.
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
    """Why not, as a status and a line."""

    status: int
    why: str


def _part(url: str, name: Literal["netloc", "hostname"]) -> str | None:
    """Return the part *name* of *url*, None where it has none or is no URL."""
    try:
        found: str | None = getattr(urlsplit(url), name)
    except ValueError:  # as of `http://[`
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
        """Return why a request with these *headers* may not read; None if it may (rule 4)."""
        host = _part(f"//{headers.get('host', '')}", "hostname") or ""
        if not self._is_local or host in _LOCAL or _is_address(host):
            return None
        return Refusal(403, f"ask for one of {', '.join(_LOCAL)}, not for a name that could lead anywhere")

    def refusal(self, headers: Mapping[str, str]) -> Refusal | None:
        """Return why a request with these *headers* may not act; None if it may."""
        if self.how == "nothing":
            return Refusal(403, READ_ONLY)
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and _part(origin, "netloc") != host:
            return Refusal(403, "another page has sent this request")
        if headers.get("content-type") != "application/json":
            return Refusal(415, "send JSON, as content-type: application/json")
        if self.how == "socket":
            local = _part(f"//{host}", "hostname") in _LOCAL
            return None if local else Refusal(403, f"ask for one of {', '.join(_LOCAL)}")
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), (self._token or "").encode()):
            return None
        return Refusal(401, "this is not the token in the file of --admin-token" if given else "a token is needed")
