"""Jupyter Server: kernels and sessions live in the worker that started them, and their ids route clients back to it.

Owns what replaces parts of Jupyter's own start: where it listens, and how the ids of kernels and sessions are made.

    JUPYTER_TOKEN=secret limpet run limpet.integrations.jupyter:serve --workers 4 --for jupyter

1. Jupyter reads its own configuration: jupyter_server_config.py and JUPYTER_* variables. Only the address, the port and
   the browser setting have no effect.
2. A response ends its connection, because limpet cannot move it to the worker of the next request. Websockets stay.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from jupyter_client.multikernelmanager import MultiKernelManager
from jupyter_server.serverapp import ServerApp
from jupyter_server.services.sessions.sessionmanager import SessionManager
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import OutputTransform

import limpet


class Ends(OutputTransform):
    """Ends each connection with its response, except websockets, which tornado's own `no_keep_alive` would also end."""

    def __init__(self, request: HTTPServerRequest) -> None:
        self._connection: Any = request.connection

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Have the connection closed after this response. tornado then says so in the headers."""
        if status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            self._connection._disconnect_on_finish = True  # tornado has no public way
        return status_code, headers, chunk


class Server(ServerApp):  # type: ignore[misc]  # mypy does not see the types of Jupyter
    """A Jupyter Server in a slot."""

    def init_httpserver(self) -> None:
        """Listen on limpet's listener."""
        listener = limpet.listener()
        self.ip, self.port = listener.getsockname()[:2]
        self.web_app.add_transform(Ends)
        self._http_server = HTTPServer(
            self.web_app,
            xheaders=self.trust_xheaders,
            max_body_size=self.max_body_size,
            max_buffer_size=self.max_buffer_size,
        )
        self.io_loop.add_callback(self._http_server.add_socket, listener)


def serve() -> None:
    """Run a Jupyter Server until limpet stops it. `--server script` calls this function."""
    new_kernel_id, new_session_id = MultiKernelManager.new_kernel_id, SessionManager.new_session_id
    MultiKernelManager.new_kernel_id = lambda self, **kwargs: limpet.mint(lambda: new_kernel_id(self, **kwargs))
    SessionManager.new_session_id = lambda self: limpet.mint(lambda: new_session_id(self))
    Server.launch_instance(argv=[], open_browser=False)
