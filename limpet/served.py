"""What a bind has of its own: another application, key chain or server than the rest.

Owns the text behind the address in a `--bind`: `127.0.0.1:8001=admin:app?by=ip&server=stream`. Pure. What an address
is belongs to binds.py, which application and chain there are to settings.py and key.py.

1. A path may hold `=` and `?`. Only what reads as an application, or as `by=` or `server=`, is none of the address.
2. `%2C` is a comma: lists of binds are split at each one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from limpet.errors import SettingsError

_TEXT: Final = re.compile(r"(?P<address>.+?)(?:=(?P<app>[\w.]+:[\w.]+))?(?:\?(?P<own>(?:by|server)=.*))?", re.DOTALL)
_KEPT: Final = ":/^()[]{}|*.$~!@;"  # of a chain or a name: readable as it is


class Served(NamedTuple):
    """One bind: its address, and what is served there; "" is what all binds serve that have nothing of their own."""

    address: str
    app: str = ""
    by: str = ""
    server: str = ""

    @classmethod
    def parse(cls, text: str) -> Served:
        """Return what *text* says. Raises SettingsError for what is set twice or not known."""
        found = _TEXT.fullmatch(text)
        if found is None:
            return cls(text)
        own: dict[str, str] = {}
        for part in found["own"].split("&") if found["own"] else ():
            name, _, value = part.partition("=")
            if name not in ("by", "server") or name in own or not value:
                raise SettingsError(
                    f"`{part}` in `{text}`: `by=CHAIN` and `server=NAME` are allowed, each once",
                    hint="`127.0.0.1:8001=admin:app?by=ip&server=uvicorn`; `%26` is a `&`, `%2C` a comma",
                )
            own[name] = unquote(value)
        return cls(found["address"], found["app"] or "", **own)

    def __str__(self) -> str:
        own = {"by": self.by, "server": self.server}
        options = "&".join(f"{name}={quote(value, safe=_KEPT)}" for name, value in own.items() if value)
        return self.address + (f"={self.app}" if self.app else "") + (f"?{options}" if options else "")


def served(binds: Sequence[str], app: str, by: str, server: str) -> list[Served]:
    """Return what each of *binds* serves, given what is served by those that have nothing of their own."""
    found = [Served.parse(text) for text in binds]
    return [Served(each.address, each.app or app, each.by or by, each.server or server) for each in found]
