"""The command line: `limpet run`, `check`, `front` and `presets`, and commands to a running server, as `limpet status`.

Owns the arguments, the output and the exit codes. It turns arguments into settings or into a request to a running
server, calls the code that does the work, and prints the answer. It decides nothing else.

1. Data goes to stdout, errors and logs to stderr. `--json` prints the server's answer unchanged.
2. A LimpetError is printed as an error and sets the exit code. A bug keeps its traceback: any other exception, and the
   cause of a LimpetError, which is an exception in the user's code.
3. Slow modules and user code are not imported with this file. Each command imports what it calls, so `limpet --help`
   and `limpet status` answer at once.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from limpet.config import settings
from limpet.config.fields import Setting
from limpet.errors import INTERRUPTED, AppError, ControlError, LimpetError, SettingsError
from limpet.version import __version__

_POLL_S = 0.1  # seconds between two questions about the progress of a change
_STACK_S = 5.0  # seconds that a worker has to write its stacks
_BAR_WIDTH = 24  # of the progress bar, in characters
Command = TypeVar("Command", bound=Callable[..., Any])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        return cli.main(words, prog_name="limpet", standalone_mode=False, obj=words) or 0
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        failure: LimpetError = _restated(error)
    except LimpetError as error:
        failure = error
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
    sys.stderr.write(failure.render())
    return failure.exit_code


@click.group(
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, message="limpet %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """One port, N worker processes, and every client always reaches the same worker."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def setting_options(command: Command) -> Command:
    """Give *command* an argument or option for each setting. The command gets them by the names of the fields."""
    for each in reversed(settings.SETTINGS):
        command = _option(each)(command)
    return command


def _option(each: Setting) -> Callable[[Command], Command]:
    if each.name == "app":
        return click.argument("app", metavar=each.type.metavar, required=False)
    flag = each.flag if each.type.metavar else f"{each.flag}/--no-{each.key}"
    return click.option(
        flag,
        each.name,
        default=None,
        metavar=each.type.metavar or None,
        multiple=each.type.is_list,
        help=f"{each.meaning}  [default: {each.default.replace('`', '')}]",
    )


def control_option(command: Command) -> Command:
    """Give *command* the option that names the server's control socket."""
    [control] = (each for each in settings.SETTINGS if each.name == "control")
    meaning = "control socket of the server; not needed if only one server is running"
    return click.option(control.flag, envvar=control.variable, metavar=control.type.metavar, help=meaning)(command)


no_wait_option = click.option("--no-wait", is_flag=True, help="return as soon as the server has started the command")
json_option = click.option("--json", "as_json", is_flag=True, help="print the server's answer as JSON")


@cli.command(epilog="Each option is also a variable (--max-head: LIMPET_MAX_HEAD) and a key in a TOML file (max-head).")
@setting_options
def run(**flags: Any) -> int:
    """Serve APP, which is module:attribute, until told to stop."""
    from limpet import logs
    from limpet.supervisor import bootstrap

    wanted = settings.load(flags, os.environ)
    try:
        bootstrap.run(wanted)
    except LimpetError as error:
        if wanted.log_format != "json":
            raise
        logs.failure(error)
        return error.exit_code
    return 0


@cli.command()
@click.option("--show-bpf", is_flag=True, help="also print the program of the kernel backend, with its key masked")
@setting_options
def check(show_bpf: bool, **flags: Any) -> None:
    """Import APP, check all settings of `run`, and try the backend, without serving."""
    from limpet.config import privileges
    from limpet.net import backend, tls
    from limpet.servers import application
    from limpet.worker import user_code

    wanted = settings.load(flags, os.environ)
    tls.read(wanted)  # before the change of user, as in the supervisor
    if (identity := privileges.wanted(wanted)) is not None:
        identity.become()
    user_code.look_in(wanted.app_dir)  # as in the children; Python itself would use the script's directory
    for line in application.check(wanted):
        click.echo(line)
    if show_bpf:
        click.echo(backend.listing(wanted))


@cli.command()
@click.argument("kind")
@click.option("--hosts", default="", metavar="HOST:PORT,...", help="address of limpet on each machine")
@click.option(
    "--listen",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    help="port of the front; not for kubernetes  [default: 80]",
)
@click.option(
    "--health",
    metavar="[:PORT]/PATH",
    help="path of the check whether a host is ready; not for nginx  [default: /ready at the port of --admin]",
)
@click.option("--image", metavar="IMAGE", help="image of the pods; only for kubernetes")
@setting_options
@click.pass_obj
def front(
    words: Sequence[str],
    /,
    kind: str,
    hosts: str,
    listen: int | None,
    health: str | None,
    image: str | None,
    **flags: Any,
) -> None:
    """Print the configuration of a front that keeps each client on its machine, for the settings of `run`.

    KIND is haproxy, nginx, envoy, traefik, caddy or kubernetes.
    """
    from limpet import fronts

    environ, config = dict(os.environ), flags["config"] or os.environ.get("LIMPET_CONFIG")
    if not config or "app" not in settings.read_file(config):
        environ.setdefault("LIMPET_APP", "app:app")  # only comments, and the command of pods, contain it
    text = fronts.configuration(
        kind,
        settings.load(flags, environ),
        hosts,
        given=settings.given(flags, environ),
        listen=listen,
        health=health,
        image=image,
        command=shlex.join(["limpet", *words]),
    )
    click.echo(text, nl=False)


