"""Every setting of limpet, declared once.

Owns all settings. A field of `Settings` is the only declaration of a setting: config/fields.py makes from it the flag,
the `LIMPET_*` variable, the key in a TOML file, the line in `limpet run --help` and the row in docs/settings.md.
cli/commands.py and embed/cluster.py pass in what was given. The supervisor gets a `Settings`, and its children get it
as JSON. This file does not know what an address or a key chain looks like: config/checks.py asks the files that do.

1. The order is: command line, environment, the file of `--config`, the preset of `--for`, the default. The first one
   that has a value wins. All values are checked: a mistake in a value that is overridden is still an error.
2. The children trust the JSON and check nothing again.

If you change this, also run: python -m tools.docs.settings_page > docs/settings.md. A new setting must also be named in
PASSED_ON or LOOKED_AT of fronts/__init__.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from limpet.config import checks
from limpet.config.bind import Bind, Served, served
from limpet.config.fields import Setting, declared, setting
from limpet.errors import SettingsError, reason
from limpet.system import activation

if TYPE_CHECKING:  # at run time imported where they are used: `limpet status` needs none of them
    from limpet.config.learn_source import Source
    from limpet.routing.affinity_cookie import Attributes
    from limpet.routing.forwarded import Trust

DAY_S = 86_400
"""The longest time, in seconds. Every wait must end, and a value above a day was most likely meant in another unit."""

MAX_WORKERS = 256
"""One for each possible slot; each slot then owns four of the 1024 buckets."""

MAX_HEAD_BYTES = 65_536
"""The largest request head, in bytes. Heads are read by peeking, so a head must fit into the receive buffer of its
socket, of which about 117 KiB can be peeked at by default."""


def usable_cpus(cgroups: str = "/sys/fs/cgroup") -> int:
    """Return how many CPUs this process may use: those it may run on, or fewer if its cgroup has a smaller quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no cgroup of version 2, or it has no quota: `max 100000`
        own = Path("/proc/self/cgroup").read_text().partition("0::")[2].partition("\n")[0]
        quota, period = Path(f"{cgroups}{own}/cpu.max").read_text().split()
        cpus = min(cpus, math.ceil(int(quota) / int(period)))
    return min(cpus, MAX_WORKERS)


