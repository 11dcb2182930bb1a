"""Building a server and running it: from its settings, or from what the previous supervisor left.

Owns the order of the first steps, and what is closed when one of them fails. supervisor/supervisor.py runs the server.
The command line calls it; for `limpet.listen`, entry/hosted.py does.
"""

from __future__ import annotations

import contextlib
import logging
import time

from limpet import logs
from limpet.config import privileges, secret
from limpet.config.router import Clocks, build_router
from limpet.config.settings import Settings
from limpet.coordination.place import Kept
from limpet.fleet.fleet import Fleet
from limpet.fleet.member import Member
from limpet.fleet.resources import Resources
from limpet.ipc.scoreboard import Scoreboard
from limpet.net import backend
from limpet.operate import shared_cookies, watch
from limpet.routing.router import Router
from limpet.supervisor import snapshot, upgrade
from limpet.supervisor.program_link import Program
from limpet.supervisor.supervisor import Supervisor
from limpet.system import proc
from limpet.version import __version__

log = logging.getLogger("limpet")


def run(settings: Settings, program: Program | None = None) -> None:
    """Run a server until it was told to stop; *program* is the program that started it, if any. Raises LimpetError.

    Must be called in the main thread of the process.
    """
    before, is_trial = upgrade.inherited()
    if before is not None:
        _take_over(settings, before, is_trial=is_trial)
        return
    identity = privileges.wanted(settings)
    if settings.log_file is not None:
        if identity is not None:
            logs.LogFile.owner = identity[:2]
        logs.check(settings.log_file)
    logs.configure(settings.log_level, settings.log_file, settings.log_format)
    if settings.reload:
        watch.check(settings.reload_dir)
    kept = secret.load(settings.cluster, settings.secret_file, settings.state_dir)
    log.info("secret %s", kept.origin, extra={"event": "secret_read"})
    if kept.warning is not None:
        log.warning("%s (hint: %s)", *kept.warning, extra={"event": "secret_warning"})
    board = Scoreboard.create()
    router = _router(settings, kept.value, board)
    for message, hint in shared_cookies.announce(settings, router.jar) if router.jar is not None else ():
        log.warning("%s (hint: %s)", message, hint, extra={"event": "cookie_shared"})
    with contextlib.ExitStack() as stack:
        chosen = stack.enter_context(contextlib.closing(backend.open(settings, router)))
        shared = stack.enter_context(contextlib.closing(Kept.create(identity and identity[:2], settings.stash)))
        Supervisor(_new_fleet(settings, kept.value, router, chosen, board, shared), program).run()


def _new_fleet(
    settings: Settings, value: bytes, router: Router, chosen: backend.Backend, board: Scoreboard, shared: Kept
) -> Fleet:
    """Return a server in which nothing has been started. *value* is the secret. Raises LimpetError, OSError."""
    resources = Resources(settings, value, chosen, board, shared, proc.working_directory())
    resources.grow(settings.workers)
    return Fleet(
        settings=settings,
        router=router,
        backend=chosen,
        resources=resources,
        slots=[Member("worker", number) for number in range(settings.workers)],
        dispatchers=[Member("dispatcher", number) for number in range(chosen.dispatchers)],
        terminators=[Member("terminator", number) for number in range(chosen.terminators)],
        began_at=time.monotonic(),
        started_in=resources.started_in,
    )


def _take_over(settings: Settings, before: snapshot.Packed, *, is_trial: bool) -> None:
    """Continue the server *before* until it was told to stop. In a trial, end this process instead.

    Raises LimpetError.
    """
    settings, unchanged = snapshot.settled(settings, before)
    if (identity := privileges.wanted(settings)) is not None and not is_trial:
        logs.LogFile.owner = identity[:2]
    logs.configure(settings.log_level, None if is_trial else settings.log_file, settings.log_format)
    board = Scoreboard.adopt(before["board"])
    router = _router(settings, bytes.fromhex(before["secret"]), board)
    chosen = backend.adopt(before["backend"], settings, router, snapshot.listeners(before))
    fleet = snapshot.fleet(settings, chosen, router, board, before)
    server = Supervisor(fleet, before=before)
    if is_trial:  # outside `closing`: these are copies of listeners that stay in use
        upgrade.pass_on_trial(settings)
    log.info(
        "upgraded from version %s to %s: %d workers keep serving",
        before["version"],
        __version__,
        len(fleet.slots),
        extra={"event": "upgraded"},
    )
    for line in unchanged:
        log.warning("%s (hint: stop and start the server to change it)", line, extra={"event": "setting_not_upgraded"})
    with contextlib.closing(chosen), contextlib.closing(fleet.resources.kept):
        server.run()


def _router(settings: Settings, value: bytes, board: Scoreboard) -> Router:
    return build_router(settings, value, clocks=Clocks(time.time, time.monotonic), learned=board.learned())
