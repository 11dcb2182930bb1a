"""The chat example with the clients people really use: Socket.IO's own client in node, and pages in Chromium.

Owns the promise of the project in one picture: what needs one process (the long polls of one session, a room
in memory) works in four. The node script is in tests/clients (`npm ci --prefix tests/clients`, once), the
browser in browser.py. On a developer's machine a missing program skips its tests; where `CI` is set it fails.

1. Every run uses new connections and distinct keys, and demands that all workers were used: on one kept-alive
   connection, or with one key, any server looks sticky.
2. The same run must fail on a server that spreads connections. A test that cannot fail proves nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Timer
from typing import NamedTuple, NoReturn, TypedDict

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.harness import Limpet
from tests.real import browser

ROOT = Path(__file__).parents[2]
CHAT = ROOT / "examples" / "chat"
CLIENTS = ROOT / "tests" / "clients"
WORKERS = 4
MESSAGES = 20
ROOM, NEIGHBOURS = "#room .text", "#neighbours li"
START_S = 20.0  # for uvicorn to start or to stop; only a failing test waits it out
RUN_S = 30.0  # for one run of 50 clients, which takes about 3 s

# python-engineio holds the poll of a client that has left for 45 s; no test wants to wait for that.
GRACEFUL_S = "1"


# A request whose key differs from the one before on its connection is not yet brought to its own home.


class Worker(TypedDict):
    """How the chat names a worker (outside limpet the slot is null, which no test here reads)."""

    slot: int
    pid: int


class Seen(TypedDict):
    """What one client of socketio_client.js reports."""

    user: str
    workers: list[Worker]  # who acknowledged each message
    heard: int  # own messages that came back from the room
    transport: str | None  # at the end
    error: str | None


class Neighbour(NamedTuple):
    """A user and the slot that is their home."""

    user: str
    slot: int


class Person:
    """Somebody with a browser open at the chat; the verbs are what people do and see there."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver = driver
        driver.get(url)

    def worker(self) -> tuple[int, int]:
        """Return slot and pid of the worker that the page names; blocks until it is connected."""
        script = """
            const { slot, pid } = document.getElementById("worker").dataset;
            return document.body.dataset.state === "online" ? [Number(slot), Number(pid)] : null;
        """
        slot, pid = browser.until(self.driver, "page is online", lambda page: page.execute_script(script))
        return slot, pid

    def meets_a_worker_other_than(self, pids: list[int]) -> None:
        """Block until the page is served by a process that is not in *pids*."""
        browser.until(self.driver, "page is served anew", lambda _: self.worker()[1] not in pids or None)

    def say(self, text: str) -> None:
        """Type *text* and press Enter; blocks until the room shows it."""
        self.worker()
        self.driver.find_element(By.ID, "line").send_keys(text, Keys.ENTER)
        self.sees(ROOM, text)

    def whisper(self, name: str, text: str) -> None:
        """Say *text* to one person; blocks until the own page shows it."""
        self.worker()
        self.driver.find_element(By.ID, "line").send_keys(f"@{name} {text}", Keys.ENTER)
        self.sees(ROOM, text)

    def sees(self, where: str, text: str) -> None:
        """Block until one of the elements *where* says *text*."""
        browser.until(self.driver, f"{where} shows {text!r}", lambda _: text in self.texts(where))

    def texts(self, where: str) -> list[str]:
        """Return the text of each of the elements *where* (a CSS selector), as it is now."""
        script = "return [...document.querySelectorAll(arguments[0])].map((found) => found.textContent)"
        texts: list[str] = self.driver.execute_script(script, where)
        return texts

    def complaints(self) -> list[str]:
        """Return what the browser's console holds; a request that was refused leaves a line there."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]  # selenium left it untyped
        return [entry["message"] for entry in entries]


def missing(reason: str) -> NoReturn:
    """Skip the test for *reason*; fail it where `CI` is set."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def require(*programs: str) -> None:
    """Return only when all *programs* are installed."""
    for program in programs:
        if shutil.which(program) is None:
            missing(f"`{program}` is not installed")


