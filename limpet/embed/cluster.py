"""Starting a server from a program: what to listen on, and with which settings.

Owns how a program says what `limpet run` reads from flags: keywords in place of flags, objects in place of import
strings and of elements of a key chain. What becomes of it is a `Settings`, which embed/handle.py gives to a supervisor.

1. A keyword is the key of a TOML file with `_` for `-`: docs/settings.md lists them, and config/fields.py reads them.
   Variables and the file of `config=` fill in what a program leaves open.
2. Nothing is imported here: objects are named (embed/naming.py), and the children import them by that name.
3. A worker that imports the application must not start another server, and its workers the next.
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
    one, on *host* (default 127.0.0.1), or a text as `--bind` takes it: "0.0.0.0:8000", "unix:/run/chat.sock". *by* is
    the key chain: text, an element such as `limpet.Header("x-user")`, a function of a `limpet.Request` or
    `limpet.Peer`, or several of these in a list. *options* are all other settings of docs/settings.md by their TOML
    keys: `graceful_timeout=10`.

    *on_ready* and *on_closed* are called with the handle, in a thread of the handle's. The server is another process
    and ends, gracefully, with this one at the latest. Raises SettingsError.
    """
    cluster = Cluster(workers=workers, by=by, trust=trust, **options)
    cluster.listen(app, port, host)
    return cluster.start(on_ready=on_ready, on_closed=on_closed)


class Cluster:
    """One server with one or several listeners, which share workers and secret: a client has one slot on all of them.

    Its arguments are settings, as for `limpet.listen`. Each cluster has processes of its own.
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
        """Add a listener for *app*: see `limpet.listen` for the arguments. Raises SettingsError.

        *by* and *server* are for this listener alone, in place of those of the cluster.
        """
        bind = Served.parse(_bind(port, host))
        own = {
            "app": app if isinstance(app, str) else import_string(app, "application"),
            "by": bind.by if by is None else chain_text(by),
            "server": server or bind.server,
        }
        self._binds.append(bind._replace(**own))

    def start(self, *, on_ready: Callback | None = None, on_closed: Callback | None = None) -> Handle:
        """Start the server and return its handle at once. Raises SettingsError."""
        if current.child_role() is not None:
            raise AppError(
                f"a {current.child_role()} of a limpet server would start another server while it imports its code",
                hint='put the call under `if __name__ == "__main__":`',
            )
        return Handle(self._settings(), on_ready=on_ready, on_closed=on_closed)

    def run(self) -> None:
        """Serve until the server has been stopped. Raises LimpetError when it cannot start.

        In the main thread the signals of `limpet run` have their meaning meanwhile: SIGTERM and SIGINT stop.
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
            raise SettingsError("a cluster without a listener", hint='`cluster.listen("chat:app", 8000)`')
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
        f"`{part!r}` is no element of a key chain: text, an element or a function is allowed",
        hint='`by=[limpet.Cookie("sid"), limpet.Ip()]`',
    )


def _bind(port: int | str, host: str | None) -> str:
    """Return the text of a `--bind`."""
    if isinstance(port, str):
        if host is None:
            return port
        raise SettingsError(f"`{port}` and host `{host}`: an address as text says both", hint=f'`"{host}:8000"`')
    if host is None:
        host = "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _keyword(each: Setting) -> str:
    return each.key.replace("-", "_")


def _by_field(options: Mapping[str, object]) -> dict[str, object]:
    """Return *options* by the names of the fields of `Settings`. Raises SettingsError for one that there is not."""
    fields = {_keyword(each): each.name for each in settings.SETTINGS if each.name not in ("app", "bind")}
    given = {}
    for name, value in options.items():
        if name not in fields:
            raise SettingsError(
                f"there is no setting `{name}`", hint=f"the nearest is `{settings.nearest(name, fields)}=`"
            )
        given[fields[name]] = list(value) if isinstance(value, tuple) else value
    return given


def _search_path() -> list[str]:
    """Return where this program finds modules, and last the current directory, where `limpet run` does."""
    here = os.getcwd()
    found = [os.path.join(here, directory) for directory in sys.path if isinstance(directory, str)]
    return list(dict.fromkeys([*(os.path.normpath(directory) for directory in found), here]))
