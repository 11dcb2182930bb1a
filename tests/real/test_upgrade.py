"""The supervisor replaced in place (SIGUSR2): nobody on the wire can tell, and a version that cannot take over changes
nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

import limpet
from tests.crowd import Crowd, keys_of
from tests.harness import HERE, Limpet, Reply, fetch, wait_until
from tests.public import Public, Seen, finished

KEYS = [f"user-{number}" for number in range(40)]
CHAINS = {"kernel": "ip", "dispatcher": "header:x-user"}
GATE = """
import os, pathlib, select
if os.environ.get("LIMPET_UPGRADE", "").startswith("take-over"):
    folder = pathlib.Path(os.environ["TEST_GATE"])
    (folder / "reached").touch()
    while not (folder / "open").exists():
        select.select([], [], [], 0.01)
import limpet.operate.control_socket
# An operator may be in the middle of a question until the test has seen all else.
limpet.operate.control_socket._PATIENCE_S = 60.0
"""


def upgrade(server: Limpet) -> None:
    """Have the supervisor replaced, and wait until it is."""
    done = server.status()["upgrades"]["done"]
    server.signal(signal.SIGUSR2)
    wait_until(lambda: server.status()["upgrades"]["done"] == done + 1, "it is upgraded")


def wait_renewed(server: Limpet, old: set[int]) -> None:
    """Wait until none of the dispatchers *old* accepts."""
    wait_until(lambda: not dispatchers(server) & old, "the dispatchers are new")


def refusal(server: Limpet) -> str:
    """Have the supervisor replaced, and return why it was not."""
    before = server.log.count("not upgraded")
    server.signal(signal.SIGUSR2)
    wait_until(lambda: server.log.count("not upgraded") > before, "the upgrade is refused")
    why: str = server.status()["upgrades"]["refused"]
    return why


def pids(server: Limpet) -> list[int]:
    """Return the pids of the supervisor and the workers of *server*, which an upgrade leaves as they are."""
    status = server.status()
    return [status["pid"], *(entry["pid"] for entry in status["slots"])]


def dispatchers(server: Limpet) -> set[int]:
    """Return the pids of the dispatchers of *server* that accept."""
    return {entry["pid"] for entry in server.status()["dispatchers"] if entry["state"] == "ready"}


def crowded(backend: str, times: int, clients: int, sockets: int) -> Seen:
    """Return what the public, *clients* and *sockets*, saw of *times* upgrades."""
    with Limpet("tests.apps:echo", "--workers", "2", "--by", CHAINS[backend], "--backend", backend) as server:
        public = Public(server, by_address=backend == "kernel", clients=clients, sockets=sockets)
        before = pids(server)

        async def both() -> Seen:
            async with public.present() as seen:
                for _ in range(times):
                    totals, old = server.totals(), dispatchers(server)
                    await asyncio.to_thread(upgrade, server)
                    await asyncio.to_thread(wait_renewed, server, old)
                    assert all(
                        now >= totals[name] for name, now in server.totals().items() if name in ("requests", "accepted")
                    )
            return seen

        seen = asyncio.run(both())
        assert pids(server) == before
        assert [entry["generation"] for entry in server.status()["slots"]] == [1, 1]
        assert server.totals()["requests"] >= seen.served
        assert server.log.count("upgraded from version") == times
    return seen


@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_nobody_notices_two_upgrades(backend: str) -> None:
    """Lasting connections, new ones, pooled ones and websockets: no failure, no goodbye, the same workers."""
    seen = crowded(backend, 2, clients=16, sockets=8)
    assert seen.failures == []
    assert (seen.told_to_close, seen.restarted) == (0, 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_thirty_upgrades(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for longer, with 64 lasting connections and 50 websockets; `make upgrades`."""
    seen = crowded(backend, 30, clients=64, sockets=50)
    with capsys.disabled():
        print(f"\n{backend}: 30 upgrades with 2 workers, {seen}")
    assert seen.failures == []
    assert (seen.told_to_close, seen.restarted) == (0, 0)


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    """The environment of a server whose next supervisor waits in its first moment for the file `open`."""
    (tmp_path / "sitecustomize.py").write_text(GATE)
    return {"PYTHONPATH": f"{tmp_path}:{HERE.parent}", "TEST_GATE": str(tmp_path)}


