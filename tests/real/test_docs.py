"""Every block of code in README.md and docs/ is run; what belongs to other programs is read as limpet would read it.

Commands that start a server start one, with an application of the same name in a scratch folder, and on free ports. A
block is fenced, or indented by four blanks behind an empty line. Each belongs to a kind below, or to the test of
another file that uses it; one that belongs nowhere fails here.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import limpet
from limpet.cli import commands as cli
from limpet.config import settings
from limpet.config.presets import PRESETS
from tests.harness import HERE, PATIENCE_S, Limpet, limpet_command, wait_until
from tests.real.test_privileges import for_nobody
from tests.secure import make_pair

ROOT = HERE.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]


class Block(NamedTuple):
    """One block of code."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> Iterator[Block]:
    """Yield the blocks of one page."""
    page = str(path.relative_to(ROOT))
    pattern = re.compile(
        r"^```(\w+)[ \w]*\n(.*?)^```$|(?<=\n\n)((?:    [^\n]*\n|\n(?=    ))+)", re.MULTILINE | re.DOTALL
    )
    text = path.read_text()
    for found in pattern.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        body = found[2] if found[1] else re.sub("^    ", "", found[3], flags=re.MULTILINE)
        yield Block(page, line, found[1] or "", body)


BLOCKS = [block for path in PAGES for block in blocks_of(path)]
ELSEWHERE = {  # by page and language, or by page and how it begins
    ("README.md", "console"): "test_readme.py types it",
    ("docs/quickstart.md", "console"): "below",
    ("docs/behind-a-proxy.md", "nginx"): "fronts.py starts nginx with it",
    ("docs/behind-a-proxy.md", "haproxy"): "fronts.py starts HAProxy with it",
    ("docs/fronts.md", "haproxy"): "unit/fronts/test_fronts.py prints it",
    ("docs/fronts.md", "nginx"): "unit/fronts/test_fronts.py prints it",
    ("docs/fronts.md", "text"): "unit/fronts/test_fronts.py prints it",
    ("docs/fronts.md", "yaml"): "unit/fronts/test_fronts.py prints it",
    ("docs/docker.md", "dockerfile"): "test_containers.py runs its CMD",
    ("docs/lifecycle.md", "mermaid"): "unit/fleet/test_lifecycle.py makes it",
    ("docs/tls.md", "text"): "a picture",
}
SHOWN = re.compile(r"INFO  |WARNING |Set-Cookie: |\$ limpet (?:explain|front)")  # what limpet says; below, too
FOREIGN = re.compile(
    r"# chat\.socket\n\[Socket\]|/var/log/\S+ \{"
)  # formats of systemd and logrotate, without limpet's words


def commands(block: Block) -> list[str]:
    """Return the commands in *block*, without prompts and comments; those in a unit of systemd, too."""
    lines = [re.sub(r"^(?:\$ |Exec\w+=\S*/(?=limpet ))", "", line) for line in block.text.splitlines()]
    return [line.split("    #")[0].split("  #")[0] for line in lines if re.match(r"limpet |python |pip ", line)]


def is_python(block: Block) -> bool:
    """Return whether *block* is Python, commands in it left out."""
    if block.language not in ("", "python"):
        return False
    try:
        return bool(ast.parse(python(block)).body)
    except SyntaxError:
        return False


def python(block: Block) -> str:
    """Return the Python in *block*."""
    lines = [line for line in block.text.splitlines() if not re.match(r"\$ |limpet run|pip ", line)]
    return "\n".join(lines) + "\n"


def is_toml(block: Block) -> bool:
    return block.page == "docs/settings.md" or block.text.startswith("[project")


COMMANDS = [(block, command) for block in BLOCKS for command in commands(block) if block.language != "console"]

SERVING = sorted(  # those of presets are what `make products` runs; examples have tests of their own
    {
        command
        for block, command in COMMANDS
        if command.startswith("limpet run ") and re.match("docs/(?!presets|own-server)", block.page)
    }
)
WSGI = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'{}']\n"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block_is_known(block: Block) -> None:
    """A block that no test looks at is out of date one day."""
    told_elsewhere = (block.page, block.language) in ELSEWHERE
    is_excerpt = block.text.startswith(("{", "chat:app at")) or SHOWN.match(block.text) or FOREIGN.match(block.text)
    assert told_elsewhere or commands(block) or is_toml(block) or is_python(block) or is_excerpt, block


