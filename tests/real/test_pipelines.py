"""Random pipelines of requests against an oracle, and that the oracle sees what it is there for."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.harness import HERE, PATIENCE_S, Limpet
from tests.pipelines import USERS, play_all

QUICK, LONG = 150, 25_000
PARSERS = [(http, by) for http in ("httptools", "h11") for by in ("header:x-user", "ip")]
RULES = {
    "trailers are no headers": (
        "uvicorn/protocols.py", "self.headers = _Trailers(self)", "pass",
    ),
    "trailers are counted": ("uvicorn/protocols.py", "if self._number > settings.max_headers", "if self._number < 0"),
    "a request goes to its own slot": ("uvicorn/moving.py", "if slot == home.slot:", "if slot is not None:"),
    "bytes behind an upgrade are frames": (
        "uvicorn/moving.py", "pass_on(self.transport, self._unread[self._at :])", "pass_on(self.transport, b'')",
    ),
    "chunks are counted": ("uvicorn/moving.py", "end = line.end() + size + 2", "end = line.end() + size + 9"),
    "a request waits for the response before it": (
        "uvicorn/moving.py",
        "if self.cycle is not None and not self.cycle.response_complete:\n            self.cycle.is_",
        "if self.cycle is None:\n            self.cycle.is_",
    ),
}  # fmt: skip


def _play(
    seeds: range, http: str, by: str, *, cwd: Path = HERE.parent, enough: int = 5, patience_s: float = PATIENCE_S
) -> list[str]:
    flags = ("--workers", "3", "--by", by, "--http", http, "--backend", "dispatcher")
    with Limpet("tests.pipeline_app:app", *flags, cwd=cwd, env={"PYTHONPATH": str(cwd)}) as server:
        slots = {}
        if by != "ip":
            slots = {user: found["slot"] for user, found in zip(USERS, server.where(*USERS), strict=True)}
        strict = (http, by) != ("h11", "ip")
        wrong = asyncio.run(play_all(server.port, seeds, slots, strict=strict, enough=enough, patience_s=patience_s))
        if cwd != HERE.parent:  # a broken server may not end in order
            server.kill()
        return wrong


@pytest.mark.parametrize(("http", "by"), PARSERS)
def test_each_request_of_a_random_pipeline_has_its_response(http: str, by: str) -> None:
    """A list of known faults finds those faults; this finds the next one."""
    assert not _play(range(QUICK), http, by)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("http", "by"), PARSERS)
def test_each_request_of_25000_random_pipelines_has_its_response(http: str, by: str) -> None:
    """What happens once in ten thousand sessions happens every minute to somebody: 100,000 with all parsers."""
    assert not _play(range(1_000_000, 1_000_000 + LONG), http, by)


@pytest.mark.parametrize("rule", RULES)
def test_random_pipelines_find_a_rule_that_is_broken(rule: str, tmp_path: Path) -> None:
    """An oracle that never says no proves nothing: each rule is broken in a copy of the package."""
    file, old, new = RULES[rule]
    for package in ("limpet", "tests"):
        shutil.copytree(
            HERE.parent / package,
            tmp_path / package,
            ignore=shutil.ignore_patterns("__pycache__", "node_modules", "real", "unit", "matrix", "products"),
        )
    path = tmp_path / "limpet" / "servers" / file
    text = path.read_text()
    assert text.count(old) == 1, "the line is another by now"
    path.write_text(text.replace(old, new))
    assert _play(range(4 * QUICK), "httptools", "header:x-user", cwd=tmp_path, enough=1, patience_s=3), rule
