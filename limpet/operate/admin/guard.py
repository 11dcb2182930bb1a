"""Who may act by the admin page, and ask where a key lives.

Owns that decision, and nothing else: pure.

1. Whoever knows the token of `--admin-token` may; it comes in a header, which no browser sends by itself, so that no
   other page can make an operator's browser act.
2. On a unix socket its owner may, without a token: who can connect could as well ask the control socket. Then the
   request has to be for this machine by name, and of JSON: a page elsewhere cannot send such a one, whatever its name
   resolves to.
3. Else nobody may, and the answer says why.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

_LOCAL: Final = ("localhost", "127.0.0.1", "::1")
READ_ONLY: Final = "read only: start the server with --admin-token FILE, or with --admin unix:PATH"


class Refusal(NamedTuple):
    """Why not, as a status and a line."""

    status: int
    why: str


class Guard:
    """Decides for each request."""

    def __init__(self, token: str | None, *, is_unix: bool) -> None:
        """*is_unix*: only the owner can connect."""
        self._token = token
        self.how: Literal["token", "socket", "nothing"] = "token" if token else "socket" if is_unix else "nothing"

    def refusal(self, headers: Mapping[str, str]) -> Refusal | None:
        """Return why a request with these *headers* may not act; None if it may."""
        if self.how == "nothing":
            return Refusal(403, READ_ONLY)
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return Refusal(403, "another page has sent this request")
        if headers.get("content-type") != "application/json":
            return Refusal(415, "send JSON, as content-type: application/json")
        if self.how == "socket":
            local = urlsplit(f"//{host}").hostname in _LOCAL
            return None if local else Refusal(403, f"ask for one of {', '.join(_LOCAL)}")
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), (self._token or "").encode()):
            return None
        return Refusal(401, "this is not the token in the file of --admin-token" if given else "a token is needed")