def require_node_modules() -> None:
    """Return only when the packages of tests/clients are installed."""
    if not (CLIENTS / "node_modules").is_dir():
        missing("`npm ci --prefix tests/clients` has not been run")


def play(url: str, mode: str, *options: str) -> list[Seen]:
    """Return what 50 users of the chat at *url* saw; blocks until all have left, at most `RUN_S`."""
    require("node")
    require_node_modules()
    command = ["node", str(CLIENTS / "socketio_client.js"), url, "--clients", "50", "--mode", mode]
    command += ["--messages", str(MESSAGES), "--deadline", str(RUN_S), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=2 * RUN_S)
    clients: list[Seen] = json.loads(done.stdout)["clients"]
    assert len(clients) == 50
    return clients


def homes(clients: list[Seen]) -> dict[str, set[tuple[int, int]]]:
    """Return the (slot, pid) pairs that acknowledged messages, for each user."""
    return {seen["user"]: {(worker["slot"], worker["pid"]) for worker in seen["workers"]} for seen in clients}


def wait_ready(process: subprocess.Popen[str]) -> str:
    """Return the URL that uvicorn names, once all its workers have started."""
    assert process.stderr
    late = Timer(START_S, process.kill)  # ends the loop below
    late.start()
    said = ""
    for line in process.stderr:
        said += line
        address = re.search(r"http://127\.0\.0\.1:\d+", said)
        if address and said.count("Application startup complete") == WORKERS:
            late.cancel()
            return address[0]
    raise AssertionError(f"uvicorn has not started within {START_S:.0f} s:\n{said}")


