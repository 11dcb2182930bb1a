"""One port, N worker processes, and every client always reaches the same worker.

How a server comes to life: cli -> settings -> supervisor -> (lifecycle decides) -> process -> child, which is a
dispatcher or a worker. How a connection finds its worker: listener -> peek -> head -> key -> router (hashing, buckets)
-> handoff -> worker -> servers/. What people see: report, control, logs, errors. ARCHITECTURE.md draws it.
"""

from limpet.current import WorkerInfo, current_worker
from limpet.request import Peer, Request

__version__ = "0.1.0"

__all__ = ["Peer", "Request", "WorkerInfo", "__version__", "current_worker"]
