"""Every block of code in README.md and docs/: what can be run is run, what cannot is read as limpet would read it.

A block is fenced, or indented by four blanks behind an empty line. Each belongs to a kind below, or to the test of
another file that uses it; one that belongs nowhere fails here.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import limpet
from limpet import cli, settings
from tests.harness import HERE, PATIENCE_S, Limpet

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
    ("docs/fronts.md", "haproxy"): "unit/test_front.py prints it",
    ("docs/fronts.md", "nginx"): "unit/test_front.py prints it",
    ("docs/fronts.md", "text"): "unit/test_front.py prints it",
    ("docs/fronts.md", "yaml"): "unit/test_front.py prints it",
    ("docs/docker.md", "dockerfile"): "test_containers.py runs its CMD",
    ("docs/lifecycle.md", "mermaid"): "unit/test_lifecycle.py makes it",
}
SHOWN = re.compile(
    r"INFO  |WARNING |Set-Cookie: |<pid|\$ limpet (?:status|explain|front)"
)  # what limpet or a client says
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
        from limpet.servers import GROUP

        assert GROUP in tomllib.loads(block.text)["project"]["entry-points"]
        return
    (tmp_path / "limpet.toml").write_text(block.text)
    assert settings.read_file(str(tmp_path / "limpet.toml"))["workers"] == 4


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


def test_quickstart_answers_what_it_shows(tmp_path: Path) -> None:
    """The first application of a new user remembers her."""
    (tmp_path / "visits.py").write_text(only("docs/quickstart.md", "visits = Counter()"))
    shown = [block for block in BLOCKS if (block.page, block.language) == ("docs/quickstart.md", "console")]
    expected = re.sub(r"pid \d+", "pid PID", "".join(re.findall(r"^ada: .*\n", shown[0].text, re.MULTILINE)))
    with Limpet("visits:app", "--workers", "4", "--by", "header:x-user", cwd=tmp_path) as server:
        said = "".join(server.request(x_user="ada").body.decode() for _ in range(2))
    assert re.sub(r"pid \d+", "pid PID", said) == expected