def stop(process: subprocess.Popen[str]) -> None:
    """Tell *process* to stop and wait until it has; fail after `START_S`, with its whole group killed."""
    process.terminate()
    try:
        process.communicate(timeout=START_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise


@pytest.fixture(scope="module")
def limpet() -> Iterator[Limpet]:
    """The chat as its README starts it."""
    chain = ("--by", "query:user,cookie:user")
    grace = ("--graceful-timeout", GRACEFUL_S)
    with Limpet("app:app", "--workers", str(WORKERS), *chain, *grace, cwd=CHAT) as server:
        yield server


@pytest.fixture(scope="module")
def by_sid() -> Iterator[Limpet]:
    """The chat by the preset for its library: the names that its clients carry mean nothing to limpet."""
    grace = ("--graceful-timeout", GRACEFUL_S)
    with Limpet("app:app", "--workers", str(WORKERS), "--for", "socketio", *grace, cwd=CHAT) as server:
        yield server


@pytest.fixture(scope="module")
def uvicorn_url() -> Iterator[str]:
    """The chat on uvicorn's own workers, which take connections as they come."""
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", "0", "--workers", str(WORKERS)]
    command += ["--timeout-graceful-shutdown", GRACEFUL_S, "--no-access-log", "--no-use-colors"]
    process = subprocess.Popen(command, cwd=CHAT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield wait_ready(process)
    finally:
        stop(process)


@pytest.fixture(scope="module")
def neighbours(limpet: Limpet) -> list[Neighbour]:
    """Three users and their homes: two on one slot, and one on another."""
    names = [f"person-{number}" for number in range(10 * WORKERS)]
    homes = [home["slot"] for home in limpet.where(*names)]
    alice, *others = map(Neighbour, names, homes)
    bob = next(other for other in others if other.slot == alice.slot)
    carol = next(other for other in others if other.slot != alice.slot)
    return [alice, bob, carol]


@pytest.fixture(scope="module")
def people(
    limpet: Limpet, neighbours: list[Neighbour], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Person]]:
    """The three *neighbours*, each with a browser of their own, all open at once."""
    require(*browser.PROGRAMS)
    with ExitStack() as browsers:
        yield [
            Person(
                browsers.enter_context(browser.chromium(tmp_path_factory.mktemp(user))),
                f"{limpet.url}/?user={user}",
            )
            for user, _ in neighbours
        ]


@pytest.mark.parametrize("mode", ["polling", "polling+upgrade", "websocket"])
def test_each_socketio_client_meets_one_worker_and_all_workers_are_used(limpet: Limpet, mode: str) -> None:
    """A session of Socket.IO lives in one process: a single poll that lands elsewhere ends it."""
    clients = play(limpet.url, mode)

    assert [seen["error"] for seen in clients if seen["error"]] == []
    assert {seen["transport"] for seen in clients} == {"polling" if mode == "polling" else "websocket"}
    assert {(len(seen["workers"]), seen["heard"]) for seen in clients} == {(MESSAGES, MESSAGES)}
    assert [user for user, workers in homes(clients).items() if len(workers) != 1] == []
    assert {slot for workers in homes(clients).values() for slot, _ in workers} == set(range(WORKERS))


@pytest.mark.parametrize("mode", ["polling", "polling+upgrade"])
def test_clients_that_share_connections_meet_one_worker_each(limpet: Limpet, mode: str) -> None:
    """A reverse proxy sends everybody's requests over each of its connections; home is a matter of the request."""
    clients = play(limpet.url, mode, "--pool")

    assert [seen["error"] for seen in clients if seen["error"]] == []
    assert [user for user, workers in homes(clients).items() if len(workers) != 1] == []
    assert {slot for workers in homes(clients).values() for slot, _ in workers} == set(range(WORKERS))


@pytest.mark.parametrize("options", [(), ("--pool",)], ids=["own connections", "shared connections"])
def test_clients_without_a_key_meet_one_worker_each(by_sid: Limpet, options: tuple[str, ...]) -> None:
    """`--for socketio` takes no key of the application's, and no change to it: the ids of Socket.IO lead home."""
    clients = play(by_sid.url, "polling+upgrade", *options)

    assert [seen["error"] for seen in clients if seen["error"]] == []
    assert {(len(seen["workers"]), seen["heard"], seen["transport"]) for seen in clients} == {
        (MESSAGES, MESSAGES, "websocket")
    }
    assert [user for user, workers in homes(clients).items() if len(workers) != 1] == []
    assert {slot for workers in homes(clients).values() for slot, _ in workers} == set(range(WORKERS))


@pytest.mark.parametrize("mode", ["polling", "polling+upgrade"])
def test_same_clients_lose_their_sessions_where_connections_are_spread(uvicorn_url: str, mode: str) -> None:
    """The proof that the test above can fail: same application, same clients, no stickiness."""
    errors = [seen["error"] for seen in play(uvicorn_url, mode) if seen["error"]]

    assert len(errors) > 25
    assert [error for error in errors if "Invalid session" not in error] == []


def test_query_and_cookie_lead_to_the_home_that_limpet_names(limpet: Limpet) -> None:
    """One key has one home, whatever carries it: half of the node clients use the query, half the cookie."""
    clients = play(limpet.url, "websocket")
    named = [home["slot"] for home in limpet.where(*(seen["user"] for seen in clients))]

    assert [seen["workers"][0]["slot"] for seen in clients] == named


def test_vendored_client_is_the_published_one() -> None:
    """The page and the node script speak for the same release, and nobody has edited the minified file."""
    require_node_modules()
    published = CLIENTS / "node_modules" / "socket.io-client" / "dist" / "socket.io.min.js"

    assert (CHAT / "static" / "socket.io.min.js").read_bytes() == published.read_bytes()


def test_page_is_served_where_limpet_says_that_its_user_is_at_home(
    people: list[Person], neighbours: list[Neighbour]
) -> None:
    """What an operator asks with `limpet where` is what the user sees on the page."""
    assert [person.worker()[0] for person in people] == [neighbour.slot for neighbour in neighbours]


def test_people_on_all_workers_see_each_other(people: list[Person], neighbours: list[Neighbour]) -> None:
    """Where a person is at home decides who serves them, and not whom they can talk to."""
    alice, bob, carol = people
    for number, person in enumerate(people):
        person.say(f"hello from {number}")
        for other in people:
            other.sees(ROOM, f"hello from {number}")
        for user, _ in neighbours[:number] + neighbours[number + 1 :]:
            person.sees(NEIGHBOURS, user)
    alice.whisper(neighbours[2].user, "for carol alone")
    carol.sees(ROOM, "for carol alone")
    carol.whisper(neighbours[0].user, "for alice alone")
    alice.sees(ROOM, "for alice alone")
    carol.say("whatever was under way has arrived when this has")
    bob.sees(ROOM, "whatever was under way has arrived when this has")
    assert not [text for text in bob.texts(ROOM) if "alone" in text]


@pytest.mark.parametrize("transports", ["polling", "websocket"])
def test_people_see_each_other_by_each_transport(
    limpet: Limpet, people: list[Person], neighbours: list[Neighbour], transports: str
) -> None:
    """Some networks let no websocket through, and some clients want nothing else."""
    alice, _, carol = people
    for person, (user, _) in zip(people, neighbours, strict=True):
        person.driver.get(f"{limpet.url}/?user={user}&transports={transports}")
    assert alice.worker()[1] != carol.worker()[1]
    alice.say(f"by {transports}")
    carol.sees(ROOM, f"by {transports}")
    carol.whisper(neighbours[0].user, f"alone by {transports}")
    alice.sees(ROOM, f"alone by {transports}")


def test_reload_returns_to_the_same_worker_and_its_memory(people: list[Person]) -> None:
    """What people do all day: new connections, the same process, nothing that it remembered is lost."""
    before = [person.worker() for person in people]
    for number, person in enumerate(people):
        person.say(f"before reload {number}")
        person.driver.refresh()

    assert [person.worker() for person in people] == before
    for number, person in enumerate(people):
        person.sees(ROOM, f"before reload {number}")
        assert person.complaints() == []


def test_new_browser_is_at_home_by_its_cookie_and_then_each_of_its_tabs_on_its_own(
    limpet: Limpet, neighbours: list[Neighbour], tmp_path: Path
) -> None:
    """The first request of a browser has no key; all that follow, on the same connection too, have the cookie.

    A browser uses its connections for all its tabs, so each of them carries the keys of several people.
    """
    require(*browser.PROGRAMS)
    with browser.chromium(tmp_path) as driver:
        person = Person(driver, limpet.url)
        before = person.worker()
        cookie = driver.get_cookie("user")
        assert cookie
        home = limpet.where(f"cookie:user={cookie['value']}")[0]
        driver.refresh()

        assert [before, person.worker()] == [(home["slot"], home["pid"])] * 2
        assert person.complaints() == []

        slots = []
        for user, _ in neighbours:
            driver.switch_to.new_window("tab")
            slots.append(Person(driver, f"{limpet.url}/?user={user}").worker()[0])

        assert slots == [neighbour.slot for neighbour in neighbours]


def test_page_returns_to_its_slot_when_the_worker_is_killed(people: list[Person]) -> None:
    """A crash costs the memory of one process; it must not cost anybody their place."""
    slot, pid = people[0].worker()
    elsewhere = people[2].worker()
    os.kill(pid, signal.SIGKILL)

    after = browser.until(
        people[0].driver,
        "page is served by a new process",
        lambda _: worker if (worker := people[0].worker())[1] != pid else None,
    )
    assert after[0] == slot
    assert people[2].worker() == elsewhere
    people[2].say("are you back?")
    for person in people:
        person.sees(ROOM, "are you back?")
    people[0].say("yes, and I know what was said")
    people[2].sees(ROOM, "yes, and I know what was said")


def test_people_see_each_other_after_a_reload_of_the_server(limpet: Limpet, people: list[Person]) -> None:
    """A deploy gives everybody another process, and nobody another chat."""
    before = [person.worker()[1] for person in people]
    people[1].say("before the reload")
    limpet.command("reload")
    for person in people:
        person.meets_a_worker_other_than(before)
    people[0].say("after the reload")
    for person in people:
        person.sees(ROOM, "after the reload")
        person.sees(ROOM, "before the reload")
