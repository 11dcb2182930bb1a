"""The application of the matrix as a handler of `http.server`."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler

from tests.matrix.facts import facts, wait_open


class Handler(BaseHTTPRequestHandler):
    """Answers with the facts; at `/gated` the last byte waits."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = facts(self.client_address, body)
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply[:1])
        if self.path == "/gated":
            wait_open()
        self.wfile.write(reply[1:])

    do_POST = do_GET
