"""docs/api.md, made from the docstrings of the public names: `python -m tools.docs.api_page > docs/api.md`.

Owns the order of the names and the form of the page. What a name promises stands in its docstring alone. Run by
`make docs`; a test compares. No process of a server imports it.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, Final

import limpet

_PREFACE: Final = """\
# Python API

Names of the module `limpet`; all else in the package is free to change. An application runs unchanged without limpet as
long as it asks only in a worker (`"LIMPET_SLOT" in os.environ`).
"""
_SECTIONS: Final = {
    "Starting a server": ("listen", "Cluster", "Handle", "LimpetError"),
    "What identifies a client": (
        "Ip",
        "Forwarded",
        "Header",
        "Cookie",
        "Query",
        "Path",
        "Affinity",
        "Sni",
        "Request",
        "Peer",
    ),
    "In a worker": (
        "current_worker",
        "WorkerInfo",
        "on_start",
        "on_shutdown",
        "listener",
        "mint",
        "learn",
        "forget",
    ),
    "Between workers": ("publish", "publish_sync", "subscribe", "Subscription", "Message"),
    "What workers share": (
        "once",
        "WorkerEnds",
        "stash",
        "Stash",
        "StashFull",
        "StashBusy",
        "counter",
        "Counter",
        "limit",
    ),
}
_MADE_BY_LIMPET: Final = (
    *(limpet.Handle, limpet.LimpetError, limpet.WorkerInfo, limpet.Request, limpet.Peer, limpet.Counter),
    *(limpet.Subscription, limpet.Message),
    *(limpet.Stash, limpet.stash, limpet.StashFull, limpet.StashBusy, limpet.WorkerEnds),
)
_INTERNAL: Final = {limpet.Affinity: ("jar",), limpet.Forwarded: ("trust",)}  # parameters that the server fills in
_HOLD: Final = {
    limpet.Request: ("method", "target", "peer"),
    limpet.Peer: ("address", "port", "listener", "bind"),
    limpet.LimpetError: ("message", "hint", "exit_code"),
}
_DOCS: Final = {  # where the docstring is said to others: it is what the exit code means
    "LimpetError": "What went wrong, in words for people. Its subclasses have the "
    "[exit codes](exit-codes.md) of the command line; a traceback shows the hint.",
    "stash": "The mapping that all workers share, a `limpet.Stash`. It outlives each worker, and a reload; with "
    "`--stash DIRECTORY` also a restart. Keys are text; values are bytes, text, or what JSON can say. It is used as a "
    "`dict` is; a value that is read is a copy.",
}


def page() -> str:
    """Return docs/api.md."""
    lines = [_PREFACE]
    for title, names in _SECTIONS.items():
        lines.append(f"## {title}\n")
        for name in names:
            lines += _entry(name, getattr(limpet, name))
    return "\n".join(lines).rstrip() + "\n"


def _entry(name: str, found: Any) -> Iterator[str]:
    """Yield the lines on one public name, and on what can be asked of it."""
    yield f"### {name}\n"
    yield f"`limpet.{name}{_parameters(found)}`\n"
    yield f"{_DOCS.get(name) or _doc(found)}\n"
    if fields := _fields(found):
        yield fields
    members = _members(found) if inspect.isclass(found) else []
    for member, value in members:
        shown = member if not callable(value) else f"{member}{_parameters(value)}"
        awaited = "await " if inspect.iscoroutinefunction(value) else ""
        yield f"- `{awaited}{shown}`: {textwrap.indent(_doc(value), '  ').lstrip()}"
    if members:
        yield ""


def _members(found: type) -> list[tuple[str, Any]]:
    """Return the public methods and properties that *found* documents, in the order of the source."""
    kinds = [kind for kind in (found, *found.__bases__) if kind.__module__.startswith("limpet.")]
    own = [(name, value) for kind in kinds for name, value in vars(kind).items()]
    return [
        (name, value)
        for name, value in own
        if name[0] != "_" and (inspect.isfunction(value) or isinstance(value, property)) and _doc(value)
        if found.__module__ != "limpet.routing.elements"  # these are asked by the key chain
        and not name.endswith(("_bytes", "_values"))
    ]


def _parameters(found: Any) -> str:
    """Return the parameters as they are written in a call; none for classes that limpet makes objects of."""
    if found in _MADE_BY_LIMPET:
        return ""
    signature = inspect.signature(found)
    parameters = [each for each in signature.parameters.values() if each.name not in _INTERNAL.get(found, ("self",))]
    plain = [each.replace(annotation=each.empty) for each in parameters]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


def _fields(found: Any) -> str:
    """Return the names of what objects of the class *found* hold, if it is one that holds values."""
    names = getattr(found, "_fields", ()) or _HOLD.get(found, ())
    return f"Fields: {', '.join(f'`{name}`' for name in names)}.\n" if names else ""


def _doc(found: Any) -> str:
    text = inspect.getdoc(found) or ""
    return re.sub(r"(?<![*\w])\*(\w+)\*(?!\w)", r"`\1`", text)


if __name__ == "__main__":
    print(page(), end="")
