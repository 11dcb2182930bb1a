"""Which settings do not go together: one table for all that can be said before a worker starts, one for the rest.

Owns the predicates, the messages and the hints. A setting's own value is checked where it is declared (settings.py); a
row here compares settings with each other, with the key chain and with what the server can do. Called by net/backend.py
before anything starts, by workers and by `limpet check`.

1. A row that needs key functions to be loaded belongs to `ONCE_LOADED`: what a function looks at is known only then.
2. A message says what was found, a hint what to type instead.
3. What the kernel backend cannot do is no mistake while `--backend` is `auto`: those rows are `NOT_IN_KERNEL`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from limpet.config.bind import Bind, Served
from limpet.config.server_kinds import ASGI_CLASSES, ON_TRIO, interface, kind
from limpet.config.settings import Settings
from limpet.errors import BackendError, SettingsError
from limpet.routing.key_chain import KeyChain


@dataclass(frozen=True, slots=True)
class Conflict:
    """Settings that do not go together."""

    found: Callable[[Settings, KeyChain], object]
    """Returns what is wrong, for the message to name, or something false."""
    message: str
    """May use `{settings}`, `{chain}` and `{found}`."""
    hint: str

    def text(self, settings: Settings, chain: KeyChain, found: object) -> tuple[str, str]:
        """Return message and hint for what *found* names."""
        values = {"settings": settings, "chain": chain, "found": found}
        return self.message.format(**values), self.hint.format(**values)


def _odd_bind(settings: Settings, _: KeyChain) -> Served | None:
    """Return a bind that serves what the server cannot serve beside the rest."""
    for each in settings.served:
        alike = (each.app, each.by, each.server) == (settings.app, settings.by, settings.server)
        if not (alike or (settings.server == "uvicorn" and each.server in ("uvicorn", "stream"))):
            return each
    return None


def _is_deaf(settings: Settings, _: KeyChain) -> bool:
    """Return whether applications would see the proxy where connections begin with a PROXY header."""
    if not settings.takes_headers:
        return False
    hears = kind(settings.server).hears
    is_deaf = settings.loop == "trio" or settings.worker_class in ("gevent", *ASGI_CLASSES)
    is_mixed = any(each.proxy_protocol == "required" and each.server != settings.server for each in settings.served)
    return hears == "never" or is_deaf or is_mixed or (hears == "asyncio" and settings.loop == "uvloop")


def _has_no_responses(settings: Settings, chain: KeyChain) -> bool:
    """Return whether sessions are to be kept by looking into responses of a server that shows none."""
    asks = chain.has_affinity or settings.learn or settings.on_lost == "refuse"
    return (
        bool(asks)
        and kind(settings.server).http
        and interface(settings.server, settings.worker_class) not in ("asgi", "wsgi")
    )


AT_START: Final[Sequence[Conflict]] = (
    Conflict(
        lambda settings, _: settings.server_config is not None and settings.server != "gunicorn",
        "`--server-config {settings.server_config}` is for gunicorn, and the server is `{settings.server}`",
        "`--server gunicorn`",
    ),
    Conflict(
        _odd_bind,
        "the bind `{found}` differs from what `--server {settings.server}` serves elsewhere, and only uvicorn serves "
        "several applications, or by several key chains, in one worker",
        "`--server uvicorn`, or a server of its own for each",
    ),
    Conflict(
        lambda settings, _: (
            settings.max_connections_per_address and any(each.server != "uvicorn" for each in settings.served)
        ),
        "`--max-connections-per-address` needs a worker that counts its clients, and only uvicorn does",
        "`--server uvicorn`, or a limit in what stands in front",
    ),
    Conflict(
        lambda settings, _: settings.server == "uvicorn" and all(each.server == "stream" for each in settings.served),
        "all binds are of `server=stream`",
        "`--server stream` for all of them",
    ),
    Conflict(
        lambda settings, _: settings.takes_headers and not settings.trust,
        "`--proxy-protocol required` without `--trust`: nobody could connect",
        "`--trust 10.0.0.0/8` names the proxies; `--trust unix` those on a unix socket",
    ),
    Conflict(
        _is_deaf,
        "`--proxy-protocol required`: what serves here, or its event loop, would show applications the proxy, not the "
        "client",
        "`--server uvicorn`, `--loop auto` and the usual `--worker-class`; streams need a server of their own",
    ),
    Conflict(
        lambda settings, chain: settings.tls_cert is None and chain.needs_server_name and not settings.takes_headers,
        "`sni` in the key chain, and no TLS: there is no server name",
        "`--tls-cert cert.pem --tls-key key.pem`, or a proxy that tells it: `--proxy-protocol required`",
    ),
    Conflict(
        lambda settings, _: settings.tls_cert is not None and settings.server != "uvicorn",
        "`--tls-cert` with `--server {settings.server}`: TLS is for workers of uvicorn alone",
        "`--server uvicorn`; or nginx or HAProxy in front: docs/behind-a-proxy.md",
    ),
    Conflict(
        lambda settings, chain: (
            settings.tls_cert is not None
            and chain.needs_head
            and any(each.server == "stream" for each in settings.served)
        ),
        "`--tls-cert` with `--by {chain.spec}` and a bind of `server=stream`: TLS ends before the workers, and streams "
        "would not be told who the client is",
        "a server of its own for the streams, of the same `--name`",
    ),
    Conflict(
        lambda settings, chain: settings.learn and not chain.needs_head,
        "`--learn` remembers ids that requests bring, and the key chain `{chain.spec}` looks for none",
        "`--by header:mcp-session-id,affinity --learn header:mcp-session-id`",
    ),
    Conflict(
        _has_no_responses,
        "`--by affinity`, `--learn` and `--on-lost` look into responses; `--server {settings.server}` has none",
        "`--server uvicorn` serves ASGI and WSGI applications",
    ),
)
"""Found before anything is started. Key functions are not loaded: each counts as one that looks into requests."""

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
        "the key chain `{found[0]}` looks into requests, and `--server {found[1]}` serves connections of any protocol",
        "`--by ip`, or `--by python:module:function` with a function of a `limpet.Peer`",
    ),
)
"""Found in a worker, and by `limpet check`."""

NOT_IN_KERNEL: Final[Sequence[Conflict]] = (
    Conflict(
        lambda settings, _: next((text for text in settings.bind if Bind.parse(text).kind != "tcp"), None),
        "`--bind {found}` is no address of its own: the kernel needs one listener for each slot",
        "`--backend dispatcher` takes every bind; `--bind 127.0.0.1:8000` is an address",
    ),
    Conflict(
        lambda settings, _: settings.takes_headers,
        "`--proxy-protocol required`: addresses are in what is sent, and the kernel sees those of packets alone",
        "leave `--backend` to `auto`, or `--backend dispatcher`",
    ),
    Conflict(
        lambda settings, _: settings.max_connections_per_worker,
        "`--max-connections-per-worker` needs somebody who counts, and the kernel places by address alone",
        "leave it out, or `--backend dispatcher`",
    ),
    Conflict(
        lambda settings, _: settings.on_down == "refuse",
        "`--on-down refuse` asks for an answer, and the kernel gives none",
        "`--on-down wait` or `failover`, or `--backend dispatcher`",
    ),
    Conflict(
        lambda settings, _: settings.dispatchers > 1,
        "`--dispatchers {settings.dispatchers}` asks for dispatchers, and the kernel backend has none",
        "leave out `--dispatchers`, or `--backend dispatcher`",
    ),
)
"""What the kernel backend cannot do."""


def refuse(settings: Settings, chain: KeyChain, *, is_loaded: bool = False) -> None:
    """Raise SettingsError for the first conflict; *is_loaded* says that the functions of *chain* are loaded."""
    if (first := _first((*AT_START, *(ONCE_LOADED if is_loaded else ())), settings, chain)) is not None:
        raise SettingsError(first[0], hint=first[1])


def refuse_kernel(settings: Settings, chain: KeyChain) -> None:
    """Raise BackendError if *settings* ask for what the kernel backend cannot do."""
    if (first := _first(NOT_IN_KERNEL, settings, chain)) is not None:
        raise BackendError(first[0], hint=first[1])


def _first(table: Sequence[Conflict], settings: Settings, chain: KeyChain) -> tuple[str, str] | None:
    for conflict in table:
        if found := conflict.found(settings, chain):
            return conflict.text(settings, chain, found)
    return None
