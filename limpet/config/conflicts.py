"""Which settings cannot be combined: a table of what can be found before a worker starts, and a table of the rest.

Owns the conditions, the messages and the hints. A setting's own value is checked where it is declared (settings.py). A
row here compares settings with each other, with the key chain and with what the server can do. net/backend.py calls it
before anything starts; workers and `limpet check` call it, too.

1. A row that needs loaded key functions belongs to `ONCE_LOADED`: only then is it known what a function looks at.
2. A message says what was found; a hint says what to type instead.
3. What the kernel backend cannot do is not a mistake while `--backend` is `auto`. Those rows are in `NOT_IN_KERNEL`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from limpet.config.bind import Served
from limpet.config.server_kinds import ASGI_CLASSES, ON_TRIO, interface, kind
from limpet.config.settings import Settings
from limpet.errors import BackendError, SettingsError
from limpet.routing.key_chain import KeyChain


@dataclass(frozen=True, slots=True)
class Conflict:
    """Settings that cannot be combined."""

    found: Callable[[Settings, KeyChain], object]
    """Return what is wrong, for the message to name, or a false value."""
    message: str
    """May use `{settings}`, `{chain}` and `{found}`."""
    hint: str

    def text(self, settings: Settings, chain: KeyChain, found: object) -> tuple[str, str]:
        """Return the message and the hint for *found*, which the condition returned."""
        values = {"settings": settings, "chain": chain, "found": found}
        return self.message.format(**values), self.hint.format(**values)


def _odd_bind(settings: Settings, _: KeyChain) -> Served | None:
    """Return a bind that the server cannot serve beside the others, or None."""
    for each in settings.served:
        alike = (each.app, each.by, each.server) == (settings.app, settings.by, settings.server)
        if not (alike or (settings.server == "uvicorn" and each.server in ("uvicorn", "stream"))):
            return each
    return None


def _is_deaf(settings: Settings, _: KeyChain) -> bool:
    """Return whether connections have a PROXY header, and applications would still see the proxy, not the client."""
    if not settings.takes_headers:
        return False
    hears = kind(settings.server).hears
    is_deaf = settings.loop == "trio" or settings.worker_class in ("gevent", *ASGI_CLASSES)
    is_mixed = any(each.proxy_protocol == "required" and each.server != settings.server for each in settings.served)
    return hears == "never" or is_deaf or is_mixed or (hears == "asyncio" and settings.loop == "uvloop")


def _has_no_responses(settings: Settings, chain: KeyChain) -> bool:
    """Return whether sessions need to look into responses, and the server shows none."""
    asks = chain.has_affinity or settings.learn or settings.on_lost == "refuse"
    return (
        bool(asks)
        and kind(settings.server).http
        and interface(settings.server, settings.worker_class) not in ("asgi", "wsgi")
    )


AT_START: Final[Sequence[Conflict]] = (
    Conflict(
        lambda settings, _: settings.server_config is not None and settings.server != "gunicorn",
        "`--server-config {settings.server_config}` works only with gunicorn, and the server is `{settings.server}`",
        "`--server gunicorn`",
    ),
    Conflict(
        _odd_bind,
        "the bind `{found}` differs from the others in its application, key chain or server, and "
        "`--server {settings.server}` cannot serve both in one worker",
        "`--server uvicorn` can serve several applications, by several key chains; or start a separate server for each",
    ),
    Conflict(
        lambda settings, _: (
            settings.max_connections_per_address and any(each.server != "uvicorn" for each in settings.served)
        ),
        "`--max-connections-per-address` works only with uvicorn: workers of other servers do not count their clients",
        "`--server uvicorn`, or set a limit in the proxy in front",
    ),
    Conflict(
        lambda settings, _: settings.server == "uvicorn" and all(each.server == "stream" for each in settings.served),
        "all binds have `server=stream`",
        "`--server stream` sets it for all of them",
    ),
    Conflict(
        lambda settings, _: settings.takes_headers and not settings.trust,
        "`--proxy-protocol required` without `--trust`: no client could connect",
        "`--trust 10.0.0.0/8` names the proxies; `--trust unix` trusts those on a unix socket",
    ),
    Conflict(
        _is_deaf,
        "`--proxy-protocol required`: with this server or event loop, applications would see the proxy instead of the "
        "client",
        "`--server uvicorn`, `--loop auto` and the default `--worker-class`; streams need a separate server",
    ),
    Conflict(
        lambda settings, chain: settings.tls_cert is None and chain.needs_server_name and not settings.takes_headers,
        "`sni` is in the key chain, but without TLS there is no server name",
        "`--tls-cert cert.pem --tls-key key.pem`; or `--proxy-protocol required` with a proxy that sends the name",
    ),
    Conflict(
        lambda settings, _: settings.tls_cert is not None and settings.server != "uvicorn",
        "`--tls-cert` works only with uvicorn, and the server is `{settings.server}`",
        "`--server uvicorn`; or end TLS in nginx or HAProxy: docs/behind-a-proxy.md",
    ),
    Conflict(
        lambda settings, chain: (
            settings.tls_cert is not None
            and chain.needs_head
            and any(each.server == "stream" for each in settings.served)
        ),
        "`--tls-cert` with `--by {chain.spec}` and a bind with `server=stream`: TLS ends before the workers, and "
        "streams would not know the client's address",
        "start a separate server for the streams, with the same `--name`",
    ),
    Conflict(
        lambda settings, chain: settings.learn and not chain.needs_head,
        "`--learn` remembers ids in requests, but the key chain `{chain.spec}` does not look into requests",
        "`--by header:mcp-session-id,affinity --learn header:mcp-session-id`",
    ),
    Conflict(
        _has_no_responses,
        "`--by affinity`, `--learn` and `--on-lost` need to see responses, and `--server {settings.server}` shows none",
        "`--server uvicorn` serves ASGI and WSGI applications",
    ),
)
"""Found before anything starts. Key functions are not loaded yet, so each counts as one that looks into requests."""

ONCE_LOADED: Final[Sequence[Conflict]] = (
    Conflict(
        lambda settings, _: next(
            (each.server for each in settings.served if settings.loop == "trio" and each.server not in ON_TRIO), None
        ),
        "`--server {found}` does not run on trio",
        "`--loop auto`; " + ", ".join(f"`--server {name}`" for name in sorted(ON_TRIO)) + " do",
    ),
    Conflict(
        lambda settings, chain: next(
            (
                (chain.at(bind).spec, each.server)
                for bind, each in enumerate(settings.served)
                if chain.at(bind).needs_head and not kind(each.server).http
            ),
            None,
        ),
        "the key chain `{found[0]}` looks into requests, but `--server {found[1]}` serves connections of any protocol",
        "`--by ip`; or `--by python:module:function` with a function that takes a `limpet.Peer`",
    ),
)
"""Found in a worker and by `limpet check`, which have loaded the key functions."""

NOT_IN_KERNEL: Final[Sequence[Conflict]] = (
    Conflict(
        lambda settings, _: next((each.text for each in settings.addresses if each.kind != "tcp"), None),
        "`--bind {found}` is not a TCP address, and the kernel backend needs one listener for each slot",
        "`--backend dispatcher` works with every bind; or `--bind 127.0.0.1:8000`",
    ),
    Conflict(
        lambda settings, _: settings.takes_headers,
        "`--proxy-protocol required`: the client's address is in the PROXY header, which the kernel cannot read",
        "leave out `--backend`, or `--backend dispatcher`",
    ),
    Conflict(
        lambda settings, _: settings.max_connections_per_worker,
        "`--max-connections-per-worker`: the kernel backend counts no connections, it places clients by their address",
        "leave it out, or `--backend dispatcher`",
    ),
    Conflict(
        lambda settings, _: settings.on_down == "refuse",
        "`--on-down refuse` needs an answer to the client, and the kernel backend sends none",
        "`--on-down wait` or `failover`, or `--backend dispatcher`",
    ),
    Conflict(
        lambda settings, _: settings.dispatchers > 1,
        "`--dispatchers {settings.dispatchers}`: the kernel backend has no dispatchers",
        "leave out `--dispatchers`, or `--backend dispatcher`",
    ),
)
"""What the kernel backend cannot do."""


def refuse(settings: Settings, chain: KeyChain, *, is_loaded: bool = False) -> None:
    """Raise SettingsError for the first conflict. *is_loaded* says whether the functions of *chain* are loaded."""
    if (first := _first((*AT_START, *(ONCE_LOADED if is_loaded else ())), settings, chain)) is not None:
        raise SettingsError(first[0], hint=first[1])


def refuse_kernel(settings: Settings, chain: KeyChain) -> None:
    """Raise BackendError if *settings* need something that the kernel backend cannot do."""
    if (first := _first(NOT_IN_KERNEL, settings, chain)) is not None:
        raise BackendError(first[0], hint=first[1])


def _first(table: Sequence[Conflict], settings: Settings, chain: KeyChain) -> tuple[str, str] | None:
    for conflict in table:
        if found := conflict.found(settings, chain):
            return conflict.text(settings, chain, found)
    return None
