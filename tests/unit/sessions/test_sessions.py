"""What an application may call, and where ids to learn are found in responses."""

from __future__ import annotations

import itertools
import random
import secrets
import uuid
from collections import Counter
from typing import Any

import pytest

import limpet
from limpet.config import conflicts
from limpet.config.learn_source import Source
from limpet.config.router import Clocks, build_router
from limpet.config.settings import Settings
from limpet.current import WorkerInfo
from limpet.errors import SettingsError
from limpet.integrations.socketio import sticky
from limpet.ipc.scoreboard import Scoreboard
from limpet.protocol.request import Peer, Request
from limpet.routing.key_chain import Key
from limpet.routing.learned_ids import Learned
from limpet.routing.router import Router
from limpet.sessions import sessions
from limpet.sessions.middleware import InSessionWsgi
from limpet.sessions.sessions import Sessions

SLOTS = 8
NOBODY = Peer(None, None, "")


def worker(slot: int, *learn: str) -> tuple[Sessions, Router]:
    """Return the sessions of the worker in *slot*."""
    settings = Settings(app="app:app", workers=SLOTS, by="query:sid,header:x-sid", learn=learn)
    board = Scoreboard.create()
    router = build_router(settings, b"secret" * 4, clocks=Clocks(lambda: 0.0, lambda: 0.0))
    router.learned = Learned(board.learned(), 60)
    return Sessions(settings, WorkerInfo(slot, 1, 1), router, board.worker(0)), router


def test_minted_id_is_at_home_where_it_was_made_whichever_element_finds_it() -> None:
    """The server makes the id before the client has one: it must hash to the worker that made it."""
    for slot in range(SLOTS):
        here, router = worker(slot)
        for _ in range(20):
            made = here.mint(lambda: uuid.uuid4().hex)
            for element in ("query:sid", "header:x-sid"):
                assert router.where(Key(made.encode(), element, False)).slot == slot


def test_minted_uuid_comes_home_in_the_form_that_clients_send() -> None:
    """`limpet.mint(uuid.uuid4)` is what a newcomer writes first, and it must not raise."""
    here, router = worker(5)
    for _ in range(20):
        made = here.mint(uuid.uuid4)
        assert isinstance(made, uuid.UUID)
        assert router.where(Key(str(made).encode(), "query:sid", False)).slot == 5


def test_mint_calls_the_factory_about_as_often_as_there_are_slots() -> None:
    """That is its whole cost: there is no state."""
    here, _ = worker(3)
    numbers = itertools.count()
    for _ in range(200):
        here.mint(lambda: str(next(numbers)))
    assert 200 * SLOTS / 2 < next(numbers) < 200 * SLOTS * 2


def test_mint_of_a_factory_that_repeats_itself_ends_with_an_error() -> None:
    """It would never come to an id that lives here, and the worker would hang."""
    here, router = worker(3)
    foreign = next(str(n) for n in range(100) if router.where(Key(str(n).encode(), "query:sid", False)).slot != 3)
    with pytest.raises(RuntimeError, match="a new one each time"):
        here.mint(lambda: foreign)


def test_outside_a_worker_applications_run_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Developers start them with any server, and tests import them."""
    monkeypatch.setattr(sessions, "_here", None)
    assert limpet.mint(lambda: "id") == "id"
    limpet.learn("id")
    limpet.forget(b"id")


def test_sticky_makes_the_ids_of_a_socketio_server_live_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one server alone, from the application's own code."""
    socketio = pytest.importorskip("socketio")
    here, router = worker(5)
    monkeypatch.setattr(sessions, "_here", here)
    server = sticky(socketio.Server())
    made = {server.eio.generate_id() for _ in range(50)}
    assert len(made) == 50
    assert {router.where(Key(sid.encode(), "query:sid", False)).slot for sid in made} == {5}


