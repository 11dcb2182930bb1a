"""Gradio: the id of an event hashes to the worker that makes it.

Owns the place where Gradio makes the id. `POST /gradio_api/call/NAME` answers with it, and the client fetches the
result from `/gradio_api/call/NAME/ID`: curl does both, and keeps no cookie. `--mint gradio` calls `install` in each
worker; the preset's key chain finds the id in the path.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from limpet.errors import AppError
from limpet.sessions.sessions import mint


def install() -> None:
    """Make the ids of all events in this process bring clients home. Raises AppError where there is no Gradio."""
    try:
        from gradio.queueing import Event
    except ImportError as error:
        raise AppError(f"`--mint gradio` needs Gradio: {error}", hint="`pip install gradio`") from None
    begin = Event.__init__

    def begin_here(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        own_session = self.session_hash == self._id  # a client that names no session has one for each event
        self._id = mint(lambda: uuid4().hex)
        if own_session:
            self.session_hash = self._id

    Event.__init__ = begin_here
