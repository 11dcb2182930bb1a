"""What `limpet front KIND` prints: a balancer's configuration that keeps each client on its machine.

Owns what all kinds have in common: the hosts, the part of the key chain that a front can go by (`Source`), and what
makes a chain unfit for any of them. One file for each kind writes its text and refuses what it cannot say. Pure:
cli/commands.py reads the settings and prints.

1. Two clients with one key of limpet have one key of the front: the front's is the same, or a part of it. A finer one
   would tear apart on machines what limpet keeps together.
2. What a front cannot express is refused, with what can be had instead. Nothing is left out in silence: each setting is
   declared in PASSED_ON or LOOKED_AT, and one that is in neither is refused.
3. A request that may not be repeated (POST, PATCH) is sent to a second host only if the first took no connection.
4. Where TLS ends in limpet, or it serves no HTTP, the front passes on bytes (`passes_bytes`), by what it knows of a
   connection. With `--proxy-protocol required` it says who the client is in front of them, and `ip` is a key like any.
5. A key that the application makes (`affinity`, minted ids) comes too late: the first request has none. The front makes
   a cookie of its own then, before it chooses the host, and knows nothing of limpet's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final, Literal, NoReturn

from limpet.config.presets import MINTED
from limpet.config.settings import SETTINGS, Settings
from limpet.errors import SettingsError
from limpet.routing.affinity_cookie import Attributes
from limpet.routing.elements import Element, Ip
from limpet.routing.key_chain import KeyChain

KINDS: Final = ("haproxy", "nginx", "envoy", "traefik", "caddy", "kubernetes")
COOKIE: Final = "limpet_front"
IDLE_S: Final = 60
"""Seconds for which a front keeps an idle connection to a host: less than limpet does, so that limpet never closes one
that a request is just sent on."""
KEEP_ALIVE_S: Final = IDLE_S + 15
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_HEALTH: Final = re.compile(r"(?::([0-9]{1,5}))?(/[!-~]*)")
_LOCAL: Final = re.compile(r"(?:127\.|localhost:|\[::1\]:)")
_FIT: Final = re.compile(r"[!#%&'*+.^_`|~0-9A-Za-z/?()\[\]{}<>:=,@$\\-]*")


_PASSED_ON: Final = (
    "app app_dir config for_ workers place learn_idle_s on_lost interface factory loop http ws worker_class "
    "server_config threads tls_key root_path on_down dispatchers terminators user group umask name state_dir control "
    "admin_token bus backlog max_connections_per_worker queue max_pending max_copies max_head_bytes max_headers "
    "head_timeout_s key_timeout_s wait_timeout_s max_surge start_timeout_s block_warning_s hang_timeout_s max_requests "
    "max_memory_mib websocket_spread_s on_scale graceful_timeout_s reload reload_dir access_log log_format log_level "
    "log_file debug_header stash stash_size_mib"
)
PASSED_ON: Final = frozenset(_PASSED_ON.split())
"""Settings that work behind every front as they do without one. They stand in the command for the hosts."""
_LOOKED_AT: Final = (
    "bind by trust proxy_protocol affinity_cookie learn mint server tls_cert backend secret_file admin "
    "max_connections_per_address keep_alive_timeout_s"
)
LOOKED_AT: Final = frozenset(_LOOKED_AT.split())
"""Settings that a front has to express, too, or to refuse. They stand in the command for the hosts, if not refused.

