"""Starting a server from a program: what to listen on, and with which settings.

Owns how a program says what `limpet run` reads from flags: keywords instead of flags, objects instead of import strings
and of elements of a key chain. The result is a `Settings`, which embed/handle.py gives to a supervisor.

1. A keyword is the key of a TOML file with `_` for `-`. docs/settings.md lists the keys; config/fields.py reads the
   values. Variables and the file of `config=` supply what the program does not set.
2. Nothing is imported here. Objects are turned into names (embed/naming.py), and the children import them by name.
3. A worker that imports the application must not start another server, whose workers would start the next one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from limpet import current
from limpet.config import settings
from limpet.config.bind import Served
from limpet.config.fields import Setting
from limpet.embed.handle import Callback, Handle
from limpet.embed.naming import import_string
from limpet.errors import AppError, SettingsError
from limpet.routing.elements import Element
from limpet.routing.key_chain import KeyChain, Trust
from limpet.system import signals

Key = str | Element | Callable[..., object]
_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1)


def listen(
    app: Any,
    port: int | str,
    host: str | None = None,
    *,
    workers: int | None = None,
    by: Key | Iterable[Key] | None = None,
    trust: str | Iterable[str] | None = None,
    on_ready: Callback | None = None,
    on_closed: Callback | None = None,
    **options: Any,
) -> Handle:
    """Start a server for *app* and return its handle at once; `wait_ready` or `with` waits until it serves.

    *app* is "module:attribute" or an object that a worker can import by its name. *port* is a number, 0 for any free
    one, on *host* (default 127.0.0.1). It can also be a text as `--bind` takes it: "0.0.0.0:8000",
    "unix:/run/chat.sock". *by* is the key chain: text, an element such as `limpet.Header("x-user")`, a function of a
    `limpet.Request` or `limpet.Peer`, or a list of these. *options* are all other settings of docs/settings.md by their
    TOML keys, with `_` for `-`: `graceful_timeout=10`.

    *on_ready* and *on_closed* are called with the handle, in a thread of the handle. The server runs in other
    processes. It stops gracefully when this process ends, if not before. Raises SettingsError.
    """
    cluster = Cluster(workers=workers, by=by, trust=trust, **options)
    cluster.listen(app, port, host)
    return cluster.start(on_ready=on_ready, on_closed=on_closed)


class Cluster:
    """One server with one or several listeners.

    They share workers and secret: a client has the same slot on all of them.

    The arguments are settings, as for `limpet.listen`. Each cluster has its own processes.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        by: Key | Iterable[Key] | None = None,
        trust: str | Iterable[str] | None = None,
        **options: Any,
    ) -> None:
        self._given: dict[str, object] = {"workers": workers, "by": None if by is None else chain_text(by)}
        if trust is not None:
            self._given["trust"] = trust if isinstance(trust, str) else list(trust)
        self._given |= _by_field(options)
        self._binds: list[Served] = []

    def listen(
        self,
        app: Any,
        port: int | str,
        host: str | None = None,
        *,
        by: Key | Iterable[Key] | None = None,
        server: str | None = None,
    ) -> None:
        """Add a listener for *app*; the arguments are those of `limpet.listen`. Raises SettingsError.

        *by* and *server* apply only to this listener, instead of those of the cluster.
        """
        bind = Served.parse(_bind(port, host))
        own = {
            "app": app if isinstance(app, str) else import_string(app, "application"),
            "by": bind.by if by is None else chain_text(by),
            "server": server or bind.server,
        }
        self._binds.append(bind._replace(**own))

    def start(self, *, on_ready: Callback | None = None, on_closed: Callback | None = None) -> Handle:
        """Start the server and return its handle at once.

        Raises SettingsError, or AppError in a process of a limpet server.
        """
        if current.child_role() is not None:
            raise AppError(
                f"a {current.child_role()} of a limpet server must not start another server while it imports its code",
                hint='put the call under `if __name__ == "__main__":`',
            )
        return Handle(self._settings(), on_ready=on_ready, on_closed=on_closed)

    def run(self) -> None:
        """Serve until the server has stopped. Raises LimpetError if it cannot start.

        In the main thread, signals have the same meaning as for `limpet run` during this call: SIGTERM and SIGINT stop
        it.
        """
        handle = self.start()
        if threading.current_thread() is not threading.main_thread():
            handle.wait_closed()
            return
        before = {
            number: signal.signal(number, lambda number, _: handle.signal(number))
            for number in _FORWARDED
            if not signals.is_ignored(number)
        }
        try:
            handle.wait_closed()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _settings(self) -> settings.Settings:
        if not self._binds:
            raise SettingsError("the cluster has no listener", hint='`cluster.listen("chat:app", 8000)`')
        binds = [str(each) for each in self._binds]
        given = {"app": self._binds[0].app, "bind": binds, "app_dir": _search_path()}
        return settings.load(given | self._given, os.environ, _keyword)


def chain_text(by: Key | Iterable[Key]) -> str:
    """Return the text of the key chain *by*. Raises SettingsError."""
    parts = [by] if isinstance(by, str | Element) or callable(by) else list(by)
    text = ",".join(_element_text(part) for part in parts)
    KeyChain.parse(text, Trust.parse(""))
    return text


def _element_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Element):
        return part.spec
    if callable(part):
        return f"python:{import_string(part, 'key function')}"
    raise SettingsError(
        f"`{part!r}` is not an element of a key chain: expected text, an element or a function",
        hint='`by=[limpet.Cookie("sid"), limpet.Ip()]`',
    )


def _bind(port: int | str, host: str | None) -> str:
    """Return *port* and *host* as the text of a `--bind`. Raises SettingsError."""
    if isinstance(port, str):
        if host is None:
            return port
        raise SettingsError(
            f"address `{port}` with host `{host}`: a text address already includes the host", hint=f'`"{host}:8000"`'
        )
    if host is None:
        host = "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _keyword(each: Setting) -> str:
    return each.key.replace("-", "_")


def _by_field(options: Mapping[str, object]) -> dict[str, object]:
    """Return *options* by the names of the fields of `Settings`. Raises SettingsError for an unknown name."""
    fields = {_keyword(each): each.name for each in settings.SETTINGS if each.name not in ("app", "bind")}
    given = {}
    for name, value in options.items():
        if name not in fields:
            raise SettingsError(f"unknown setting `{name}`", hint=f"the nearest is `{settings.nearest(name, fields)}=`")
        given[fields[name]] = list(value) if isinstance(value, tuple) else value
    return given


def _search_path() -> list[str]:
    """Return where this program finds modules, followed by the current directory, which `limpet run` would search."""
    here = os.getcwd()
    found = [os.path.join(here, directory) for directory in sys.path if isinstance(directory, str)]
    return list(dict.fromkeys([*(os.path.normpath(directory) for directory in found), here]))
