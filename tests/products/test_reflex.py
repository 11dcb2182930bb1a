"""Reflex: the state of a tab goes by a token of its page, and is in the memory of one process.

The client is a program that speaks as Reflex's page does: to make the pages Reflex wants a newer node than Debian has.
"""

from __future__ import annotations

import pytest

from tests.products.programs import by_program
from tests.products.stage import Product, all_at_home, played

ENVIRONMENT = {"__REFLEX_SKIP_COMPILE": "true", "REFLEX_ENV_MODE": "prod", "REFLEX_STATE_MANAGER_MODE": "memory"}
PRODUCT = Product("reflex", "reflex", by_program("reflex_sessions.js", "node"), env=ENVIRONMENT)


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_state_of_each_tab_is_there_after_a_reconnection(way: str) -> None:
    """A new websocket of the same tab finds the count where the old one left it."""
    all_at_home(played(PRODUCT, "limpet", way))