@pytest.mark.parametrize(
    ("source", "header", "value", "found"),
    [
        ("header:Mcp-Session-Id", b"mcp-session-id", b" abc ", b"abc"),
        ("header:x", b"x", b"", None),
        ("cookie:sid", b"set-cookie", b"sid=abc; Path=/; HttpOnly", b"abc"),
        ("cookie:sid", b"set-cookie", b'sid="abc"; Path=/', b"abc"),
        ("cookie:sid", b"set-cookie", b'sid="a b,c"; Path=/', b"a b,c"),
        ("cookie:sid", b"set-cookie", b'sid="a\\054b" ; Path=/', b"a\\054b"),
        ("cookie:sid", b"set-cookie", b"sid=a b; Path=/", b"a b"),
        ("cookie:sid", b"set-cookie", b'sid="abc', b'"abc'),
        ("cookie:sid", b"set-cookie", b'sid=""; Path=/', None),
        ("cookie:sid", b"set-cookie", b"xsid=abc; sid=no", None),
        ("cookie:sid", b"set-cookie", b"sid=; Max-Age=0", None),
        ("cookie:s.d", b"set-cookie", b"sid=abc", None),
        ("location:/files/([^/?]+)", b"location", b"https://x/files/a%20b?x=1", b"a b"),
        ("location:/files/([^/?]+)", b"location", b"/other/1", None),
    ],
)
def test_id_is_found_in_a_response_as_clients_will_send_it(
    source: str, header: bytes, value: bytes, found: bytes | None
) -> None:
    """What was learned and what a request brings must be the same bytes."""
    parsed = Source.parse(source)
    assert (parsed.header, parsed.find(value)) == (header, found)


@pytest.mark.parametrize("text", ["x", "header:", "header:a b", "query:sid", "location:", "location:/a", "location:("])
def test_nonsense_to_learn_is_refused_with_a_hint(text: str) -> None:
    """A learner that never finds anything would look like a server that forgets."""
    with pytest.raises(SettingsError) as caught:
        Source.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("value", "may"),
    [
        (b"public", False),
        (b"max-age=60, PUBLIC", False),
        (b"max-age=60,s-maxage=10", False),
        (b"private, max-age=60", True),
        (b"no-store", True),
        (b'no-cache="x-public"', True),
        (b"max-age=31536000, immutable", True),
    ],
)
def test_cookie_is_left_out_where_shared_caches_keep_the_response(value: bytes, may: bool) -> None:
    """Only where the response says so itself: an application that says nothing means one client."""
    here, _ = worker(0)
    assert here.may_set([(b"Cache-Control", value)]) is may


@pytest.mark.parametrize(
    ("method", "site", "attributes", "is_set"),
    [
        ("POST", b"cross-site", "", False),
        ("POST", b"cross-site", "SameSite=Strict", False),
        ("GET", b"cross-site", "SameSite=Strict", False),
        ("POST", b"cross-site", "SameSite=None; Secure", True),
        ("GET", b"cross-site", "", True),
        ("POST", b"same-site", "", True),
        ("POST", b"same-origin", "", True),
        ("POST", None, "", True),
    ],
)
def test_request_for_which_browsers_keep_the_cookie_back_gets_no_new_one(
    method: str, site: bytes | None, attributes: str, is_set: bool
) -> None:
    """The return from a login or a payment must not replace the cookie by which the user comes home."""
    settings = Settings(app="app:app", workers=SLOTS, by="affinity", affinity_cookie=attributes)
    router = build_router(settings, b"secret" * 4, clocks=Clocks(lambda: 0.0, lambda: 0.0))
    here = Sessions(settings, WorkerInfo(0, 1, 1), router, Scoreboard.create().worker(0))
    headers = [] if site is None else [(b"sec-fetch-site", site)]
    assert (here.cookie_for(Request(method, "/", NOBODY, headers), is_https=True) is not None) is is_set


def test_cookie_that_comes_with_a_cross_site_post_is_renewed() -> None:
    """Some browsers send it for two minutes after it was set: then nothing is kept back that could be replaced."""
    settings = Settings(app="app:app", workers=SLOTS, by="affinity")
    clocks = Clocks(lambda: 0.0, lambda: 0.0)
    old, new = (
        build_router(settings, secret, clocks=clocks) for secret in (b"old" * 6, b"new" * 6 + b"\n" + b"old" * 6)
    )
    assert old.jar is not None
    here = Sessions(settings, WorkerInfo(0, 1, 1), new, Scoreboard.create().worker(0))
    value, _ = old.jar.mint(old.lives_at(0), secrets.token_bytes)
    headers = [(b"cookie", f"{old.jar.name}={value}".encode()), (b"sec-fetch-site", b"cross-site")]
    assert here.cookie_for(Request("POST", "/", NOBODY, headers), is_https=True) is not None


