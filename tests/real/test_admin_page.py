"""The admin page in a real browser, on a real server: what it shows is so, and every button does what it says."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome

from limpet.operate.admin.live import MOST_WATCHERS
from tests.harness import HERE, PATIENCE_S, Limpet, fetch, wait_until
from tests.real.browser import chromium, until

TOKEN = "0123456789abcdef0123456789abcdef"
FILES = HERE.parent / "limpet" / "operate" / "admin"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limpet]:
    """A server with a token."""
    path = tmp_path_factory.mktemp("token") / "token"
    path.touch(mode=0o600)
    path.write_text(f"{TOKEN}\n")
    arguments = ("--workers", "2", "--by", "header:x-user", "--admin", "127.0.0.1:0", "--admin-token", str(path))
    with Limpet("tests.apps:echo", *arguments) as made:
        yield made


@pytest.fixture
def page(server: Limpet, browser: Chrome) -> Chrome:
    """The page, unlocked."""
    browser.get(server.status()["admin"])
    until(browser, "the token is asked for, or known", lambda page: asks(page) or is_enabled(page, "reload"))
    if asks(browser):
        browser.find_element("id", "token").send_keys(TOKEN, "\n")
    until(browser, "it is unlocked", lambda page: is_enabled(page, "reload"))
    return browser


def asks(page: Chrome) -> bool:
    return page.find_element("id", "token").is_displayed()


def is_enabled(page: Chrome, name: str) -> bool:
    return page.find_element("id", name).is_enabled()


def text(page: Chrome, name: str) -> str:
    return str(page.execute_script("return (document.getElementById(arguments[0]) || {}).innerText || ''", name))


def click(page: Chrome, name: str) -> None:
    page.find_element("id", name).click()


def pids(server: Limpet) -> list[int]:
    return [slot["pid"] for slot in server.status()["slots"]]


def post(server: Limpet, path: str, body: object, **headers: str) -> tuple[int, Any]:
    """Send the admin process what a program sends."""
    connection = http.client.HTTPConnection(server.status()["admin"].removeprefix("http://"), timeout=PATIENCE_S)
    with contextlib.closing(connection):
        reply = fetch(connection, path, "POST", json.dumps(body).encode(), **headers)
    return reply.status, reply.json()


def test_page_fetches_nothing_from_elsewhere(server: Limpet) -> None:
    """At night, without a network, it must look as it does by day; and nobody else learns that it is looked at."""
    for name in ("page.html", "page.css", "page.js"):
        found = (FILES / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in found.replace("// ", "").replace("//\n", "")
    connection = http.client.HTTPConnection(server.status()["admin"].removeprefix("http://"), timeout=PATIENCE_S)
    with contextlib.closing(connection):
        policy = fetch(connection).headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy


def test_page_shows_what_happens(server: Limpet, page: Chrome) -> None:
    """Who opens it at night looks for what has changed: it must be the server's state, a moment ago."""
    until(page, "it shows both workers", lambda page: all(f"pid {pid}" in text(page, "slots") for pid in pids(server)))
    [dispatcher] = server.status()["dispatchers"]
    line = f"dispatcher 0 ready, pid {dispatcher['pid']}, "
    until(page, "it shows the dispatcher", lambda page: text(page, "processes").startswith(line))
    assert text(page, "processes").endswith(f" of {dispatcher['max_pending']} heads awaited")
    requests = server.totals()["requests"]
    for number in range(40):
        server.request(x_user=f"user{number}")
    wait_until(lambda: server.totals()["requests"] == requests + 40, "all are counted, the last after its response")
    until(page, "a rate is shown", lambda page: text(page, "card-requests / s").split()[-1] not in ("", "0"))
    pid = server.kill_worker(1)
    until(page, "the death is told", lambda page: f"worker 1 (pid {pid}) was killed" in text(page, "events"))
    until(page, "the next one is shown", lambda page: f"pid {pids(server)[1]}" in text(page, "slot-1"))
    until(page, "all is well", lambda page: text(page, "health") == "serving")
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []  # type: ignore[no-untyped-call]


def test_reload_asks_first_and_gives_each_slot_a_new_worker(server: Limpet, page: Chrome) -> None:
    """A finger that slips on a phone renews nobody."""
    before = pids(server)
    click(page, "reload")
    until(page, "it asks", lambda page: page.find_element("id", "sure").is_displayed())
    page.find_element("css selector", "#sure [value=no]").click()
    until(page, "it asks no more", lambda page: not page.find_element("id", "sure").is_displayed())
    assert server.status()["change"] is None or server.status()["change"]["why"] != "reload"
    click(page, "reload")
    click(page, "yes")
    wait_until(lambda: not set(before) & set(pids(server)), "all workers are new")
    until(page, "the page says so", lambda page: "reload: done, 2 of 2 slots" in text(page, "change"))
    assert before != pids(server)


def test_reload_of_one_slot_is_that_slot_s(server: Limpet, page: Chrome) -> None:
    """One worker that has grown is renewed, and the others are left alone."""
    before = pids(server)
    page.find_element("css selector", "#slot-1 .renew").click()
    until(page, "it asks", lambda page: "slot 1" in text(page, "question"))
    click(page, "yes")
    server.wait_ready(1, other_than=before[1])
    assert pids(server)[0] == before[0]


def test_drain_and_undrain(server: Limpet, page: Chrome) -> None:
    """The button of a slot is that slot's."""
    button = page.find_element("css selector", "#slot-1 .hold")
    for word, state in (("Drain", "draining"), ("Undrain", "ready")):
        until(page, f"the button says {word}", lambda _, word=word: button.text == word)  # type: ignore[misc]
        button.click()
        wait_until(lambda state=state: server.worker(1)["state"] == state, f"slot 1 is {state}")  # type: ignore[misc]
    assert server.worker(0)["state"] == "ready"