@pytest.mark.parametrize(("block", "command"), COMMANDS, ids=str)
def test_command_is_one_that_limpet_understands(block: Block, command: str) -> None:
    """Users paste commands: flags that are gone, or values that are wrong, must not stand there."""
    program, *words = shlex.split(command)
    if program == "python":
        assert (ROOT / words[0]).exists()
        text = (ROOT / words[0]).read_text()
        assert not [word for word in words if word.startswith("--") and f'"{word}"' not in text]
    elif program == "limpet":
        name, *arguments = words
        found = cli.cli.commands[name]
        context = found.make_context(name, arguments)
        if name in ("run", "check"):
            settings.load({k: v for k, v in context.params.items() if k != "show_bpf"}, {})


@pytest.mark.parametrize("block", [block for block in BLOCKS if is_toml(block)], ids=str)
def test_file_is_one_that_limpet_reads(block: Block, tmp_path: Path) -> None:
    """The example of a settings file has settings, the one of a package an entry point of the group."""
    if block.text.startswith("[project"):
        from limpet.config.server_kinds import GROUP

        assert GROUP in tomllib.loads(block.text)["project"]["entry-points"]
        return
    (tmp_path / "limpet.toml").write_text(block.text)
    assert settings.read_file(str(tmp_path / "limpet.toml"))["workers"] == 4


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """Return a folder with all that commands name, which other users may read."""
    with tempfile.TemporaryDirectory(prefix="limpet-docs-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        fill(folder)
        yield folder


def fill(folder: Path) -> None:
    """Write into *folder* what commands name."""
    for name in ("app", "chat", "visits"):
        (folder / f"{name}.py").write_text("from tests.apps import echo as app")
    (folder / "shop.py").write_text(WSGI)
    (folder / "gunicorn.conf.py").write_text("threads = 2")
    (folder / "admin.token").touch(0o600)
    (folder / "admin.token").write_text("t" * 32)
    make_pair(folder, "first.example")


@pytest.mark.parametrize("command", SERVING)
def test_command_serves(command: str, scratch: Path) -> None:
    """Whoever pastes it has a server."""
    if "--user" in command and os.geteuid():
        pytest.skip("only root may become somebody else")
    _, _, app, *flags = shlex.split(re.sub(r":(?:443|8000|9000)\b", ":0", command))
    bind = "" if "--bind" in flags else "127.0.0.1:0"
    how: dict[str, Any] = for_nobody() if "--user" in flags else {"env": {"PYTHONPATH": str(ROOT)}}
    with Limpet(app, *flags, bind=bind, cwd=scratch, **how) as server:
        if "--tls-cert" not in flags and "--proxy-protocol" not in flags:
            assert server.request().status < 500


def only(page: str, containing: str) -> str:
    """Return the Python of the one block of *page* that has *containing* in it."""
    [found] = [block for block in BLOCKS if block.page == page and containing in block.text]
    return python(found)


def test_program_of_the_readme_runs(tmp_path: Path) -> None:
    """The least that a program needs to start a server."""
    text = only("README.md", "limpet.listen").replace("8000", "0")
    env = {**os.environ, "LIMPET_STATE_DIR": str(tmp_path), "LIMPET_CONTROL": str(tmp_path / "control")}
    run = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S, env=env, check=False
    )
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+ \[\{.*'slot': [0-3].*\}\]\n", run.stdout)


def test_program_with_its_own_server_runs(tmp_path: Path) -> None:
    """The smallest door: whatever accepts from a socket."""
    text = only("docs/own-server.md", "sockets=[limpet.listener()]")
    (tmp_path / "program.py").write_text(f"{text}\nfrom tests.apps import echo as application\n")
    directories = f"{tmp_path},{ROOT}"
    with Limpet("program:main", "--server", "script", "--workers", "1", "--app-dir", directories) as server:
        assert server.request().json()["slot"] == 0


def test_adapter_of_the_page_is_a_whole_server(tmp_path: Path) -> None:
    """Ten lines that readers start their own from."""
    text = only("docs/own-server.md", "def adapter(app, seat)")
    (tmp_path / "program.py").write_text(f"import threading\n{text}\ndef app(client):\n    return b'hello'\n")
    arguments = ("--server", "program:adapter", "--workers", "1", "--app-dir", str(tmp_path))
    with (
        Limpet("program:app", *arguments) as server,
        socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as client,
    ):
        assert client.makefile().read() == "hello"


def test_minting_of_the_page_gives_an_id() -> None:
    """Outside limpet an application runs unchanged."""
    names: dict[str, object] = {"limpet": limpet, "make_id": iter(["a", "b"]).__next__}
    exec(only("docs/sessions.md", "limpet.mint(make_id)"), names)
    assert names["sid"] == "a"


