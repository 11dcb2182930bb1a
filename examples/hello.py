"""The smallest application that keeps state in its process: it counts the visits of each user.

limpet run examples.hello:app --workers 4 --by cookie:user
"""

from __future__ import annotations

import os
from collections import Counter
from http.cookies import SimpleCookie
from typing import Any

visits: Counter[str] = Counter()


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with the user's visits to this worker; `/pid` with its process id."""
    if scope["type"] != "http":
        return
    cookie = SimpleCookie(dict(scope["headers"]).get(b"cookie", b"").decode())
    user = cookie["user"].value if "user" in cookie else "somebody"
    if scope["path"] == "/pid":
        text = f"{os.getpid()}\n"
    else:
        visits[user] += 1
        text = f"{user}: visit {visits[user]}, slot {os.environ.get('LIMPET_SLOT')}, pid {os.getpid()}\n"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text.encode()})
