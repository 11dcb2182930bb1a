"""The root: what it does in each turn, and what follows from what a child says. The children are values."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limpet.errors import AppError, ControlError
from limpet.fleet.lifecycle import Event, State
from limpet.fleet.member import Member
from limpet.ipc.news import Failed, Leaving, Left, Missing, News, Ready, Stop
from limpet.ipc.orders import Accept, Slot, Workers
from limpet.supervisor import supervisor
from limpet.supervisor.supervisor import Supervisor
from tests.unit.stage import Process, Stage, state


class Server:
    """A supervisor whose loop the test turns."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        stage.clock.now = time.monotonic()
        self.root = Supervisor(stage.fleet)
        self.root._start()

    def turn(self, later_s: float = 0.0) -> None:
        """Do one turn, *later_s* seconds from now."""
        now = time.monotonic() + later_s
        for key, _ in self.root._selector.select(0):
            key.data(now)
        self.root._tick(now)

    def say(self, member: Member, news: News) -> None:
        """Have the newest process of *member* say *news*, and hear it."""
        child = member.starting() or member.child
        assert child is not None
        self.stage.resources.say(child, news)
        self.turn()

    def serve(self) -> Server:
        """Let all members become ready."""
        for member in self.stage.fleet.members():
            self.say(member, Ready())
        for child in self.stage.resources.started:
            self.stage.resources.told(child)
        return self

    def die(self, member: Member, code: int = -9) -> None:
        """End the process in charge of *member*."""
        assert member.child is not None
        assert isinstance(member.child.process, Process)
        member.child.process.returncode = code
        self.root._processes.reap_all()


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of two workers and a dispatcher that starts."""
    given: dict[str, Any] = getattr(request, "param", {})
    handlers = list(supervisor.log.handlers)
    with Stage(workers=2, control=str(tmp_path / "control"), **given) as stage:
        found = Server(stage)
        yield found
        found.root._control.close()
        for child in stage.resources.started:
            with contextlib.suppress(KeyError, ValueError):
                found.root._lines.hang_up(child)
        found.root._selector.close()
    for handler in set(supervisor.log.handlers) - set(handlers):
        supervisor.log.removeHandler(handler)


def test_clients_connect_only_when_all_are_ready(server: Server) -> None:
    """A health check that succeeds early sends clients to a server that may still fail."""
    fleet = server.stage.fleet
    *first, last = fleet.members()
    for member in first:
        server.say(member, Ready())
    assert not server.stage.backend.is_listening
    server.say(last, Ready())
    assert server.stage.backend.is_listening
    assert fleet.is_serving
    for member in fleet.members():
        assert Accept() in server.stage.told(member)


def test_process_that_cannot_start_ends_a_server_that_does_not_serve_yet(server: Server) -> None:
    """The first start of a server with a mistake must end with an error, and not try for ever."""
    slot = server.stage.fleet.slots[1]
    server.say(slot, Failed("no module named shop", None, AppError.exit_code))
    server.die(slot, code=4)
    assert server.stage.fleet.is_stopping
    assert isinstance(server.root._shutdown.failure, AppError)
    assert "no module named shop" in str(server.root._shutdown.failure)


def test_start_that_failed_is_tried_again_when_its_pause_is_over(server: Server) -> None:
    """A server that serves goes on without one worker, and gets it back as soon as it can start."""
    server.serve()
    slot = server.stage.fleet.slots[0]
    server.die(slot)
    server.die(slot)  # its replacement, before it was ready
    assert state(slot) is State.BACKOFF
    server.turn()
    assert state(slot) is State.BACKOFF
    server.turn(later_s=slot.life.retry_at - time.monotonic() + 0.01)
    assert state(slot) is State.STARTING


@pytest.mark.parametrize("server", [{"start_timeout_s": 5}], indirect=True)
def test_worker_that_does_not_become_ready_is_killed(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A start that hangs would hold up a reload for ever."""
    child = server.stage.fleet.slots[0].child
    assert child is not None
    server.turn(later_s=4.9)
    assert child.process.poll() is None
    server.turn(later_s=5.5)
    assert child.process.poll() == -9
    assert "was not ready after 5 s" in caplog.text


def test_child_that_does_not_drain_in_time_is_killed(server: Server) -> None:
    """Its slot's next worker waits for its descriptors, and a stop for its end."""
    server.serve()
    slot = server.stage.fleet.slots[0]
    old = slot.child
    assert old is not None
    server.root.reload()
    server.turn()
    server.say(slot, Ready())
    assert slot.predecessors == [old]
    server.turn()
    assert old.process.poll() is None
    old.kill_at = time.monotonic()  # its time is over; a leap of the clock would put it off
    server.turn()
    assert old.process.poll() == -9


def test_scaling_goes_on_with_each_turn(server: Server) -> None:
    """Nobody else moves it on once its workers are ready."""
    server.serve()
    fleet = server.stage.fleet
    server.root._scaling.request(3)
    server.turn()
    assert fleet.router.slots == 2
    server.say(fleet.slots[2], Ready())
    server.turn()
    assert fleet.router.slots == 3


