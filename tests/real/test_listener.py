"""Listeners: what a `--bind` means, and what the kernel makes of it."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from limpet.config.bind import Bind
from limpet.errors import ListenError, SettingsError
from limpet.net import listener
from limpet.net.listener import Listener

Open = Callable[..., Listener]
Plain = Callable[..., socket.socket]


@pytest.fixture(name="opened")
def _opened() -> Iterator[Open]:
    """Open a listener that the test need not close."""
    with ExitStack() as stack:

        def opened(text: str, backlog: int = 16) -> Listener:
            made = listener.open(Bind.parse(text), backlog)
            stack.callback(made.close)
            return made

        yield opened


@pytest.fixture(name="plain")
def _plain() -> Iterator[Plain]:
    """Make a plain socket that the test need not close."""
    with ExitStack() as stack:

        def plain(family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
            return stack.enter_context(socket.socket(family, kind))

        yield plain


def connects(family: int, address: object) -> bool:
    """Tell whether a client gets in."""
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        return client.connect_ex(address) == 0  # type: ignore[arg-type]  # of either family


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8000", Bind("127.0.0.1:8000", "tcp", host="127.0.0.1", port=8000)),
        ("chat.example:0", Bind("chat.example:0", "tcp", host="chat.example", port=0)),
        (":8000", Bind(":8000", "tcp", host="", port=8000)),
        ("[::1]:65535", Bind("[::1]:65535", "tcp", host="::1", port=65535)),
        ("[fe80::1%eth0]:80", Bind("[fe80::1%eth0]:80", "tcp", host="fe80::1%eth0", port=80)),
        ("unix:/run/a:b.sock", Bind("unix:/run/a:b.sock", "unix", path="/run/a:b.sock")),
        ("fd:3", Bind("fd:3", "fd", fd=3)),
        ("fd:web", Bind("fd:web", "fd", name="web")),
    ],
)
def test_bind_is_read_as_written(text: str, expected: Bind) -> None:
    """These forms are the contract of `--bind`."""
    assert Bind.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("8000", "`--bind 127.0.0.1:8000`"),
        ("localhost", "`--bind localhost:8000`"),
        ("http://localhost:80/", "`--bind localhost:8000`"),
        ("::1", "`--bind '[::1]:8000'`"),
        ("fe80::1:8000", "`--bind '[fe80::1:8000]:8000'`"),
        ("h:99999", "`--bind h:8000`"),
        ("h:", "`--bind h:8000`"),
        ("h:٣", "`--bind h:8000`"),
        ("h:-1", "`--bind h:8000`"),
        ("h\0:80", "`--bind 127.0.0.1:8000`"),
        ("unix:", "`--bind unix:/run/limpet.sock`"),
        ("fd:a,b", "`--bind fd:3`"),
        ("fd:-1", "`--bind fd:3`"),
        ("", "`--bind 127.0.0.1:8000`"),
    ],
)
def test_text_that_is_no_bind_gets_one_proposed(text: str, hint: str) -> None:
    """The hint can be pasted, and is itself a bind."""
    with pytest.raises(SettingsError) as caught:
        Bind.parse(text)
    assert caught.value.hint == hint
    Bind.parse(re.sub("`|'|--bind ", "", hint))


def test_path_that_is_too_long_is_refused_before_the_kernel_does() -> None:
    """The kernel's own words for it are no help: `AF_UNIX path too long`."""
    Bind.parse("unix:" + "a" * 107)
    with pytest.raises(SettingsError, match="has 108 bytes"):
        Bind.parse("unix:" + "ä" * 54)


def test_nobody_gets_in_before_listen(opened: Open) -> None:
    """A client that is accepted before all workers are ready would wait, or be lost if they never are."""
    one = opened("127.0.0.1:0")
    address = one.sock.getsockname()
    assert not connects(socket.AF_INET, address)
    one.listen()
    assert connects(socket.AF_INET, address)


def test_socket_is_as_the_loops_need_it(opened: Open) -> None:
    """A blocking accept would stop a dispatcher; an inherited copy would keep the port after the server's end."""
    one = opened("127.0.0.1:0")
    assert not one.sock.getblocking()
    assert not one.sock.get_inheritable()
    assert one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
    assert one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