def test_scale_by_steps(server: Limpet, page: Chrome) -> None:
    """Says how many clients move, and then moves them."""
    for step, slots in (("more", 3), ("fewer", 2)):
        click(page, step)
        click(page, "scale")
        until(page, "it asks", lambda page: "33 % of the clients" in text(page, "question"))
        click(page, "yes")
        wait_until(lambda slots=slots: len(server.status()["slots"]) == slots, f"{slots} slots are there")  # type: ignore[misc]
        until(page, "the page shows them", lambda page, slots=slots: text(page, "slots").count("pid ") == slots)  # type: ignore[misc]
        until(page, "it may go on", lambda page: ": done" in text(page, "change"))
        until(page, "the number follows", lambda page, slots=slots: number(page) == slots)  # type: ignore[misc]


def number(page: Chrome) -> int:
    return int(page.find_element("id", "workers").get_attribute("value") or 0)


def test_box_finds_the_home_of_a_key_and_nobody_writes_it_down(server: Limpet, page: Chrome) -> None:
    """By the function that routes; keys are secrets of the users, and logs are read by many."""
    key = "ada-lovelace-1815"
    page.find_element("id", "key").send_keys(key, "\n")
    until(page, "it is found", lambda page: page.find_element("id", "home").is_displayed())
    [home] = server.where(key)
    shown = text(page, "home")
    assert home["digest"] in shown
    found = page.find_element("css selector", ".slot[data-found]")
    assert found.get_attribute("id") == f"slot-{home['slot']}"
    assert found.value_of_css_property("outline-style") == "solid"
    assert f"pid {home['pid']}" in shown
    assert server.request(x_user=key).json()["slot"] == home["slot"]
    assert key not in server.log
    assert key not in json.dumps(server.ask(command="events"))
    assert key not in page.current_url


def test_wrong_token_is_told(server: Limpet, page: Chrome) -> None:
    """A page that seems unlocked and is not would cost minutes."""
    page.execute_script("sessionStorage.clear()")
    page.refresh()
    until(page, "the token is asked for", asks)
    page.find_element("id", "token").send_keys("wrong", "\n")
    until(page, "it is refused", lambda page: "wrong token" in text(page, "toast"))
    assert not is_enabled(page, "reload")


def test_token_is_in_no_list_of_processes(server: Limpet) -> None:
    """Every user of the machine can read command lines, and children inherit environments."""
    for pid in server.processes():
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                assert TOKEN.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()


def test_request_of_another_page_does_nothing(server: Limpet) -> None:
    """A browser would send it for any page that knows the address."""
    json_type, token = {"content_type": "application/json"}, {"authorization": f"Bearer {TOKEN}"}
    reload = {"command": "reload"}
    before = pids(server)
    assert post(server, "/do", reload, **token, **json_type, origin="http://evil.example")[0] == 403
    assert post(server, "/do", reload, **token, content_type="text/plain")[0] == 415
    assert post(server, "/do", reload, **json_type)[0] == 401
    assert post(server, "/where", {"key": "ada"}, **json_type)[0] == 401
    status, answer = post(server, "/do", {"command": "drain", "slot": 9}, **token, **json_type)
    assert (status, answer["error"]) == (409, "there is no slot 9")
    assert pids(server) == before


def test_page_fits_a_phone_by_night_and_by_day(page: Chrome) -> None:
    """Nobody scrolls sideways at three in the morning."""
    backs = []
    for scheme in ("light", "dark"):
        page.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 375, "height": 812, "deviceScaleFactor": 1, "mobile": True}
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        assert page.execute_script("return document.documentElement.scrollWidth") <= 375
        backs.append(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert backs[0] != backs[1]


def test_pages_are_bounded_and_forgotten_when_closed(server: Limpet) -> None:
    """A monitor that opens one after the other must not eat the admin process."""
    host, port = server.status()["admin"].removeprefix("http://").split(":")

    def watch() -> tuple[socket.socket, bytes]:
        client = socket.create_connection((host, int(port)), PATIENCE_S)
        client.sendall(b"GET /stream HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        return client, client.recv(16)

    with contextlib.ExitStack() as stack:
        answers = []
        for _ in range(MOST_WATCHERS + 1):
            client, answer = watch()
            stack.enter_context(client)
            answers.append(answer)
        assert answers[0].startswith(b"HTTP/1.1 200")
        assert answers[-1].startswith(b"HTTP/1.1 503")

    def there_is_room() -> bool:
        client, answer = watch()
        client.close()
        return answer.startswith(b"HTTP/1.1 200")

    wait_until(there_is_room, "those that are closed are forgotten")


def test_page_without_a_token_is_read_only_and_says_why(browser: Chrome) -> None:
    """Whoever reaches the port sees, and does nothing."""
    with Limpet("tests.apps:echo", "--workers", "1", "--admin", "127.0.0.1:0") as server:
        browser.get(server.status()["admin"])
        until(browser, "it says why", lambda page: "--admin-token FILE" in text(page, "access"))
        until(browser, "it shows the slot", lambda page: f"pid {pids(server)[0]}" in text(page, "slots"))
        assert not [
            button
            for button in browser.find_elements("tag name", "button")
            if button.is_enabled() and button.is_displayed()
        ]
        assert post(server, "/do", {"command": "reload"}, content_type="application/json")[0] == 403


def test_token_file_that_others_may_read_ends_the_start(tmp_path: Path) -> None:
    """It is no secret then."""
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o644)
    server = Limpet("tests.apps:echo", "--admin", "127.0.0.1:0", "--admin-token", str(path))
    with server.launched():
        assert server.wait_ended() == 2
        assert "only its owner may read" in server.log
