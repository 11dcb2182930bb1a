"""The command line: what is called, what is printed, and which exit code comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limpet import __version__
from limpet.cli import commands
from limpet.config.settings import DAY_S, SETTINGS, Settings
from limpet.errors import EXIT_CODES, AppError, BackendError, ControlError, LimpetError, ListenError

STATUS = {
    "pid": 4700,
    "backend": "dispatcher",
    "binds": ["http://127.0.0.1:8000"],
    "by": "cookie:user",
    "slots": [
        {
            "slot": 0,
            "pid": 4711,
            "generation": 1,
            "state": "ready",
            "connections": 12,
            "requests": 1340,
            "queued": 0,
        },
        {
            "slot": 1,
            "pid": None,
            "generation": 3,
            "state": "backoff",
            "connections": 0,
            "requests": 7,
            "queued": 5,
        },
    ],
    "totals": {"connections": 12, "requests": 1347},
}
WHERE = {
    "keys": [
        {"digest": "00ff00ff00ff00ff", "bucket": 517, "slot": 0, "pid": 4711, "state": "ready"},
        {"digest": "1e1e1e1e", "bucket": 3, "slot": 1, "pid": None, "state": "backoff"},
    ]
}


class Server:
    """A server that gives one answer, and what it was asked."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {}
        self.asked: list[tuple[str | None, dict[str, Any], dict[str, Any]]] = []

    def ask(self, path: str | None, request: dict[str, Any], **waiting: Any) -> dict[str, Any]:
        """Stand in for limpet.operate.control_socket.ask."""
        self.asked.append((path, request, waiting))
        return self.answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """The running server."""
    server = Server()
    monkeypatch.setattr("limpet.operate.control_socket.ask", server.ask)
    monkeypatch.delenv("LIMPET_CONTROL", raising=False)
    return server


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of the servers that `limpet run` has started."""
    started: list[Settings] = []
    monkeypatch.setattr("limpet.supervisor.bootstrap.run", started.append)
    for each in SETTINGS:
        monkeypatch.delenv(each.variable, raising=False)
    return started


def failing(error: BaseException) -> Callable[..., Any]:
    """Return a function that raises *error*."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_run_starts_a_server_with_what_was_given(started: list[Settings]) -> None:
    """The flags of the contract reach the supervisor."""
    assert commands.main(["run", "chat:app", "--bind", ":80", "--bind", "unix:/run/a.sock", "--by", "cookie:user"]) == 0
    assert commands.main(["run", "--workers=3", "--no-access-log", "--factory", "chat:app"]) == 0
    [first, second] = started
    assert (first.app, first.bind, first.by) == ("chat:app", (":80", "unix:/run/a.sock"), "cookie:user")
    assert (second.workers, second.access_log, second.factory) == (3, False, True)


def test_run_without_flags_leaves_the_defaults(started: list[Settings]) -> None:
    """A flag that is not given must not override a variable or a file: click's own defaults do not count."""
    assert commands.main(["run", "chat:app"]) == 0
    assert started == [Settings(app="chat:app")]


