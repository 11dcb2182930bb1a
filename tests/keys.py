"""A key function that does whatever a client tells it to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import limpet


def _recursion() -> object:
    return _recursion()


def _exit() -> object:
    raise SystemExit(3)


def _interrupt() -> object:
    raise KeyboardInterrupt


def _breaking() -> Iterator[int]:
    yield 1
    raise OSError("in the middle")


FAULTS: dict[str, Callable[[], object]] = {
    "raise": lambda: 1 // 0,
    "recursion": _recursion,
    "exit": _exit,
    "interrupt": _interrupt,
    "float": lambda: 1.5,
    "bool": lambda: True,
    "object": object,
    "strings": lambda: ["a", "b"],
    "breaking": _breaking,
    "surrogate": lambda: "\ud800",
}
NOTHINGS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "empty": lambda: "",
    "no bytes": lambda: b"",
    "()": lambda: (),
}


def told(request: limpet.Request) -> object:
    """Return, or raise, what the header `x-key` says."""
    return (FAULTS | NOTHINGS)[request.headers["x-key"]]()
