"""The sockets that a service manager passes to this process: LISTEN_FDS, and their names in LISTEN_FDNAMES.

This file owns how those sockets are found in the environment. net/listener.py decides what to do with them. The service
manager keeps copies of all of them.

1. The sockets are for the process that LISTEN_PID names. Its children, and the commands that it starts, have none.
2. `kept_name` names our own listeners, which a supervisor gave to the manager to keep (FDSTORE) before it was killed.
   Such a socket is not a bind by itself. A server that has the same bind takes it over.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

_FIRST_FD: Final = 3  # fixed by the protocol
_KEPT: Final = "limpet/"


class Passed(NamedTuple):
    """One socket that the service manager passed."""

    fd: int
    name: str


def passed(environ: Mapping[str, str] = os.environ) -> list[Passed]:
    """Return the sockets that were passed to this process, not to its parent."""
    try:
        if int(environ.get("LISTEN_PID", "")) != os.getpid():
            return []
        count = int(environ.get("LISTEN_FDS", ""))
    except ValueError:
        return []
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    return [Passed(_FIRST_FD + i, names[i] if i < len(names) else "") for i in range(count)]


def binds(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return a bind for each passed socket that is to be served, so not for kept listeners."""
    return tuple(f"fd:{each.fd}" for each in passed(environ) if not each.name.startswith(_KEPT))


def named(name: str, environ: Mapping[str, str] = os.environ) -> list[int]:
    """Return the descriptors of the sockets that were passed under *name*."""
    return [each.fd for each in passed(environ) if each.name == name]


def keeps(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the service manager keeps descriptors for this service: systemd 254 and newer sets `FDSTORE`."""
    return environ.get("FDSTORE", "0").isdecimal() and int(environ.get("FDSTORE", "0")) > 0


def kept_name(bind: str, member: int) -> str:
    """Return the name under which the manager keeps a listener of *bind*: the only one, or the one of slot *member*."""
    return f"{_KEPT}{member}/{bind.replace(':', '=')}"  # a name must not have a colon


def kept(bind: str) -> list[int]:
    """Return the descriptors of the listeners of *bind* that the manager has kept, in the order of their slots."""
    found: list[int] = []
    while fds := named(kept_name(bind, len(found))):
        found.append(fds[0])
    return found


def all_kept() -> list[Passed]:
    """Return all listeners that the manager has kept."""
    return [each for each in passed() if each.name.startswith(_KEPT)]


NOT_FOR_CHILDREN: Final = (
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"),
)
"""Variables of the manager for the supervisor only. A child must not take them as meant for itself."""

VARIABLES: Final = (*NOT_FOR_CHILDREN, "FDSTORE")
"""All variables of the manager. Workers get `FDSTORE`: an orphan does not close the door at listeners that are kept."""
