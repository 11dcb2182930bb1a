"""What is said of a worker that has ended: an operator looks at the log first, and often at nothing else."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from limpet import care
from limpet.settings import Settings
from limpet.slot import Member


@pytest.mark.parametrize("is_by_memory", [True, False])
def test_kill_is_put_down_to_the_kernel_only_if_it_has_killed_for_memory(
    is_by_memory: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A SIGKILL that nobody sent is the commonest riddle, and the kernel's count is the only trace of the answer."""
    counts = iter([7, 8 if is_by_memory else 7])
    monkeypatch.setattr(care, "memory_kills", lambda: next(counts))
    nothing: Any = SimpleNamespace()
    watching = care.Care(Settings(app="x:app"), nothing, nothing)
    child: Any = SimpleNamespace(pid=4711, failure=None, how_it_ended=lambda: "was killed by SIGKILL")
    member = Member("worker", 2)
    with caplog.at_level(logging.ERROR, logger="limpet"):
        watching.crashed(member, child, now=1.0)
    assert ("out of memory" in member.last_end) is is_by_memory
    assert ("hint: `--max-memory`" in caplog.text) is is_by_memory
    assert "worker 2 (pid 4711) was killed by SIGKILL" in caplog.text