def test_what_happens_while_there_is_no_supervisor_is_made_up_for(site: dict[str, str], tmp_path: Path) -> None:
    """A worker and a dispatcher that die between two supervisors are replaced, and no signal is lost or deadly."""
    arguments = ("--workers", "2", "--by", "header:x-user", "--keep-alive-timeout", "60")
    with Limpet("tests.apps:echo", *arguments, env=site) as server, Crowd(server) as crowd:
        ada = keys_of(server, 0, KEYS)[0]
        eve = keys_of(server, 1, KEYS)[0]
        worker, dispatcher = server.worker(0)["pid"], server.dispatcher()
        with server.connection() as lasting:
            assert fetch(lasting, x_user=eve).status == 200
            early = crowd.enter_context(socket.socket(socket.AF_UNIX))  # an operator in the middle of a question
            early.connect(server.control)
            early.sendall(b'{"command":')
            server.status()
            server.signal(signal.SIGUSR2)
            wait_until((tmp_path / "reached").exists, "the new version has begun")

            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
                server.signal(number)
            waiting = crowd.call(ada)  # by the dispatcher into the channel, by the worker if it is fast enough
            assert fetch(lasting, x_user=eve).status == 200
            os.kill(worker, signal.SIGKILL)
            os.kill(dispatcher, signal.SIGKILL)
            assert fetch(lasting, x_user=eve).status == 200  # a worker needs nobody
            late = crowd.connect()
            (tmp_path / "open").touch()

            server.wait_ready(0, other_than=worker)
            server.wait_dispatcher(other_than=dispatcher)
            waiting.close()
            assert server.request(x_user=ada).json()["slot"] == 0
            assert fetch(lasting, x_user=eve).json()["slot"] == 1
            assert late.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").head()[0] == 200
            assert "another upgrade is running" not in server.log
            early.sendall(b' "status"}\n')
            assert early.recv(64).startswith(b'{"pid"')
        wait_until(lambda: server.status()["upgrades"]["done"] == 2, "the second SIGUSR2 was obeyed, too")


def test_number_of_slots_and_learned_ids_outlast_an_upgrade() -> None:
    """The command line says 2 workers still, and no new supervisor has learned anything: homes would be lost."""
    arguments = ["--workers", "2", "--by", "header:mcp-session-id", "--learn", "header:mcp-session-id"]
    with Limpet("tests.session_app:asgi", *arguments) as server:
        for slots in (4, 3):
            assert finished(server, server.ask(command="scale", slots=slots)["change"])["state"] == "done"
        made = {reply["id"]: reply["slot"] for reply in (server.request("/new?header").json() for _ in range(30))}
        assert set(made.values()) == {0, 1, 2}
        homes = [entry["slot"] for entry in server.where(*KEYS)]
        upgrade(server)
        upgrade(server)
        assert [entry["slot"] for entry in server.status()["slots"]] == [0, 1, 2]
        assert [entry["slot"] for entry in server.where(*KEYS)] == homes
        for session, slot in made.items():
            reply = server.request("/use", mcp_session_id=session)
            assert (reply.status, reply.json()["slot"]) == (200, slot)
        assert finished(server, server.ask(command="scale", slots=4)["change"])["state"] == "done"
        server.kill_worker(3)
        assert {entry["slot"] for entry in server.where(*KEYS)} == {0, 1, 2, 3}


def test_changes_outlast_an_upgrade() -> None:
    """Who waits for a reload, or asks what became of one, must not be told that there was none; the next is another."""
    with Limpet("tests.apps:echo", "--workers", "2") as server:
        known = server.ask(command="reload")["change"]
        finished(server, known)
        upgrade(server)
        assert finished(server, known)["renewed"] == 2
        late = server.ask(command="reload")["change"]
        assert late != known
        assert finished(server, late)["state"] == "done"


def test_upgrade_in_the_moment_between_the_last_word_and_the_end_of_a_child(tmp_path: Path) -> None:
    """A child has hung up before it is reaped: an upgrade in between must neither end the supervisor nor forget it."""
    with Limpet(
        "tests.apps:lingering", "--workers", "2", "--by", "ip", env={"TEST_GATE": str(tmp_path / "gate")}
    ) as server:
        old = server.worker(0)["pid"]
        os.kill(old, signal.SIGTERM)
        server.wait_ready(0, other_than=old)
        wait_until((tmp_path / "gate.asked").exists, "it has closed its line")
        upgrade(server)
        assert [entry["pid"] for entry in server.worker(0)["draining"]] == [old]
        (tmp_path / "gate").touch()
        wait_until(lambda: not server.worker(0)["draining"], "it was reaped")


