"""One port, N worker processes, and every client always reaches the same worker.

ARCHITECTURE.md draws the packages, and walks through a start, a request and a reload.

Applications import this module in their workers, so that a name brings its file in only when it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from limpet.version import __version__

if TYPE_CHECKING:
    from limpet.coordination.bus import Message, Subscription, publish, publish_sync, subscribe
    from limpet.coordination.counters import Counter, counter
    from limpet.coordination.limits import limit
    from limpet.coordination.once import WorkerEnds, once
    from limpet.coordination.stash import Stash, StashBusy, StashFull, stash
    from limpet.current import WorkerInfo, current_worker, listener
    from limpet.embed.cluster import Cluster, listen
    from limpet.embed.handle import Handle
    from limpet.errors import LimpetError
    from limpet.protocol.request import Peer, Request
    from limpet.routing.elements import Affinity, Cookie, Forwarded, Header, Ip, Path, Query, Sni
    from limpet.sessions.sessions import forget, learn, mint
    from limpet.worker.hooks import on_shutdown, on_start

_HOMES = {
    "coordination.bus": ("Message", "Subscription", "publish", "publish_sync", "subscribe"),
    "coordination.counters": ("Counter", "counter"),
    "coordination.limits": ("limit",),
    "coordination.once": ("WorkerEnds", "once"),
    "coordination.stash": ("Stash", "StashBusy", "StashFull", "stash"),
    "current": ("WorkerInfo", "current_worker", "listener"),
    "embed.cluster": ("Cluster", "listen"),
    "embed.handle": ("Handle",),
    "errors": ("LimpetError",),
    "protocol.request": ("Peer", "Request"),
    "routing.elements": ("Affinity", "Cookie", "Forwarded", "Header", "Ip", "Path", "Query", "Sni"),
    "sessions.sessions": ("forget", "learn", "mint"),
    "worker.hooks": ("on_shutdown", "on_start"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Affinity",
    "Cluster",
    "Cookie",
    "Counter",
    "Forwarded",
    "Handle",
    "Header",
    "Ip",
    "LimpetError",
    "Message",
    "Path",
    "Peer",
    "Query",
    "Request",
    "Sni",
    "Stash",
    "StashBusy",
    "StashFull",
    "Subscription",
    "WorkerEnds",
    "WorkerInfo",
    "__version__",
    "counter",
    "current_worker",
    "forget",
    "learn",
    "limit",
    "listen",
    "listener",
    "mint",
    "on_shutdown",
    "on_start",
    "once",
    "publish",
    "publish_sync",
    "stash",
    "subscribe",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module `limpet` has no attribute `{name}`")
    found = getattr(importlib.import_module(f"limpet.{_HOME_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