def default_binds() -> tuple[str, ...]:
    """Return what to serve if no bind is given."""
    return activation.binds() or ("127.0.0.1:8000",)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one server was told to do. What a text means is parsed at the first access, and kept."""

    app: str = setting("the application to serve, as module:attribute", metavar="APP", check=checks.app)
    app_dir: tuple[str, ...] = setting(
        "directories that are searched first for APP and key functions",
        (),
        shown="the current directory",
        metavar="DIRECTORY",
    )
    config: str | None = setting("TOML file with settings", None, metavar="FILE", in_file=False)

    for_: str | None = setting(
        "product that the application uses: a preset of the settings that its sessions need; settings that you give "
        "override it. `limpet presets` lists all",
        None,
        metavar="PRESET",
        check=checks.preset,
    )
    bind: tuple[str, ...] = setting(
        "where to listen: HOST:PORT, :PORT for every address, unix:PATH, fd:N for an inherited socket, or fd:NAME for "
        "a socket that the service manager passes under that name. ADDRESS=APP serves another application there",
        default_binds,
        shown="the sockets that the service manager passes (LISTEN_FDS), else `127.0.0.1:8000`",
        metavar="ADDRESS",
        check=checks.bind,
    )
    workers: int = setting(
        "number of worker processes",
        usable_cpus,
        shown="`WEB_CONCURRENCY`, else the CPUs this process may use",
        low=1,
        high=MAX_WORKERS,
        platform_variable="WEB_CONCURRENCY",
    )
    by: str = setting(
        "key chain: where to look for the key of a client, in this order, until one is found. Elements: ip, ip/24, "
        "ip/24/64, forwarded, header:NAME, cookie:NAME, query:NAME, path:REGEX, bearer, affinity, sni, "
        "python:module:function",
        "ip",
        metavar="CHAIN",
        check=checks.by,
    )
    trust: tuple[str, ...] = setting(
        "proxies whose X-Forwarded-For, Forwarded or PROXY header is trusted: addresses, networks, or unix",
        (),
        shown="none",
        metavar="CIDR,...",
        check=checks.trust,
    )
    proxy_protocol: Literal["off", "required"] = setting(
        "required: each connection must begin with a PROXY header, which names the client, and only proxies in "
        "`--trust` may connect. For one bind: ADDRESS?proxy-protocol=required",
        "off",
    )
    place: Literal["least", "hash", "random"] = setting(
        "where a client without a key goes: to the slot with the fewest connections, by a hash of its address, or at "
        "random",
        "least",
    )
    affinity_cookie: str = setting(
        "attributes of the cookie of `--by affinity`, written as in Set-Cookie, and Max-Idle=SECONDS. Attributes that "
        "you leave out keep their defaults; Secure is set automatically with https",
        "Path=/; HttpOnly; SameSite=Lax",
        metavar="ATTRIBUTES",
        check=checks.affinity_cookie,
    )
    learn: tuple[str, ...] = setting(
        "where responses carry ids that limpet should remember together with the worker that made them: header:NAME, "
        "cookie:NAME, or location:REGEX, whose first group is the id. With app, the application calls limpet.learn",
        (),
        metavar="WHERE",
        check=checks.learn,
    )
    learn_idle_s: float = setting(
        "time after which a learned id that is not used is forgotten", DAY_S, low=1, high=30 * DAY_S
    )
    mint: Literal["none", "socketio", "gradio", "mcp"] = setting(
        "library whose session ids are generated so that they route to the worker that made them. socketio: "
        "python-socketio and Flask-SocketIO; put query:sid into the key chain. gradio: the events of Gradio. mcp: the "
        "sessions of MCP by SSE; put query:session_id into the key chain; all workers also get one key, by which the "
        "SDK of MCP seals requestState",
        "none",
    )
    on_lost: Literal["serve", "refuse"] = setting(
        "what happens to a request with a learned id whose worker is gone. serve: the slot's next worker serves it; "
        "refuse: it gets 410, or 404 if the key is header:mcp-session-id",
        "serve",
    )

    server: str = setting(
        "server that runs the application in each worker: a name from docs/servers.md, an installed entry point, or "
        "module:function for your own adapter",
        "uvicorn",
        metavar="SERVER",
        check=checks.server,
    )
    interface: Literal["auto", "asgi", "wsgi"] = setting("interface of the application", "auto")
    factory: bool = setting("APP is a function that returns the application", False)
    loop: Literal["auto", "uvloop", "asyncio", "trio"] = setting(
        "event loop of the workers; trio for hypercorn and anyio", "auto"
    )
    http: Literal["httptools", "h11"] = setting("HTTP parser of the workers", "httptools")
    ws: Literal["auto", "none", "websockets", "websockets-sansio", "wsproto"] = setting(
        "websocket library of the workers", "auto"
    )
    worker_class: Literal["gthread", "sync", "gevent", "asgi", "uvicorn-worker"] = setting(
        "worker class of gunicorn; the last two serve ASGI", "gthread"
    )
    server_config: str | None = setting(
        "gunicorn's own settings file, such as `gunicorn.conf.py`; its settings for workers are used",
        None,
        metavar="FILE",
    )
    threads: int = setting(
        "how many requests of a WSGI application a worker serves at the same time. With 1, all requests run in one "
        "thread",
        32,
        low=1,
        high=1024,
    )
    tls_cert: str | None = setting(
        "file with the certificate and its chain; turns TLS on. TLS ends in the workers, or in terminators if the key "
        "chain looks into requests. A reload reads the file again",
        None,
        metavar="FILE",
    )
    tls_key: str | None = setting(
        "file with the private key of the certificate", None, shown="in the file of `--tls-cert`", metavar="FILE"
    )
    root_path: str = setting("path under which a proxy serves the application", "", metavar="PATH")

    backend: Literal["auto", "kernel", "dispatcher"] = setting(
        "how connections get to the workers. auto: kernel if the key chain is only ip and the system supports it, else "
        "dispatcher",
        "auto",
    )
    on_down: Literal["wait", "failover", "refuse"] = setting(
        "what happens to clients while their slot has no ready worker. wait: they wait for the next worker, and after "
        "`--wait-timeout` go to another slot until it is there; failover: they go there at once; refuse: they get 503",
        "wait",
    )
    dispatchers: int = setting("number of dispatcher processes", 1, low=1, high=16)
    terminators: int = setting(
        "number of processes that end TLS if the key chain looks into requests", 1, low=1, high=16
    )
    user: str | None = setting(
        "user, by name or number, that workers and dispatchers run as when root starts the server",
        None,
        shown="the user that starts the server",
        metavar="USER",
    )
    group: str | None = setting("group that these processes run as", None, shown="that of `--user`", metavar="GROUP")
    umask: str | None = setting(
        "umask, in octal, for the socket files of `unix:PATH` binds. `007` lets only the owner and the group connect",
        None,
        shown="the umask of the process",
        metavar="MASK",
        check=checks.umask,
    )
    name: str | None = setting(
        "name of this server. Servers with the same name share the secret, so a client has the same slot in each",
        None,
        shown="made from APP",
        metavar="NAME",
        check=checks.name,
    )
    secret_file: str | None = setting(
        "file with the secret that keys are hashed with",
        None,
        shown="one that is made and kept in the state directory",
        metavar="FILE",
    )
    state_dir: str | None = setting(
        "directory in which secrets are kept",
        None,
        shown="`$XDG_STATE_HOME/limpet`, else `~/.local/state/limpet`",
        metavar="DIRECTORY",
    )
    stash: str | None = setting(
        "directory in which `limpet.stash` keeps its entries, so that they survive a restart of the server",
        None,
        shown="in memory, until the server stops",
        metavar="DIRECTORY",
    )
    stash_size_mib: int = setting(
        "room for the entries of `limpet.stash`, counted in blocks of 4 KiB; when it is full, writing raises "
        "`limpet.StashFull`",
        64,
        low=1,
        high=1 << 20,
    )
    control: str | None = setting(
        "control socket, through which the other commands reach the server",
        None,
        shown="in the runtime directory, where the commands look for it",
        metavar="PATH",
    )

    admin: str | None = setting(
        "address of the admin page, metrics and health checks: HOST:PORT or unix:PATH. Everyone who can connect can "
        "read them",
        None,
        shown="none",
        metavar="ADDRESS",
        check=checks.admin,
    )
    admin_token: str | None = setting(
        "file with the token that allows actions on the admin page. Without a token, only a page on a unix socket "
        "allows them",
        None,
        shown="none",
        metavar="FILE",
    )

    bus: str | None = setting(
        "Redis or NATS through which the bus reaches the same server on other machines: redis://HOST:PORT, unix:// or "
        "nats://HOST:PORT. They must have the same `--name`",
        None,
        shown="none: the bus ends at this machine",
        metavar="URL",
        check=checks.bus,
    )

    backlog: int = setting("connections that the kernel queues until they are accepted", 2048, low=1, high=65_535)
    max_connections_per_worker: int = setting(
        "number of connections at which a slot gets no more clients without a key; 0 for no limit",
        0,
        low=0,
        high=1_048_576,
    )
    max_connections_per_address: int = setting(
        "connections from one address, or one IPv6 /64, that a worker serves, and as many that may wait in a "
        "dispatcher for their request head. Others get 429; 0 for no limit. Behind a proxy without the PROXY protocol "
        "all clients have the proxy's address",
        0,
        low=0,
        high=1_048_576,
    )
    queue: int = setting("connections that may wait for one slot; others get 503", 8192, low=1, high=65_536)
    max_pending: int = setting(
        "connections that may wait in a dispatcher for their request head", 8192, low=1, high=1_048_576
    )
    max_copies: int = setting(
        "paused copies that a worker keeps of connections that moved to another worker", 1024, low=0, high=65_536
    )
    max_head_bytes: int = setting("largest request head", MAX_HEAD_BYTES, low=1024, high=MAX_HEAD_BYTES)
    max_headers: int = setting("headers that a request may have", 256, low=16, high=4096)
    head_timeout_s: float = setting("time that a client has to send its request head", 10, low=0.1, high=DAY_S)
    key_timeout_s: float = setting("time after which a key function is considered hung", 5, low=0.1, high=DAY_S)
    keep_alive_timeout_s: float = setting("shortest time that an idle connection is kept open", 5, low=0, high=DAY_S)
    wait_timeout_s: float = setting(
        "time that a connection may wait in a dispatcher while its slot's channel is full, and that a request which "
        "moves may wait for the worker of its slot",
        30,
        low=0.1,
        high=DAY_S,
    )
    max_surge: int = setting("slots that a reload renews at the same time", 1, low=1, high=MAX_WORKERS)
    start_timeout_s: float = setting("time that a worker has to become ready", 60, low=0.1, high=DAY_S)
    block_warning_s: float = setting(
        "time after which limpet warns of a worker's blocked event loop", 5, low=0.1, high=DAY_S
    )
    hang_timeout_s: float = setting(
        "time after which a worker is replaced that has no heartbeat and uses no CPU time; also any stopped process",
        30,
        low=1,
        high=DAY_S,
    )
    max_requests: int = setting(
        "requests after which a worker is replaced, up to a tenth fewer; 0 for no limit", 0, low=0, high=1 << 40
    )
    max_memory_mib: int = setting(
        "resident memory above which a worker is replaced; 0 for no limit", 0, low=0, high=1 << 30
    )
    websocket_spread_s: float = setting(
        "time over which a worker spreads the closing of its websockets, so that they do not all reconnect at once: "
        "when it is replaced, and when their clients move because the number of slots changes",
        3,
        low=0,
        high=DAY_S,
    )
    on_scale: Literal["close", "leave"] = setting(
        "what a uvicorn worker does with the open websockets of clients that move when the number of slots changes. "
        "close: it closes them with 1012 over `--websocket-spread`, and the clients reconnect to their new slot. "
        "leave: it serves them until they end, while later requests of these clients go to their new slot",
        "close",
    )
    graceful_timeout_s: float = setting(
        "time that a worker has to finish its requests when it stops", 30, low=0, high=DAY_S
    )

    reload: bool = setting("start a rolling reload when Python files change; for development", False)
    reload_dir: tuple[str, ...] = setting(
        "directory whose Python files `--reload` watches", (), shown="the current directory", metavar="DIRECTORY"
    )
    access_log: bool = setting("log each request, with its slot, the digest of its key and how it was routed", False)
    log_format: Literal["human", "json"] = setting(
        "format of log lines: for people, or one JSON object per line", "human"
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("lowest level that is logged", "info")
    log_file: str | None = setting(
        "file to log to; SIGUSR1 reopens it after a rotation", None, shown="stderr", metavar="FILE"
    )
    debug_header: bool = setting(
        "add X-Limpet-Slot and X-Limpet-Pid to responses. Not for public servers: it helps clients choose their worker",
        False,
    )

    @property
    def cluster(self) -> str:
        """The name in the names of the secret's file and of the control socket. Affinity cookies belong to it, too."""
        from limpet.config.secret import name_from_app

        return self.name or name_from_app(self.app)

    @cached_property
    def served(self) -> list[Served]:
        """What each bind serves, in the order of the binds."""
        return served(self.bind, Served("", self.app, self.by, self.server, self.proxy_protocol))

    @cached_property
    def addresses(self) -> list[Bind]:
        """The addresses of the binds, in their order."""
        return [Bind.parse(text) for text in self.bind]

    @cached_property
    def trusted(self) -> Trust:
        """The proxies of `trust`."""
        from limpet.routing.forwarded import Trust

        return Trust.parse(",".join(self.trust))

    @cached_property
    def cookie_attributes(self) -> Attributes:
        """The attributes of `affinity_cookie`."""
        from limpet.routing.affinity_cookie import Attributes

        return Attributes.parse(self.affinity_cookie)

    @cached_property
    def learn_sources(self) -> list[Source]:
        """Where ids to learn stand in a response, in the order of `learn`."""
        from limpet.config.learn_source import Source

        return [Source.parse(text) for text in self.learn]

    @property
    def takes_headers(self) -> bool:
        """Whether connections of any bind begin with a PROXY header."""
        return any(each.proxy_protocol == "required" for each in self.served)

    def to_json(self) -> str:
        """Return the settings as text for a child process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Return the settings that `to_json` was called on."""
        values: dict[str, Any] = json.loads(text)
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values | lists)


