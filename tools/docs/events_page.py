"""docs/events.md, made from the log calls in the sources of limpet.

Run as `python -m tools.docs.events_page`.

Owns the page's form, and the rule that each log call names its event. The names and the messages stand where the event
is logged.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import limpet

PREFACE: Final = """# Events of the log

This page is reference. With `--log-format json` each line has an `event`. The table lists all events of limpet's own
lines. The words of a message may change from version to version; the name of its event does not. Lines of other
loggers, such as uvicorn's, have the event `other`. [Operating](operating.md#logs) shows the other fields.

| Event | Level | Message |
| --- | --- | --- |
"""

_LEVELS: Final = frozenset({"debug", "info", "warning", "error", "exception", "log"})
_ELSEWHERE: Final = (  # not by a call of a logger's method with a message of its own
    ("failed", "error", "why the server, or a process of it, ended"),
    ("log_lines_lost", "warning", "how many lines were lost"),
    ("request", "info", "a request, with `--access-log`"),
)


class Event(NamedTuple):
    """One line of the log: the *name* of its event, its *level*, and its *message* with `…` for each value."""

    name: str
    level: str
    message: str


def events(source: str, where: str) -> Iterator[Event]:
    """Yield the events that the Python *source* logs. Raises ValueError if a log call in it, at *where*, names none."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(ast.Name("log" | "_log"), level) if level in _LEVELS:
                names = _named(node)
                if not names:
                    raise ValueError(f"{where}:{node.lineno}: this log call has no `extra` that names its event")
                message = node.args[1 if level == "log" else 0]
                shown = {"exception": "error", "log": "info"}.get(level, level)
            case ast.Name("Sign" | "warn_hourly"):
                names, message, shown = _strings(node.args[0]), node.args[1], "warning"
            case _:
                continue
        for name in names:
            if name.isidentifier():  # else it comes from a `Sign`
                yield Event(name, shown, _text(message))


def page() -> str:
    """Return docs/events.md."""
    top = Path(limpet.__file__).parent
    found = {Event(*each) for each in _ELSEWHERE}
    for path in top.rglob("*.py"):
        found.update(events(path.read_text(), str(path.relative_to(top))))
    rows = [f"| `{each.name}` | {each.level} | {each.message.replace('|', chr(92) + '|')} |" for each in sorted(found)]
    return PREFACE + "\n".join(rows) + "\n"


def _named(call: ast.Call) -> list[str]:
    """Return the events that the `extra` of *call* may name."""
    for keyword in call.keywords:
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict):
            for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "event":
                    return _strings(value) or [ast.unparse(value)]
    return []


def _strings(node: ast.expr) -> list[str]:
    match node:
        case ast.Constant(str(text)):
            return [text]
        case ast.IfExp(_, first, second):
            return [*_strings(first), *_strings(second)]
    return []


def _text(node: ast.expr) -> str:
    """Return the message of a log call without its hint, and with `…` in place of each value."""
    match node:
        case ast.Constant(str(text)):
            text = re.sub(r"%[-+ 0#]*\d*(?:\.\d+)?[a-z]", "…", text)
        case ast.JoinedStr(parts):
            text = "".join(_text(part) if isinstance(part, ast.Constant) else "…" for part in parts)
        case _:
            text = "…"
    return text.partition(" (hint: ")[0].replace("\n", " ")


if __name__ == "__main__":
    print(page(), end="")
