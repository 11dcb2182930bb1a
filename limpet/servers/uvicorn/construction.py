"""uvicorn's own work for each connection, where it comes out the same for all of them: done once.

Owns how a protocol object is made, and how it learns its addresses. Of a connection with one request these were a fifth
of what a worker executes: uvicorn's constructor looks up its loggers and settings each time, and its protocol asks the
event loop for a socket object, made for that question, where the loop has the addresses.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import httptools
from uvicorn.protocols.http import h11_impl, httptools_impl

_OWN: Final = {"parser", "pipeline"}  # what uvicorn makes for each connection with httptools
_MISSING: Final = object()


def maker(protocol: type[asyncio.Protocol], **arguments: Any) -> Callable[[], Any]:
    """Return what makes protocols as `protocol(**arguments)` does, of a class derived from it.

    Of two that uvicorn has made, what is one and the same object in both is so in all: those are attributes of the
    class. Where the rest is not what this version of limpet knows how to make, uvicorn's constructor makes all.
    """
    first, second = (vars(protocol(**arguments)) for _ in range(2))
    same = {name: value for name, value in first.items() if second.get(name, _MISSING) is value}
    bound = {name: value for name, value in same.items() if hasattr(value, "__get__")}  # a class would make methods
    if first.keys() - same.keys() != _OWN or bound.keys() - {"app"}:
        return partial(protocol, **arguments)

    def __init__(self: Any) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it
        self.pipeline = deque()
        self.app = app
        self._prepare()

    app = same["app"]
    made: Callable[[], Any] = type(f"Lean{protocol.__name__}", (protocol,), {**same, "__init__": __init__})
    return made


def _sockname(transport: asyncio.BaseTransport) -> tuple[str, int | None] | None:
    """Return the near end of a connection as uvicorn puts it into the scope."""
    name = transport.get_extra_info("sockname")
    if isinstance(name, tuple):
        return name[0], name[1]
    return (name, None) if isinstance(name, str) else None


def _peername(transport: asyncio.BaseTransport) -> tuple[str, int] | None:
    """Return the far end of a connection as uvicorn puts it into the scope; None for a unix socket."""
    name = transport.get_extra_info("peername")
    return (name[0], name[1]) if isinstance(name, tuple) else None


# uvicorn's protocols look these up by their names. A version with other names is slower, no more than that.
for _module in (httptools_impl, h11_impl):
    _module.get_local_addr = _sockname  # type: ignore[attr-defined]
    _module.get_remote_addr = _peername  # type: ignore[attr-defined]
