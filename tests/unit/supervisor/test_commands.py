"""What each command does to a server of values."""

from __future__ import annotations

import os
from typing import Any

import pytest

from limpet.events import Recent
from limpet.supervisor.commands import Commands
from limpet.system import stack
from tests.unit.stage import Stage


class Asked:
    """The commands of a stage, and what they have asked the supervisor for."""

    def __init__(self, stage: Stage) -> None:
        self.did: list[object] = []
        self._commands = Commands(
            stage.fleet,
            stage.rolling,
            stage.scaling,
            stage.announcer,
            Recent(),
            reload=lambda: stage.rolling.request("reload", [0, 1], 1),
            stop=self.did.append,
            admin_url=lambda: "http://127.0.0.1:9000",
        )

    def __call__(self, command: str, **fields: Any) -> dict[str, Any]:
        return self._commands.answer({"command": command, **fields})


def test_stop_waits_for_connections_only_when_told() -> None:
    """Otherwise `limpet stop` would never return while a websocket is open."""
    with Stage().start() as stage:
        ask = Asked(stage)
        assert ask("stop") == {"stopping": True}
        ask("stop", wait_for_connections=True)
        assert ask.did == [False, True]


def test_reload_renews_all_slots_or_the_one_that_is_named() -> None:
    """Each is a change that can be asked about by its number."""
    with Stage().start() as stage:
        ask = Asked(stage)
        first, second = ask("reload"), ask("reload", slot=1)
        assert (first["why"], second["why"]) == ("reload", "reload of worker 1")
        found = ask("change", number=second["change"])
        assert (found["change"], found["state"]) == (second["change"], "waiting")


def test_change_that_there_is_not_is_an_error() -> None:
    """A script that waits for it would wait for ever."""
    with Stage().start() as stage:
        assert Asked(stage)("change", number=77)["error"] == "there is no change `77`"


@pytest.mark.parametrize("command", ["drain", "reload", "stack"])
def test_slot_that_there_is_not_is_an_error(command: str) -> None:
    """The highest number is one below the number of workers, which many forget."""
    with Stage(workers=2).start() as stage:
        assert "2" in Asked(stage)(command, slot=2)["error"]


def test_drained_slot_is_told_to_all_once() -> None:
    """A second drain changes nothing, so no process has to hear of it."""
    with Stage().start() as stage:
        ask = Asked(stage)
        assert ask("drain", slot=1)["state"] == "draining"
        assert [each.held for each in stage.told(stage.fleet.slots[0])] == [[1]]  # type: ignore[union-attr]
        ask("drain", slot=1)
        assert stage.told(stage.fleet.slots[0]) == []
        assert ask("undrain", slot=1)["state"] == "ready"
        assert [each.held for each in stage.told(stage.fleet.slots[0])] == [[]]  # type: ignore[union-attr]


def test_kernel_backend_drains_nothing() -> None:
    """It cannot tell new clients from others, and an operator who relies on it must hear that."""
    with Stage().start() as stage:
        stage.backend.name = "kernel"
        answer = Asked(stage)("drain", slot=0)
        assert "cannot drain" in answer["error"]
        assert not stage.fleet.slots[0].is_held


def test_worker_that_is_not_ready_is_not_asked_for_its_stacks() -> None:
    """The signal would end it."""
    with Stage().start() as stage:
        assert Asked(stage)("stack", slot=0)["error"] == "slot 0 has no ready worker"


def test_stacks_of_a_ready_worker_are_asked_for_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two questions, since the worker may take a while."""
    with Stage().start() as stage:
        child = stage.fleet.slots[0].child
        assert child is not None
        child.stack_fd, child.shows_stack = stack.create(), True
        signalled: list[int] = []
        monkeypatch.setattr(os, "kill", lambda pid, number: signalled.append(pid))
        ask = Asked(stage)
        assert ask("stack", slot=0) == {"pid": child.pid}
        os.write(child.stack_fd, b"in a loop")
        assert ask("stack", slot=0, read=True) == {"pid": child.pid, "stack": "in a loop"}
        assert signalled == [child.pid]
        monkeypatch.setattr(os, "kill", _gone)
        assert "cannot read the stacks" in ask("stack", slot=0)["error"]
        os.close(child.stack_fd)


def _gone(pid: int, number: int) -> None:
    raise ProcessLookupError(3, "No such process")