A setting that is in neither is refused by every front: whoever adds one has to say here which it is.
"""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the front looks for a key; `made` is its own cookie, and the last one; `sni` is the name in TLS."""

    kind: Literal["address", "sni", "header", "cookie", "query", "path", "bearer", "made"]
    name: str = ""
    """Of the header, cookie or parameter; or the regular expression."""
    prefixes: tuple[int, int] = (32, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be written, whichever kind of front it is for."""

    kind: str
    settings: Settings
    given: Collection[str]
    """Names of the settings that were given: what is left at its default the hosts are not told."""
    command: str
    hosts: Sequence[str]
    listen: int
    health: tuple[int | None, str] | None
    """Port, None for the one that is served, and path; without it a connection has to do."""
    image: str
    sources: Sequence[Source]

    @property
    def trust(self) -> Sequence[str]:
        """Return the networks whose X-Forwarded-For is believed, in front of the front as behind it."""
        if self.is_proxied:  # `--trust` says whose PROXY headers are, and those name the front's own peer
            return []
        return [network for network in self.settings.trust if network != "unix"]

    @property
    def cookie(self) -> Attributes:
        """Return the attributes of the front's own cookie: those of `--affinity-cookie`."""
        return self.settings.cookie_attributes

    @property
    def set_cookie(self) -> str:
        """Return these attributes as Set-Cookie has them; without Secure, where they leave that to the connection."""
        given = self.cookie
        parts = [f"Path={given.path}", f"SameSite={given.same_site}"]
        parts += [f"Domain={given.domain}"] * bool(given.domain) + [f"Max-Age={given.max_age}"] * bool(given.max_age)
        parts += ["HttpOnly"] * given.http_only + ["Secure"] * bool(given.secure)
        return "; ".join(parts + ["Partitioned"] * given.partitioned)

    @property
    def makes_cookie(self) -> bool:
        """Whether the front makes a cookie of its own for clients that bring no key."""
        return any(source.kind == "made" for source in self.sources)

    def refuse_attributes(self, *names: str) -> None:
        """Raise SettingsError if the front's cookie is to have an attribute among *names*, which it cannot have."""
        given = self.cookie
        wanted = {"Domain": given.domain, "Partitioned": given.partitioned, "HttpOnly=no": not given.http_only}
        for name in names:
            if self.makes_cookie and wanted[name]:
                self.refuse(
                    f"cannot set `{name}` for its own cookie (`--affinity-cookie '{self.settings.affinity_cookie}'`)",
                    f"`--affinity-cookie` without `{name}`; `limpet front haproxy` can set all",
                )

    def spellings(self, **differ: str) -> Iterator[str]:
        """Yield a note for each key of which the front knows another spelling than limpet: *differ* says how."""
        for source in self.sources:
            if source.kind in differ:
                yield f"`{source.kind}:{source.name}`: {differ[source.kind]}"

    @property
    def is_proxied(self) -> bool:
        """Whether limpet takes connections with a PROXY header alone."""
        return self.settings.proxy_protocol == "required"

    @property
    def passes_bytes(self) -> bool:
        """Whether the front is to see no requests: TLS ends in limpet, or what it serves is not HTTP."""
        return self.settings.tls_cert is not None or self.settings.server == "stream"

    def refuse(self, what: str, instead: str) -> NoReturn:
        """Raise SettingsError: this kind of front cannot do *what*, which names a flag or else is about `--by`."""
        what += f" (`--by {self.settings.by}`)" * ("`--" not in what)
        raise SettingsError(f"{self.kind} {what}", hint=instead)

    def refuse_learning(self) -> None:
        """Raise SettingsError if ids are to be learned: only a front that reads responses can."""
        if self.settings.learn:
            self.refuse(
                f"cannot learn which host made an id (`--learn {','.join(self.settings.learn)}`)",
                "`limpet front haproxy` can; or let clients bring a key of their own: `--by cookie:user`",
            )

    def refuse_bearer(self) -> None:
        """Raise SettingsError if the key is a bearer token: what is printed for this one takes values as they are."""
        if any(source.kind == "bearer" for source in self.sources):
            self.refuse(
                "cannot take a bearer token out of where clients send it (`--by bearer`)",
                "`limpet front haproxy` can; or let clients bring the token as it is: `--by header:x-token`",
            )

    def refuse_bytes(self) -> None:
        """Raise SettingsError if the front is to pass on bytes: what is printed for this one reads requests."""
        if self.passes_bytes:
            what = "`--tls-cert`" if self.settings.tls_cert else "`--server stream`"
            self.refuse(
                f"is configured here for HTTP, and {what} has it pass on bytes that it cannot read",
                "`limpet front haproxy` can; or let TLS end in the front: no `--tls-cert` here and for `limpet run`",
            )

    def refuse_proxy_headers(self) -> None:
        """Raise SettingsError if limpet waits for PROXY headers: this front sends none with HTTP."""
        if self.is_proxied:
            self.refuse(
                "sends no PROXY header with HTTP (`--proxy-protocol required`)",
                "`limpet front haproxy` does; or X-Forwarded-For: `--by forwarded --trust ADDRESS_OF_THE_FRONT`",
            )

    def refuse_all_but_whole_keys(self) -> None:
        """Raise SettingsError for what a front cannot that hashes what is in a request as it stands."""
        self.refuse_bytes()
        self.refuse_learning()
        self.refuse_bearer()
        for source in self.sources:
            if source.kind == "sni":
                self.refuse("has no key by the name in TLS (`sni`)", "`limpet front haproxy` has")
        self._refuse_parts_of_addresses()

    def _refuse_parts_of_addresses(self) -> None:
        for source in self.sources:
            if source.kind == "address" and source.prefixes != (32, 128):
                self.refuse(
                    f"hashes whole addresses, and `{self.settings.by}` takes the first {source.prefixes[0]} bits of "
                    f"IPv4 and {source.prefixes[1]} of IPv6",
                    f"`--by {'ip' if self.is_proxied else 'forwarded'}/32/128` here and for `limpet run`; "
                    "`limpet front haproxy` can cut them",
                )

    def only(self, *kinds: str, can: str) -> Source:
        """Return the one source there is. Raises SettingsError unless its kind is among *kinds*: *can* says which."""
        if len(self.sources) != 1 or self.sources[0].kind not in kinds:
            self.refuse(f"can keep a client by {can}, not by `{self.settings.by}`", "`limpet front haproxy` can")
        return self.sources[0]

    def head(self, notes: Sequence[str]) -> str:
        """Return the lines on top: what made this, what the hosts have to be told, what the operator should know."""
        return "\n".join(f"# {line}" for line in (f"Made by: {self.command}", *self._run(), *notes))

    def _run(self) -> Iterator[str]:
        if self.hosts:
            yield "On every host, with the same secret, so that a client has the same slot wherever it comes to:"
            yield f"  {shlex.join(self.run(bind=self._bind()))}"

    def run(self, **instead: object) -> list[str]:
        """Return the command that each host is started with: all that was given, and what the front needs of it.

        *instead* has what stands there in place of what was given; None leaves a setting out.
        """
        values = {name: getattr(self.settings, name) for name in self.given}
        values = {"keep_alive_timeout_s": KEEP_ALIVE_S, "secret_file": "FILE", "by": self.settings.by} | values
        values |= {"config": None, "for_": None} | instead  # what these two set is written out
        return ["limpet", "run", self.settings.app, *_words(values)]

    def _bind(self) -> object:
        """Return what the hosts bind. Raises SettingsError where that is not what the front sends clients to."""
        ports = {_port(host) for host in self.hosts}
        if "bind" not in self.given:
            return f":{ports.pop() if len(ports) == 1 else 'PORT'}"
        is_local = all(_LOCAL.match(host) for host in self.hosts)
        for bind in self.settings.served:
            address, _, port = bind.address.rpartition(":")
            if ports == {int(port) if port.isdecimal() else 0} and (is_local or not _LOCAL.match(f"{address}:")):
                break
        else:
            self.refuse(
                f"sends clients to {','.join(self.hosts)}, and `--bind {','.join(self.settings.bind)}` is not there",
                f"`--bind :{next(iter(ports))}`, or `--hosts` with the port that it serves",
            )
        return self.settings.bind

    def _refuse_own_flags(self, listen: int | None, health: str | None, image: str | None) -> None:
        """Raise SettingsError for a flag of `limpet front` that means nothing for this kind."""
        if image is not None and self.kind != "kubernetes":
            self.refuse("runs no pods, so it has no `--image`", "leave it out; `limpet front kubernetes` has one")
        if listen is not None and self.kind == "kubernetes":
            self.refuse("listens where the Ingress does, not at `--listen`", "leave it out")
        if health is not None and (self.kind == "nginx" or (self.kind == "caddy" and self.is_proxied)):
            self.refuse(
                "asks no host whether it is ready (`--health`)" + " where it sends PROXY headers" * self.is_proxied,
                "leave it out: what fails tells it; `limpet front haproxy` asks",
            )

    def _refuse_what_no_front_can(self) -> None:
        """Raise SettingsError for what the hosts could be told, and would not work behind a front."""
        settings = self.settings
        for each in SETTINGS:
            if each.name in self.given and each.name not in PASSED_ON | LOOKED_AT:
                self.refuse(f"does not know what `{each.flag}` means for it", "leave it out; please report this")
        if settings.backend == "kernel":
            self.refuse(
                "is the only address that the kernel sees, so `--backend kernel` has everybody on one worker",
                "`--backend auto`, or leave it out",
            )
        if settings.max_connections_per_address and not self.is_proxied:
            self.refuse(
                "is the address of all connections, so `--max-connections-per-address` limits everybody together",
                "leave it out; or `--proxy-protocol required`, where the front can",
            )
        if "keep_alive_timeout_s" in self.given and settings.keep_alive_timeout_s < KEEP_ALIVE_S:
            self.refuse(
                f"keeps idle connections for {IDLE_S} s, and `--keep-alive-timeout {settings.keep_alive_timeout_s:g}` "
                "ends them under its requests",
                f"`--keep-alive-timeout {KEEP_ALIVE_S}`, or leave it out",
            )
        if {each.by for each in settings.served} | {settings.by} != {settings.by}:
            self.refuse("goes by one key chain, and `--bind` has others", "a front of its own for each of them")


def _words(values: Mapping[str, object]) -> Iterator[str]:
    """Yield *values* as flags of `limpet run`, in the order in which settings are documented."""
    for each in SETTINGS:
        value = values.get(each.name)
        if each.name == "app" or value is None or value == ():
            continue
        if isinstance(value, bool):
            yield each.flag if value else f"--no-{each.key}"
        else:
            yield each.flag
            yield (
                ",".join(value)
                if isinstance(value, tuple)
                else f"{value:.12g}"
                if isinstance(value, float)
                else f"{value}"
            )


def configuration(
    kind: str,
    settings: Settings,
    hosts: str,
    *,
    given: Collection[str] | None = None,
    listen: int | None = None,
    health: str | None = None,
    image: str | None = None,
    command: str = "limpet front",
) -> str:
    """Return the configuration of a front of *kind* before *hosts*, comma-separated. Raises SettingsError.

    *given* names the settings that were given; without it these are all that are not what they are by default.
    """
    if kind not in KINDS:
        raise SettingsError(
            f"there is no front `{kind}`: {', '.join(KINDS)} are allowed", hint="`limpet front haproxy`"
        )
    try:
        sources = list(_sources(settings))
    except SettingsError as error:
        raise SettingsError(f"{kind}, `--by {settings.by}`: {error.message}", hint=error.hint) from None
    plan = Plan(
        kind=kind,
        settings=settings,
        given=frozenset(_changed(settings) if given is None else given),
        command=command,
        hosts=list(_hosts(hosts, is_needed=kind != "kubernetes")),
        listen=listen or 80,
        health=_health(health, settings),
        image=image or "IMAGE",
        sources=sources,
    )
    plan._refuse_own_flags(listen, health, image)
    plan._refuse_what_no_front_can()
    if plan.passes_bytes and (unread := [each for each in plan.sources if each.kind not in ("address", "sni")]):
        what = "`--tls-cert`" if settings.tls_cert else "`--server stream`"
        plan.refuse(
            f"cannot read requests with {what}, so it has no `{unread[0].kind}` to go by (`--by {settings.by}`)",
            "`--by sni,ip --proxy-protocol required`; or let TLS end in the front, without `--tls-cert`",
        )
    text: str = import_module(f"limpet.fronts.{kind}").write(plan)
    return text


def _changed(settings: Settings) -> Iterator[str]:
    """Yield the names of all settings that are not what they are by default."""
    default = Settings(app=settings.app)
    return (each.name for each in SETTINGS if getattr(settings, each.name) != getattr(default, each.name))


def _hosts(text: str, is_needed: bool) -> Iterator[str]:
    hint = "`--hosts 10.0.0.1:8000,10.0.0.2:8000`"
    hosts = [host.strip() for host in text.split(",") if host.strip()]
    if is_needed and not hosts:
        raise SettingsError("a front needs hosts to send clients to", hint=hint)
    for host in hosts:
        match = _HOST.fullmatch(host)
        if not match or not 1 <= int(match[1]) <= 65_535:
            raise SettingsError(f"`{host}` is not HOST:PORT", hint=hint)
        if hosts.count(host) > 1:
            raise SettingsError(f"`{host}` stands twice among the hosts", hint=hint)
        yield host


def _port(host: str) -> int:
    return int(host.rpartition(":")[2])


def _health(text: str | None, settings: Settings) -> tuple[int | None, str] | None:
    if text is None:
        admin = settings.admin or ""
        is_reachable = not re.match(r"unix:|fd:|127\.|localhost:|\[::1\]", admin)
        return (_port(admin), "/ready") if admin and is_reachable else None
    match = _HEALTH.fullmatch(text)
    if not match:
        raise SettingsError(f"`{text}` is not a path, nor a port and a path", hint="`--health :9000/ready`")
    return int(match[1]) if match[1] else None, match[2]


def _sources(settings: Settings) -> Iterator[Source]:
    """Yield what the front can go by, in the order of the chain. Raises SettingsError for what no front can."""
    if "app" in settings.learn:
        raise SettingsError(
            "no front can know ids of which only the application knows (`--learn app`)",
            hint="`--learn header:NAME` or `cookie:NAME`, where responses show them",
        )
    chain = KeyChain.parse(settings.by, settings.trusted)
    for element in chain.elements:
        source = _source(element, settings)
        yield source
        if source.kind in ("made", "address"):  # there always is one
            return


def _source(element: Element, settings: Settings) -> Source:
    kind, _, name = element.spec.partition(":")
    if kind == "affinity" or element.spec == MINTED.get(settings.mint):
        return Source("made")
    if kind == "python":
        raise SettingsError(
            f"`{element.spec}` runs in limpet, and no front can ask it",
            hint="`--by header:x-user`, with a front or a service before it that sets the header",
        )
    if kind == "sni":
        if not (settings.tls_cert or settings.proxy_protocol == "required"):
            raise SettingsError(
                "`sni` is the name in TLS, and behind a front that ends TLS limpet is not told it",
                hint="`--proxy-protocol required`, or `--tls-cert cert.pem`: the front passes TLS on",
            )
        return Source("sni")
    if isinstance(element, Ip):
        return _address(element, settings)
    if kind == "bearer":
        return Source("bearer")
    if not _FIT.fullmatch(name):
        raise SettingsError(
            f"`{element.spec}` has blanks, quotes or other characters that configurations read in ways of their own",
            hint="`\\s` is a blank and `\\x22` a quote in a regular expression",
        )
    kinds: Mapping[str, Literal["header", "cookie", "query", "path"]]
    kinds = {"header": "header", "cookie": "cookie", "query": "query", "path": "path"}
    return Source(kinds[kind], name)


def _address(element: Ip, settings: Settings) -> Source:
    is_proxied = settings.proxy_protocol == "required"
    if element.kind == "ip" and is_proxied:
        return Source("address", prefixes=element.prefixes)
    if is_proxied:
        raise SettingsError(
            "`forwarded` with `--proxy-protocol required`: the front's PROXY header says already who the client is",
            hint="`--by ip --proxy-protocol required`; or `--by forwarded` alone",
        )
    if element.kind == "ip":
        raise SettingsError(
            "behind a front `ip` is the address of the front: everybody would be on one worker",
            hint="`--by forwarded --trust ADDRESS_OF_THE_FRONT` takes the client's, which the front passes on; or "
            "`--proxy-protocol required`",
        )
    if not settings.trust:
        raise SettingsError(
            "`forwarded` believes nobody without `--trust`, so it would take the address of the front",
            hint="`--trust 10.0.0.0/8` with the networks of the front, and of the proxies before it",
        )
    return Source("address", prefixes=element.prefixes)
