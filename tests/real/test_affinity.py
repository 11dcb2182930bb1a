"""`--by affinity`: limpet's own cookie brings clients home, on every server, with real connections.

Each request has a connection of its own, and all workers must have been used: on one connection anything looks sticky.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from limpet.config.presets import PRESETS
from limpet.errors import ControlError
from tests.harness import HERE, Limpet, Reply, wait_until
from tests.real.fronts import Front
from tests.wire import Wire, request, wires

WORKERS = 4
ASGI, WSGI = "tests.session_app:asgi", "tests.session_app:wsgi"
COOKIE = re.compile(r"(limpet_[0-9a-f]{8})=([\w-]{36}); Path=/; SameSite=Lax; HttpOnly")
SERVERS = {
    "uvicorn": (ASGI, ()),
    "uvicorn with WSGI": (WSGI, ()),
    "hypercorn": (ASGI, ("--server", "hypercorn")),
    "gunicorn": (WSGI, ("--server", "gunicorn")),
}
HANDSHAKE = {"upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "c2VjcmV0IHNlY3JldCBzZQ=="}


def serve(
    *args: str, app: str = ASGI, by: str = "affinity", workers: int = 2, state: Path | None = None, **how: Any
) -> Limpet:
    """Return a server that has not been started."""
    return Limpet(app, "--workers", str(workers), "--by", by, *args, state=state, **how)


def cookie_of(reply: Reply) -> str:
    """Return the cookie that *reply* sets, as the client will send it."""
    match = COOKIE.fullmatch(reply.headers["set-cookie"])
    assert match, reply
    return f"{match[1]}={match[2]}"


def clients(server: Limpet, count: int = 40, path: str = "/private") -> dict[str, int]:
    """Return the cookies of *count* new clients, with the slot that each was given."""
    # Placement goes by open connections first: those of an earlier client may not have been closed yet.
    wait_until(lambda: not server.status()["totals"]["connections"], "no connection is open")
    replies = [server.request(path) for _ in range(count)]
    found = {cookie_of(reply): int(reply.json()["slot"]) for reply in replies}
    assert len(found) == count
    assert len(set(found.values())) > 1  # test_stickiness.py has how evenly
    return found


def come_back(server: Limpet, known: dict[str, int], path: str = "/private") -> None:
    """Let each client come again, twice: it must reach its slot and get no new cookie."""
    for cookie in [*known, *reversed(known)]:
        reply = server.request(path, cookie=f"theme=dark; {cookie}; lang=en")
        assert "set-cookie" not in reply.headers
        assert reply.json()["slot"] == known[cookie]


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Limpet]:
    app, args = SERVERS[request.param]
    with serve(*args, app=app, workers=WORKERS) as running:
        yield running


on_uvicorn = pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
with_websockets = pytest.mark.parametrize("server", ["uvicorn", "hypercorn"], indirect=True)


def test_clients_come_home_by_the_cookie_alone(server: Limpet) -> None:
    """Forty clients of one address: with nothing but what limpet gave them each reaches its worker."""
    come_back(server, clients(server))


def test_error_sets_the_cookie_too(server: Limpet) -> None:
    """A client whose first answer is an error has been somewhere as well, and tries again there."""
    reply = server.request("/error")
    assert reply.status == 503
    come_back(server, {cookie_of(reply): reply.json()["slot"]})


@on_uvicorn
def test_answer_for_an_exception_sets_the_cookie_and_is_logged(server: Limpet) -> None:
    """The server's own 500 would come without it."""
    reply = server.request("/raise")
    assert (reply.status, reply.body) == (500, b"Internal Server Error")
    assert server.request("/private", cookie=cookie_of(reply)).status == 200
    wait_until(lambda: "RuntimeError: as asked for" in server.log, "the exception is logged")


@pytest.mark.parametrize("path", ["/public", "/shared"])
def test_response_for_shared_caches_sets_none(server: Limpet, path: str) -> None:
    """A cache in front would give everybody the same cookie, and one worker all clients."""
    assert "set-cookie" not in server.request(path).headers
    assert "set-cookie" in server.request("/not-public").headers


def test_forged_cookies_go_nowhere_and_are_replaced(server: Limpet) -> None:
    """Whatever is not limpet's own counts as none: the client is placed like a new one and gets a good one."""
    known = clients(server, 12)
    valid = next(iter(known))
    name, _, value = valid.partition("=")
    for header in (f"{name}=", f"{name}={value[::-1]}", f"{name}={value[:-1]}"):
        replies = [server.request("/private", cookie=header) for _ in range(2 * WORKERS)]
        assert len({cookie_of(reply) for reply in replies}) == len(replies)
        assert set(Counter(reply.json()["slot"] for reply in replies)) == set(range(WORKERS))


@with_websockets
def test_handshake_of_a_websocket_sets_and_obeys_it(server: Limpet) -> None:
    """Clients that open a websocket first get their cookie with the 101."""
    _websockets_are_sticky(server)


@pytest.mark.slow
@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto"])
def test_handshake_by_other_libraries_sets_and_obeys_it(ws: str) -> None:
    """The same with what else uvicorn speaks websocket by."""
    if ws == "wsproto":
        pytest.importorskip("wsproto")
    with serve("--ws", ws) as server:
        _websockets_are_sticky(server)


