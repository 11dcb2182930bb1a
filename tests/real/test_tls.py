"""TLS that ends in the workers: every client at home by address or by the name it asks for, over reloads too."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect

from limpet.protocol.proxy_protocol import Origin, write
from tests.harness import PATIENCE_S, Limpet, limpet_command, wait_until
from tests.real.browser import PROGRAMS, chromium, until
from tests.secure import NAMES, ask, ask_for_no_text, client, flags, make_pair, secured, shown_name
from tests.wire import Wire, request


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a certificate and its key."""
    folder = tmp_path_factory.mktemp("pair")
    make_pair(folder, "first.example")
    return folder


@pytest.fixture(scope="module", params=["kernel", "dispatcher"])
def by_ip(request: pytest.FixtureRequest, pair: Path) -> Iterator[Limpet]:
    """A server of TLS by address, on each backend, and on each loop."""
    loop = "asyncio" if request.param == "kernel" else "uvloop"
    more = ["--by", "ip", "--workers", "3", "--backend", request.param, "--loop", loop]
    with Limpet("tests.apps:echo", *more, *flags(pair)) as server:
        yield server


@pytest.fixture(scope="module")
def by_name(pair: Path) -> Iterator[Limpet]:
    """A server of TLS whose clients are told apart by the name that they ask for."""
    with Limpet("tests.apps:echo", "--by", "sni,ip", "--workers", "3", *flags(pair)) as server:
        yield server


@pytest.fixture(scope="module", params=["kernel: ip", "dispatcher: ip", "dispatcher: sni,ip"])
def hasty(request: pytest.FixtureRequest, pair: Path) -> Iterator[Limpet]:
    """A server that gives nobody much time for a handshake: on a busy machine an honest one may take longer."""
    backend, chain = request.param.split(": ")
    more = ["--by", chain, "--backend", backend, "--workers", "1", "--head-timeout", "1"]
    with Limpet("tests.apps:echo", *more, *flags(pair)) as server:
        yield server


def test_client_is_at_home_by_address(by_ip: Limpet) -> None:
    """Each address has one worker, which sees address and scheme, on all requests of a connection."""
    sources = [f"127.0.0.{number}" for number in range(2, 12)]
    homes = {source: entry["slot"] for source, entry in zip(sources, by_ip.where(*sources), strict=True)}
    assert len(set(homes.values())) > 1
    for source in sources:
        with secured(by_ip, source=source) as connection:
            assert connection.selected_alpn_protocol() == "http/1.1"
            for body in (None, b"x" * 300_000):
                told = ask(connection, "/", body).json()
                assert (told["client"][0], told["slot"], told["scheme"]) == (source, homes[source], "https")
                assert told["size"] == len(body or b"")
    assert f"at https://127.0.0.1:{by_ip.port}" in by_ip.log


def test_name_that_is_no_text_is_refused_without_a_word(by_ip: Limpet) -> None:
    """Python's `ssl` would write a traceback for each, and strangers could fill the log."""
    failed = by_ip.totals()["tls_failures"]
    ask_for_no_text(by_ip)
    wait_until(lambda: by_ip.totals()["tls_failures"] == failed + 1, "it is counted")
    assert "UnicodeDecodeError" not in by_ip.log


def test_client_is_at_home_by_the_name_it_asks_for(by_name: Limpet) -> None:
    """Tenants of one server: the name decides before anything is decrypted, in any case."""
    homes = {name: entry["slot"] for name, entry in zip(NAMES, by_name.where(*NAMES), strict=True)}
    assert len(set(homes.values())) > 1
    for name in NAMES:
        for spelled in (name, name.upper()):
            with secured(by_name, spelled) as connection:
                assert ask(connection).json()["slot"] == homes[name]
    with secured(by_name) as connection:  # no name: the next element of the chain
        assert ask(connection).json()["slot"] == by_name.where("ip=127.0.0.1")[0]["slot"]


