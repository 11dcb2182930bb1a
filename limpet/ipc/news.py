"""News: what a child says to the supervisor. Each kind of news is a class.

This file owns the form of news and its limits, and is the only place that parses them. A worker runs the user's code,
so its messages may contain anything. supervisor/lines.py calls `parse` and decides what follows from the news. Children
call `message`. Pure.

1. `parse` returns news whose fields have the right types and lengths, or raises BadNewsError. It raises nothing else.
2. Texts are for logs: control characters are escaped, and a text that is too long is cut.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from limpet.ipc.codec import Codec

LONGEST_LINE: Final = 1 << 17  # bytes of one message; one with a traceback has some thousand
_LONGEST_TEXT: Final = 4096  # characters of a message or hint
_LONGEST_DETAIL: Final = 1 << 16  # characters of a traceback
_SHOWN: Final = 80  # characters of bad news that a log line shows


class BadNewsError(Exception):
    """A child sent an invalid message. The text of the error says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The child serves from now on, or will as soon as the supervisor tells it to accept."""


@dataclass(frozen=True, slots=True)
class Left:
    """The child takes nothing more from its channels."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """The child drains because of a signal, without an order of the supervisor."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The child asks again for the channels of *slot*: it had no free descriptors for them."""

    slot: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The application asks the supervisor to stop the server."""

    wait_for_connections: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """The child could not start: message, hint and exit code of the error, and the traceback of the user's code."""

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
_CODEC: Final = Codec[News]("news", _KINDS)


def message(news: News) -> dict[str, Any]:
    """Return *news* as a message for `Link.send`."""
    return _CODEC.pack(news)


def parse(line: bytes) -> News:
    """Return the news in *line*. Raises BadNewsError."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        raise BadNewsError(f"something that is not JSON: {shown(line)}") from None
    kind = _KINDS.get(str(said.get("news"))) if isinstance(said, dict) else None
    if kind is Failed:
        return _failed(said, line)
    if kind is Missing and _is_number(said.get("slot")):
        return Missing(said["slot"])
    if kind is Stop and isinstance(said.get("wait_for_connections"), bool):
        return Stop(said["wait_for_connections"])
    if kind is Ready or kind is Left or kind is Leaving:
        return kind()
    raise BadNewsError(f"something unknown: {shown(line)}")


def _failed(said: dict[str, Any], line: bytes) -> Failed:
    text, hint, code, detail = (said.get(name) for name in ("message", "hint", "code", "detail"))
    if not (
        isinstance(text, str) and isinstance(hint, str | None) and isinstance(code, int) and isinstance(detail, str)
    ):
        raise BadNewsError(f"a failure with missing or invalid parts: {shown(line)}")
    return Failed(
        _text(text, _LONGEST_TEXT),
        None if hint is None else _text(hint, _LONGEST_TEXT),
        code,
        "\n".join(_text(each, _LONGEST_TEXT) for each in detail[:_LONGEST_DETAIL].split("\n")),
    )


def _is_number(found: object) -> bool:
    return isinstance(found, int) and not isinstance(found, bool)


def _text(text: str, most: int) -> str:
    """Return up to *most* characters of *text*, with everything escaped that is not printable."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text[:most])


def shown(line: bytes) -> str:
    """Return the beginning of *line* in a form that is safe in a log."""
    text = _text(line[: 4 * _SHOWN].decode(errors="replace"), _SHOWN)
    return f"`{text}`" + (" ..." if len(line) > _SHOWN else "")
