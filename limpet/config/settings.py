"""Every setting of limpet, written down once.

A field of `Settings` is all there is to a setting: its flag, its `LIMPET_*` variable, its key in a TOML file, its line
in `limpet run --help` and its row in docs/settings.md are made from it by config/fields.py. cli/commands.py passes in
what was given; the supervisor gets a `Settings`, its children get it as JSON. What an address or a key chain looks like
is not known here: config/checks.py asks who knows.

1. Command line, then environment, then the file of `--config`, then the preset of `--for`, then the default: the first
   that has a value wins. But each is checked: a mistake that would have been overridden is still a mistake.
2. The children trust the JSON; they check nothing again.

If you change this, also run: python -m tools.docs.settings_page > docs/settings.md
A new setting also belongs into PASSED_ON or LOOKED_AT of fronts/__init__.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limpet.config import checks
from limpet.config.bind import Served, served
from limpet.config.fields import Setting, declared, setting
from limpet.errors import SettingsError, reason
from limpet.system import activation

DAY_S = 86_400
"""The longest time, in seconds. Every wait ends, and who writes more than a day most likely means another unit."""

MAX_WORKERS = 256
"""One for each slot there can be; each then owns four of the 1024 buckets."""

MAX_HEAD_BYTES = 65_536
"""The largest request head, in bytes. Heads are read by peeking, so one must fit into the receive buffer of
its socket, which shows about 117 KiB by default."""


def usable_cpus(cgroups: str = "/sys/fs/cgroup") -> int:
    """Return how many CPUs this process may use: those it may run on, or fewer by the quota of its cgroup."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no cgroup of version 2, or no quota in it: `max 100000`
        own = Path("/proc/self/cgroup").read_text().partition("0::")[2].partition("\n")[0]
        quota, period = Path(f"{cgroups}{own}/cpu.max").read_text().split()
        cpus = min(cpus, math.ceil(int(quota) / int(period)))
    return min(cpus, MAX_WORKERS)