SETTINGS = declared(Settings)
"""All settings, in the order in which they are documented."""


def load(
    flags: Mapping[str, object], environ: Mapping[str, str], spelled: Callable[[Setting], str] = lambda each: each.flag
) -> Settings:
    """Return the settings of one server. Raises SettingsError.

    *flags* holds what was given on the command line, by the name of the field: text, a bool, or the texts of a flag
    that can be repeated; None or `()` if nothing was given. *spelled* returns how a setting is written there. An empty
    variable counts as not set, because shells and compose files pass unset variables that way. Unknown `LIMPET_*`
    variables are not an error, because Kubernetes sets LIMPET_SERVICE_HOST and others for a service called limpet.
    """
    values = given(flags, environ, spelled)
    if "app" not in values:
        raise SettingsError("no application was given", hint="`limpet run module:attribute`")
    return Settings(**values)


def given(
    flags: Mapping[str, object], environ: Mapping[str, str], spelled: Callable[[Setting], str] = lambda each: each.flag
) -> dict[str, Any]:
    """Return what `load` takes from these places, by the name of the field. Settings at their defaults are left out."""
    by_flag = {
        each.name: each.read(",".join(text) if isinstance(text, tuple) else text, f"`{spelled(each)}`")
        for each in SETTINGS
        if (text := flags.get(each.name)) not in (None, ())
    }
    by_variable = {
        each.name: each.read(text, f"`{each.variable}`") for each in SETTINGS if (text := environ.get(each.variable))
    }
    by_platform = {
        each.name: each.read(text, f"`{each.platform_variable}`")
        for each in SETTINGS
        if (text := environ.get(each.platform_variable or ""))
    }
    path = (by_variable | by_flag).get("config")
    by_file = read_file(str(path)) if path else {}
    values: dict[str, Any] = by_platform | by_file | by_variable | by_flag
    return by_preset(values.get("for_")) | values


