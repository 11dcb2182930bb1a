"""Jupyter's own server, in each slot."""

from limpet.integrations.jupyter import serve as app

__all__ = ["app"]
