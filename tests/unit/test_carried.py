"""What passes from one supervisor to the next: nothing is forgotten by accident, and what must stay stays."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from limpet.config.settings import Settings
from limpet.ipc import scoreboard
from limpet.net import listener
from limpet.supervisor import snapshot

PACKAGE = Path(snapshot.__file__).parent
CARRIED = {
    "Supervisor": {
        "settings",
        "router",
        "backend",
        "estate",
        "slots",
        "dispatchers",
        "terminators",
        "rolling",
        "control",
        "upgrade",
    },
    "Estate": {
        "settings",
        "board",
        "channels",
        "moves",
        "inner",
        "past",
        "newest_serial",
        "secret",
        "free_rows",
        "descriptors",
    },
    "Member": {
        "role",
        "number",
        "life",
        "child",
        "successor",
        "predecessors",
        "is_held",
        "down_since",
        "recycle_at",
        "last_end",
    },
    "Child": {
        "role",
        "row",
        "serial",
        "generation",
        "started_at",
        "kill_at",
        "leaves_by",
        "is_open",
        "stack_fd",
        "link",
        "failure",
        "pid",
    },
}
ANEW = {
    "Supervisor": {
        *("_selector", "_watch", "beside", "_care", "_told_up", "serving", "program", "lines"),
        "scaling",  # the number of slots is in the settings; a server that scales is not upgraded
        "_end",  # a server that stops is not upgraded
    },
    "Estate": {"_backend", "pem"},  # the latter from the files, as at a reload
    "Member": {"cause", "is_outdated"},  # of a death that has had its consequences
    "Child": {"_process"},
}
FILES = {"Supervisor": "supervisor", "Estate": "estate", "Member": "slot", "Child": "process"}


def attributes(name: str) -> set[str]:
    """Return what `__init__` of the class *name* gives its objects."""
    tree = ast.parse((PACKAGE / f"{FILES[name]}.py").read_text())
    [found] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    [init] = [node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    stores = [node for node in ast.walk(init) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return {node.attr for node in stores if isinstance(node.value, ast.Name)}


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_attribute_is_carried_or_begins_anew(name: str) -> None:
    """Whoever gives the supervisor something new has to decide what becomes of it in an upgrade: see carried.py."""
    assert attributes(name) == CARRIED[name] | ANEW[name]


def test_every_field_of_a_listener_is_carried() -> None:
    """The same for what is no object with a life of its own."""
    names = {field.name for field in dataclasses.fields(listener.Listener)}
    assert names == {"sock", "bind", "backlog", "address_text", "url", "inode", "stays"}


def state(**changed: Any) -> dict[str, Any]:
    """Return as much of a state as decides whether it fits."""
    fitting = {"format": snapshot.FORMAT, "wire": snapshot.wire(), "layout": scoreboard.layout()}
    return {**fitting, "settings": Settings(app="a:b", workers=2).to_json(), **changed}


def test_state_of_the_same_version_fits() -> None:
    """Otherwise nobody could ever be upgraded."""
    assert snapshot.misfit(state()) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"format": 0}, "its state has form 0"),
        ({"wire": []}, "its workers pass connections in another form"),
        ({"layout": {**scoreboard.layout(), "worker": ["requests"]}}, "the table `worker` of the scoreboard"),
        ({"layout": {**scoreboard.layout(), "sizes": [1]}}, "the table `sizes` of the scoreboard"),
    ],
)
def test_state_of_a_version_that_sees_it_differently_does_not_fit(changed: dict[str, Any], words: str) -> None:
    """Each part that processes of two versions share is compared, and the reason names it."""
    assert words in (snapshot.misfit(state(**changed)) or "")


def test_cells_at_the_end_of_a_table_still_fit() -> None:
    """A version with one figure more, or one less, must not cost an outage."""
    layout = {**scoreboard.layout(), "worker": [*scoreboard.WORKER_CELLS, "later"]}
    assert snapshot.misfit(state(layout=layout)) is None
    layout["worker"] = [*scoreboard.WORKER_CELLS][:-1]
    assert snapshot.misfit(state(layout=layout)) is None


def test_settings_that_all_processes_must_agree_on_stay() -> None:
    """A worker with another key chain than the dispatcher's would serve clients that are not at home there."""
    wanted = Settings(app="a:b", workers=4, by="cookie:sid", log_level="debug", graceful_timeout_s=1)
    settings, lines = snapshot.settled(wanted, state())
    assert (settings.workers, settings.by) == (2, "ip")
    assert (settings.log_level, settings.graceful_timeout_s) == ("debug", 1)
    assert lines == [
        "`--workers` cannot change in place and stays `2`",
        "`--by` cannot change in place and stays `ip`",
    ]


def test_changeable_settings_exist() -> None:
    """A name that is misspelt would make its setting unchangeable."""
    assert {field.name for field in dataclasses.fields(Settings)} >= snapshot.CHANGEABLE


def test_rows_have_room() -> None:
    """Later versions add cells; when there is no room left for any, the next one cannot be upgraded to."""
    board = scoreboard.Scoreboard.create()
    board.worker(0).set(list(scoreboard.WORKER_CELLS)[-1], 7)
    assert set(board.worker(1).values().values()) == {0}
    assert max(len(scoreboard.WORKER_CELLS), len(scoreboard.DISPATCHER_CELLS)) <= 64