def _websockets_are_sticky(server: Limpet) -> None:
    known: dict[str, int] = {}
    for _ in range(2 * WORKERS):
        cookie, slot = open_websocket(server)
        assert cookie is not None
        known[cookie] = slot
    assert len(set(known.values())) == len(server.status()["slots"])
    for cookie, slot in known.items():
        assert open_websocket(server, cookie) == (None, slot)
    come_back(server, known)


def open_websocket(server: Limpet, cookie: str = "a=b") -> tuple[str | None, int]:
    """Return the cookie of the 101, and the slot that answers."""
    with Wire(("127.0.0.1", server.port)) as wire:
        headers = HANDSHAKE | {"cookie": cookie}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        wire.send(f"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{head}\r\n".encode())
        status, answered = wire.head()
        assert status == 101
        assert answered["x-from-app"] == "1"
        slot = json.loads(wire.frame().payload)["slot"]
        given = answered.get("set-cookie")
    return (None if given is None else given.partition(";")[0]), slot


def test_cookies_survive_a_kill_and_a_restart(tmp_path: Path) -> None:
    """There is no state to lose: who had a worker has its successor."""
    with serve(state=tmp_path) as server:
        known = clients(server)
        server.kill_worker(1)
        os.kill(before := server.dispatcher(), 9)
        server.wait_dispatcher(other_than=before)
        come_back(server, known)
    with serve(state=tmp_path) as server:
        come_back(server, known)


def test_client_that_a_stand_in_serves_keeps_its_cookie() -> None:
    """It is home again when its worker is back: the stand-in must not make it its own."""
    with serve("--on-down", "failover") as server:
        known = clients(server)
        mine = [cookie for cookie, slot in known.items() if slot == 1]
        server.kill_worker(1, wait_for_next=False)
        replies = [server.request("/private", cookie=cookie) for cookie in mine]
        assert all("set-cookie" not in reply.headers for reply in replies)
        server.wait_ready(1)
        come_back(server, known)


@on_uvicorn
def test_two_servers_of_one_host_do_not_disturb_each_other(server: Limpet, tmp_path: Path) -> None:
    """Browsers send cookies to every port of a host: each server must leave the other's alone."""
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text("a5" * 32)
    with serve(state=tmp_path) as second, serve("--name", "third") as third:
        known = [(each, clients(each, 8)) for each in (server, second, third)]
        for at in range(8):
            browser = "; ".join(list(cookies)[at] for _, cookies in known)
            for each, cookies in known:
                come_back(each, {browser: list(cookies.values())[at]})


def test_server_that_shares_its_cookie_by_accident_says_so(tmp_path: Path) -> None:
    """Two projects whose application is `main:app`, of one user and with the secret where limpet keeps it."""
    source = (HERE / "session_app.py").read_text()
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text("b7" * 32)
    (tmp_path / "run").mkdir(mode=0o700)
    folders = [tmp_path / name for name in ("shop", "blog")]
    for folder in folders:
        folder.mkdir()
        (folder / "main.py").write_text(source)

    def start(folder: Path, *args: str) -> Limpet:
        env = {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "PYTHONPATH": str(HERE.parent), "PWD": str(folder)}
        return serve(*args, app="main:asgi", state=folder, env=env, cwd=folder)

    for folder in folders:
        shutil.copy(secret, folder / "secret")
    shop, blog = folders
    with start(shop) as first:
        assert "is also set by" not in first.log
        with start(blog) as second:
            told = [line for line in second.lines if "is also set by" in line]
            assert len(told) == 1
            assert f"`main:asgi` in {shop} (pid {first.pid})" in told[0]
            assert "--name" in told[0]
            second.signal(signal.SIGHUP)
            wait_until(lambda: "reload" in second.log and "done" in second.log, "the reload is done")
            assert second.log.count("is also set by") == 1
        with start(blog, "--name", "blog") as third:
            assert "is also set by" not in third.log
    with start(blog) as alone:  # the note of one that has ended does not count
        assert "is also set by" not in alone.log


def test_secret_is_changed_without_moving_anybody(tmp_path: Path) -> None:
    """A new first line signs, the old one is accepted: clients get a new cookie in the same slot."""
    secret = tmp_path / "secret"
    with serve(state=tmp_path) as server:
        known = clients(server, 16)
    old = secret.read_text()
    secret.write_text("c3" * 32 + "\n" + old)
    renewed = {}
    with serve(state=tmp_path) as server:
        for cookie, slot in known.items():
            reply = server.request("/private", cookie=cookie)
            assert reply.json()["slot"] == slot
            renewed[cookie_of(reply)] = slot
        come_back(server, renewed)
    secret.write_text("c3" * 32)
    with serve(state=tmp_path) as server:
        come_back(server, renewed)
        assert "set-cookie" in server.request("/private", cookie=next(iter(known))).headers