def test_backlog_is_the_one_that_was_asked_for(opened: Open) -> None:
    """It bounds how many clients wait in the kernel; `ss` tells what it really is."""
    one = opened("127.0.0.1:0", 7)
    one.listen()
    shown = subprocess.run(
        ["ss", "-Hltn", f"sport = :{one.sock.getsockname()[1]}"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split()[2] == "7"


@pytest.mark.parametrize(
    ("text", "address", "url"),
    [
        ("127.0.0.1:0", r"127\.0\.0\.1:\d+", r"http://127\.0\.0\.1:\d+"),
        ("0.0.0.0:0", r"0\.0\.0\.0:\d+", r"http://127\.0\.0\.1:\d+"),
        ("[::1]:0", r"\[::1\]:\d+", r"http://\[::1\]:\d+"),
        (":0", r"\[::\]:\d+", r"http://\[::1\]:\d+"),
    ],
)
def test_listener_says_where_it_is(opened: Open, text: str, address: str, url: str) -> None:
    """With port 0 nobody else knows; the URL is one that a browser can open."""
    one = opened(text)
    assert re.fullmatch(address, one.address_text)
    assert re.fullmatch(url, one.url)
    assert not one.address_text.endswith(":0")
    assert repr(one) == f"<listener {one.address_text}>"


@pytest.mark.parametrize("text", [":0", "[::]:0"])
def test_every_address_is_that_of_both_families(opened: Open, text: str) -> None:
    """Whether a client comes by IPv4 must not depend on net.ipv6.bindv6only."""
    one = opened(text)
    one.listen()
    port = one.sock.getsockname()[1]
    assert connects(socket.AF_INET, ("127.0.0.1", port))
    assert connects(socket.AF_INET6, ("::1", port))


def test_name_is_resolved(opened: Open) -> None:
    """`localhost` is what people type."""
    one = opened("localhost:0")
    one.listen()
    assert connects(one.sock.family, one.sock.getsockname())


def test_taken_port_is_an_error_that_helps(opened: Open) -> None:
    """The most common mistake of all."""
    first = opened("127.0.0.1:0")
    first.listen()
    text, port = first.address_text, first.sock.getsockname()[1]
    with pytest.raises(ListenError) as caught:
        opened(text)
    assert caught.value.render() == (
        f"error: cannot listen on `{text}`: address already in use\n\n"
        f"hint: `ss -ltnp 'sport = :{port}'` shows the owner; `--bind 127.0.0.1:0` picks a free port\n"
    )


def test_second_of_two_servers_that_start_at_once_fails(opened: Open) -> None:
    """SO_REUSEADDR lets both bind before either listens; without SO_REUSEPORT only one can go on."""
    first = opened("127.0.0.1:0")
    second = opened(first.address_text)
    first.listen()
    with pytest.raises(ListenError, match="address already in use"):
        second.listen()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("192.0.2.1:0", "cannot assign requested address"),  # TEST-NET-1: nobody has it
        ("[fe80::1%nosuch]:0", ""),  # found out without a network; the words are those of the C library
        ("a..b:0", "not a host name"),
        ("unix:/nowhere/at/all.sock", "no such file or directory"),
        ("fd:999", "bad file descriptor"),
    ],
)
def test_address_that_cannot_be_had_is_an_error_with_a_hint(text: str, reason: str) -> None:
    """What the system says is repeated, and what to do is added."""
    with pytest.raises(ListenError) as caught:
        listener.open(Bind.parse(text), 16)
    assert caught.value.message.startswith(f"cannot listen on `{text}`: {reason}")
    assert caught.value.hint


def test_unix_socket_lives_as_long_as_its_listener(opened: Open, tmp_path: Path) -> None:
    """A file that stays behind is a riddle to whoever finds it."""
    path = tmp_path / "a.sock"
    one = opened(f"unix:{path}")
    assert stat.S_ISSOCK(path.lstat().st_mode)
    one.listen()
    assert connects(socket.AF_UNIX, str(path))
    assert one.url == one.address_text == f"unix:{path}"
    one.close()
    assert not path.exists()
    one.close()


