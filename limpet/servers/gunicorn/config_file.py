"""gunicorn's own settings file, `gunicorn.conf.py`, of a user who comes from there: `--server-config`.

Owns the reading of it, which runs the user's code and so happens in workers alone, and what becomes of each name in it.
The adapters (server.py, worker_classes.py) get a Config with what counts.

1. What the file says of a worker counts, whatever limpet's settings say of the same thing.
2. What a master of gunicorn would do limpet does, by settings of its own: what the file says of that is left out, and
   the log names it. So are hooks of a master.
3. Where leaving it out would be wrong without anybody noticing, as with TLS, the start ends.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.machinery
import inspect
import logging
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any, Final, NamedTuple, get_args, get_type_hints

from gunicorn import util
from gunicorn.config import Config

from limpet.config.settings import Settings
from limpet.errors import AppError

_OURS: Final[Mapping[str, str]] = {
    "wsgi_app": "APP",
    "bind": "--bind",
    "backlog": "--backlog",
    "reuse_port": "--backend",
    "workers": "--workers",
    "timeout": "--hang-timeout",
    "graceful_timeout": "--graceful-timeout",
    "max_requests": "--max-requests",
    "max_requests_jitter": "--max-requests",
    "forwarded_allow_ips": "--trust",
    "secure_scheme_headers": "--trust",
    "chdir": "--app-dir",
    "pythonpath": "--app-dir",
    "reload": "--reload",
    "reload_engine": "--reload",
    "reload_extra_files": "--reload-dir",
    "control_socket": "--control",
}
"""What limpet does, and by which of its settings."""

_MASTERS: Final = frozenset(
    {
        *(
            "on_starting",
            "on_reload",
            "when_ready",
            "pre_fork",
            "pre_exec",
            "child_exit",
            "nworkers_changed",
            "on_exit",
        ),
        *("preload_app", "pidfile", "daemon", "proc_name", "umask", "worker_tmp_dir", "control_socket_disable"),
        *("control_socket_mode", "print_config", "check_config", "config", "dirty_apps", "dirty_workers"),
    }
)
"""What only a master of gunicorn would do."""

_TLS: Final = "TLS ends in the proxy in front; `--server uvicorn --tls-cert FILE` ends it in the workers"
_REFUSED: Final[Mapping[str, str]] = {
    "certfile": _TLS,
    "keyfile": _TLS,
    "ssl_context": _TLS,
    "user": "limpet keeps the user that starts it: `User=` in a unit of systemd, `USER` in a Dockerfile",
    "group": "limpet keeps the group that starts it: `Group=` in a unit of systemd",
    "protocol": "limpet reads HTTP",
    "proxy_protocol": "`--proxy-protocol required --trust ADDRESS` has limpet read it",
    "http2_cleartext": "`--server hypercorn --by ip` has HTTP/2: its requests may belong to several slots otherwise",
    "paste": "write a module with the application in it, and give it as APP",
}
"""What cannot be left out in silence, and the way out."""

_CLASSES: Final[Mapping[str, str]] = {
    "gunicorn.workers.sync.SyncWorker": "sync",
    "gunicorn.workers.gthread.ThreadWorker": "gthread",
    "gunicorn.workers.ggevent.GeventWorker": "gevent",
    "gunicorn.workers.gasgi.ASGIWorker": "asgi",
    "uvicorn_worker._workers.UvicornWorker": "uvicorn-worker",
    "uvicorn.workers.UvicornWorker": "uvicorn-worker",
}
"""The classes that a worker can be of, by where they are defined, as `--worker-class` calls them."""

LOGS: Final = frozenset(
    {
        *("accesslog", "access_log_format", "errorlog", "loglevel", "capture_output", "logger_class", "logconfig"),
        *("logconfig_dict", "logconfig_json", "syslog", "statsd_host"),
    }
)
"""What says where gunicorn's logs go; where the file says nothing of them they are limpet's."""

log = logging.getLogger("limpet.worker")


class Read(NamedTuple):
    """What a file has said."""

    values: Mapping[str, Any]  # that count
    notes: tuple[str, ...]  # on what does not count


def told(settings: Settings) -> Settings:
    """Return *settings* with what the file says of the kind of worker, and set its variables. Raises AppError."""
    values: dict[str, Any] = {}
    if settings.server_config:
        read = _read(settings.server_config).values
        os.environ.update(config(settings)[0].env)
        values = {"threads": read["threads"]} if "threads" in read else {}
        if "worker_class" in read:
            values["worker_class"] = _kind(read["worker_class"], settings.server_config)
        if values.get("worker_class") == "sync" and values.get("threads", 1) > 1:
            values["worker_class"] = "gthread"  # which gunicorn makes of it
    return dataclasses.replace(settings, **values)


def config(settings: Settings) -> tuple[Config, frozenset[str]]:
    """Return gunicorn's settings as the file has them, and the names that it has set."""
    found = Config()
    read = _read(settings.server_config).values if settings.server_config else {}
    for name, value in read.items():
        found.set(name, value)
    return found, frozenset(read)


