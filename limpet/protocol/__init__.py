"""Wire formats, pure: bytes of clients and proxies in, values out."""
