"""Wire formats: bytes of clients and proxies in, values out. All modules here are pure."""
