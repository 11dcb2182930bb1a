"""What a child says to the supervisor: a class for each kind of news, and the one place where its words are read.

Owns the form and its limits. A worker runs the user's code, so whatever comes from one may be anything; what follows
from news is decided by supervisor/lines.py. Pure.

1. `parse` returns news whose fields have their types and lengths, or raises BadNewsError. It raises nothing else.
2. Text is for logs: control characters are escaped, and what is too long is cut.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

LONGEST_LINE: Final = 1 << 17  # bytes of one message: a traceback takes some thousand
_LONGEST_TEXT: Final = 4096  # characters of a message or hint
_LONGEST_DETAIL: Final = 1 << 16  # characters of a traceback
_SHOWN: Final = 80  # characters of bad news that a log line shows


class BadNewsError(Exception):
    """A child said what it must not say; the text tells what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Ready:
    """It serves from now on, or would if it were told to accept."""


@dataclass(frozen=True, slots=True)
class Left:
    """It takes nothing more from its slot's channels."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """It drains although nobody told it: a signal did."""


@dataclass(frozen=True, slots=True)
class Missing:
    """It could not take in the channels of *slot*, for want of descriptors, and asks again."""

    slot: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The application asks that the server stops."""

    wait_for_connections: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """It could not start: the words of the error, its hint and exit code, and the traceback of the user's own code."""

    message: str
    hint: str | None = None
    code: int = 1
    detail: str = ""


News = Ready | Left | Leaving | Missing | Stop | Failed
_KINDS: Final[dict[str, type[News]]] = {
    "ready": Ready,
    "left": Left,
    "leaving": Leaving,
    "missing": Missing,
    "stop": Stop,
    "failed": Failed,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


def message(news: News) -> dict[str, Any]:
    """Return *news* as `Link.send` takes it."""
    return {"news": _NAMES[type(news)], **asdict(news)}


def parse(line: bytes) -> News:
    """Return what *line* says. Raises BadNewsError."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):  # the latter for thousands of brackets
        raise BadNewsError(f"no JSON: {shown(line)}") from None
    kind = _KINDS.get(str(said.get("news"))) if isinstance(said, dict) else None
    if kind is Failed:
        return _failed(said, line)
    if kind is Missing and _is_number(said.get("slot")):
        return Missing(said["slot"])
    if kind is Stop and isinstance(said.get("wait_for_connections"), bool):
        return Stop(said["wait_for_connections"])
    if kind is Ready or kind is Left or kind is Leaving:
        return kind()
    raise BadNewsError(f"nothing that is known: {shown(line)}")


def _failed(said: dict[str, Any], line: bytes) -> Failed:
    text, hint, code, detail = (said.get(name) for name in ("message", "hint", "code", "detail"))
    if not (
        isinstance(text, str) and isinstance(hint, str | None) and isinstance(code, int) and isinstance(detail, str)
    ):
        raise BadNewsError(f"a failure without its parts: {shown(line)}")
    return Failed(
        _text(text, _LONGEST_TEXT),
        None if hint is None else _text(hint, _LONGEST_TEXT),
        code,
        "\n".join(_text(each, _LONGEST_TEXT) for each in detail[:_LONGEST_DETAIL].split("\n")),
    )


def _is_number(found: object) -> bool:
    return isinstance(found, int) and not isinstance(found, bool)


def _text(text: str, most: int) -> str:
    """Return *text* on one line, with what a terminal would obey escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text[:most])


def shown(line: bytes) -> str:
    """Return the beginning of *line* as a log may show it."""
    text = _text(line[: 4 * _SHOWN].decode(errors="replace"), _SHOWN)
    return f"`{text}`" + (" ..." if len(line) > _SHOWN else "")
