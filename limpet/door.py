"""`limpet.door.Door`, by which docs/own-server.md has adapters of others import it."""

from limpet.worker.listener_bridge import Door

__all__ = ["Door"]