@cli.command()
def presets() -> None:
    """List the products that `--for` knows, and what it sets for each."""
    from limpet.config.presets import listing

    click.echo(listing())


@cli.command()
@json_option
@control_option
def status(control: str | None, as_json: bool) -> None:
    """Show the slots of a running server and the state of their workers."""
    answer = _ask(control, {"command": "status"})
    click.echo(json.dumps(answer, indent=2) if as_json else status_text(answer))


@cli.command()
@click.argument("keys", metavar="[ELEMENT=]KEY...", nargs=-1, required=True)
@click.option("--why", is_flag=True, help="for each key, show why it is served there")
@json_option
@control_option
def where(keys: tuple[str, ...], control: str | None, as_json: bool, why: bool) -> None:
    """Show which slot and worker serve a client with this KEY.

    ELEMENT is an element of the server's key chain, such as cookie:user. By default it is the first one.
    """
    answer = _ask(control, {"command": "where", "keys": keys})["keys"]
    click.echo(json.dumps(answer, indent=2) if as_json else where_text(keys, answer))
    if why and not as_json:
        from limpet.cli.explain import route_lines

        for key, home in zip(keys, answer, strict=True):
            click.echo("\n".join([f"{key}, as {home['element']}:", *(f"  {line}" for line in route_lines(home))]))


@cli.command()
@click.argument("file", default="-")
@click.option(
    "--address", metavar="ADDRESS", help="address of the client; without FILE: a connection without a request"
)
@click.option(
    "--bind", "bind", type=int, default=0, help="number of the bind that the client connects to  [default: 0]"
)
@json_option
@control_option
def explain(file: str, address: str | None, bind: int, control: str | None, as_json: bool) -> None:
    """Show how a request is routed: which element of the key chain finds a key, and which slot that key has.

    FILE, or stdin, contains the output of `curl -v` or a raw request head. This command runs the key functions itself.
    """
    from limpet.cli.explain import explain, read, text_of

    text = None if address and file == "-" and sys.stdin.isatty() else read(file)
    found = explain(lambda request: _ask(control, request), text or None, address, bind)
    click.echo(json.dumps(found, indent=2) if as_json else text_of(found))


@cli.command()
@click.option("--wait-for-connections", is_flag=True, help="wait for open connections, however long they last")
@no_wait_option
@control_option
def stop(control: str | None, wait_for_connections: bool, no_wait: bool) -> None:
    """Stop a running server, and return when it has ended."""
    request = {"command": "stop", "wait_for_connections": wait_for_connections}
    _ask(control, request, until_end=None if no_wait else settings.DAY_S)


@cli.command()
@click.argument("slot", type=int, required=False)
@no_wait_option
@json_option
@control_option
def reload(control: str | None, as_json: bool, no_wait: bool, slot: int | None) -> None:
    """Give each slot, or only SLOT, a new worker without losing a request, and return when that is done.

    If a new worker does not become ready, the reload ends. The old workers stay, and the exit code is 4.
    """
    only = {} if slot is None else {"slot": slot}
    _follow(control, {"command": "reload", **only}, as_json=as_json, no_wait=no_wait)


@cli.command()
@click.argument("workers", type=int)
@no_wait_option
@json_option
@control_option
def scale(control: str | None, as_json: bool, no_wait: bool, workers: int) -> None:
    """Change the number of workers to WORKERS. Return when the new ones serve, or the removed ones have drained."""
    _follow(control, {"command": "scale", "slots": workers}, as_json=as_json, no_wait=no_wait)


@cli.command()
@click.argument("slot", type=int)
@no_wait_option
@json_option
@control_option
def drain(control: str | None, as_json: bool, no_wait: bool, slot: int) -> None:
    """Stop sending new clients to SLOT. Clients that already belong to it stay."""
    _hold(control, {"command": "drain", "slot": slot}, as_json=as_json)


@cli.command()
@click.argument("slot", type=int)
@no_wait_option
@json_option
@control_option
def undrain(control: str | None, as_json: bool, no_wait: bool, slot: int) -> None:
    """Send new clients to SLOT again."""
    _hold(control, {"command": "undrain", "slot": slot}, as_json=as_json)


def _hold(control: str | None, request: dict[str, Any], *, as_json: bool) -> None:
    answer = _ask(control, request)
    if as_json:
        click.echo(json.dumps(answer))
    elif note := answer.get("note"):
        click.echo(f"note: {note}", err=True)


@cli.command()
@click.option("--once", is_flag=True, help="print a table for the next second, and exit")
@control_option
def top(control: str | None, once: bool) -> None:
    """Watch the slots of a running server: load, balance, events. Keys drain and reload slots."""
    from limpet.cli import top as view

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        return _ask(control, request)

    if not once:
        view.live(ask)
        return
    found = view.once(ask)
    click.echo("\n".join([*_aligned(view.COLUMNS, [row.cells() for row in found]), "", view.balance(found)]))


