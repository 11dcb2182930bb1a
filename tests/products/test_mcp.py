"""MCP, Streamable HTTP: the server names the session in a header, and the wrong worker answers 404."""

from __future__ import annotations

import sys

import pytest

from tests.products.programs import by_program
from tests.products.stage import Product, all_at_home, played

PRODUCT = Product(
    "mcp",
    "mcp",
    by_program("mcp_sessions.py", sys.executable),
    example="mcp",
    python=sys.executable,  # Chainlit, among the products, takes older versions only
)


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_tools_notifications_and_the_end_of_a_session_are_with_one_worker(way: str) -> None:
    """The stream on which the server speaks first is a request of its own, and so is the DELETE at the end."""
    all_at_home(played(PRODUCT, "limpet", way))