def tell(settings: Settings) -> None:
    """Log what of the file does not count."""
    for note in _read(settings.server_config).notes if settings.server_config else ():
        log.warning("%s", note, extra={"event": "gunicorn_setting_ignored"})


class _Master(NamedTuple):
    """What hooks get in the place of gunicorn's master."""

    cfg: Config
    log: Any
    pid: int


def run(worker: Any) -> None:
    """Run *worker* between the hooks that its master would call. Returns at its end."""
    worker.pid = os.getpid()
    master = _Master(worker.cfg, worker.log, os.getppid())
    worker.cfg.post_fork(master, worker)
    try:
        worker.init_process()
    finally:
        worker.cfg.worker_exit(master, worker)


@cache
def _read(path: str) -> Read:
    named = vars(_module(path))
    known = Config().settings
    values, ours, masters = {}, [], []
    for name in known.keys() & named.keys():
        given = _accepted(path, name, named[name])
        if name in _REFUSED and given != known[name].get():
            raise AppError(f"`{name}` in `{path}` cannot be kept", hint=_REFUSED[name])
        if name in _OURS:
            ours.append(f"`{name}` ({_OURS[name]})")
        elif name in _MASTERS:
            masters.append(f"`{name}`")
        elif name not in _REFUSED:
            values[name] = given
    notes = []
    if ours:
        notes.append(f"`{path}`: limpet's settings count in place of {', '.join(sorted(ours))}")
    if masters:
        notes.append(f"`{path}`: there is no master of gunicorn for {', '.join(sorted(masters))}")
    for name, close in _misspelt(named, known):
        notes.append(f"`{path}`: gunicorn has no setting `{name}`; the nearest is `{close}`")
    return Read(values, tuple(notes))


def _module(path: str) -> ModuleType:
    """Return the file as a module, or the module itself where it is `python:NAME`, as gunicorn takes it."""
    try:
        if path.startswith("python:"):
            return importlib.import_module(path.removeprefix("python:"))
        loader = importlib.machinery.SourceFileLoader("__config__", path.removeprefix("file:"))
        module = ModuleType(loader.name)
        module.__file__ = loader.path
        sys.modules[loader.name] = module
        loader.exec_module(module)
    except Exception as error:
        raise AppError(f"cannot read gunicorn's settings in `{path}`: {type(error).__name__}: {error}") from error
    return module


def _accepted(path: str, name: str, value: object) -> Any:
    """Return *value* as gunicorn understands it."""
    found = Config()
    try:
        found.set(name, value)
    except Exception as error:
        raise AppError(f"gunicorn does not take what `{path}` says of `{name}`: {error}") from error
    return found.settings[name].get()


def _misspelt(named: Mapping[str, object], known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield what is no setting of gunicorn and looks like one, and the setting that it looks like."""
    for name, value in named.items():
        if name not in known and not name.startswith("_") and not inspect.ismodule(value):
            for close in difflib.get_close_matches(name, known, n=1, cutoff=0.85):
                yield name, close


def _kind(given: Any, path: str) -> str:
    """Return as `--worker-class` calls it what a worker class *given* in the file is, or is derived from."""
    if given in get_args(get_type_hints(Settings)["worker_class"]):
        return str(given)
    try:
        found: Any = util.load_class(given)
    except RuntimeError as error:
        raise AppError(f"`worker_class` in `{path}`: {error}") from error
    names = [f"{each.__module__}.{each.__qualname__}" for each in found.__mro__]
    kinds = [_CLASSES[name] for name in names if name in _CLASSES]
    if not kinds or (kinds[0] == "gthread" and names[0] not in _CLASSES):
        own = "of your own on top of the threaded one" if kinds else f"`{given}`"
        raise AppError(
            f"`worker_class` in `{path}`: limpet cannot run a worker class {own}",
            hint="sync, gevent, asgi and uvicorn-worker, classes on top of these, and gthread as it is",
        )
    return kinds[0]