def test_socket_file_of_a_killed_server_is_replaced(opened: Open, tmp_path: Path, plain: Plain) -> None:
    """After SIGKILL nobody removes it, and the next start must not need a hand."""
    path = tmp_path / "a.sock"
    dead = plain(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    one = opened(f"unix:{path}")
    one.listen()
    assert connects(socket.AF_UNIX, str(path))


@pytest.mark.parametrize("listening", [True, False])
def test_live_unix_socket_is_an_error(opened: Open, tmp_path: Path, listening: bool) -> None:
    """Its server would go on without clients; one that is about to listen is as alive as one that does."""
    first = opened(f"unix:{tmp_path}/a.sock")
    if listening:
        first.listen()
    with pytest.raises(ListenError, match="address already in use") as caught:
        opened(f"unix:{tmp_path}/a.sock")
    assert caught.value.hint == f"`ss -lxp src {tmp_path}/a.sock` shows the owner"
    if listening:
        with pytest.raises(BlockingIOError):
            first.sock.accept()  # finding out made no connection


def test_server_whose_file_was_replaced_says_so(opened: Open, tmp_path: Path) -> None:
    """Two starts may remove the same dead file at the same time: the one that loses must not starve in silence."""
    path = tmp_path / "a.sock"
    first = opened(f"unix:{path}")
    path.unlink()
    second = opened(f"unix:{path}")
    with pytest.raises(ListenError, match="address already in use"):
        first.listen()
    first.close()
    second.listen()
    assert connects(socket.AF_UNIX, str(path))


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_never_removed(tmp_path: Path, kind: str) -> None:
    """A typo in `--bind unix:PATH` must not cost anybody a file."""
    path = tmp_path / "precious"
    if kind == "file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(ListenError, match="not a socket"):
        listener.open(Bind.parse(f"unix:{path}"), 16)
    assert os.path.lexists(path)


@pytest.mark.parametrize("listening", [True, False])
def test_inherited_socket_is_adopted(opened: Open, plain: Plain, listening: bool) -> None:
    """Systemd passes sockets that listen, other parents ones that are only bound."""
    given = plain(socket.AF_INET)
    given.bind(("127.0.0.1", 0))
    if listening:
        given.listen()
    host, port = given.getsockname()
    one = opened(f"fd:{given.detach()}")
    one.listen()
    assert one.address_text == f"{host}:{port}"
    assert not one.sock.getblocking()
    assert connects(socket.AF_INET, (host, port))


def test_file_of_an_inherited_socket_stays(opened: Open, tmp_path: Path, plain: Plain) -> None:
    """It is systemd's: the next start gets the same socket."""
    given = plain(socket.AF_UNIX)
    given.bind(str(tmp_path / "a.sock"))
    one = opened(f"fd:{given.detach()}")
    assert one.address_text == f"unix:{tmp_path}/a.sock"
    one.close()
    assert (tmp_path / "a.sock").exists()


@pytest.mark.parametrize("fault", ["not a stream socket", "a connection", "not bound"])
def test_inherited_socket_that_cannot_listen_is_left_alone(plain: Plain, fault: str) -> None:
    """The wrong number is a mistake, and what it means is not ours to close."""
    given = plain(socket.AF_INET, socket.SOCK_DGRAM if fault == "not a stream socket" else socket.SOCK_STREAM)
    with socket.create_server(("127.0.0.1", 0)) as far:
        if fault == "a connection":
            given.connect(far.getsockname())
        with pytest.raises(ListenError, match=f"it is {fault}"):
            listener.open(Bind.parse(f"fd:{given.fileno()}"), 16)
    os.fstat(given.fileno())


def test_descriptor_that_is_no_socket_is_an_error() -> None:
    """`fd:2` is stderr."""
    with open(os.devnull) as file:
        with pytest.raises(ListenError, match="non-socket"):
            listener.open(Bind.parse(f"fd:{file.fileno()}"), 16)
        os.fstat(file.fileno())