def by_preset(name: str | None) -> dict[str, Any]:
    """Return what the preset *name* sets, by the name of the field. Without a name, return nothing."""
    if name is None:
        return {}
    from limpet.config.presets import PRESETS

    by_key = {each.key: each for each in SETTINGS}
    return {
        by_key[key].name: by_key[key].read(text, f"`{key}` in the preset `{name}`")
        for key, text in PRESETS[name].sets.items()
    }


def read_file(path: str) -> dict[str, object]:
    """Return what the TOML file at *path* sets, by the name of the field. Raises SettingsError."""
    import tomllib  # only here: importing it takes longer than all of limpet.cli.commands

    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        hint = f"`ls -l {path}` shows what is there; paths are relative to the current directory"
        raise SettingsError(f"cannot read `{path}`: {reason(error)}", hint=hint) from None
    except ValueError as error:
        hint = '`by = "cookie:user,ip"` and `workers = 4` are valid lines: text must be in quotes'
        raise SettingsError(f"`{path}` is not a TOML file: {error}", hint=hint) from None
    known = {each.key: each for each in SETTINGS if each.in_file}
    values: dict[str, object] = {}
    for key, given in table.items():
        found = known.get(key.replace("_", "-"))
        if found is None:
            raise _unknown(key, known, path, is_table=isinstance(given, dict))
        if found.name in values:
            raise SettingsError(f"`{found.key}` is set twice in `{path}`, once with `-` and once with `_`")
        values[found.name] = found.read(given, f"`{key}` in `{path}`")
    return values


def nearest(key: str, known: Iterable[str]) -> str:
    """Return the one of the *known* keys that was most likely meant."""
    import difflib

    [found] = difflib.get_close_matches(key, known, n=1, cutoff=0)
    return found


def _unknown(key: str, known: Iterable[str], path: str, is_table: bool) -> SettingsError:
    if is_table:
        return SettingsError(
            f"unknown table `[{key}]` in `{path}`",
            hint=f"settings belong at the top level of the file, not in a table: remove the line `[{key}]`",
        )
    return SettingsError(
        f"unknown key `{key}` in `{path}`",
        hint=f"the nearest key is `{nearest(key, known)}`; `limpet run --help` shows all of them",
    )
