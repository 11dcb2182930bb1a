"""What people paste into `limpet explain`."""

from __future__ import annotations

import pytest

from limpet.cli.explain import head_of, request_of, text_of
from limpet.errors import SettingsError
from limpet.protocol.request import Peer

NOBODY = Peer("10.1.2.3", 4000, "127.0.0.1:8000")
CURL = """\
* Host localhost:8000 was resolved.
*   Trying 127.0.0.1:8000...
* Established connection to localhost (127.0.0.1 port 8000) from 127.0.0.5 port 51234
* using HTTP/1.x
> GET /room/7?sid=abc HTTP/1.1
> Host: localhost:8000
> User-Agent: curl/8.14.1
> Cookie: user=ada
>
* Request completely sent off
< HTTP/1.1 200 OK
< content-length: 2
<
> GET /second HTTP/1.1
> Host: localhost
>
{"a": ">"}
"""


def test_first_request_of_curl_is_read_with_its_address() -> None:
    """`curl -v` is what support asks people for; responses and notes stand in between."""
    head, source = head_of(CURL)
    request = request_of(head, NOBODY)
    assert (request.method, request.target, source) == ("GET", "/room/7?sid=abc", "127.0.0.5")
    assert request.cookies["user"] == "ada"
    assert len(request.raw_headers) == 3


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n\na body"])
def test_raw_head_is_read_however_its_lines_end(newline: str, end: str) -> None:
    """Editors and terminals change line ends, and forget the last one."""
    text = f"GET /a HTTP/1.1\nHost: x\nX-User: ada{end}".replace("\n", newline)
    request = request_of(head_of(text)[0], NOBODY)
    assert request.header_bytes(b"x-user") == b"ada"


def test_http_2_is_read_as_what_a_proxy_would_make_of_it() -> None:
    """curl speaks HTTP/2 to whatever ends TLS in front of limpet."""
    assert request_of(head_of("> GET / HTTP/2\n> Host: x\n> \n")[0], NOBODY).target == "/"


@pytest.mark.parametrize("text", ["", "hello", "\x16\x03\x01", "GET / HTTP/1.1\nno colon\n"])
def test_what_is_no_request_is_refused(text: str) -> None:
    """As a hint, not as a traceback."""
    with pytest.raises(SettingsError):
        request_of(head_of(text)[0], NOBODY)


def test_every_element_has_its_line() -> None:
    """The answer to why is in those that have found nothing."""
    home = {
        "slot": 1,
        "home": 2,
        "pid": 77,
        "state": "ready",
        "how": "learned",
        "digest": "00ff",
        "bucket": 5,
        "rank": [2, 1, 0],
    }
    chain = [
        {"element": "cookie:sid", "outcome": "the request has none, or an empty one", "found": False},
        {"element": "ip", "outcome": "found", "found": True},
    ]
    found = {"request": None, "address": "10.0.0.1", "chain": chain, "home": home, "backend": "kernel", "place": ""}
    assert text_of(found) == (
        "a connection from 10.0.0.1\n"
        "  cookie:sid  the request has none, or an empty one\n"
        "  ip          found\n"
        "slot 1 in place of 2, which is down, pid 77 (ready): learned from a response\n"
        "digest 00ff, bucket 5, slots by rank 2 1 0\n"
        "backend kernel"
    )