def test_stand_in_renews_a_cookie_for_the_home_of_its_client() -> None:
    """The secret is changed while a worker is down: its clients must find back to it."""
    settings = Settings(app="app:app", workers=SLOTS, by="affinity")
    board, clocks = Scoreboard.create(), Clocks(lambda: 0.0, lambda: 0.0)
    old, new = (
        build_router(settings, secret, clocks=clocks) for secret in (b"old" * 6, b"new" * 6 + b"\n" + b"old" * 6)
    )
    assert old.jar is not None
    assert new.jar is not None
    stand_in = Sessions(settings, WorkerInfo(5, 1, 1), new, board.worker(0))
    for slot in range(SLOTS):
        value, _ = old.jar.mint(old.lives_at(slot), secrets.token_bytes)
        request = Request("GET", "/", NOBODY, [(b"cookie", f"{old.jar.name}={value}".encode())])
        header = stand_in.cookie_for(request, is_https=False)
        assert header is not None
        [name, renewed] = header.partition(";")[0].split("=")
        assert name == new.jar.name
        opened = new.jar.open(renewed.encode())
        assert opened is not None
        assert new.home_of(opened.digest) == slot


@pytest.mark.parametrize("text", ["Max-Idle=60", "Max-Idle=60; Path=/shop"])
def test_due_cookie_that_cannot_be_replaced_is_renewed_once(text: str) -> None:
    """A browser keeps the cookie of another path beside the renewed one: it must not be set again on each response."""
    now = 1000.0
    settings = Settings(app="app:app", workers=SLOTS, by="affinity", affinity_cookie=text)
    router = build_router(settings, b"secret" * 4, clocks=Clocks(lambda: now, lambda: now))
    assert router.jar is not None
    here = Sessions(settings, WorkerInfo(3, 1, 1), router, Scoreboard.create().worker(0))
    value, _ = router.jar.mint(router.lives_at(3), secrets.token_bytes)
    elsewhere = f"{router.jar.name}={value}"  # of another path, which browsers send first
    renewed: list[str] = []
    for _ in range(5):
        now += 20  # a quarter of the idle time and more
        sent = "; ".join([elsewhere, *renewed[-1:]])
        request = Request("GET", "/", NOBODY, [(b"cookie", sent.encode())])
        header = here.cookie_for(request, is_https=False)
        if header is not None:
            renewed.append(header.partition(";")[0])
            sent = "; ".join([elsewhere, renewed[-1]])
            request = Request("GET", "/", NOBODY, [(b"cookie", sent.encode())])
            assert here.cookie_for(request, is_https=False) is None
        route = router.route(NOBODY, request)
        assert route is not None
        assert route.slot == 3


def test_due_cookie_is_renewed_though_one_of_another_home_stands_beside_it() -> None:
    """That one would take over when the first is too old, and with it the client would move."""
    now = 1000.0
    settings = Settings(app="app:app", workers=SLOTS, by="affinity", affinity_cookie="Max-Idle=60")
    router = build_router(settings, b"secret" * 4, clocks=Clocks(lambda: now, lambda: now))
    assert router.jar is not None
    here = Sessions(settings, WorkerInfo(3, 1, 1), router, Scoreboard.create().worker(0))
    first, _ = router.jar.mint(router.lives_at(3), secrets.token_bytes)
    now += 20
    second, _ = router.jar.mint(router.lives_at(4), secrets.token_bytes)
    name = router.jar.name
    request = Request("GET", "/", NOBODY, [(b"cookie", f"{name}={first}; {name}={second}".encode())])
    assert here.cookie_for(request, is_https=False) is not None


