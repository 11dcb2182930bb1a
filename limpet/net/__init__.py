"""Listening: sockets, reuseport groups, TLS, and the choice of the backend."""
