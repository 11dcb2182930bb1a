"""Listening: sockets, reuseport groups, TLS, and the two backends."""
