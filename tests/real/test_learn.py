"""`--learn`, `limpet.learn` and `limpet.mint`: ids that the application makes bring clients back to the worker that
made them, however fast they come back and whoever dies in between."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness import Limpet, Reply, fetch
from tests.wire import Wire, request, upgrade

WORKERS = 4
ASGI, WSGI = "tests.session_app:asgi", "tests.session_app:wsgi"
POLL = "/socket.io/?EIO=4&transport=polling"
BY = "header:mcp-session-id,cookie:sid,query:sid,path:^/files/([^/]+)"
LEARN = ("--learn", "header:mcp-session-id", "--learn", "cookie:sid", "--learn", "location:/files/([^/?]+)")

# How a client carries the id that it was given in this way.
CARRIERS: dict[str, Callable[[Limpet, str], Reply]] = {
    "header": lambda server, made: server.request("/use", mcp_session_id=made),
    "cookie": lambda server, made: server.request("/use", cookie=f"a=b; sid={made}"),
    "location": lambda server, made: server.request(f"/files/{made}"),
    "call": lambda server, made: server.request(f"/use?sid={made}"),
    "mint": lambda server, made: server.request(f"/use?sid={made}"),
}


def serve(*args: str, app: str = ASGI, by: str = BY, workers: int = 2) -> Limpet:
    """Return a server that has not been started."""
    return Limpet(app, "--workers", str(workers), "--by", by, *LEARN, *args)


@pytest.fixture(scope="module", params=["uvicorn", "uvicorn with WSGI", "hypercorn", "gunicorn"])
def server(request: pytest.FixtureRequest) -> Iterator[Limpet]:
    server, _, app = request.param.partition(" with ")
    with serve("--server", server, app=WSGI if app or server == "gunicorn" else ASGI, workers=4) as running:
        yield running


on_uvicorn = pytest.mark.parametrize("server", ["uvicorn"], indirect=True)


@pytest.mark.parametrize("way", CARRIERS)
def test_session_is_known_where_its_client_comes_back(server: Limpet, way: str) -> None:
    """Only the worker that made it knows a session: each other answers 404."""
    slots: Counter[int] = Counter()
    for _ in range(40):
        made = server.request(f"/new?{way}").json()
        for _ in range(2):
            back = CARRIERS[way](server, made["id"])
            assert (back.status, back.json()["slot"]) == (200, made["slot"])
        slots[made["slot"]] += 1
    assert set(slots) == set(range(WORKERS))


@on_uvicorn
def test_quoted_cookie_brings_its_client_back(server: Limpet) -> None:
    """What is learned has to be what the client sends and the key chain finds: all that is between the quotes."""
    for _ in range(20):
        made = server.request("/new?quoted").json()
        back = server.request("/use", cookie=f'sid="{made["id"]} of mine"')
        assert back.json()["slot"] == made["slot"]


@on_uvicorn
def test_thousand_clients_that_come_back_at_once_are_never_early(server: Limpet) -> None:
    """The race that routers lose which learn from what they forward: the header is here, so the id must be routable."""

    def come_and_come_back(_: int) -> bool:
        with Wire(("127.0.0.1", server.port)) as wire:
            wire.send(request("/new?header"))
            _, headers = wire.head()  # and not a byte of the body
            with Wire(("127.0.0.1", server.port)) as next_one:
                return next_one.send(request("/use", mcp_session_id=headers["mcp-session-id"])).reply().status == 200

    with ThreadPoolExecutor(8) as pool:
        assert Counter(pool.map(come_and_come_back, range(1000))) == {True: 1000}


@on_uvicorn
def test_thousand_clients_that_come_back_on_a_pooled_connection_are_never_early(server: Limpet) -> None:
    """Behind a proxy the next request comes by a connection that another worker has: it asks the same table."""

    def come_and_come_back(pooled: Wire) -> list[int]:
        found = []
        for _ in range(125):
            with Wire(("127.0.0.1", server.port)) as wire:
                wire.send(request("/new?header"))
                made = wire.head()[1]["mcp-session-id"]
                found.append(pooled.send(request("/use", mcp_session_id=made)).reply().status)
        return found

    before = server.totals()["returns"]
    pools = [Wire(("127.0.0.1", server.port)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = Counter(status for statuses in pool.map(come_and_come_back, pools) for status in statuses)
    for wire in pools:
        wire.close()
    assert found == {200: 1000}
    assert server.totals()["returns"] > before + 500


def test_learned_ids_survive_whoever_is_killed() -> None:
    """The table belongs to nobody who can die: after kill -9 of a worker and of the dispatcher each id has its slot."""
    with serve() as server:
        made = {reply["id"]: reply["slot"] for reply in (server.request("/new?header").json() for _ in range(40))}
        server.kill_worker(1)
        os.kill(before := server.dispatcher(), signal.SIGKILL)
        server.wait_dispatcher(other_than=before)
        for session, slot in made.items():
            reply = server.request("/use", mcp_session_id=session)
            assert reply.json()["slot"] == slot
            assert reply.status == (404 if slot == 1 else 200)  # the successor does not know them, and is asked


@on_uvicorn
def test_where_and_status_tell_learned_from_hashed(server: Limpet) -> None:
    """An operator who wonders why a client is where it is sees it."""
    made = server.request("/new?header").json()
    learned, hashed = server.where(made["id"], made["id"] + "x")
    assert (learned["slot"], learned["home"], learned["learned"]) == (made["slot"], made["slot"], True)
    assert not hashed["learned"]
    before = server.totals()
    assert CARRIERS["header"](server, made["id"]).status == 200
    assert server.totals()["learned_hits"] == before["learned_hits"] + 1
    slots = server.status()["slots"]
    assert sum(slot["learned"] for slot in slots) == before["learned"]


@on_uvicorn
def test_forgotten_id_is_hashed_again(server: Limpet) -> None:
    """`limpet.forget` in whichever worker ends the session."""
    for _ in range(8):
        made = server.request("/new?call").json()["id"]
        assert server.where(f"query:sid={made}")[0]["learned"]
        server.request(f"/forget?{made}")
        assert not server.where(f"query:sid={made}")[0]["learned"]


def test_delete_of_an_mcp_session_forgets_its_id(server: Limpet) -> None:
    """An id that has ended needs no room, whichever interface and server the application has."""
    before = sum(slot["learned"] for slot in server.status()["slots"])
    for _ in range(8):
        made = server.request("/new?header").json()["id"]
        assert server.where(made)[0]["learned"]
        assert server.request("/use", "DELETE", mcp_session_id=made).status == 200
        assert not server.where(made)[0]["learned"]
    assert sum(slot["learned"] for slot in server.status()["slots"]) == before


def test_lost_session_is_served_at_home_or_refused() -> None:
    """A client whose session died with its worker either meets the successor, or hears that it has to start anew."""
    with serve("--on-lost", "refuse") as server:
        made = [server.request(f"/new?{way}").json() | {"way": way} for way in ("header", "cookie") for _ in range(8)]
        assert {entry["slot"] for entry in made} == {0, 1}
        server.kill_worker(1)
        for entry in made:
            reply = CARRIERS[entry["way"]](server, entry["id"])
            refused = 404 if entry["way"] == "header" else 410
            assert reply.status == (refused if entry["slot"] == 1 else 200)
            assert (b"is gone" in reply.body) == (entry["slot"] == 1)
        assert server.totals()["lost"] == sum(entry["slot"] == 1 for entry in made)
        gone = next(entry for entry in made if entry["slot"] == 1)["id"]
        with Wire(("127.0.0.1", server.port)) as wire:
            assert wire.send(upgrade("/ws", mcp_session_id=gone)).reply().status == 404


def test_id_that_nobody_uses_is_forgotten_and_one_in_use_is_not() -> None:
    """Clients seldom say goodbye; those that stay must not be forgotten while they are active."""
    with serve("--learn-idle", "2") as server:
        used, unused = (server.request("/new?header").json() for _ in range(2))
        with server.connection() as connection:
            while server.where(unused["id"])[0]["learned"]:
                assert fetch(connection, "/use", mcp_session_id=used["id"]).status == 200
            assert server.where(used["id"])[0]["learned"]


def test_mcp_chain_falls_back_to_affinity() -> None:
    """`header:mcp-session-id,affinity`: the learned header wins, and browsers without it have the cookie."""
    with serve(by="header:mcp-session-id,affinity") as server:
        for _ in range(2 * WORKERS):
            first = server.request("/new?header")
            cookie = first.headers["set-cookie"].partition(";")[0]
            made = first.json()
            clients = (server.request("/new?header").json() for _ in range(50))
            other = next(each for each in clients if each["slot"] != made["slot"])  # whose connections end when, varies
            assert server.request("/use", cookie=cookie).json()["slot"] == made["slot"]
            back = server.request("/use", cookie=cookie, mcp_session_id=other["id"])
            assert (back.status, back.json()["slot"]) == (200, other["slot"])
            assert "set-cookie" not in back.headers


def test_full_workers_get_no_new_clients_and_old_ones_come_home() -> None:
    """`--max-connections-per-worker` is for those who can go elsewhere; when nobody has room they are told."""
    with serve("--max-connections-per-worker", "2") as server:
        made = server.request("/new?header").json()
        wires = [Wire(("127.0.0.1", server.port)) for _ in range(4)]
        try:
            slots = Counter(wire.send(request("/")).reply().json()["slot"] for wire in wires)
            assert slots == {0: 2, 1: 2}
            full = server.request("/")
            assert (full.status, full.headers["retry-after"]) == (503, "1")
            assert CARRIERS["header"](server, made["id"]).json()["slot"] == made["slot"]
        finally:
            for wire in wires:
                wire.close()


def test_sid_of_socketio_is_minted_so_that_polls_reach_their_worker() -> None:
    """Every poll on a connection of its own, with nothing but the sid: another worker answers 400, session unknown."""
    with Limpet(
        "tests.socketio_app:asgi", "--workers", "4", "--by", "query:sid", "--mint", "socketio", "--debug-header"
    ) as server:
        slots = Counter[str]()
        for _ in range(20):
            opened = server.request(POLL)
            sid = json.loads(opened.body[1:])["sid"]
            assert len(sid) == 20
            assert server.request(f"{POLL}&sid={sid}", "POST", b"40").status == 200
            answer = server.request(f"{POLL}&sid={sid}")
            assert (answer.status, answer.body[:2]) == (200, b"40")
            assert answer.headers["x-limpet-slot"] == opened.headers["x-limpet-slot"]
            slots[answer.headers["x-limpet-slot"]] += 1
        assert len(slots) == WORKERS
