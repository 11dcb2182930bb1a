"""The way of a connection: accept, peek, key, slot, handoff."""
