"""Solara's application, which shows the page that `SOLARA_APP` names."""

from solara.server.starlette import app

__all__ = ["app"]