@pytest.mark.parametrize(("version", "accepted"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_openssl_gets_modern_tls_alone(by_ip: Limpet, version: str, accepted: bool) -> None:
    """TLS 1.1 is broken; what a client of today speaks is served."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{by_ip.port}", version, "-alpn", "http/1.1"]
    more = ["-cipher", "DEFAULT@SECLEVEL=0", "-ign_eof", "-quiet"]
    data = request(connection="close").decode()
    ended = subprocess.run(
        [*command, *more], input=data, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ("HTTP/1.1 200 OK" in ended.stdout) == accepted, ended.stderr


def test_websocket_over_tls(by_ip: Limpet) -> None:
    """wss is what every page on https needs."""
    url = f"wss://127.0.0.1:{by_ip.port}/"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with connect(url, ssl=context) as websocket:
        told = json.loads(websocket.recv())
        assert (told["scheme"], told["client"][0]) == ("wss", "127.0.0.1")
        websocket.send("x" * 100_000)
        assert websocket.recv() == "x" * 100_000


STREAM = "tests.real.test_stream:gated?by=ip&server=stream"
NO_TLS = [request(), b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", b"\x16\x03", b""]


def refused(server: Limpet, data: bytes) -> None:
    """Send *data*; demand that the connection is closed, counted once, and served by nobody."""
    before = server.totals()
    with Wire(("127.0.0.1", server.port)) as wire, contextlib.suppress(ConnectionResetError):
        assert b"HTTP" not in wire.send(data).rest()

    def counted() -> int:
        after = server.totals()
        return sum(after[name] - before[name] for name in ("hellos_bad", "tls_failures", "refused_408"))

    wait_until(lambda: counted() == 1, "it is counted")
    wait_until(lambda: server.totals()["connections"] == 0, "no connection is left")


@pytest.mark.parametrize("data", NO_TLS)
def test_what_is_no_tls_is_closed(hasty: Limpet, data: bytes) -> None:
    """A client that speaks plain HTTP, or stops in its handshake, must neither be served nor hold anything for long.

    Where the name is looked for, it does not even come to a worker.
    """
    refused(hasty, data)


def test_new_certificate_comes_with_a_reload(tmp_path: Path) -> None:
    """Certificates of today last weeks. A pair that does not fit changes nothing; idle connections end, none hangs."""
    make_pair(tmp_path, "first.example")

    with Limpet("tests.apps:echo", "--by", "ip", "--workers", "2", *flags(tmp_path)) as server:
        assert shown_name(server) == "first.example"
        (tmp_path / "key.pem").rename(tmp_path / "kept.pem")
        (tmp_path / "key.pem").write_text("not a key")
        failed = limpet_command("reload", "--control", server.control)
        assert failed.returncode == 5
        assert "no certificate and matching key" in failed.stderr
        assert shown_name(server) == "first.example"
        make_pair(tmp_path, "other.example")
        with secured(server) as connection:
            ask(connection)
            server.command("reload")
            assert connection.recv(1) == b""
        assert shown_name(server) == "other.example"


@pytest.mark.slow
def test_header_of_a_proxy_comes_before_tls(pair: Path) -> None:
    """A balancer in TCP mode passes TLS on as it is, behind a PROXY header."""
    more = ["--by", "sni,ip", "--proxy-protocol", "required", "--trust", "127.0.0.1", "--workers", "3"]
    with Limpet("tests.apps:echo", *more, *flags(pair)) as server:
        plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
        plain.sendall(write(Origin("203.0.113.7", 4711)))
        with client().wrap_socket(plain, server_hostname=NAMES[0]) as connection:
            told = ask(connection).json()
    assert (told["client"], told["scheme"]) == (["203.0.113.7", 4711], "https")


@pytest.mark.slow
def test_name_that_a_proxy_tells_is_a_key_without_tls() -> None:
    """A proxy that ends TLS says which name was asked for, by `send-proxy-v2` with `proxy-v2-options ssl,authority`."""
    more = ["--by", "sni", "--proxy-protocol", "required", "--trust", "127.0.0.1", "--workers", "3"]
    with Limpet("tests.apps:echo", *more) as server:
        for name, home in zip(NAMES, server.where(*NAMES), strict=True):
            with Wire(("127.0.0.1", server.port)) as wire:
                told = wire.send(write(Origin("203.0.113.7", 1, True, name)) + request()).reply().json()
                assert (told["slot"], told["scheme"]) == (home["slot"], "https")


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)) and not os.environ.get("CI"), reason="no Chromium")
def test_browser_is_served_over_tls(by_ip: Limpet, tmp_path: Path) -> None:
    """A real browser opens several connections and resumes sessions of TLS."""
    with chromium(tmp_path, "--ignore-certificate-errors") as driver:
        for _ in range(3):
            driver.get(f"https://127.0.0.1:{by_ip.port}/")
            text = until(driver, "the page is there", lambda page: page.find_element("tag name", "body").text)
            assert json.loads(text)["scheme"] == "https"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            ["--by", "cookie:sid", "--bind", f"127.0.0.1:0,127.0.0.1:0={STREAM}"],
            "streams would not know the client's address",
        ),
        (["--by", "ip", "--server", "hypercorn"], "`--tls-cert` works only with uvicorn"),
        (["--by", "ip", "--tls-key", "/nowhere/key.pem"], "cannot read `/nowhere/key.pem`"),
        (["--by", "ip", "--tls-key", __file__], "no certificate and matching key"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(pair: Path, more: list[str], says: str) -> None:
    """A server that could not keep its promise under TLS must not start."""
    ended = limpet_command("check", "tests.apps:echo", *flags(pair), *more)
    assert ended.returncode == 2, ended
    assert says in ended.stderr