def test_reload_is_refused_before_the_server_serves(server: Server) -> None:
    """There is nothing to renew, and the start may still fail."""
    with pytest.raises(ControlError, match="is starting"):
        server.root.reload()
    server.root._obey(signal.SIGHUP)
    assert not server.stage.fleet.is_stopping


def test_reload_renews_slot_after_slot(server: Server) -> None:
    """One at a time, so that the others serve."""
    server.serve()
    fleet = server.stage.fleet
    server.root.reload()
    server.turn()
    assert [state(slot) for slot in fleet.slots] == [State.RENEWING, State.READY]
    server.say(fleet.slots[0], Ready())
    server.turn()
    assert [state(slot) for slot in fleet.slots] == [State.READY, State.RENEWING]


def test_second_signal_to_stop_ends_everything_at_once(server: Server) -> None:
    """An operator who presses Ctrl-C twice does not want to wait."""
    server.serve()
    server.root._obey(signal.SIGTERM)
    assert server.stage.fleet.is_stopping
    children = [child for _, child in server.stage.fleet.processes()]
    server.turn()
    assert [child.process.poll() for child in children] == [None] * len(children)
    server.root._obey(signal.SIGINT)
    server.turn()
    assert [child.process.poll() for child in children] == [-9] * len(children)


def test_worker_can_stop_the_server_and_wait_for_connections(server: Server) -> None:
    """`limpet.stop()` in the application."""
    server.serve()
    server.say(server.stage.fleet.slots[1], Stop(wait_for_connections=True))
    assert server.stage.fleet.is_stopping
    assert server.root._shutdown.left_s(time.monotonic()) == float("inf")


def test_worker_that_drains_by_a_signal_is_replaced(server: Server) -> None:
    """Somebody has sent TERM to a worker; its slot must not stay empty."""
    server.serve()
    slot = server.stage.fleet.slots[0]
    old = slot.child
    assert old is not None
    server.stage.resources.say(old, Leaving())
    server.turn()
    assert slot.predecessors == [old]
    assert state(slot) is State.STARTING


def test_successor_takes_connections_when_its_predecessor_says_that_it_has_left(server: Server) -> None:
    """Until then both would read the slot's channel."""
    server.serve()
    slot = server.stage.fleet.slots[0]
    old = slot.child
    assert old is not None
    server.root._processes.apply(slot, Event.RENEW)
    server.say(slot, Ready())
    assert Accept() not in server.stage.told(slot)
    server.stage.resources.say(old, Left())
    server.turn()
    assert Accept() in server.stage.told(slot)


def test_child_without_a_channel_is_told_again(server: Server) -> None:
    """It had no free descriptor when the channel came."""
    server.serve()
    dispatcher = server.stage.fleet.dispatchers[0]
    server.say(dispatcher, Missing(1))
    assert [each.slot for each in server.stage.told(dispatcher) if isinstance(each, Slot)] == [1]


@pytest.mark.parametrize("news", [Missing(7), Missing(-1), Ready()], ids=repr)
def test_child_that_says_what_cannot_be_is_killed(server: Server, news: News) -> None:
    """It runs code of users, so it may say anything; nobody else must suffer."""
    server.serve()
    slot, other = server.stage.fleet.slots
    bad = slot.child
    assert bad is not None
    server.say(slot, news)
    assert bad.process.poll() == -9
    assert other.child is not None
    assert other.child.process.poll() is None


def test_change_of_what_is_up_is_told_to_all(server: Server) -> None:
    """A slot that is failed over is told when its time is over, not when something else happens."""
    server.serve()
    fleet = server.stage.fleet
    server.die(fleet.slots[0])
    server.stage.told(fleet.dispatchers[0])
    fleet.slots[0].down_since = time.monotonic() - 3600
    server.turn()
    told = [each for each in server.stage.told(fleet.dispatchers[0]) if isinstance(each, Workers)]
    assert told
    assert told[-1].up == [False, True]


def test_reopening_logs_is_said_only_if_there_is_a_file(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """SIGUSR1 with logs on stderr means nothing."""
    with caplog.at_level(logging.INFO):
        server.root._obey(signal.SIGUSR1)
    assert "reopened" not in caplog.text


def test_each_companion_does_what_is_due_in_each_turn(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An admin process that hangs would not be replaced, and systemd would think that the server hangs."""
    looked: list[str] = []
    companions = server.root._companions
    monkeypatch.setattr(companions.admin, "look", lambda now: looked.append("admin"))
    monkeypatch.setattr(companions._manager, "look", lambda fleet, now: looked.append("service manager"))
    monkeypatch.setattr(companions._adviser, "look", lambda now: looked.append("adviser"))
    server.turn()
    assert looked == ["service manager", "admin", "adviser"]
