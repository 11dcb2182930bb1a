"""`limpet top`: the slots of a running server and the processes in front of them, live in a terminal.

Owns what is shown, and the keys. It asks the control socket for figures and events once a second, which costs the
server no more than `limpet status`. cli/commands.py calls it. The live view uses rich, which is an extra; `--once`
prints a table without it.

1. Rates come from the difference of two answers. The load of each slot is drawn relative to the busiest slot, so even
   load looks like a straight edge.
2. A key acts on the selected slot, and the line at the bottom says so. There is no confirmation, because drain and
   reload lose no request.
"""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from limpet.errors import ControlError, LimpetError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Ask = Callable[[dict[str, Any]], dict[str, Any]]
_PERIOD_S: Final = 1.0
_LEVELS: Final = " ▁▂▃▄▅▆▇█"
_HISTORY: Final = 240  # samples
_FIXED: Final = 62  # columns of everything but the graphs, with room for larger numbers
_LEAST_GRAPH: Final = 8
_MOST_AHEAD: Final = 4  # lines about the processes in front of the workers: a terminal may only have 24 lines
_UP: Final = {"\x1b[A", "\x1bOA", "k"}
_DOWN: Final = {"\x1b[B", "\x1bOB", "j"}
_HELP: Final = "↑↓ slot  d drain or undrain  r reload slot  R reload all  q quit"
_KEY: Final = re.compile(r"\x1b[\[O].|.", re.DOTALL)
_COLORS: Final = {"ready": "green", "starting": "yellow", "draining": "yellow", "backoff": "red", "stopped": "dim"}
_LEVEL_COLORS: Final = {"warning": "yellow", "error": "red"}
COLUMNS: Final = ("slot", "state", "pid", "conns", "req/s", "moved/s", "queue", "lag ms", "cpu %", "MiB")


@dataclass(slots=True)
class Row:
    """One slot as it is shown."""

    slot: int
    state: str
    pid: int | None
    connections: int
    requests: float  # a second
    moved: float  # a second
    queued: int
    lag_ms: float
    cpu: float  # share of one CPU
    mib: float

    def cells(self) -> list[object]:
        """Return the values of COLUMNS."""
        return [
            *(self.slot, self.state, self.pid, self.connections, round(self.requests), round(self.moved), self.queued),
            *(f"{self.lag_ms:.1f}", f"{self.cpu:.0%}"[:-1], round(self.mib)),
        ]


def rows(before: dict[str, Any] | None, now: dict[str, Any]) -> list[Row]:
    """Return the slots of *now*, an answer to `figures`, with rates since *before*."""
    earlier = {slot["slot"]: slot for slot in (before or now)["slots"]}
    passed_s = _passed_s(before, now)

    def rate(slot: dict[str, Any], name: str) -> float:
        then = earlier.get(slot["slot"], slot)["figures"].get(name, 0)
        return max(0.0, slot["figures"].get(name, 0) - then) / passed_s if passed_s > 0 else 0.0

    return [
        Row(
            slot=slot["slot"],
            state=slot["state"],
            pid=slot["pid"],
            connections=slot["figures"]["connections"],
            requests=rate(slot, "requests"),
            moved=rate(slot, "returns"),
            queued=slot["figures"]["queued"],
            lag_ms=slot["figures"]["lag_ns"] / 1e6,
            cpu=rate(slot, "cpu_s"),
            mib=slot["figures"]["resident_bytes"] / (1 << 20),
        )
        for slot in now["slots"]
    ]


def ahead(before: dict[str, Any] | None, now: dict[str, Any]) -> list[str]:
    """Return a line for each process that connections pass before their worker. Its use of CPU is since *before*."""
    passed_s, lines = _passed_s(before, now), []
    earlier = {each["pid"]: each["cpu_s"] for each in (before or now).get("processes", ())}
    for each in now.get("processes", ()):  # older servers do not report them
        used_s = each["cpu_s"] - earlier.get(each["pid"], each["cpu_s"])
        lines.append(
            f"{each['name']} {each['state']}, pid {each['pid']}, cpu {used_s / passed_s if passed_s else 0.0:.0%}, "
            f"{each['resident_bytes'] / (1 << 20):.0f} MiB, {each['held']} of {each['room']} {each['holds']}"
        )
    return lines