def default_binds() -> tuple[str, ...]:
    """Return what to serve when nobody says it."""
    return activation.binds() or ("127.0.0.1:8000",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one server was told to do."""

    app: str = setting("the application, as module:attribute", metavar="APP", check=checks.app)
    app_dir: tuple[str, ...] = setting(
        "directories in which APP and key functions are looked for first",
        (),
        shown="the current directory",
        metavar="DIRECTORY",
    )
    config: str | None = setting("TOML file with settings", None, metavar="FILE", in_file=False)

    for_: str | None = setting(
        "product that the application is made with: sets what its sessions need, where nothing else sets it; "
        "`limpet presets` lists them",
        None,
        metavar="PRESET",
        check=checks.preset,
    )
    bind: tuple[str, ...] = setting(
        "where to listen: HOST:PORT, :PORT for every address, unix:PATH, fd:N for an inherited socket, or fd:NAME for "
        "one that the service manager passes on under that name; ADDRESS=APP serves another application there",
        default_binds,
        shown="the sockets that the service manager passes on (LISTEN_FDS), else `127.0.0.1:8000`",
        metavar="ADDRESS",
        check=checks.bind,
    )
    workers: int = setting(
        "how many worker processes",
        usable_cpus,
        shown="`WEB_CONCURRENCY`, else the CPUs this process may use",
        low=1,
        high=MAX_WORKERS,
        platform_variable="WEB_CONCURRENCY",
    )
    by: str = setting(
        "key chain, where to look for the key of a client: ip, ip/24, ip/24/64, forwarded, header:NAME, "
        "cookie:NAME, query:NAME, path:REGEX, bearer, affinity, sni, python:module:function; the first that "
        "finds one counts",
        "ip",
        metavar="CHAIN",
        check=checks.by,
    )
    trust: tuple[str, ...] = setting(
        "proxies whose X-Forwarded-For, Forwarded or PROXY header is believed: addresses, networks, unix",
        (),
        shown="nobody",
        metavar="CIDR,...",
        check=checks.trust,
    )
    proxy_protocol: Literal["off", "required"] = setting(
        "whether each connection begins with a PROXY header, which says who the client is; then only those in "
        "`--trust` may connect. Of one bind: ADDRESS?proxy-protocol=required",
        "off",
    )
    place: Literal["least", "hash", "random"] = setting("where a client without a key goes", "least")
    affinity_cookie: str = setting(
        "attributes of the cookie of `--by affinity`, written as in Set-Cookie, and Max-Idle=SECONDS; what is left out "
        "stays as it is, and Secure is set by itself under https",
        "Path=/; HttpOnly; SameSite=Lax",
        metavar="ATTRIBUTES",
        check=checks.affinity_cookie,
    )
    learn: tuple[str, ...] = setting(
        "ids to remember with the worker that made them, from its responses: header:NAME, cookie:NAME, or "
        "location:REGEX for the first group in Location; app for those of which the application calls limpet.learn",
        (),
        metavar="WHERE",
        check=checks.learn,
    )
    learn_idle_s: float = setting(
        "time after which a learned id that nobody uses is forgotten", DAY_S, low=1, high=30 * DAY_S
    )
    mint: Literal["none", "socketio"] = setting(
        "library whose session ids are made so that they hash to the worker that makes them: python-socketio, also in "
        "Flask-SocketIO, with query:sid in the key chain",
        "none",
    )
    on_lost: Literal["serve", "refuse"] = setting(
        "what a request with a learned id gets when the worker that made it is gone: served by the next worker of its "
        "slot, or refused with 410, with 404 where the key is header:mcp-session-id",
        "serve",
    )

    server: str = setting(
        "what serves the application in a worker: a name in docs/servers.md, an installed entry point, or "
        "module:function, an adapter of your own",
        "uvicorn",
        metavar="SERVER",
        check=checks.server,
    )
    interface: Literal["auto", "asgi", "wsgi"] = setting("what the application speaks", "auto")
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
        "gunicorn's own file of settings, such as `gunicorn.conf.py`: what it says of a worker counts",
        None,
        metavar="FILE",
    )
    threads: int = setting(
        "how many requests of a WSGI application a worker serves at once; one means that its thread is the only one",
        32,
        low=1,
        high=1024,
    )
    tls_cert: str | None = setting(
        "file with the certificate and its chain: TLS is spoken, and ends in the workers, or in terminators where keys "
        "are in requests; a reload reads it anew",
        None,
        metavar="FILE",
    )
    tls_key: str | None = setting(
        "file with the key of the certificate", None, shown="in the file of `--tls-cert`", metavar="FILE"
    )
    root_path: str = setting("path under which a proxy offers the application", "", metavar="PATH")

    backend: Literal["auto", "kernel", "dispatcher"] = setting(
        "how connections get to the workers; auto takes the kernel where the chain is ip only and the system allows it",
        "auto",
    )
    on_down: Literal["wait", "failover", "refuse"] = setting(
        "what clients do whose slot has no worker that is ready: wait for the next one, for `--wait-timeout`, then go "
        "to another slot until it is there; or go there at once; or be refused with 503",
        "wait",
    )
    dispatchers: int = setting("how many dispatcher processes", 1, low=1, high=16)
    terminators: int = setting("how many processes end TLS where keys are in requests", 1, low=1, high=16)
    user: str | None = setting(
        "user, by name or number, as whom workers and dispatchers run, when root starts the server",
        None,
        shown="who starts it",
        metavar="USER",
    )
    group: str | None = setting("group of these processes", None, shown="that of `--user`", metavar="GROUP")
    umask: str | None = setting(
        "rights that the socket files of `unix:PATH` binds do not get, in octal; `007` is for owner and group",
        None,
        shown="that of the process",
        metavar="MASK",
        check=checks.umask,
    )
    name: str | None = setting(
        "name of this server; servers of one name share the secret, so a client has the same slot in each",
        None,
        shown="made from APP",
        metavar="NAME",
        check=checks.name,
    )
    secret_file: str | None = setting(
        "file with the secret that keys are hashed with",
        None,
        shown="one is made and kept in the state directory",
        metavar="FILE",
    )
    state_dir: str | None = setting(
        "directory in which secrets are kept",
        None,
        shown="`$XDG_STATE_HOME/limpet`, else `~/.local/state/limpet`",
        metavar="DIRECTORY",
    )
    control: str | None = setting(
        "control socket, by which the other commands reach the server",
        None,
        shown="in the runtime directory, where they look for it",
        metavar="PATH",
    )

    admin: str | None = setting(
        "where the admin page, metrics and health are, for who may see them: HOST:PORT or unix:PATH",
        None,
        shown="nowhere",
        metavar="ADDRESS",
        check=checks.admin,
    )
    admin_token: str | None = setting(
        "file with the token by which the admin page may act; without one it may on a unix socket alone",
        None,
        shown="none",
        metavar="FILE",
    )

    backlog: int = setting("connections that the kernel keeps until they are accepted", 2048, low=1, high=65_535)
    max_connections_per_worker: int = setting(
        "connections beyond which a slot gets no more clients without a key; 0 for no limit", 0, low=0, high=1_048_576
    )
    max_connections_per_address: int = setting(
        "connections of one address, or one IPv6 /64, that a worker serves, and as many whose request head a "
        "dispatcher awaits: others get 429; 0 for no limit; behind a proxy all have its address, but for the PROXY "
        "protocol",
        0,
        low=0,
        high=1_048_576,
    )
    queue: int = setting("connections that may wait for one slot: others get 503", 8192, low=1, high=65_536)
    max_pending: int = setting("connections whose request head a dispatcher may await", 8192, low=1, high=1_048_576)
    max_copies: int = setting(
        "connections that a worker keeps open, paused, after they moved to another", 1024, low=0, high=65_536
    )
    max_head_bytes: int = setting("largest request head", MAX_HEAD_BYTES, low=1024, high=MAX_HEAD_BYTES)
    max_headers: int = setting("headers that a request may have", 256, low=16, high=4096)
    head_timeout_s: float = setting("time a client has to send its request head", 10, low=0.1, high=DAY_S)
    key_timeout_s: float = setting("time after which a key function counts as hung", 5, low=0.1, high=DAY_S)
    keep_alive_timeout_s: float = setting("time an idle connection is kept open, at least", 5, low=0, high=DAY_S)
    wait_timeout_s: float = setting(
        "time a connection may wait in a dispatcher when its slot's channel is full, and a request that moves until "
        "its slot's worker takes it",
        30,
        low=0.1,
        high=DAY_S,
    )
    max_surge: int = setting("slots that a reload renews at the same time", 1, low=1, high=MAX_WORKERS)
    start_timeout_s: float = setting("time a worker has to become ready", 60, low=0.1, high=DAY_S)
    block_warning_s: float = setting(
        "time after which a blocked event loop of a worker is warned of", 5, low=0.1, high=DAY_S
    )
    hang_timeout_s: float = setting(
        "time after which a worker without a heartbeat that uses no CPU time is replaced; a stopped process, too",
        30,
        low=1,
        high=DAY_S,
    )
    max_requests: int = setting(
        "requests after which a worker is renewed, up to a tenth fewer; 0 for no limit", 0, low=0, high=1 << 40
    )
    max_memory_mib: int = setting(
        "resident memory with which a worker is renewed; 0 for no limit", 0, low=0, high=1 << 30
    )
    websocket_spread_s: float = setting(
        "time over which a worker that is replaced tells its websockets to go, lest all come back at once",
        3,
        low=0,
        high=DAY_S,
    )
    graceful_timeout_s: float = setting("time a worker has to finish when it stops", 30, low=0, high=DAY_S)

    reload: bool = setting("begin a rolling reload when Python files change: for development", False)
    reload_dir: tuple[str, ...] = setting(
        "directory whose Python files `--reload` watches", (), shown="the current one", metavar="DIRECTORY"
    )
    access_log: bool = setting("log each request, with its slot, its digest and how it was routed", False)
    log_format: Literal["human", "json"] = setting("how log lines look: for people, or each a JSON object", "human")
    log_level: Literal["debug", "info", "warning", "error"] = setting("what to log: this and worse", "info")
    log_file: str | None = setting(
        "file to log to; SIGUSR1 opens it anew after a rotation", None, shown="stderr", metavar="FILE"
    )
    debug_header: bool = setting(
        "add X-Limpet-Slot and X-Limpet-Pid to responses; not in public: it helps clients to choose their worker", False
    )

    @property
    def cluster(self) -> str:
        """The name by which the secret and the control socket are called, and to which cookies belong."""
        from limpet.config.secret import name_from_app

        return self.name or name_from_app(self.app)

    @property
    def served(self) -> list[Served]:
        """Return what each bind serves, in their order."""
        return served(self.bind, Served("", self.app, self.by, self.server, self.proxy_protocol))

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
    """Return the settings of one server.

    *flags* holds what stood on the command line by the name of the field: text, a bool, or the texts of a
    flag that may be repeated; None or `()` where nothing was given. *spelled* says how each is written there.
    A variable that is empty counts as not set: that is what shells and compose files make of one that is not.
    Other `LIMPET_*` variables are no mistake, since Kubernetes sets LIMPET_SERVICE_HOST and more for a
    service called limpet.

    Raises SettingsError.
    """
    values = given(flags, environ, spelled)
    if "app" not in values:
        raise SettingsError("no application was given", hint="`limpet run module:attribute`")
    return Settings(**values)


def given(
    flags: Mapping[str, object], environ: Mapping[str, str], spelled: Callable[[Setting], str] = lambda each: each.flag
) -> dict[str, Any]:
    """Return what `load` takes from these places, by the name of the field: not what is left at its default."""
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
    """Return what the preset *name* sets, by the name of the field; nothing without a name."""
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
    import tomllib  # only now: importing it takes longer than all of limpet.cli.commands

    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        hint = f"`ls -l {path}` shows what is there; paths are relative to the current directory"
        raise SettingsError(f"cannot read `{path}`: {reason(error)}", hint=hint) from None
    except ValueError as error:
        hint = '`by = "cookie:user,ip"` and `workers = 4` are lines of one: text stands in quotes'
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
    """Return which of the *known* keys was most likely meant."""
    import difflib

    [found] = difflib.get_close_matches(key, known, n=1, cutoff=0)
    return found


def _unknown(key: str, known: Iterable[str], path: str, is_table: bool) -> SettingsError:
    if is_table:
        return SettingsError(
            f"unknown table `[{key}]` in `{path}`",
            hint=f"settings stand at the top of the file, in no table: leave out the line `[{key}]`",
        )
    return SettingsError(
        f"unknown key `{key}` in `{path}`",
        hint=f"the nearest key is `{nearest(key, known)}`; `limpet run --help` shows all of them",
    )
