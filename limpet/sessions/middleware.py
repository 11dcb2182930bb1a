"""What makes a session stay: the application is wrapped so that requests and responses pass limpet's sessions.

Owns how cookies are set, ids learned and lost sessions refused on ASGI and on WSGI; sessions/sessions.py decides.
Wrapped around the application in every worker whose settings ask for any of it, and around no other.

1. An id is learned before the message that carries it is passed on.
2. The server answers 500 for an application that raised; a client without a cookie gets that answer from here, so that
   it comes back to this worker. The exception goes on to the server, which logs it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any, Final

from limpet.config import server_kinds
from limpet.config.settings import Settings
from limpet.protocol.request import Peer, Request
from limpet.sessions.sessions import Sessions

Application = Callable[..., Any]
DIGEST: Final = "limpet.digest"
"""In the scope of an accepted websocket: the digest of the client, which the server reads, if its cookie is new."""
_STARTS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
_REFUSED: Final = b"the worker that had this session is gone\n"
_FAILED: Final = b"Internal Server Error"


def in_session(app: Application, sessions: Sessions, settings: Settings, bind: int = 0) -> Application:
    """Return *app* as the worker's server is to call it for connections of the bind number *bind*."""
    if sessions.is_idle or not server_kinds.kind(settings.served[bind].server).http:
        return app
    interface = server_kinds.interface(settings.server, settings.worker_class)
    if interface == "wsgi":
        return InSessionWsgi(app, sessions)
    if interface != "asgi":
        return app  # only a warning would come of it: what needs responses was refused (config/conflicts.py)
    return InSession(app, sessions, settings.root_path.rstrip("/"), bind)


class InSession:
    """An ASGI application whose sessions stay with their worker."""

    def __init__(self, app: Callable[..., Awaitable[None]], sessions: Sessions, root_path: str, bind: int) -> None:
        self._app = app
        self._bind = bind
        self._sessions = sessions
        self._root_path = root_path.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the call on, or refuse it; with what its response should carry."""
        if scope["type"] not in ("http", "websocket") or self._sessions.is_settled(scope["headers"]):
            await self._app(scope, receive, send)
            return
        request = of_scope(scope, self._root_path, self._bind)
        if status := self._sessions.refusal(request):
            await _refuse(scope, send, status)
            return
        cookie = self._sessions.cookie_for(request, is_https=scope.get("scheme") in ("https", "wss"))
        if cookie is None and not self._sessions.learns:
            await self._app(scope, receive, send)
            return
        answering = _Answering(self._sessions, send, request, cookie, scope)
        try:
            await self._app(scope, receive, answering.send)
        except Exception:
            if cookie is not None and not answering.started and scope["type"] == "http":
                await _answer(answering.send, "http", 500, _FAILED)
            raise


def of_scope(scope: Any, root_path: bytes, bind: int = 0) -> Request:
    """Return the request that *scope* describes, with the target that the client sent."""
    target = scope.get("raw_path") or scope["path"].encode()
    if root_path and target.startswith(root_path + b"/"):
        target = target[len(root_path) :]
    if query := scope["query_string"]:
        target = b"%b?%b" % (target, query)
    peer = Peer.of(scope["client"], "", bind)
    return Request(scope.get("method", "GET"), target.decode("latin-1"), peer, scope["headers"])


class _Answering:
    """One response on its way to the server."""

    def __init__(self, sessions: Sessions, send: Any, request: Request, cookie: str | None, scope: Any) -> None:
        self._sessions = sessions
        self._scope = scope
        self._send = send
        self._request = request
        self._cookie = cookie
        self.started = False

    async def send(self, message: Any) -> None:
        """Pass *message* on; with the cookie, and after its ids are learned, if it is the first."""
        if message["type"] in _STARTS:
            self.started = True
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers") or ()]
            self._sessions.learned_from(headers, self._request)
            self._sessions.ended_by(self._request, message.get("status", 0))
            if self._cookie is not None and self._sessions.may_set(headers):
                message = message | {"headers": [*headers, (b"set-cookie", self._cookie.encode())]}
                if message["type"] == "websocket.accept":
                    self._scope[DIGEST] = self._sessions.digest_of(self._cookie)
        await self._send(message)


async def _refuse(scope: Any, send: Any, status: int) -> None:
    if scope["type"] == "http":
        await _answer(send, "http", status, _REFUSED)
    elif "websocket.http.response" in (scope.get("extensions") or {}):
        await _answer(send, "websocket.http", status, _REFUSED)
    else:
        await send({"type": "websocket.close", "code": 1008})


async def _answer(send: Any, kind: str, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": f"{kind}.response.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body})


class InSessionWsgi:
    """A WSGI application whose sessions stay with their worker."""

    def __init__(self, app: Callable[..., Iterable[bytes]], sessions: Sessions) -> None:
        self._app = app
        self._sessions = sessions

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Pass the call on, or refuse it; with what its response should carry."""
        request = of_environ(environ)
        if status := self._sessions.refusal(request):
            start_response(f"{status} {HTTPStatus(status).phrase}", [("Content-Length", str(len(_REFUSED)))])
            return [_REFUSED]
        cookie = self._sessions.cookie_for(request, is_https=environ["wsgi.url_scheme"] == "https")

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            as_bytes = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
            self._sessions.learned_from(as_bytes, request)
            code = status[:3]
            self._sessions.ended_by(request, int(code) if code.isdecimal() else 0)
            if cookie is not None and self._sessions.may_set(as_bytes):
                headers = [*headers, ("Set-Cookie", cookie)]
            return start_response(status, headers, *rest)

        return self._app(environ, start if cookie is not None or self._sessions.learns else start_response)


def of_environ(environ: dict[str, Any]) -> Request:
    """Return the request that *environ* describes, with the target that the client sent."""
    target = environ.get("RAW_URI") or environ["PATH_INFO"] + "?" + environ.get("QUERY_STRING", "")
    headers = [
        (name[5:].replace("_", "-").lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]
    return Request(environ["REQUEST_METHOD"], target, peer_of_environ(environ), headers)


def peer_of_environ(environ: dict[str, Any]) -> Peer:
    """Return the client that *environ* names. Its address is enough: PEP 3333 and CGI know of no port.

    Of a unix socket servers say nothing, or something that is no address.
    """
    address, port = environ.get("REMOTE_ADDR", ""), environ.get("REMOTE_PORT") or ""
    try:
        ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return Peer.of(None, "")
    # in the form of IPv6, which may be an IPv4 client of a dual-stack listener
    return Peer.of((address, int(port) if port.isdecimal() else 0, 0, 0), "")
