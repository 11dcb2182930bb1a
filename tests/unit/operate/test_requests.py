"""What may be asked at the control socket: everything else is an error in words, before anybody acts on it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.errors import ControlError
from limpet.events import Recent
from limpet.operate.requests import checked
from limpet.supervisor.commands import Commands
from tests.unit.stage import Stage

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
COMMANDS = ["status", "figures", "routing", "events", "where", "scale", "reload", "drain", "undrain", "stack", "change"]
FIELDS = st.sampled_from(["after", "keys", "slots", "slot", "read", "number"])
KEYS = st.fixed_dictionaries({}, optional={"cookie": ANY, "value": ANY, "element": ANY, "is_address": ANY})


def commands(stage: Stage) -> Commands:
    """Return the commands of a server of values."""
    return Commands(
        stage.fleet,
        stage.rolling,
        stage.scaling,
        stage.announcer,
        Recent(),
        reload=lambda: stage.rolling.request("reload", [0], 1),
        stop=lambda wait: None,
        admin_url=lambda: None,
    )


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"command": 7},
        {"command": ["status"]},
        {"command": {}},
        {"command": "explode"},
        {"command": "scale"},
        {"command": "scale", "slots": True},
        {"command": "scale", "slots": "3"},
        {"command": "drain", "slot": None},
        {"command": "reload", "slot": 1.0},
        {"command": "events", "after": "yesterday"},
        {"command": "stop", "wait_for_connections": "no"},
        {"command": "where"},
        {"command": "where", "keys": "ada"},
        {"command": "where", "keys": [7]},
        {"command": "where", "keys": [{"value": "0a01", "element": "ip", "is_address": True}]},
        {"command": "where", "keys": [{"value": "zz", "element": "ip", "is_address": False}]},
        {"command": "where", "keys": [{"value": "0a010203", "element": 1, "is_address": True}]},
        {"command": "where", "keys": [{"cookie": 1}]},
        {"command": "change", "number": [1]},
    ],
    ids=repr,
)
def test_request_of_another_form_is_an_error(request_: dict[str, Any]) -> None:
    """`true` workers were taken for one, and the next look at the table ended the supervisor."""
    with pytest.raises(ControlError):
        checked(request_)


def test_fields_of_a_later_version_are_left_out() -> None:
    """`limpet` may be newer than the server that it asks."""
    assert checked({"command": "drain", "slot": 1, "since": 2}) == {"command": "drain", "slot": 1}


@given(st.sampled_from(COMMANDS), st.dictionaries(FIELDS, ANY | st.lists(KEYS, max_size=3), max_size=4))
def test_any_request_has_an_answer(command: str, fields: dict[str, Any]) -> None:
    """An exception in a command is an answer too, and never the server's end."""
    with Stage() as stage:
        stage.fleet.is_serving = True
        answer = commands(stage).answer({"command": command, **fields})
        assert isinstance(answer, dict)
        assert answer.get("error") != "the server failed to do that"  # an exception is an answer, and a bug


def test_every_request_is_checked_before_it_is_obeyed() -> None:
    """`true` is a number to Python: without the table it would have scaled the server to one worker."""
    with Stage(workers=2).start() as stage:
        answer = commands(stage).answer({"command": "scale", "slots": True})
        assert answer["error"].startswith("`scale`: `slots` must be a number of workers")
        assert stage.fleet.router.slots == 2


def test_failure_of_a_command_is_an_answer_and_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """It is a bug: the operator is told, the log says where, and the server goes on."""
    with Stage() as stage:
        stage.fleet.slots.clear()
        stage.fleet.is_serving = True
        del stage.resources.board
        answer = commands(stage).answer({"command": "figures"})
        assert answer["error"] == "the command failed in the server"
        assert "AttributeError" in caplog.text
        stage.resources.close = lambda: None  # type: ignore[method-assign]  # nothing was started


def test_draining_the_last_slot_says_what_it_means() -> None:
    """New clients have to go somewhere, so then it means nothing; who does not know waits for a drain for ever."""
    with Stage(workers=2).start() as stage:
        asked = commands(stage)
        assert "note" not in asked.answer({"command": "drain", "slot": 0})
        assert "all slots are drained" in asked.answer({"command": "drain", "slot": 1})["note"]
        assert "note" not in asked.answer({"command": "undrain", "slot": 0})
