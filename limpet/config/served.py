"""What a bind has of its own: another application, key chain or server than the rest.

Owns the text behind the address in a `--bind`: `127.0.0.1:8001=admin:app?by=ip&server=stream`. Pure. What an address
is belongs to net/listener.py, which application and chain there are to config/settings.py and routing/key_chain.py.

1. A path may hold `=` and `?`. Only what reads as an application, or as an option (_OPTIONS), is none of the address.
2. `%2C` is a comma: lists of binds are split at each one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from limpet.errors import SettingsError

_OPTIONS: Final = ("by", "server", "proxy-protocol")
_TEXT: Final = re.compile(
    rf"(?P<address>.+?)(?:=(?P<app>[\w.]+:[\w.]+))?(?:\?(?P<own>(?:{'|'.join(_OPTIONS)})=.*))?", re.DOTALL
)
_KEPT: Final = ":/^()[]{}|*.$~!@;"  # of a chain or a name: readable as it is


class Served(NamedTuple):
    """One bind: its address, and what is served there; "" is what all binds serve that have nothing of their own."""

    address: str
    app: str = ""
    by: str = ""
    server: str = ""
    proxy_protocol: str = ""

    @classmethod
    def parse(cls, text: str) -> Served:
        """Return what *text* says. Raises SettingsError for what is set twice or not known."""
        found = _TEXT.fullmatch(text)
        if found is None:
            return cls(text)
        own: dict[str, str] = {}
        for part in found["own"].split("&") if found["own"] else ():
            name, _, value = part.partition("=")
            field = name.replace("-", "_")
            if name not in _OPTIONS or field in own or not value:
                raise SettingsError(
                    f"`{part}` in `{text}`: `by=CHAIN`, `server=NAME` and `proxy-protocol=required` are allowed, each "
                    "once",
                    hint="`127.0.0.1:8001=admin:app?by=ip&server=uvicorn`; `%26` is a `&`, `%2C` a comma",
                )
            own[field] = unquote(value)
        return cls(found["address"], found["app"] or "", **own)

    def __str__(self) -> str:
        own = {name: getattr(self, name.replace("-", "_")) for name in _OPTIONS}
        options = "&".join(f"{name}={quote(value, safe=_KEPT)}" for name, value in own.items() if value)
        return self.address + (f"={self.app}" if self.app else "") + (f"?{options}" if options else "")


def served(binds: Sequence[str], standard: Served) -> list[Served]:
    """Return what each of *binds* serves; *standard* is what those do that have nothing of their own."""
    found = [Served.parse(text) for text in binds]
    return [Served._make(own or usual for own, usual in zip(each, standard, strict=True)) for each in found]