@cli.command()
@click.argument("slot", type=int)
@control_option
def stack(control: str | None, slot: int) -> None:
    """Show what the worker of SLOT is executing, even if its event loop is blocked."""
    request = {"command": "stack", "slot": slot}
    _ask(control, request)
    before, deadline = "", time.monotonic() + _STACK_S
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        found = _ask(control, request | {"read": True})["stack"]
        if found and found == before:  # the stacks are written line by line: complete once nothing changes
            click.echo(found, nl=False)
            return
        before = found
    raise ControlError(
        f"the worker of slot {slot} does not answer: it is stopped or waits in the kernel",
        hint="`limpet status --json` shows its pid; `ps -o stat,wchan PID` shows what it waits for",
    )


def status_text(answer: dict[str, Any]) -> str:
    """Return the answer to `status` as text for people."""
    columns = ("slot", "state", "pid", "generation", "connections", "requests", "queued")
    behind, fronts = answer.get("dispatchers", ()), answer.get("terminators", ())
    totals = ", ".join(f"{name} {value}" for name, value in answer["totals"].items() if value) or "all 0"
    return "\n".join(
        [
            f"pid {answer['pid']}, {', '.join(answer['binds'])}, by {answer['by']}, backend {answer['backend']}",
            "",
            *_aligned(columns, [[slot[column] for column in columns] for slot in answer["slots"]]),
            *map("dispatcher {state}: pid {pid}, {pending} heads awaited of {max_pending}".format_map, behind),
            *map(
                "terminator {state}: pid {pid}, {connections} connections and {handshakes} handshakes of "
                "{max_connections}".format_map,
                fronts,
            ),
            "",
            f"totals: {totals}",
        ]
    )


def where_text(keys: Sequence[str], answer: Sequence[dict[str, Any]]) -> str:
    """Return the answer to `where` as text for people, with a line for each key."""
    return "\n".join(
        f"{key}: {_slot(home)}, {_worker(home)}, bucket {home['bucket']}, digest {home['digest']}"
        + (", learned" if home.get("learned") else "")
        for key, home in zip(keys, answer, strict=True)
    )


def _slot(home: dict[str, Any]) -> str:
    away = home.get("home", home["slot"]) != home["slot"]
    return f"slot {home['slot']} in place of {home['home']}" if away else f"slot {home['slot']}"


def _worker(home: dict[str, Any]) -> str:
    return f"pid {home['pid']} ({home['state']})" if home["pid"] else f"no worker ({home['state']})"


def _aligned(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a table.

    Text is aligned to the left, numbers to the right; `-` stands for a missing value.
    """
    cells = [titles, *(["-" if value is None else str(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_text = [isinstance(value, str) for value in rows[0]]
    return [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, is_text, strict=True)
        )
        for line in cells
    ]


def _follow(control: str | None, request: dict[str, Any], *, as_json: bool, no_wait: bool) -> None:
    """Ask for a change and wait until it is over, with progress on a terminal. Raises AppError if it fails."""
    change = _ask(control, request)
    shows = sys.stderr.isatty() and not as_json
    while not no_wait and change["state"] in ("waiting", "running"):
        if shows:
            click.echo(f"\r{progress(change)}", nl=False, err=True)
        time.sleep(_POLL_S)
        change = _ask(control, {"command": "change", "number": change["change"]})
    if shows:
        click.echo(f"\r{progress(change)}", err=True)
    if as_json:
        click.echo(json.dumps(change, indent=2))
    if change["state"] == "failed":
        raise AppError(f"{change['why']} failed: {change['message']}", hint="`limpet status` shows which workers serve")


def progress(change: dict[str, Any]) -> str:
    """Return one line that shows the progress of *change*."""
    done, of = change["renewed"], change["slots"]
    filled = _BAR_WIDTH * done // max(1, of)
    return f"{change['why']} [{'#' * filled}{'-' * (_BAR_WIDTH - filled)}] {done}/{of} {change['state']}"


def _ask(control: str | None, request: dict[str, Any], **waiting: Any) -> dict[str, Any]:
    from limpet.operate.control_socket import ask

    return ask(control, request, **waiting)


def _restated(error: click.ClickException) -> SettingsError:
    """Return click's error about the arguments in limpet's own form."""
    context = getattr(error, "ctx", None)
    hint = f"`{context.command_path if context else 'limpet'} --help`"
    if isinstance(error, click.NoSuchOption):
        nearest = " or ".join(f"`{name}`" for name in error.possibilities or ())
        return SettingsError(f"unknown option `{error.option_name}`", hint=f"{nearest}; {hint}" if nearest else hint)
    message, _, nearest = error.format_message().rstrip(".").replace("'", "`").partition("Did you mean ")
    message = message.rstrip(" .(")
    if nearest:
        nearest = " or ".join(nearest.removeprefix("one of: ").rstrip("?)").split(", "))
        hint = f"{nearest}; {hint}"
    return SettingsError(message[:1].lower() + message[1:], hint=hint)


if __name__ == "__main__":
    sys.exit(main())
