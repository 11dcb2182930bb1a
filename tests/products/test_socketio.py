"""python-socketio: the session is a `sid` in the query, which the server makes and names in a body."""

from __future__ import annotations

import pytest

from tests.products.programs import by_socketio
from tests.products.stage import Product, all_at_home, played

PRODUCT = Product("socketio", "python-socketio", by_socketio, example="chat")


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_all_polls_and_the_websocket_of_a_session_meet(way: str) -> None:
    """Node's client keeps no cookies and sends no key: the sid is all that there is, and the first poll has none."""
    all_at_home(played(PRODUCT, "limpet", way))