def is_in(shown: object, tried: object) -> bool:
    """Return whether the code *tried* says what *shown* does, by name; calls may have more arguments."""
    if isinstance(shown, ast.AST):
        return type(shown) is type(tried) and all(
            is_in(value, getattr(tried, name)) for name, value in ast.iter_fields(shown) if name != "ctx"
        )
    if isinstance(shown, list) and isinstance(tried, list):
        remaining = iter(tried)  # in this order, with others between them
        return all(any(is_in(each, other) for other in remaining) for each in shown)
    return shown == tried


@pytest.mark.parametrize("name", PRESETS)
def test_application_of_a_preset_is_the_one_that_is_tried(name: str) -> None:
    """What readers begin with is what `make products` runs, by the same command and as the same `app:app`."""
    product = importlib.import_module(f"tests.products.test_{name.replace('-', '_')}").PRODUCT
    shown, tried = ast.parse(PRESETS[name].app), ast.parse((product.home / "app.py").read_text())
    assert product.name == name
    assert is_in(shown.body, tried.body), ast.unparse(shown)


def shape(text: str) -> str:
    """Return *text* without what differs from server to server."""
    return re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]+\b", "N", text)


@pytest.fixture(scope="module")
def explaining() -> Iterator[Limpet]:
    """A server with the chain of docs/operating.md, which logs what is shown there."""
    chain = "header:x-user,cookie:user,ip"
    with Limpet("tests.apps:echo", "--workers", "4", "--by", chain, "--access-log", "--log-format", "json") as server:
        yield server


def test_explanation_is_said_as_shown(explaining: Limpet, tmp_path: Path) -> None:
    """Operators compare what they see with the page, line by line."""
    [block] = [block for block in BLOCKS if block.text.startswith("$ limpet explain")]
    head = ["GET / HTTP/1.1", "host: h", "user-agent: curl", "accept: */*", "cookie: user=ada", "x-user:", "", ""]
    (tmp_path / "request.txt").write_text("\r\n".join(head))
    command = block.text.splitlines()[0].removeprefix("$ limpet ").split()
    run = limpet_command(*command, "--address", "127.0.0.5", "--control", explaining.control, cwd=tmp_path)
    assert shape(run.stdout) == shape(block.text.partition("\n")[2])


def test_request_is_logged_as_shown(explaining: Limpet) -> None:
    """Whoever writes a query for the log takes the names from the page."""
    [shown] = [json.loads(block.text) for block in BLOCKS if block.text.startswith('{"timestamp"')]
    assert explaining.request(x_user="ada").status == 200
    line = wait_until(lambda: [line for line in explaining.lines if '"event": "request"' in line], "it is logged")[0]
    said = json.loads(line)
    assert list(said) == list(shown)
    assert {name: type(value) for name, value in said.items()} == {name: type(value) for name, value in shown.items()}


def test_choice_of_the_backend_is_said_as_shown() -> None:
    """The first thing that the log says of a server is which way connections take, and why."""
    [block] = [block for block in BLOCKS if block.text.startswith("INFO    backend")]
    by_address, by_cookie = block.text.splitlines()
    for chain, line in (("ip", by_address), ("cookie:user", by_cookie)):
        with Limpet("tests.apps:echo", "--workers", "1", "--by", chain) as server:
            assert line in server.log


def test_cookie_is_set_as_shown() -> None:
    """Whoever looks for it in a browser finds what the page shows."""
    [block] = [block for block in BLOCKS if block.text.startswith("Set-Cookie: ")]
    with Limpet("tests.apps:echo", "--workers", "1", "--by", "affinity") as server:
        said = server.request().headers["set-cookie"]
    value = re.compile(r"limpet_[0-9a-f]{8}=[\w-]{36};")
    assert value.match(said)
    assert value.sub("", f"Set-Cookie: {said}") == value.sub("", block.text.strip())


def test_quickstart_answers_what_it_shows(tmp_path: Path) -> None:
    """The first application of a new user remembers her, and she stays in her slot when its worker is killed."""
    (tmp_path / "visits.py").write_text(only("docs/quickstart.md", "visits = Counter()"))
    shown = [block for block in BLOCKS if (block.page, block.language) == ("docs/quickstart.md", "console")]
    expected = "".join(re.findall(r"^ada: .*\n", "".join(block.text for block in shown), re.MULTILINE))
    with Limpet("visits:app", "--workers", "4", "--by", "header:x-user", cwd=tmp_path) as server:
        said = [server.request(x_user="ada").body.decode() for _ in range(2)]
        killed = int(said[0].rpartition(" ")[2])
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: f"(pid {killed}) was killed" in server.log, "the death is noticed")
        said += (
            server.request(x_user="ada").body.decode(),
            limpet_command("where", "ada", "--control", server.control).stdout,
        )
    assert said[0] != said[2]
    assert shape("".join(said)) == shape(expected)