def test_stop_while_there_is_no_supervisor_is_obeyed(site: dict[str, str], tmp_path: Path) -> None:
    """SIGTERM in the moment of an exec must neither be lost nor end the process at once."""
    with Limpet("tests.apps:slow", "--workers", "1", "--by", "ip", env=site) as server, Crowd(server) as crowd:
        server.signal(signal.SIGUSR2)
        wait_until((tmp_path / "reached").exists, "the new version has begun")
        asked = crowd.call("ada", "/?0.2")
        server.signal(signal.SIGTERM)
        (tmp_path / "open").touch()
        assert asked.head()[0] == 200
        assert server.wait_ended() == 0
        assert "stopped" in server.log


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package, and an application beside it: what a deployment replaces."""
    package = tmp_path / "limpet"
    shutil.copytree(Path(limpet.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "shop.py").write_text("from tests.apps import echo\n")
    return package


def test_new_version_takes_over_and_a_broken_one_does_not(copied: Path) -> None:
    """A version or an application that cannot be imported is refused with its own words; nothing has changed."""
    version_file, shop, config = copied / "version.py", copied.parent / "shop.py", copied.parent / "limpet.toml"
    config.write_text("workers = 2\ngraceful-timeout = 11\n")
    env = {"PYTHONPATH": f"{copied.parent}:{HERE.parent}"}
    with Limpet("shop:echo", "--config", str(config), "--by", "ip", env=env, cwd=copied.parent) as server:
        before, whole, version = pids(server), version_file.read_text(), server.status()["version"]

        shop.write_text("def broken(:\n")
        assert "cannot import application `shop:echo`" in refusal(server)
        shop.write_text("from tests.apps import echo\n")
        version_file.write_text("import nowhere\n")
        assert refusal(server) == "the new version cannot take over: its trial exited with code 1"
        assert "No module named 'nowhere'" in server.log
        assert pids(server) == before
        assert server.request().status == 200

        version_file.write_text(whole.replace(f'"{version}"', '"9.9.9"'))
        config.write_text("workers = 3\ngraceful-timeout = 7\n")
        upgrade(server)
        status = server.status()
        assert status["version"] == "9.9.9"
        assert pids(server) == before
        wait_until(lambda: "`--workers` cannot change in place and stays `2`" in server.log, "it says what stays")
        assert "graceful-timeout" not in server.log


def test_version_that_sees_the_memory_differently_is_refused(copied: Path) -> None:
    """Workers of two versions write into one scoreboard: that they agree on it cannot be hoped for."""
    env = {"PYTHONPATH": f"{copied.parent}:{HERE.parent}"}
    with Limpet("shop:echo", "--workers", "1", "--by", "ip", env=env, cwd=copied.parent) as server:
        board = copied / "ipc" / "scoreboard.py"
        text = board.read_text()
        board.write_text(text.replace('    "received":', '    "new_cell": Figure("in front"),\n    "received":'))
        why = refusal(server)
        assert "cannot be replaced in place by version" in why
        assert "its processes use another format of the table `worker` of the scoreboard" in why

        board.write_text(
            text.replace("}\nDISPATCHER_CELLS", '    "new_cell": Figure("at the end"),\n}\nDISPATCHER_CELLS')
        )
        upgrade(server)
        assert "new_cell" in server.totals()
        assert server.request().status == 200


def test_replaced_supervisor_stops_and_replaces_as_before() -> None:
    """Children that it has not started itself are waited for, told and counted like those it has."""
    with Limpet("tests.apps:echo", "--workers", "2", "--by", "header:x-user") as server:
        before = _ask(server)
        upgrade(server)
        served = server.totals()["requests"]
        server.kill_worker(0)
        assert server.totals()["requests"] >= served
        assert _ask(server).json()["slot"] == before.json()["slot"]
        assert server.where("ada")[0]["slot"] == before.json()["slot"]
        assert server.stop() == 0
        assert server.processes() == set()


def _ask(server: Limpet) -> Reply:
    return server.request(x_user="ada")
