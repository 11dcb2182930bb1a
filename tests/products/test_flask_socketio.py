"""Flask-SocketIO in threads: as python-socketio, and each long poll and each websocket keeps a thread."""

from __future__ import annotations

import pytest

from tests.products.programs import by_socketio
from tests.products.stage import WORKERS, Product, all_at_home, played

GUNICORN = ("-m", "gunicorn", "app:app", "-k", "gthread", "--threads", "64", "--keep-alive", "75", "-w", str(WORKERS))
PRODUCT = Product(
    "flask-socketio",
    "flask-socketio",
    by_socketio,
    plain=(*GUNICORN, "-b", "127.0.0.1:0", "--graceful-timeout", "1"),
)


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_all_polls_and_the_websocket_of_a_session_meet(way: str) -> None:
    """In a pool of few threads a dozen long polls stall everybody, so the preset takes gunicorn's."""
    all_at_home(played(PRODUCT, "limpet", way))


@pytest.mark.products
def test_more_sessions_than_a_small_pool_has_threads_are_served_at_once() -> None:
    """100 clients in one worker are 100 long polls or websockets, each for as long as it stays."""
    outcome = played(PRODUCT, "limpet", "plain", "--workers", "1", sessions=100)
    assert outcome.failures == []