def test_variables_reach_the_server(started: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers are configured by their environment; a switch there is undone by its `--no-` flag."""
    monkeypatch.setenv("LIMPET_QUEUE", "7")
    monkeypatch.setenv("LIMPET_ACCESS_LOG", "1")
    assert commands.main(["run", "chat:app"]) == 0
    assert commands.main(["run", "chat:app", "--no-access-log"]) == 0
    assert [(each.queue, each.access_log) for each in started] == [(7, True), (7, False)]


def test_help_of_run_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """A setting that cannot be found does not exist."""
    assert commands.main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    assert [each.flag for each in SETTINGS if each.flag not in shown] == []


def test_check_prints_what_was_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`limpet check` takes the options of `run`, so that a start can be tried without starting."""
    monkeypatch.setattr(
        "limpet.servers.application.check", lambda settings: [f"application {settings.app}", settings.by]
    )
    assert commands.main(["check", "chat:app", "--by", "query:room"]) == 0
    assert capsys.readouterr().out == "application chat:app\nquery:room\n"


def test_status_is_a_table_for_people(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Which slot is in trouble must be seen at a glance."""
    server.answer = STATUS
    assert commands.main(["status"]) == 0
    assert capsys.readouterr().out == (
        "pid 4700, http://127.0.0.1:8000, by cookie:user, backend dispatcher\n"
        "\n"
        "slot  state     pid  generation  connections  requests  queued\n"
        "   0  ready    4711           1           12      1340       0\n"
        "   1  backoff     -           3            0         7       5\n"
        "\n"
        "totals: connections 12, requests 1347\n"
    )


def test_where_is_a_line_for_each_key(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """An operator asks about the clients of a complaint, by what they are called in it."""
    server.answer = WHERE
    assert commands.main(["where", "alice", "ip=10.1.2.3"]) == 0
    assert capsys.readouterr().out == (
        "alice: slot 0, pid 4711 (ready), bucket 517, digest 00ff00ff00ff00ff\n"
        "ip=10.1.2.3: slot 1, no worker (backoff), bucket 3, digest 1e1e1e1e\n"
    )
    assert server.asked == [(None, {"command": "where", "keys": ("alice", "ip=10.1.2.3")}, {})]


def test_where_shows_who_stands_in(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """In a failover an operator must see that the client is not at home."""
    server.answer = {"keys": [{**WHERE["keys"][0], "home": 3}]}
    assert commands.main(["where", "alice"]) == 0
    assert capsys.readouterr().out.startswith("alice: slot 0 in place of 3, pid 4711 (ready), ")


@pytest.mark.parametrize(
    ("arguments", "answer", "printed"),
    [
        (["status", "--json"], STATUS, STATUS),
        (["where", "a", "b", "--json"], WHERE, WHERE["keys"]),
    ],
)
def test_json_is_what_the_server_answered(
    server: Server, capsys: pytest.CaptureFixture[str], arguments: list[str], answer: dict[str, Any], printed: Any
) -> None:
    """Scripts get what the server says, also keys that this version does not know."""
    server.answer = answer
    assert commands.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == printed


@pytest.mark.parametrize(
    ("arguments", "lasting", "until_end"),
    [([], False, DAY_S), (["--no-wait"], False, None), (["--wait-for-connections"], True, DAY_S)],
)
def test_stop_waits_until_the_server_has_ended(
    server: Server, arguments: list[str], lasting: bool, until_end: int | None
) -> None:
    """`limpet stop && limpet run` must find the address free."""
    assert commands.main(["stop", *arguments]) == 0
    assert server.asked == [(None, {"command": "stop", "wait_for_connections": lasting}, {"until_end": until_end})]


@pytest.mark.parametrize("arguments", [["status"], ["where", "k"], ["stop"]])
def test_control_socket_is_named_by_flag_or_variable(
    server: Server, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """Where several servers run, each command must reach the one that is meant."""
    server.answer = {**STATUS, "keys": WHERE["keys"][:1]}
    monkeypatch.setenv("LIMPET_CONTROL", "/run/one.sock")
    assert commands.main(arguments) == 0
    assert commands.main([*arguments, "--control", "/run/two.sock"]) == 0
    assert [path for path, _, _ in server.asked] == ["/run/one.sock", "/run/two.sock"]


@pytest.mark.parametrize("error", [LimpetError, ListenError, AppError, ControlError, BackendError])
def test_error_is_shown_and_decides_the_exit_code(
    started: list[Settings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: type[LimpetError],
) -> None:
    """A configuration error never shows a traceback, and a script can tell one kind from another."""
    monkeypatch.setattr("limpet.supervisor.bootstrap.run", failing(error("no", hint="`yes`")))
    assert commands.main(["run", "chat:app"]) == error.exit_code
    assert capsys.readouterr() == ("", "error: no\n\nhint: `yes`\n")


def test_bug_in_the_application_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who wrote the bug needs the line; the error below says what it kept from happening."""
    error = AppError("cannot import application `chat:app`: KeyError: 'x'")
    error.__cause__ = KeyError("x")
    monkeypatch.setattr("limpet.servers.application.check", failing(error))
    assert commands.main(["check", "chat:app"]) == 4
    assert capsys.readouterr().err == f"KeyError: 'x'\n{error.render()}"


def test_bug_of_limpet_is_not_hidden(started: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception without a traceback cannot be reported."""
    monkeypatch.setattr("limpet.supervisor.bootstrap.run", failing(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        commands.main(["run", "chat:app"])


def test_ctrl_c_gives_the_exit_code_of_shells(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that is interrupted while `limpet stop` waits must not go on."""
    monkeypatch.setattr("limpet.operate.control_socket.ask", failing(KeyboardInterrupt()))
    assert commands.main(["stop"]) == 130
    assert 130 in EXIT_CODES


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["run", "--wrokers", "3"], "unknown option `--wrokers`", "`--workers`"),
        (["frobnicate"], "no such command `frobnicate`", "`limpet --help`"),
        (["stat"], "no such command `stat`", "hint: `stack` or `status`; `limpet --help`"),
        (["run", "a:b", "c:d"], "got unexpected extra argument (c:d)", "`limpet run --help`"),
        (["where"], "missing argument `[ELEMENT=]KEY...`", "`limpet where --help`"),
        (["run", "a:b", "--queue", "x"], "`--queue` must be a whole number from 1 to 65536, not `x`", ""),
    ],
)
def test_wrong_arguments_are_errors_like_all_others(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, hint: str
) -> None:
    """One form and one exit code, whoever found the mistake."""
    assert commands.main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}\n")
    assert hint in shown


def test_nothing_to_do_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """The first thing people type is `limpet`."""
    assert commands.main([]) == 0
    shown = capsys.readouterr().out
    assert [name for name in ("run", "check", "status", "where", "stop") if name not in shown] == []


def limpet(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the real command."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "limpet.cli.commands", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_process_ends_with_the_exit_code(tmp_path: Path) -> None:
    """What `main` returns is what the shell sees."""
    assert limpet("--version", cwd=tmp_path).stdout == f"limpet {__version__}\n"
    done = limpet("run", "chat:app", "--workers", "0", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: `--workers` must be a whole number from 1 to 256, not `0`\n"
    done = limpet("status", "--control", "none.sock", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (5, "")
    assert "Traceback" not in done.stderr


def test_importing_the_command_line_imports_nothing_slow() -> None:
    """`limpet status` is typed in a hurry, and must work while the application or its server cannot be imported."""
    code = "import sys, limpet.cli.commands; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = {
        "asyncio",
        "uvicorn",
        "uvloop",
        "httptools",
        "websockets",
        "multiprocessing",
        "ssl",
        "tomllib",
        "limpet.worker.user_code",
    }
    assert not slow & set(done.stdout.split())