def test_chain_asks_affinity_in_its_turn() -> None:
    """An element before it needs no cookie and gets none; one behind it places those who have none yet."""
    with serve(by="header:x-user,affinity") as server:
        assert "set-cookie" not in server.request("/private", x_user="ada").headers
        known = clients(server, 8)
        come_back(server, known)
        home = server.where("header:x-user=ada")[0]["slot"]
        cookie = next(cookie for cookie, slot in known.items() if slot != home)
        reply = server.request("/private", x_user="ada", cookie=cookie)
        assert reply.json()["slot"] == home
    with serve(by="affinity,ip") as server:
        [home] = server.where("ip=127.0.0.1")
        first = server.request("/private")
        assert first.json()["slot"] == home["slot"]
        come_back(server, {cookie_of(first): home["slot"]})
        sources = [f"127.0.3.{number}" for number in range(1, 20)]
        elsewhere = [entry["slot"] != home["slot"] for entry in server.where(*(f"ip={source}" for source in sources))]
        source = sources[elsewhere.index(True)]
        assert server.request("/private", source=source).json()["slot"] != home["slot"]
        roaming = server.request("/private", source=source, cookie=cookie_of(first))
        assert roaming.json()["slot"] == home["slot"]


@on_uvicorn
def test_pooled_connection_keeps_new_clients_and_old_ones_apart(server: Limpet) -> None:
    """A proxy sends everybody's requests on one connection: the cookie that one brought decides, each time."""
    known = clients(server, 16)
    with Wire(("127.0.0.1", server.port)) as pooled:
        for cookie, slot in known.items():
            fresh = pooled.send(request("/private", connection="keep-alive")).reply()
            mine = pooled.send(request("/private", cookie=cookie_of(fresh))).reply()
            assert mine.json()["slot"] == fresh.json()["slot"]
            assert "set-cookie" not in mine.headers
            other = pooled.send(request("/private", cookie=cookie)).reply()
            assert other.json()["slot"] == slot
            assert "set-cookie" not in other.headers


@on_uvicorn
def test_sessions_behind_a_proxy_with_pooled_connections_stay(server: Limpet) -> None:
    """nginx sends the requests of all browsers, old ones and new ones, over a few connections in any order."""

    def browse(front: int) -> int:
        with Wire(("127.0.0.1", front)) as wire:
            first = wire.send(request("/private")).reply()
            cookie = cookie_of(first)
            for _ in range(6):
                reply = wire.send(request("/private", cookie=cookie)).reply()
                assert (reply.json()["slot"], "set-cookie" in reply.headers) == (first.json()["slot"], False)
            return int(first.json()["slot"])

    with Front("nginx", server.port) as front, ThreadPoolExecutor(8) as pool:
        before = server.totals()["returns"]
        slots = Counter(pool.map(browse, [front.port] * 160))
        assert server.totals()["returns"] > before
    assert set(slots) == set(range(WORKERS))
    assert max(slots.values()) < 160 / WORKERS * 1.5


def test_result_is_fetched_where_it_is_made_by_clients_without_cookies() -> None:
    """The shape of Gradio's API: a POST makes an id, a GET has it in its path, and curl keeps nothing in between."""
    with serve(by=PRESETS["gradio"].sets["by"], workers=WORKERS) as server:
        made = [server.request("/new?mint", "POST").json() for _ in range(40)]
        for each in made:
            for _ in range(2):  # twice: one worker after the other would look sticky otherwise
                reply = server.request(f"/gradio_api/call/answer/{each['id']}")
                assert (reply.status, reply.json()["slot"]) == (200, each["slot"])
                assert "set-cookie" not in reply.headers
        assert {each["slot"] for each in made} == set(range(WORKERS))


@on_uvicorn
def test_where_knows_a_cookie(server: Limpet) -> None:
    """An operator pastes what the browser shows."""
    for cookie, slot in clients(server, 8).items():
        [entry] = server.where(cookie.partition("=")[2])
        assert (entry["slot"], entry["element"], entry["learned"]) == (slot, "affinity", False)
    with pytest.raises(ControlError, match="no cookie that this server made"):
        server.where("affinity=" + "x" * 36)


@on_uvicorn
def test_sessions_of_one_address_spread_evenly(server: Limpet) -> None:
    """Everybody behind one NAT: `--by ip` would give them one worker."""
    wait_until(lambda: server.totals()["connections"] == 0, "no connection is left of other tests")
    with wires(("127.0.0.1", server.port), 400) as browsers:
        for wire in browsers:
            wire.send(request("/private"))
        assert is_even(Counter(wire.reply().json()["slot"] for wire in browsers))


@pytest.mark.slow
@on_uvicorn
def test_ten_thousand_sessions_of_one_address_spread_evenly(server: Limpet) -> None:
    """The same with clients that come and go, long enough to see a drift."""

    def come(_: int) -> int:
        return int(server.request("/private").json()["slot"])

    with ThreadPoolExecutor(8) as pool:
        assert is_even(Counter(pool.map(come, range(10_000))))


def is_even(counted: Counter[int]) -> bool:
    """Return whether each worker has its share, to within 5 %."""
    share = counted.total() / WORKERS
    return all(abs(counted[slot] - share) <= 0.05 * share for slot in range(WORKERS))
