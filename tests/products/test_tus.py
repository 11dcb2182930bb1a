"""tus: the server makes the id of an upload and names it in `Location`; chunks, and who resumes, must come back."""

from __future__ import annotations

import pytest

from tests.products.programs import by_program
from tests.products.stage import Product, all_at_home, played

PRODUCT = Product("tus", "tuspyserver", by_program("tus_sessions.py"))


@pytest.mark.products
@pytest.mark.parametrize("way", ["plain", "nginx"])
def test_each_upload_is_with_one_worker(way: str) -> None:
    """Each worker has a disk of its own here, as workers on several machines would."""
    all_at_home(played(PRODUCT, "limpet", way))