def test_tries_of_a_client_fall_on_workers_by_chance() -> None:
    """Who wants a certain worker gets it in one of N tries, whatever it does with the cookies that it was given."""
    settings = Settings(app="app:app", workers=SLOTS, by="affinity,header:x")
    router = build_router(settings, b"secret" * 4, clocks=Clocks(lambda: 0.0, lambda: 0.0))
    assert router.jar is not None
    draw = random.Random(3)
    given = [router.jar.mint(router.lives_at(draw.randrange(SLOTS)), secrets.token_bytes)[0] for _ in range(50)]
    reached: Counter[int] = Counter()
    for attempt in range(4000):
        value = bytearray(draw.choice(given).encode())
        value[draw.randrange(len(value))] = draw.choice(b"ABCDEFGHabcdefgh0123-_")
        cookie = f"{router.jar.name}=".encode() + bytes(value)
        headers = [(b"cookie", cookie), (b"x", b"%d" % attempt)]
        if bytes(value).decode() not in given:
            route = router.route(NOBODY, Request("GET", "/", NOBODY, headers))
            assert route == router.route(NOBODY, Request("GET", "/", NOBODY, headers[1:]))
            reached[route.slot if route else -1] += 1
    assert max(reached.values()) < reached.total() / SLOTS * 1.25  # 5 standard deviations


def test_learning_is_refused_where_no_request_is_read_for_an_id() -> None:
    """The table would fill, and nobody would ever look into it."""
    settings = Settings(app="app:app", workers=SLOTS, by="ip", learn=("header:x",))
    with pytest.raises(SettingsError, match="does not look into requests"):
        conflicts.refuse(settings, build_router(settings, b"secret" * 4).chain)


@pytest.mark.parametrize(("status", "is_known"), [("204 No Content", False), ("404 Not Found", True), ("odd", True)])
def test_delete_of_an_mcp_session_over_wsgi_forgets_it(status: str, is_known: bool) -> None:
    """What has ended must not stay in the table, whichever interface the application has."""
    settings = Settings(app="app:app", workers=SLOTS, by="header:mcp-session-id", learn=("header:mcp-session-id",))
    board = Scoreboard.create()
    router = build_router(settings, b"secret" * 4, clocks=Clocks(lambda: 0.0, lambda: 0.0))
    router.learned = Learned(board.learned(), 60)
    here = Sessions(settings, WorkerInfo(3, 1, 1), router, board.worker(0))
    here.learn(b"abc")

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status, [])
        return []

    environ = {"REQUEST_METHOD": "DELETE", "PATH_INFO": "/mcp", "HTTP_MCP_SESSION_ID": "abc"}
    environ |= {"REMOTE_ADDR": "127.0.0.1", "wsgi.url_scheme": "http"}
    InSessionWsgi(app, here)(environ, lambda *_: None)
    assert (router.learned.size(3) == 1) is is_known


def test_session_that_the_application_has_learned_ends_with_its_delete_too() -> None:
    """`--on-lost refuse` alone makes responses interesting, though there is no `--learn`."""
    settings = Settings(app="app:app", workers=SLOTS, by="header:mcp-session-id", on_lost="refuse")
    here = Sessions(settings, WorkerInfo(3, 1, 1), build_router(settings, b"s"), Scoreboard.create().worker(0))
    assert here.learns


def test_preflight_and_health_check_get_no_cookie() -> None:
    """Nobody brings it back; but it would count as a session, by which new users are placed."""
    settings = Settings(app="app:app", workers=SLOTS, by="affinity")
    router = build_router(settings, b"secret" * 4, clocks=Clocks(lambda: 0.0, lambda: 0.0))
    here = Sessions(settings, WorkerInfo(0, 1, 1), router, Scoreboard.create().worker(0))
    preflight = [(b"origin", b"https://limpet.test"), (b"access-control-request-method", b"POST")]
    assert here.cookie_for(Request("OPTIONS", "/", NOBODY, preflight), is_https=False) is None
    assert here.cookie_for(Request("GET", "/healthz", NOBODY, []), is_https=False) is None
    assert here.cookie_for(Request("GET", "/", NOBODY, []), is_https=False) is not None


def test_minted_ids_are_counted() -> None:
    """New users are placed by the sessions that workers have begun, and operators see how many."""
    settings = Settings(app="app:app", workers=SLOTS, by="query:sid")
    row = Scoreboard.create().worker(0)
    here = Sessions(settings, WorkerInfo(3, 1, 1), build_router(settings, b"secret" * 4), row)
    for _ in range(5):
        here.mint(uuid.uuid4)
    assert row["minted"] == 5
