"""The affinity cookie in a real browser: what comes from another site, and two applications under one host.

`localhost` and `127.0.0.1` are two sites for a browser, and both are loopback. Ports make no difference to its cookies.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests.real import browser
from tests.real.fronts import Front
from tests.real.test_affinity import serve
from tests.real.test_chat import require

WORKERS = 4
ROUNDS = 8  # all of them on the user's own worker by chance: once in 65,000 times


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Chrome]:
    """Return a browser without a past."""
    require(*browser.PROGRAMS)
    with browser.chromium(tmp_path / "profile") as running:
        yield running


@contextmanager
def login_page(target: str) -> Iterator[str]:
    """Yield the address of a page on another site whose form posts to *target*, as a login does that is over."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f'<form method="post" action="{target}"><input name="code" value="1"><button>go</button></form>'
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def shown(driver: Chrome) -> dict[str, Any]:
    """Return what the application has answered."""
    answer: dict[str, Any] = json.loads(driver.find_element(By.TAG_NAME, "body").text)
    return answer


def visit(driver: Chrome, url: str) -> int:
    """Open *url*; return the slot that has answered."""
    driver.get(url)
    return int(shown(driver)["slot"])


def come_back_from_login(driver: Chrome, page: str, target: str) -> int:
    """Submit the form of *page*; return the slot that its POST reached."""
    driver.get(page)
    driver.find_element(By.TAG_NAME, "button").click()
    browser.until(driver, "the POST is answered", lambda now: now.current_url == target and "slot" in now.page_source)
    return int(shown(driver)["slot"])


def cookies(driver: Chrome) -> list[str]:
    """Return the values of the affinity cookies that the browser has for the page."""
    return [each["value"] for each in driver.get_cookies() if each["name"].startswith("limpet_")]


def test_user_comes_home_after_a_post_from_another_site(driver: Chrome) -> None:
    """A login or a payment returns by such a POST, without the cookie: a new one would replace the user's for good."""
    with serve(workers=WORKERS) as server, login_page(target := f"{server.url}/private") as page:
        home = visit(driver, target)
        [mine] = cookies(driver)
        posted = {come_back_from_login(driver, page, target) for _ in range(ROUNDS)}
        assert posted != {home}  # or the browser has sent the cookie, and nothing is proven
        assert cookies(driver) == [mine]
        assert visit(driver, target) == home


def test_post_from_another_site_itself_comes_home_with_samesite_none(driver: Chrome) -> None:
    """Where the POST needs the session this is what the docs tell to set."""
    args = ("--affinity-cookie", "SameSite=None; Secure")
    with serve(*args, workers=WORKERS) as server, login_page(target := f"{server.url}/private") as page:
        home = visit(driver, target)
        assert {come_back_from_login(driver, page, target) for _ in range(ROUNDS)} == {home}
        assert len(cookies(driver)) == 1


class OneHost(Front):
    """nginx with one application under /shop/ and another one under all other paths."""

    def __init__(self, shop: int, rest: int) -> None:
        super().__init__("nginx", rest)
        self._shop = shop

    def _documented(self) -> str:
        to = "location {path} {{ proxy_set_header Host $http_host; proxy_pass http://127.0.0.1:{port}; }}"
        places = to.format(path="/", port=self._upstream), to.format(path="/shop/", port=self._shop)
        return f"server {{ listen 127.0.0.1:{self.port}; {' '.join(places)} }}"


def test_two_applications_under_one_host_keep_their_clients(driver: Chrome) -> None:
    """They may even have one name and secret, and so one name of the cookie: the browser sends both values to one."""
    with (
        serve("--affinity-cookie", "Path=/shop", workers=WORKERS) as shop,
        serve(workers=3) as rest,
        OneHost(shop.port, rest.port) as front,
    ):
        urls = [f"http://127.0.0.1:{front.port}/shop/private", f"http://127.0.0.1:{front.port}/private"]
        homes = [visit(driver, url) for url in urls]
        urls.append(f"{rest.url}/shop/private")  # here the browser sends both values to the one that set the second
        homes.append(visit(driver, urls[-1]))
        assert len(cookies(driver)) == 2
        for _ in range(ROUNDS // 2):
            assert [visit(driver, url) for url in urls] == homes
        assert [server.totals()["cookies"] for server in (shop, rest)] == [1, 1]
