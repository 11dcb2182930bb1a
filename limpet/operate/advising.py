"""Helpful warnings: it looks at the figures from time to time and logs what operate/advice.py makes of them.

Owns when it looks, and how often it repeats a warning: once an hour for each cause. Reads the scoreboard and changes
nothing. supervisor/companions.py calls it in each turn.

1. An interval lasts until there is enough to judge, but at most _LONGEST_S.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

from limpet.config.server_kinds import kind
from limpet.fleet.fleet import Fleet
from limpet.logs import Hourly
from limpet.operate import advice, status
from limpet.operate.advice import Facts, Seen

_LOOK_S: Final = 3.0
_LONGEST_S: Final = 60.0
_ENOUGH: Final = 1000  # connections or requests
_CLOCK: Final = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
log = logging.getLogger("limpet")


class Adviser:
    """Looks at the figures of one server."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._hourly = Hourly()
        self._look_at = 0.0
        self._judge_at = float("inf")
        self._before: tuple[list[Counter[str]], Counter[str]] | None = None
        self._found: set[str] = set()
        self._keys_set = False

    def look(self, now: float) -> None:
        """Log the warnings that are due. *now* is monotonic."""
        if now < self._look_at or not self._fleet.is_serving or self._fleet.is_stopping:
            return
        self._look_at = now + _LOOK_S
        slots, dispatchers = status.counted(self._fleet)
        if not self._keys_set and any(
            slot["keys_set"] for slot in slots
        ):  # At once, and only once: this is a matter of the application's code.
            self._keys_set = True
            sign = advice.key_is_set(self._facts())
            log.warning("%s (hint: %s)", sign.text, sign.hint, extra={"event": sign.event})
        if self._before is None or len(self._before[0]) != len(slots):
            self._before, self._judge_at = (slots, dispatchers), now + _LONGEST_S
            return
        self._note_elements()
        seen = self._seen(slots, dispatchers)
        if max(sum(seen.requests), sum(seen.received), seen.handed) >= _ENOUGH or now >= self._judge_at:
            self._before, self._judge_at = (slots, dispatchers), now + _LONGEST_S
            for sign in advice.signs(self._facts(), seen):
                if self._hourly.allows(sign.event + sign.about, now):
                    log.warning("%s (hint: %s)", sign.text, sign.hint, extra={"event": sign.event})

    def _seen(self, slots: list[Counter[str]], dispatchers: Counter[str]) -> Seen:
        assert self._before is not None
        before, before_there = self._before
        board = self._fleet.resources.board
        rows = {slot.number: board.worker(slot.child.row) for slot in self._fleet.slots if slot.child}
        return Seen(
            requests=[now["requests"] - then["requests"] for now, then in zip(slots, before, strict=True)],
            received=[now["received"] - then["received"] for now, then in zip(slots, before, strict=True)],
            **{name: dispatchers[name] - before_there[name] for name in ("handed", "keyless", "same_address")},
            open={number: row["connections"] + row["copies"] for number, row in rows.items()},
            routed=dispatchers["handed"],
            found=frozenset(self._found),
            any_keyless=dispatchers["keyless"] > 0,
        )

    def _note_elements(self) -> None:
        fleet, board = self._fleet, self._fleet.resources.board
        rows = [board.worker(child.row) for slot in fleet.slots for child in slot.children]
        rows += [board.dispatcher(child.row) for member in fleet.dispatchers for child in member.children]
        bits = {bit for row in rows for bit in fleet.router.chain.elements_of(row["elements"])}
        self._found |= bits

    def _facts(self) -> Facts:
        fleet = self._fleet
        served_by = kind(fleet.settings.server)
        clock = ""
        with suppress(OSError):
            clock = _CLOCK.read_text().strip()
        return Facts(
            chain=[element.spec for element in fleet.router.chain.elements],
            server=fleet.settings.server,
            moves=served_by.moves,
            closes=served_by.closes and served_by.http,
            has_dispatcher=bool(fleet.dispatchers),
            descriptors=fleet.resources.descriptors,
            clock=clock,
        )
