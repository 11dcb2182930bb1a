"""Who may act by the admin page."""

from __future__ import annotations

import pytest

from limpet.operate.admin.guard import READ_ONLY, Guard

TOKEN = "a" * 32
GOOD = {
    "host": "10.0.0.7:9000",
    "origin": "http://10.0.0.7:9000",
    "content-type": "application/json",
    "authorization": f"Bearer {TOKEN}",
}


def test_token_lets_act() -> None:
    """By a browser on the page, and by curl, which sends no origin."""
    guard = Guard(TOKEN, is_unix=False)
    assert guard.refusal(GOOD) is None
    assert guard.refusal({name: value for name, value in GOOD.items() if name != "origin"}) is None


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"authorization": ""}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": f"Bearer {TOKEN}a"}, 401),
        ({"authorization": "Bearer \xff"}, 401),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://10.0.0.7:9001"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
)
@pytest.mark.parametrize("is_unix", [False, True])
def test_all_else_is_refused(changed: dict[str, str], status: int, is_unix: bool) -> None:
    """Another page that an operator's browser shows must not act in her name, nor a guess."""
    refusal = Guard(TOKEN, is_unix=is_unix).refusal({**GOOD, **changed})
    assert refusal is not None
    assert refusal.status == status


def test_nobody_acts_without_a_token_on_a_port() -> None:
    """Who can reach a port is not known."""
    refusal = Guard(None, is_unix=False).refusal({**GOOD, "authorization": "Bearer "})
    assert refusal == (403, READ_ONLY)


@pytest.mark.parametrize(
    ("host", "may"), [("localhost:9000", True), ("[::1]:9000", True), ("evil.example:9000", False)]
)
def test_owner_of_a_unix_socket_acts_by_a_name_of_this_machine(host: str, may: bool) -> None:
    """Forwarded to a port, it could be reached by a page whose name resolves to this machine."""
    guard = Guard(None, is_unix=True)
    headers = {"host": host, "origin": f"http://{host}", "content-type": "application/json"}
    assert (guard.refusal(headers) is None) is may


@pytest.mark.parametrize(
    ("host", "may"),
    [
        ("localhost:9000", True),
        ("[::1]:9000", True),
        ("10.0.0.7", True),
        ("evil.example", False),
        ("[", False),
        ("", False),
    ],
)
def test_page_of_this_machine_is_read_by_no_foreign_name(host: str, may: bool) -> None:
    """A web page can point its own name at this machine, and would then read by an operator's browser."""
    assert (Guard(None, is_unix=False, is_local=True).unreadable({"host": host}) is None) is may
    assert Guard(None, is_unix=False).unreadable({"host": host}) is None


def test_owner_who_asks_for_a_host_that_is_none_is_refused() -> None:
    """Every header has a defined answer."""
    headers = {"host": "[", "content-type": "application/json"}
    refusal = Guard(None, is_unix=True).refusal(headers)
    assert refusal is not None
    assert refusal.status == 403
