"""The sockets that a service manager passes on: LISTEN_FDS, and by name LISTEN_FDNAMES.

Owns how they are found in the environment. What becomes of them is net/listener.py's business; the manager keeps
copies.

1. They are meant for the process that LISTEN_PID names: children of it, and commands that it starts, have none.
2. The names that `kept_name` makes are those of our own listeners, which a supervisor that was killed had given to the
   manager to keep (FDSTORE). They are no binds by themselves: who has the same bind again takes them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

_FIRST_FD: Final = 3  # by the protocol
_KEPT: Final = "limpet/"


class Passed(NamedTuple):
    """One socket that was passed on."""

    fd: int
    name: str


def passed(environ: Mapping[str, str] = os.environ) -> list[Passed]:
    """Return the sockets that were passed to this very process."""
    try:
        if int(environ.get("LISTEN_PID", "")) != os.getpid():
            return []
        count = int(environ.get("LISTEN_FDS", ""))
    except ValueError:
        return []
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    return [Passed(_FIRST_FD + i, names[i] if i < len(names) else "") for i in range(count)]


def binds(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return a bind for each socket that was passed on to be served."""
    return tuple(f"fd:{each.fd}" for each in passed(environ) if not each.name.startswith(_KEPT))


def named(name: str, environ: Mapping[str, str] = os.environ) -> list[int]:
    """Return the descriptors of the sockets that were passed on under *name*."""
    return [each.fd for each in passed(environ) if each.name == name]


def keeps(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the manager keeps descriptors for this service: systemd says how many, 254 and newer by itself."""
    return environ.get("FDSTORE", "0").isdecimal() and int(environ.get("FDSTORE", "0")) > 0


def kept_name(bind: str, member: int) -> str:
    """Return under which name the manager keeps a listener of *bind*: its only one, or that of slot *member*."""
    return f"{_KEPT}{member}/{bind.replace(':', '=')}"  # a name must not have a colon


def kept(bind: str) -> list[int]:
    """Return the listeners of *bind* that the manager has kept, in the order of their slots."""
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
"""What the manager tells the supervisor, and no child must believe to be meant for itself."""

VARIABLES: Final = (*NOT_FOR_CHILDREN, "FDSTORE")
"""All that it tells. Workers hear that it keeps descriptors: an orphan does not close the door at those."""
