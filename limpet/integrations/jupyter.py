"""Jupyter Server: kernels and sessions live in the worker that started them, and their ids bring clients back to it.

Owns what Jupyter's own start would do otherwise: where it listens, and how the ids of kernels and sessions are made.

    JUPYTER_TOKEN=secret limpet run limpet.integrations.jupyter:serve --workers 4 --for jupyter

1. Configuration is Jupyter's: jupyter_server_config.py, JUPYTER_* variables. Only address, port and browser are not.
2. A response ends its connection, since limpet cannot move it to the worker of the next request. Websockets last.
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
    """Ends each connection with its response, but for websockets, which tornado's own `no_keep_alive` would end too."""

    def __init__(self, request: HTTPServerRequest) -> None:
        self._connection: Any = request.connection

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Let the connection be closed after what begins here; tornado says so in the headers then."""
        if status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            self._connection._disconnect_on_finish = True  # there is no public way
        return status_code, headers, chunk


class Server(ServerApp):  # type: ignore[misc]  # mypy does not see the types of Jupyter
    """A Jupyter Server in a slot."""

    def init_httpserver(self) -> None:
        """Listen where limpet does."""
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
    """Be a Jupyter Server until limpet says that it is enough: what `--server script` calls."""
    new_kernel_id, new_session_id = MultiKernelManager.new_kernel_id, SessionManager.new_session_id
    MultiKernelManager.new_kernel_id = lambda self, **kwargs: limpet.mint(lambda: new_kernel_id(self, **kwargs))
    SessionManager.new_session_id = lambda self: limpet.mint(lambda: new_session_id(self))
    Server.launch_instance(argv=[], open_browser=False)