def _passed_s(before: dict[str, Any] | None, now: dict[str, Any]) -> float:
    passed_s: float = now["server"]["uptime_s"] - (before or now)["server"]["uptime_s"]
    return max(0.0, passed_s)


def sparkline(values: Sequence[float], width: int, most: float) -> str:
    """Return the last *width* of *values* as a line of bars. *most* is the value of a full bar."""
    shown = list(values)[-width:]
    bars = [_LEVELS[min(8, -(-int(value * 8) // max(1, int(most))))] if value > 0 else " " for value in shown]
    return "".join(bars).rjust(width)


def bar(value: float, most: float, width: int) -> str:
    """Return a bar of *width* characters, which is full if *value* is *most*."""
    filled = round(width * value / most) if most > 0 else 0
    return "█" * filled + "·" * (width - filled)


def balance(found: Sequence[Row]) -> str:
    """Return in words how even the load is."""
    loads = [row.requests for row in found if row.state == "ready"]
    mean = sum(loads) / len(loads) if loads else 0.0
    if mean < 1 or len(loads) < 2:
        return "balance -"
    return f"busiest slot {max(loads) / mean:.2f} x the mean"


def once(ask: Ask) -> list[Row]:
    """Return the slots with their rates over one second. Blocks for that second."""
    before = ask({"command": "figures"})
    time.sleep(_PERIOD_S)
    return rows(before, ask({"command": "figures"}))


@dataclass
class View:
    """What is on the screen."""

    ask: Ask
    status: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] | None = None
    shown: list[Row] = field(default_factory=list)
    ahead: list[str] = field(default_factory=list)
    history: dict[int, deque[float]] = field(default_factory=dict)
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=100))
    newest: int = 0
    selected: int = 0
    said: str = _HELP

    def refresh(self) -> None:
        """Ask the server for new figures. Raises ControlError."""
        before, self.figures = self.figures, self.ask({"command": "figures"})
        if not self.status or self.figures["server"]["upgrades"] != self.status["upgrades"]["done"]:
            self.status = self.ask({"command": "status"})
        self.shown, self.ahead = rows(before, self.figures), ahead(before, self.figures)[:_MOST_AHEAD]
        if before is not None:
            for row in self.shown:
                self.history.setdefault(row.slot, deque(maxlen=_HISTORY)).append(row.requests)
        for event in self.ask({"command": "events", "after": self.newest})["events"]:
            self.events.append(event)
            self.newest = event["number"]
        self.selected = min(self.selected, len(self.shown) - 1)

    def press(self, key: str) -> bool:
        """Do what *key* says. Return False if it ends the view."""
        slot = self.shown[self.selected].slot if self.shown else 0
        if key in ("q", "\x03"):
            return False
        if key in _UP | _DOWN:
            step = -1 if key in _UP else 1
            self.selected = max(0, min(len(self.shown) - 1, self.selected + step))
        elif key == "d":
            is_held = self.shown[self.selected].state == "draining"
            self._command({"command": "undrain" if is_held else "drain", "slot": slot})
        elif key == "r":
            self._command({"command": "reload", "slot": slot})
        elif key == "R":
            self._command({"command": "reload"})
        return True

    def _command(self, request: dict[str, Any]) -> None:
        words = f"{request['command']} {'' if 'slot' not in request else 'slot ' + str(request['slot'])}".strip()
        try:
            self.ask(request)
            self.said = f"{words}: begun"
        except LimpetError as error:
            self.said = f"{words}: {error.message}"

    def draw(self, width: int, height: int) -> RenderableType:
        """Return the screen for a terminal of this size."""
        from rich.console import Group
        from rich.text import Text

        assert self.figures is not None
        of = self.figures["server"]
        head = Text(overflow="ellipsis", no_wrap=True)
        head.append(self.status["app"], "bold").append(f" at {' '.join(self.status['binds'])}")
        total = sum(row.requests for row in self.shown)
        word = "stopping" if of["stopping"] else "serving" if of["serving"] else "starting"
        second = Text(
            f"{word} {of['uptime_s']:.0f} s, {total:.0f} req/s, {balance(self.shown)}, "
            f"connections {sum(row.connections for row in self.shown)}, by {self.status['by']}, "
            f"backend {self.status['backend']}",
            style="dim",
            overflow="ellipsis",
            no_wrap=True,
        )
        height -= len(self.ahead)
        visible = max(1, min(len(self.shown), height - 8))
        events = max(2, height - visible - 6)
        lines: list[RenderableType] = [Text(line, "dim", overflow="ellipsis", no_wrap=True) for line in self.ahead]
        lines += [_event(event) for event in list(self.events)[-events:]]
        free = [Text("") for _ in range(height + len(self.ahead) - visible - len(lines) - 4)]
        return Group(head, second, self._table(width, visible), *lines, *free, Text(self.said, "reverse", no_wrap=True))

    def _table(self, width: int, visible: int) -> Table:
        """Return the table of slots for a terminal of this *width*: *visible* slots around the selected one."""
        from rich.table import Table
        from rich.text import Text

        graph = max(_LEAST_GRAPH, (width - _FIXED) * 2 // 3)
        load = max(6, width - _FIXED - graph)
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, expand=False)
        for title, justify in (
            *(("slot", "right"), ("state", "left"), ("conns", "right"), ("req/s", "right")),
            *(("history", "right"), ("load", "left"), ("moved", "right"), ("queue", "right")),
            *(("lag ms", "right"), ("cpu %", "right"), ("MiB", "right")),
        ):
            table.add_column(title, justify=justify, no_wrap=True, header_style="bold")  # type: ignore[arg-type]
        most = max([row.requests for row in self.shown] + [1.0])
        peak = max([value for values in self.history.values() for value in values] + [1.0])
        first = max(0, min(self.selected - visible // 2, len(self.shown) - visible))
        for number, row in list(enumerate(self.shown))[first : first + visible]:
            table.add_row(
                str(row.slot),
                Text(row.state, _COLORS.get(row.state, "")),
                str(row.connections),
                f"{row.requests:.0f}",
                Text(sparkline(self.history.get(row.slot, ()), graph, peak), "cyan"),
                Text(bar(row.requests, most, load), "blue"),
                f"{row.moved:.0f}",
                Text(str(row.queued), "red" if row.queued else ""),
                f"{row.lag_ms:.1f}",
                f"{row.cpu * 100:.0f}",
                f"{row.mib:.0f}",
                style="reverse" if number == self.selected else "",
            )
        return table


def _event(event: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    clock = time.strftime("%H:%M:%S", time.localtime(event["number"] / 1e6))
    style = _LEVEL_COLORS.get(event["level"], "")
    return Text(f"{clock} {event['message']}".replace("\n", " "), style, overflow="ellipsis", no_wrap=True)


def live(ask: Ask) -> None:
    """Show the live view until a key ends it. Raises LimpetError.

    If the server ends later, the view says so and stays open.
    """
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        raise LimpetError(
            "the live view needs the package `rich`",
            hint="`pip install 'limpet[top]'`; `limpet top --once` needs nothing",
        ) from None
    console, view = Console(), View(ask)
    view.refresh()
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as screen:
        next_at = time.monotonic() + _PERIOD_S
        while True:
            screen.update(view.draw(*console.size), refresh=True)
            if not all(map(view.press, pressed(max(0.0, next_at - time.monotonic())))):
                return
            if time.monotonic() >= next_at:
                next_at += _PERIOD_S
                try:
                    view.refresh()
                except ControlError as error:
                    view.said = f"{error.message}; q quits"


def keys_in(text: str) -> list[str]:
    """Return the keys that sent *text*. An arrow key sends three characters, and several keys may arrive together."""
    return _KEY.findall(text)


@contextmanager
def _keys() -> Iterator[Callable[[float], list[str]]]:
    """Yield a function that returns the keys pressed within some seconds. The terminal is restored afterwards."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed(timeout_s: float) -> list[str]:
        if not select.select([fd], [], [], timeout_s)[0]:
            return []
        return keys_in(os.read(fd, 256).decode(errors="ignore"))

    try:
        tty.setcbreak(fd)
        yield pressed
    finally:
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
