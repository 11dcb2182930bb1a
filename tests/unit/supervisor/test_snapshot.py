"""What passes from one supervisor to the next: nothing is forgotten by accident, and what must stay stays."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

import pytest

from limpet.config.settings import Settings
from limpet.fleet.lifecycle import Life, State
from limpet.fleet.member import Member
from limpet.fleet.past import Past
from limpet.fleet.process import Child, _Adopted
from limpet.ipc import scoreboard
from limpet.ipc.control_link import Link
from limpet.ipc.news import Failed
from limpet.net import listener
from limpet.supervisor import snapshot


def a_child(**own: Any) -> Child:
    """Return a process that nothing has started, with a line whose other end is closed."""
    ours, theirs = Link.pair()
    theirs.close()
    told = {"pid": 4711, "role": "worker", "row": 3, "serial": 9, "generation": 2, "started_at": 5.0, **own}
    return Child(**told, link=ours, process=_Adopted(4711))


def facts(found: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that pass on."""
    return {each.name: getattr(found, each.name) for each in dataclasses.fields(found) if each.name not in found.ANEW}


def test_member_passes_on_with_everything_that_does_not_begin_anew() -> None:
    """A field that was forgotten would begin anew, and with it a deadline, a back-off or a slot that is held."""
    old, next_one = a_child(pid=4710, kill_at=60.0, leaves_by=12.5), a_child(pid=4712, serial=10)
    worker = a_child(stack_fd=7, is_open=True, failure=Failed("no"))
    life = Life(State.RENEWING, generation=3, deaths_before_ready=1, retry_at=9.0, crashes=[1.0, 2.0])
    member = Member("worker", 1, life, worker, next_one, [old], is_held=True, down_since=2.0, recycle_at=4.0)
    member.last_end = "was killed by SIGKILL"
    packed = json.loads(json.dumps(snapshot._pack_member(member)))
    for each in packed["children"]:
        each["link"] = -1  # the line itself belongs to the process that packed it
    found = snapshot._unpack_member(packed)
    assert found.child is not None
    assert found.successor is not None
    apart = ("child", "successor", "predecessors")
    assert {name: value for name, value in facts(found).items() if name not in apart} == {
        name: value for name, value in facts(member).items() if name not in apart
    }
    assert [facts(child) for child in found.children] == [facts(child) for child in member.children]
    for child in member.children:
        child.link.close()


def test_figures_of_the_dead_pass_on() -> None:
    """A total that began anew would look like a counter that was reset."""
    past = Past([Counter(requests=3), Counter()], Counter(accepted=5), Counter(tls_accepted=7))
    assert Past.adopt(json.loads(json.dumps(past.packed()))) == past


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
        ({"format": 0}, "its state has format 0"),
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


def test_what_all_processes_must_agree_on_is_not_changeable() -> None:
    """An old worker and a new dispatcher that differ in one of these send one client to two workers."""
    agreed = {"by", "trust", "proxy_protocol", "place", "affinity_cookie", "learn", "learn_idle_s", "mint", "on_lost"}
    agreed |= {"workers", "bind", "server", "backend", "on_down", "dispatchers", "terminators", "user", "group", "name"}
    agreed |= {"secret_file", "state_dir", "tls_cert", "tls_key", "max_head_bytes", "max_headers", "queue"}
    assert agreed & snapshot.CHANGEABLE == set()


@pytest.mark.parametrize(("life", "ready"), [(State.READY, True), (State.STARTING, False)])
def test_child_of_an_older_version_is_ready_if_its_slot_serves(life: State, ready: bool) -> None:
    """Older versions did not pass that on. A READY that comes later would be refused as a second one."""
    member = Member("worker", 0, Life(life), a_child(), None, [a_child(pid=4710)])
    packed = json.loads(json.dumps(snapshot._pack_member(member)))
    for each in packed["children"]:
        each["link"] = -1
        del each["is_ready"]
    found = snapshot._unpack_member(packed)
    assert found.child is not None
    assert found.child.is_ready is ready
    assert [old.is_ready for old in found.predecessors] == [True]
    for child in member.children:
        child.link.close()
