"""Lines of the access log: what they say, and when they are written."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from limpet import logs
from limpet.config.router import build_router
from limpet.config.settings import Settings
from limpet.routing.elements import AFFINITY, Key
from limpet.routing.learned_ids import Entry as Learned
from limpet.routing.router import Route
from limpet.worker import access_log
from limpet.worker.access_log import AccessLog, Entry, Fields, First, Held

ROOT = Path(__file__).parents[3]
DIGEST = 0x78D1E9167743B7ED
HASHED = Route(1, 705, DIGEST, 1)
AT = 1_772_360_764.117  # by the wall, when monotonic time is 1000


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written, with clocks that stand still."""
    found: list[str] = []
    monkeypatch.setattr(logs, "write", found.append)
    monkeypatch.setattr(time, "time", lambda: AT)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    return found


def log(form: Literal["human", "json"] = "json") -> AccessLog:
    """Return the access log of slot 1."""
    settings = Settings(app="a:b", by="header:x-user", log_format=form)
    return AccessLog(1, settings, build_router(settings, b"secret"))


def entry(found: Any, path: bytes = b"/", ended: float = 1000.0) -> Entry:
    """Return a request that took 412 microseconds."""
    return Entry(ended - 0.0004125, ended, "GET", path, 0, 200, found)


def test_line_is_the_one_of_the_docs(written: list[str]) -> None:
    """docs/operating.md shows it, and collectors are set up by that."""
    log().write([entry(First(HASHED, 0.0002871))])
    assert f"    {written[0]}" in (ROOT / "docs" / "operating.md").read_text()


@pytest.mark.parametrize(
    ("found", "route", "digest"),
    [
        (HASHED, "hash", f"{DIGEST:x}"),
        (HASHED._replace(is_cookie=True), "cookie", f"{DIGEST:x}"),
        (HASHED._replace(learned=Learned(1, 2, 3, False, 4)), "learned", f"{DIGEST:x}"),
        (DIGEST, "returned", f"{DIGEST:x}"),
        (0, "returned", ""),
        (None, "placed", ""),
        (First(None, 0.5), "placed", ""),
    ],
)
def test_line_says_how_the_request_came_here(written: list[str], found: Any, route: str, digest: str) -> None:
    """Why a request is where it is, in one word."""
    log().write([entry(found)] * 2)  # the second from what is kept ready
    for line in map(json.loads, written[0].splitlines()):
        assert (line["route"], line["digest"]) == (route, digest)
        assert line["waited"] == (0.5 if isinstance(found, First) else 0)


def test_route_of_a_key_is_known_to_be_a_cookie() -> None:
    """The log has the route alone."""
    router = build_router(Settings(app="a:b", by="affinity"), b"secret")
    assert router.where(Key(bytes(8), AFFINITY, False)).how == "cookie"
    assert router.where(Key(b"ada", "header:x-user", False)).how == "hash"


@pytest.mark.parametrize("path", [b'/"quoted"', b"/back\\slash", b"/\xc3\xa4", b"/\x01"])
def test_path_of_any_bytes_gives_valid_json(written: list[str], path: bytes) -> None:
    """A client must not be able to forge a line, or to break the collector."""
    log().write([entry(HASHED, path)])
    [line] = written[0].splitlines()
    assert json.loads(line)["path"] == path.decode("latin-1")


def test_times_of_a_batch_are_those_of_each_request(written: list[str]) -> None:
    """What was written together has ended at different times, some in other seconds."""
    ends = [1000 + step * 0.0317 for step in range(100)]
    log().write([entry(HASHED, ended=ended) for ended in ends])
    for ended, line in zip(ends, written[0].splitlines(), strict=True):
        shown = datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
        assert 0 <= AT + ended - 1000 - shown < 0.0011  # cut off, not rounded: a line is not from the future


def test_memory_for_what_is_kept_ready_is_bounded(written: list[str]) -> None:
    """Paths and keys are clients' to choose."""
    each = log()
    each.write([entry(number, b"/%d" % number) for number in range(3 * access_log._READY)])
    assert written[0].count("\n") == 3 * access_log._READY
    assert all(len(ready) <= access_log._READY for ready in (each._routes, each._requests))


def test_people_get_lines_for_people(written: list[str]) -> None:
    """The same facts, by the clock of the machine."""
    log("human").write([entry(First(HASHED, 0.0123))])
    words = r"\d\d:\d\d:04 INFO    GET / 200 in 0\.4 ms, slot 1, hash 78d1e9167743b7ed, waited 12\.3 ms\n"
    assert re.fullmatch(words, written[0])


class Noting(AccessLog):
    """Keeps what it is to write."""

    def __init__(self) -> None:
        self.written: list[Fields] = []

    def write(self, entries: Any) -> None:
        self.written += entries


def test_what_is_held_is_written_after_a_while_or_when_it_is_much() -> None:
    """A line is not late, and a write is not for one line."""
    calls: list[Callable[[], None]] = []
    noting = Noting()
    held = Held(noting, lambda delay_s, call: calls.append(call))
    most = access_log._MOST_HELD
    entries = [entry(number) for number in range(most + 3)]
    for each in entries[:-1]:
        held.add(each)
    assert (len(noting.written), len(calls)) == (most, 1)
    calls.pop()()
    assert len(noting.written) == most + 2
    assert not calls  # nothing wakes a worker that has nothing to write
    held.add(entries[-1])
    calls.pop()()
    assert noting.written == entries


@pytest.mark.parametrize("form", ["json", "human"])
def test_entry_that_cannot_be_written_takes_no_other_along(form: Literal["human", "json"], written: list[str]) -> None:
    """512 requests share a write: one odd status among them must neither lose the others nor raise into a request."""
    odd = entry(HASHED, b"/odd")._replace(status=b"")
    log(form).write([entry(HASHED, b"/before"), odd, entry(HASHED, b"/after")])
    assert "/before" in written[0]
    assert "/after" in written[0]
    assert "/odd" not in written[0]
