"""`limpet explain` and `limpet where --why` against running servers: what they say is what happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Limpet, limpet_command

CHAIN = "header:x-user,path:^/room/([^/]+),cookie:user,python:tests.apps:key,affinity"


@pytest.fixture(scope="module")
def server() -> Iterator[Limpet]:
    """A server with nearly every kind of element in its chain."""
    with Limpet("tests.apps:echo", "--workers", "4", "--by", CHAIN) as server:
        yield server


def explained(server: Limpet, tmp_path: Path, text: str, *args: str) -> dict[str, Any]:
    """Return what `limpet explain` says of *text*."""
    (tmp_path / "head").write_text(text)
    found: dict[str, Any] = server.command("explain", str(tmp_path / "head"), *args)
    return found


def outcomes(found: dict[str, Any]) -> list[str]:
    """Return the outcome of each element."""
    return [look["outcome"] for look in found["chain"]]


@pytest.mark.parametrize(
    ("target", "user", "cookie", "matched"), [("/", "ada", "", 0), ("/room/7", "", "", 1), ("/", "", "user=bob", 2)]
)
def test_explanation_is_what_happens(
    server: Limpet, tmp_path: Path, target: str, user: str, cookie: str, matched: int
) -> None:
    """An explanation that another code made would be right until it mattered."""
    reply = server.request(target, x_user=user, cookie=cookie)
    head = f"GET {target} HTTP/1.1\nhost: x\nx-user: {user}\ncookie: {cookie}\n"
    found = explained(server, tmp_path, head, "--address", "127.0.0.1")
    assert found["home"]["slot"] == reply.json()["slot"]
    assert [look["found"] for look in found["chain"]] == [number == matched for number in range(5)]
    assert outcomes(found)[matched + 1 :] == ["not asked"] * (4 - matched)
    assert len(found["home"]["rank"]) == 4
    assert (found["home"]["how"], found["backend"]) == ("hash", "dispatcher")


def test_affinity_cookie_is_opened_by_the_server(server: Limpet, tmp_path: Path) -> None:
    """Only its secret can, and a forged one is none."""
    reply = server.request("/")
    cookie = reply.headers["set-cookie"].partition(";")[0]
    head = f"GET / HTTP/1.1\nhost: x\ncookie: {cookie}\n"
    found = explained(server, tmp_path, head)
    assert found["home"]["slot"] == reply.json()["slot"]
    assert found["home"]["how"] == "cookie"
    forged = explained(server, tmp_path, head[:-4] + "AAA\n")
    assert forged["home"] is None
    assert outcomes(forged)[4] == "the request has no cookie that this server made, or it is too old"


def test_output_has_no_key(server: Limpet, tmp_path: Path) -> None:
    """Explanations are passed on with a bug report."""
    head = "GET /room/s3cret-room HTTP/1.1\nhost: x\ncookie: user=s3cret\nauthorization: s3cret\n"
    (tmp_path / "head").write_text(head)
    for form in ([], ["--json"]):
        run = limpet_command("explain", str(tmp_path / "head"), "--control", server.control, *form)
        assert run.returncode == 0, run.stderr
        assert "found" in run.stdout
        assert "s3cret" not in run.stdout


def test_request_without_any_key_is_placed(tmp_path: Path) -> None:
    """The reason why a client comes somewhere else each time is that nothing was found."""
    with Limpet("tests.apps:echo", "--workers", "2", "--by", "cookie:sid", "--place", "random") as server:
        found = explained(server, tmp_path, "GET / HTTP/1.1\nhost: x\n")
        assert found["home"] is None
        run = limpet_command("explain", str(tmp_path / "head"), "--control", server.control)
        assert "no key: placed by `--place random`" in run.stdout


def test_kernel_backend_is_explained_by_address(tmp_path: Path) -> None:
    """There no request is looked into; the address alone is the key."""
    with Limpet("tests.apps:echo", "--workers", "4", "--backend", "kernel") as server:
        for address in ("127.0.0.1", "127.0.0.77"):
            found = explained(server, tmp_path, "", "--address", address)
            assert found["home"]["slot"] == server.request(source=address).json()["slot"]
            assert (found["home"]["element"], found["backend"]) == ("ip", "kernel")


def test_where_says_why(server: Limpet) -> None:
    """The same lines for a key that is known."""
    run = limpet_command("where", "x", "--why", "--control", server.control)
    assert run.returncode == 0, run.stderr
    [home] = server.where("x")
    assert f"x, as header:x-user:\n  slot {home['slot']}, pid {home['pid']} (ready): by its hash\n" in run.stdout
    assert f"digest {home['digest']}, bucket {home['bucket']}, slots by rank {home['slot']} " in run.stdout


@pytest.mark.parametrize("key", [7, {"value": 7}, {"cookie": "xx"}, {"value": "zz", "element": 1, "is_address": 0}])
def test_question_in_another_form_is_refused(server: Limpet, key: Any) -> None:
    """Whatever comes by the control socket must not end the supervisor."""
    from limpet.errors import ControlError
    from limpet.operate.control_socket import ask

    with pytest.raises(ControlError, match="`where`"):
        ask(server.control, {"command": "where", "keys": [json.loads(json.dumps(key))]})
    assert server.running
