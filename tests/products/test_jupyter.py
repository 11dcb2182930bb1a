"""Jupyter Server: kernels live in the worker that started them; scripts and gateways know them by an id in the path."""

from __future__ import annotations

import pytest

from tests.products.programs import by_program
from tests.products.stage import APPS, Product, all_at_home, played

PRODUCT = Product(
    "jupyter",
    "jupyter-server",
    by_program("jupyter_sessions.py"),
    env={"JUPYTER_TOKEN": "secret", "JUPYTER_CONFIG_DIR": str(APPS / "jupyter")},
    refuses="one process only",
)


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_each_kernel_is_found_by_its_id(way: str) -> None:
    """Requests and websockets of a kernel come on connections of their own, without a cookie."""
    all_at_home(played(PRODUCT, "limpet", way))
