"""How a server comes and goes: what a bad start says, when clients get in, and that nobody is dropped at the end."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import stat
from functools import partial
from pathlib import Path

import pytest

from tests.crowd import Crowd, Home, freeze, homes, is_dead, keys_of, load
from tests.harness import PATIENCE_S, Limpet, limpet_command, wait_until
from tests.wire import Wire, frame, request, upgrade

WORKERS = 4
KEYS = [f"user-{number}" for number in range(100)]
CHAIN = ("--workers", str(WORKERS), "--by", "header:x-user")

BAD_APPLICATIONS = {
    "tests.nowhere:app": (r"there is no module `tests\.nowhere`", r"run it from the directory that holds `tests`"),
    "tests.apps:missing": (r"`tests\.apps` has no `missing`", r"`tests\.apps` has .*`echo`"),
    "tests.apps:not_an_application": (r"is a dict, not an ASGI or WSGI application", r"`--factory` if"),
    "tests.broken:app": (r"cannot import application `tests\.broken:app`: KeyError: 'TEST_NO_SUCH_VARIABLE'", None),
    "tests.apps:fails_to_start": (r"the start-up of `tests\.apps:fails_to_start` failed", None),
}


@pytest.fixture(name="gate")
def _gate(tmp_path: Path) -> Path:
    """The file that `gated` waits for."""
    return tmp_path / "gate"


@pytest.fixture(name="note")
def _note(tmp_path: Path) -> Path:
    """The file in which applications write down their start and their end."""
    return tmp_path / "note"


def gated(gate: Path, note: Path, *args: str) -> Limpet:
    """Return a server, not started, that answers when the gate opens."""
    return Limpet("tests.apps:gated", *CHAIN, *args, env={"TEST_GATE": str(gate), "TEST_LIFESPAN_NOTE": str(note)})


def events(note: Path) -> list[str]:
    """Return what the applications have written down, in a stable order."""
    return sorted(note.read_text().splitlines())


WHOLE_LIFE = sorted(f"{event} {slot}" for event in ("startup", "shutdown") for slot in range(WORKERS))


def wait_refused(server: Limpet) -> None:
    """Wait until nobody can connect any more."""

    def refused() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", server.port)) != 0

    wait_until(refused, "new connections are refused")


# --- starting


@pytest.mark.parametrize("app", BAD_APPLICATIONS)
def test_application_that_cannot_start_ends_the_server_with_one_error(app: str) -> None:
    """Four workers find the same fault at the same moment; the user wants to read it once, and nothing may loop."""
    message, hint = BAD_APPLICATIONS[app]
    with Limpet(app, *CHAIN).launched() as server:
        assert server.wait_ended() == 4
        assert [line for line in server.lines if line.startswith("error: ")] == server.lines[-3 if hint else -1 :][:1]
        assert re.search(rf"^error: .*{message}", server.log, re.MULTILINE), server.log
        assert hint is None or re.search(rf"^hint: {hint}", server.lines[-1]), server.log
        assert server.log.count("Traceback") == (app == "tests.broken:app"), server.log
        assert server.log.count("the database is not there") == (app == "tests.apps:fails_to_start"), server.log
        assert "ready after" not in server.log
        assert server.processes() == set()


@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        ("tests.nowhere:key", 4, "cannot import key function `tests.nowhere:key`: there is no module `tests.nowhere`"),
        ("tests.apps:echo", 2, "`python:tests.apps:echo` is async: the dispatcher cannot wait for a key"),
    ],
)
def test_key_function_that_cannot_work_ends_the_start(function: str, code: int, message: str) -> None:
    """Dispatcher and workers all find out; the exit code is that of `limpet check`."""
    with Limpet("tests.apps:echo", "--workers", "4", "--by", f"python:{function}").launched() as server:
        assert server.wait_ended() == code
        assert [line for line in server.lines if line.startswith("error: ")] == [f"error: {message}\n"]
        assert server.processes() == set()
    assert limpet_command("check", "tests.apps:echo", "--by", f"python:{function}").returncode == code


def test_address_that_is_taken_is_an_error_with_a_hint() -> None:
    """Found out before the application is started; the exit code tells service managers what to do."""
    with Limpet() as owner:
        for _ in range(2):
            with Limpet(bind=f"127.0.0.1:{owner.port}").launched() as second:
                assert second.wait_ended() == 3
                expected = (
                    rf"^error: cannot listen on `127\.0\.0\.1:{owner.port}`: address already in use by "
                    rf"process {owner.pid} \(`[^`]+ -m limpet run [^`]+`\), running since 20\S+ \S+\n\nhint: `ss "
                )
                assert re.search(expected, second.log, re.MULTILINE), second.log
                assert second.processes() == set()
        assert owner.request().status == 200


def test_nobody_can_connect_before_all_slots_are_ready(gate: Path) -> None:
    """A load balancer that sees an open port sends clients; those of the last slot would wait or fail."""
    with Limpet("tests.apps:gated_start", *CHAIN, env={"TEST_GATE": str(gate)}).launched() as server:
        wait_until(lambda: server.log.count("ready after") == WORKERS - 1, "three workers are ready")
        status = server.status()
        assert [entry["state"] for entry in status["slots"]] == ["ready"] * 3 + ["starting"]
        port = int(status["binds"][0].rpartition(":")[2])
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) != 0
        assert "serving" not in server.log

        gate.touch()
        server.wait_serving()

        assert server.port == port
        assert {home.slot for home in homes(server, KEYS).values()} == set(range(WORKERS))


def test_worker_that_never_gets_ready_ends_the_start(gate: Path) -> None:
    """A start-up that hangs must end in an error like one that fails."""
    server = Limpet("tests.apps:gated_start", *CHAIN, "--start-timeout", "2.5", env={"TEST_GATE": str(gate)})
    with server.launched():
        assert server.wait_ended() == 4
        assert re.search(r"^error: worker \d \(pid \d+\) was not ready after 2\.5 s$", server.log, re.MULTILINE)
        assert server.processes() == set()


def test_signal_during_the_start_ends_it(gate: Path) -> None:
    """Whoever started the wrong thing must not have to wait until it has come up."""
    with Limpet("tests.apps:gated_start", *CHAIN, env={"TEST_GATE": str(gate)}).launched() as server:
        wait_until(lambda: server.log.count("ready after") == WORKERS - 1, "three workers are ready")
        assert server.stop() == 0
        assert server.processes() == set()


def test_check_says_what_run_would_do() -> None:
    """`limpet check` finds the faults of the application without serving it."""
    good = limpet_command("check", "tests.apps:echo", "--by", "cookie:user,ip")
    assert (good.returncode, good.stderr) == (0, "")
    assert "application tests.apps:echo: asgi" in good.stdout
    assert "key chain cookie:user,ip" in good.stdout

    for app in set(BAD_APPLICATIONS) - {"tests.apps:fails_to_start"}:  # `check` starts nothing
        bad = limpet_command("check", app)
        assert bad.returncode == 4
        assert re.search(rf"^error: .*{BAD_APPLICATIONS[app][0]}", bad.stderr, re.MULTILINE), bad.stderr
        assert bad.stderr.count("error: ") == 1
        assert bad.stdout == ""


# --- stopping


def test_term_lets_requests_finish_and_the_application_shut_down(gate: Path, note: Path) -> None:
    """What a deployment does: nobody new gets in, nobody who is in is thrown out."""
    with gated(gate, note) as server, Crowd(server) as crowd:
        served = [crowd.in_flight(key) for key in KEYS[:20]]
        assert {home.slot for _, home in served} == set(range(WORKERS))
        server.signal(signal.SIGTERM)
        wait_refused(server)
        assert events(note) == sorted(f"startup {slot}" for slot in range(WORKERS))

        gate.touch()

        assert [wire.chunk() for wire, _ in served] == [b""] * len(served)
        assert server.wait_ended() == 0
        assert events(note) == WHOLE_LIFE
        assert server.processes() == set()


def test_connections_that_wait_at_the_moment_of_term_are_served(gate: Path, note: Path) -> None:
    """In the backlog, half-way through a head or in a channel: they got in before the end, so they are served."""
    gate.touch()
    with gated(gate, note) as server, Crowd(server) as crowd:
        keys = keys_of(server, 1, KEYS)
        worker, dispatcher = server.worker(1)["pid"], server.dispatcher()
        freeze(worker)
        queued = [crowd.call(key) for key in keys]
        wait_until(lambda: server.worker(1)["queued"] == len(queued), "all of them wait in the channel")
        half = [crowd.connect().send(b"GET / HTTP/1.1\r\nhost: h\r\nx-user: user-1") for _ in range(10)]
        wait_until(lambda: server.status()["dispatchers"][0]["pending"] == len(half), "half of their heads has come")
        freeze(dispatcher)
        accepted = [crowd.call(key) for key in KEYS]  # by the kernel: they are in the backlog

        server.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in server.log, "the server stops")
        os.kill(dispatcher, signal.SIGCONT)
        wait_refused(server)
        for wire in half:
            wire.send(b"\r\n\r\n")
        os.kill(worker, signal.SIGCONT)

        assert {Home.of(wire.reply()) for wire in queued} == {Home(1, worker)}
        assert {Home.of(wire.reply()).slot for wire in accepted} == set(range(WORKERS))
        assert {wire.reply().status for wire in half} == {200}
        assert server.wait_ended() == 0


@pytest.mark.parametrize("dispatchers", ["1", "2"])
def test_stop_under_load_drops_no_request(dispatchers: str) -> None:
    """All that a client may see of a stop is that it cannot connect any more."""
    flags = (*CHAIN, "--dispatchers", dispatchers)
    with Limpet("tests.apps:echo", *flags) as server, load(server, KEYS, per_slot=2) as callers:
        server.signal(signal.SIGTERM)
        wait_until(lambda: all(caller.refused for caller in callers), f"all of {callers} are refused")

        assert [caller for caller in callers if caller.failures] == []
        assert server.wait_ended() == 0


def test_stop_of_a_dispatcher_without_free_descriptors_serves_who_has_connected() -> None:
    """They are in the backlog, where the end of the last listener would reset them."""
    with Limpet("tests.apps:echo", *CHAIN) as server, Crowd(server) as crowd:
        dispatcher = server.dispatcher()
        freeze(dispatcher)
        waiting = [crowd.call(key) for key in KEYS]
        enough = resource.prlimit(dispatcher, resource.RLIMIT_NOFILE)
        resource.prlimit(dispatcher, resource.RLIMIT_NOFILE, (3, enough[1]))
        server.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in server.log, "it stops")
        os.kill(dispatcher, signal.SIGCONT)
        wait_until(lambda: server.totals()["accept_errors"] >= 2, "the dispatcher has tried more than once")
        resource.prlimit(dispatcher, resource.RLIMIT_NOFILE, enough)

        assert {Home.of(wire.reply()).slot for wire in waiting} == set(range(WORKERS))
        assert server.wait_ended() == 0


def test_stop_right_after_a_kill_serves_who_waits_for_the_next_worker() -> None:
    """A crash and a deployment at one moment: the replacement has to come up, although only to serve and go."""
    with Limpet("tests.apps:echo", *CHAIN) as server, Crowd(server) as crowd:
        keys = keys_of(server, 1, KEYS)
        worker, dispatcher = server.worker(1)["pid"], server.dispatcher()
        freeze(worker)
        waiting = [crowd.call(key) for key in keys]
        wait_until(lambda: server.worker(1)["queued"] == len(waiting), "all of them wait in the channel")
        freeze(dispatcher)
        waiting += [crowd.call(key) for key in KEYS]  # in the backlog
        freeze(server.pid)
        for pid in (worker, dispatcher):
            os.kill(pid, signal.SIGKILL)
            wait_until(partial(is_dead, pid), f"{pid} is dead")
        server.signal(signal.SIGTERM)  # a process that goes on takes it before the SIGCHLD, which has a higher number
        server.signal(signal.SIGCONT)

        assert {Home.of(wire.reply()).slot for wire in waiting} == set(range(WORKERS))
        assert server.wait_ended() == 0


def test_signal_to_all_processes_at_once_drops_no_request(gate: Path, note: Path) -> None:
    """systemd signals the whole control group: workers then drain before the dispatcher has sent them the last."""
    with gated(gate, note) as server, Crowd(server) as crowd:
        wire, home = crowd.in_flight(KEYS[0])
        dispatcher = server.dispatcher()
        half = crowd.connect().send(b"GET / HTTP/1.1\r\nhost: h\r\nx-user: user-1")
        wait_until(lambda: server.status()["dispatchers"][0]["pending"] == 1, "half of the head has come")
        freeze(dispatcher)
        accepted = [crowd.call(key) for key in KEYS]  # by the kernel: they are in the backlog
        idle = [entry["pid"] for entry in server.status()["slots"] if entry["slot"] != home.slot]
        for pid in server.processes():
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not server.processes() & set(idle), "the workers without a request have drained")
        os.kill(dispatcher, signal.SIGCONT)
        half.send(b"\r\n\r\n")
        gate.touch()

        assert wire.chunk() == b""
        assert {Home.of(each.reply()).slot for each in accepted} == set(range(WORKERS))
        assert half.reply().status == 200
        assert server.wait_ended() == 0


def test_new_connections_are_refused_while_a_slow_head_is_awaited() -> None:
    """A client in the middle of its head gets its time; others must not be let in behind it, to be reset later."""
    with Limpet("tests.apps:echo", *CHAIN) as server, Crowd(server) as crowd:
        half = crowd.connect().send(b"GET / HTTP/1.1\r\nhost: h\r\nx-user: user-1")
        wait_until(lambda: server.status()["dispatchers"][0]["pending"] == 1, "half of the head has come")
        server.signal(signal.SIGTERM)
        wait_refused(server)

        assert half.send(b"\r\n\r\n").reply().status == 200
        assert server.wait_ended() == 0


def knocks_in_vain(server: Limpet) -> bool:
    """Return whether a client gets no answer, not even that it is refused."""
    with socket.socket() as knocking:
        knocking.settimeout(0.3)
        try:
            knocking.connect(("127.0.0.1", server.port))
        except TimeoutError:
            return True
    return False


@pytest.mark.parametrize(
    ("by", "flags"),
    [
        ("header:x-user", ()),
        ("ip", ("--loop", "uvloop")),
        ("ip", ("--loop", "asyncio")),
        ("ip", ("--server", "hypercorn")),
    ],
)
def test_client_whose_handshake_ends_behind_the_closed_door_is_served(by: str, flags: tuple[str, ...]) -> None:
    """The kernel has answered it, so it is in; packets of an ordinary system must reach the socket all the same."""
    with Limpet("tests.apps:echo", "--workers", "1", "--by", by, *flags) as server:
        accepting = server.worker(0)["pid"] if by == "ip" else server.dispatcher()
        freeze(accepting)
        server.signal(signal.SIGTERM)
        wait_until(partial(knocks_in_vain, server), "the door is closed")
        with socket.socket() as late:
            late.settimeout(PATIENCE_S)
            late.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)  # gets through all the same
            late.connect(("127.0.0.1", server.port))
            late.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
            late.sendall(request(x_user="user-1"))
            os.kill(accepting, signal.SIGCONT)

            assert late.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert server.wait_ended() == 0


def test_second_signal_ends_the_server_at_once(gate: Path, note: Path) -> None:
    """The operator has changed their mind about waiting."""
    with gated(gate, note) as server, Crowd(server) as crowd:
        wire, _ = crowd.in_flight(KEYS[0])
        server.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in server.log, "the first signal is obeyed")
        wait_refused(server)
        server.signal(signal.SIGTERM)

        assert server.wait_ended() == 0
        assert server.processes() == set()
        assert wire.rest() == b""


def test_graceful_timeout_bounds_the_wait_and_the_application_still_shuts_down(gate: Path, note: Path) -> None:
    """Neither a request without end nor a client that never finishes its head may cost the application its shutdown."""
    with gated(gate, note, "--graceful-timeout", "3") as server, Crowd(server) as crowd:
        endless, _ = crowd.in_flight(KEYS[0])
        half = crowd.connect().send(b"GET / HTTP/1.1\r\nx-user: user-1")
        wait_until(lambda: server.status()["dispatchers"][0]["pending"] == 1, "half of the head has come")
        server.signal(signal.SIGTERM)

        assert server.wait_ended() == 0
        assert events(note) == WHOLE_LIFE
        assert half.reply().status == 408
        assert endless.rest() == b""


def test_worker_that_does_not_react_is_killed_after_the_graceful_timeout(gate: Path, note: Path) -> None:
    """A stop must end even if a process does nothing at all any more."""
    with gated(gate, note, "--graceful-timeout", "0.5") as server:
        freeze(server.worker(2)["pid"])
        server.signal(signal.SIGTERM)

        assert server.wait_ended() == 0
        assert server.processes() == set()
        assert events(note) == [event for event in WHOLE_LIFE if event != "shutdown 2"]


def test_ctrl_c_reaches_the_supervisor_alone(gate: Path, note: Path) -> None:
    """The terminal signals the whole foreground group; a worker that obeyed it would not know about the others."""
    with gated(gate, note) as server, Crowd(server) as crowd:
        wire, home = crowd.in_flight(KEYS[0])
        freeze(home.pid)
        queued = crowd.call(KEYS[0])
        wait_until(lambda: server.worker(home.slot)["queued"] == 1, "one waits in the channel")
        assert [pid for pid in server.processes() if os.getpgid(pid) == server.pid] == [server.pid]
        os.killpg(server.pid, signal.SIGINT)
        wait_refused(server)
        os.kill(home.pid, signal.SIGCONT)
        gate.touch()

        assert wire.chunk() == b""
        assert Home.of(queued.reply()) == home
        assert server.wait_ended() == 0
        assert events(note) == WHOLE_LIFE


def test_stop_command_returns_when_all_has_ended(gate: Path, note: Path) -> None:
    """A script that runs `limpet stop` goes on to start the next one."""
    with gated(gate, note) as server, Crowd(server) as crowd:
        wire, _ = crowd.in_flight(KEYS[0])
        begun = limpet_command("stop", "--no-wait", "--control", server.control)
        assert (begun.returncode, begun.stdout, begun.stderr) == (0, "", "")
        wait_refused(server)
        assert len(server.processes()) > 1

        gate.touch()
        ended = limpet_command("stop", "--control", server.control)

        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        assert server.processes() <= {server.pid}
        assert events(note) == WHOLE_LIFE
        assert wire.chunk() == b""
        assert server.wait_ended() == 0
        gone = limpet_command("stop", "--control", server.control)
        assert gone.returncode == 5
        assert re.match(rf"error: no server answers on `{re.escape(server.control)}`: ", gone.stderr)


def test_stop_that_waits_for_connections_lets_them_last(gate: Path, note: Path) -> None:
    """Websockets and streams end when their clients end them; meanwhile nobody new comes in."""
    with gated(gate, note, "--graceful-timeout", "0") as server, Crowd(server) as crowd:
        wire, _ = crowd.in_flight(KEYS[0])
        half = crowd.connect().send(b"GET / HTTP/1.1\r\nhost: h\r\nx-user: user-1")
        wait_until(lambda: server.status()["dispatchers"][0]["pending"] == 1, "half of the head has come")
        flags = ("--wait-for-connections", "--no-wait", "--control", server.control)
        assert limpet_command("stop", *flags).returncode == 0
        wait_refused(server)
        half.send(b"\r\n\r\n")
        assert half.head()[0] == 200
        assert half.chunk() != b""

        gate.touch()

        assert [wire.chunk(), half.chunk()] == [b"", b""]
        assert server.wait_ended() == 0
        assert events(note) == WHOLE_LIFE


def test_stop_that_waits_for_connections_leaves_websockets_open() -> None:
    """They are the connections for which one waits."""
    with Limpet("tests.apps:echo", *CHAIN) as server, Crowd(server) as crowd:
        idle = crowd.call(KEYS[1])
        assert idle.reply().status == 200
        wire = crowd.connect().send(upgrade(x_user=KEYS[0]))
        assert wire.head()[0] == 101
        home = wire.frame()
        server.ask(command="stop", wait_for_connections=True)
        wait_refused(server)
        wait_until(lambda: [entry["state"] for entry in server.status()["slots"]].count("stopped") == 3, "3 have ended")

        assert idle.rest() == b""
        assert wire.send(frame(b"still here")).frame().payload == b"still here"
        assert str(server.worker(server.where(KEYS[0])[0]["slot"])["pid"]).encode() in home.payload
        wire.close()
        assert server.wait_ended() == 0


def test_worker_that_an_operator_terminates_drains_and_is_replaced(gate: Path, note: Path) -> None:
    """`kill PID` on one worker is the poor man's reload: it finishes, and its slot gets a new one."""
    with gated(gate, note) as server, Crowd(server) as crowd:
        wire, home = crowd.in_flight(KEYS[0])
        os.kill(home.pid, signal.SIGTERM)
        later = crowd.call(KEYS[0])
        elsewhere, _ = crowd.in_flight(keys_of(server, (home.slot + 1) % WORKERS, KEYS)[0])

        gate.touch()

        assert [wire.chunk(), elsewhere.chunk()] == [b"", b""]
        assert Home.of(later.reply()).slot == home.slot
        assert server.wait_ready(home.slot, other_than=home.pid)["generation"] == 2
        assert events(note).count(f"shutdown {home.slot}") == 1
        assert [line for line in events(note) if line.startswith("shutdown")] == [f"shutdown {home.slot}"]


def test_worker_that_an_operator_terminates_is_bound_by_the_graceful_timeout(gate: Path, note: Path) -> None:
    """A request without end must not keep the slot's other clients waiting for ever."""
    with gated(gate, note, "--graceful-timeout", "0.5") as server, Crowd(server) as crowd:
        wire, home = crowd.in_flight(KEYS[0])
        os.kill(home.pid, signal.SIGTERM)
        server.wait_ready(home.slot, other_than=home.pid)
        wait_until(lambda: home.pid not in server.processes(), "its time is over")
        gate.touch()

        assert wire.rest() == b""
        assert events(note).count(f"shutdown {home.slot}") == 1


def test_socket_files_are_removed_at_the_end(tmp_path: Path) -> None:
    """What is left behind misleads whoever looks for a server."""
    path = tmp_path / "bind.sock"
    with Limpet(bind=f"unix:{path}", state=tmp_path) as server:
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(Path(server.control).stat().st_mode) == 0o600
        with Wire(str(path)) as wire:
            assert wire.send(request()).reply().status == 200
        assert server.stop() == 0

    assert not path.exists()
    assert not Path(server.control).exists()
