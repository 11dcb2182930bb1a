"""The entry point of every child process: `python -m limpet.entry.child dispatcher|terminator|worker FD`.

Owns the assembly of a dispatcher or terminator from what the supervisor wrote into descriptor FD (ipc/boot.py);
entry/worker.py assembles a worker. The supervisor starts it (fleet/process.py). A failure is sent to the supervisor,
which is the only process that reports it to the user.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence

from limpet import current, logs
from limpet.config.router import Clocks, build_router
from limpet.dispatch.dispatcher import Dispatcher
from limpet.errors import LimpetError
from limpet.ipc import boot, news
from limpet.ipc.channel import Channel, Outbox
from limpet.ipc.control_link import Link
from limpet.ipc.scoreboard import Scoreboard
from limpet.routing.placement import Placement
from limpet.system import descriptors, signals
from limpet.worker import user_code

log = logging.getLogger("limpet")


def main() -> int:
    """Run the child that the arguments name until it ends, and return its exit code."""
    descriptors.have_standard_streams()
    signals.leave_to_the_supervisor()
    role, fd = sys.argv[1:]
    place = boot.read(int(fd))
    logs.configure(place.settings.log_level, place.settings.log_file, place.settings.log_format, place.log_fd)
    link = Link(socket.socket(fileno=place.link_fd))
    current.be_child(role)
    user_code.look_in(place.settings.app_dir)
    try:
        if role == "dispatcher":
            _dispatch(place, link)
        elif role == "terminator":
            _terminate(place, link)
        else:
            _work(place, link)
    except LimpetError as error:
        cause = error.__cause__
        detail = "".join(traceback.format_exception(cause)) if cause is not None else ""
        link.send(news.message(news.Failed(error.message, error.hint, error.exit_code, detail)))
        return error.exit_code
    return 0


def _dispatch(place: boot.Boot, link: Link) -> None:
    pid = os.getpid()
    _leave_signals_to_the_supervisor()
    settings = place.settings
    board = Scoreboard(place.scoreboard_fd)
    row = board.dispatcher(place.row)
    logs.count_lost(functools.partial(row.add, "log_lines_lost"))

    router = build_router(
        settings,
        bytes.fromhex(place.secret),
        load=user_code.load_function,
        on_error=user_code.Complaints(row),
        on_found=functools.partial(row.set, "elements"),
        clocks=Clocks(time.time, time.monotonic),
        learned=board.learned(),
    )
    outboxes = [
        Outbox(Channel.inherit(fds), board.waiting(place.row, slot)) for slot, fds in enumerate(place.channel_fds)
    ]
    most = settings.max_connections_per_worker
    placement = Placement(settings.place, router, board, lambda slot: outboxes[slot].queued(), random.Random(), most)
    listeners = [(socket.socket(fileno=fd), text) for fd, text in place.listeners]

    def reach(slot: int, fds: Sequence[int]) -> bool:
        while len(outboxes) <= slot:
            outboxes.append(Outbox(None, board.waiting(place.row, len(outboxes))))
        if len(fds) == 2 and not outboxes[slot].has_channel:
            outboxes[slot].attach(Channel.inherit((fds[0], fds[1])))
        else:  # it was inherited already, or too few descriptor numbers were free
            for fd in fds:
                os.close(fd)
        return outboxes[slot].has_channel

    _collect_rarely()
    user_code.end_copy(pid)
    link.send(news.message(news.Ready()))
    is_inner = place.is_inner
    Dispatcher(settings, router, placement, outboxes, listeners, link, row, reach, is_inner=is_inner).run()


def _terminate(place: boot.Boot, link: Link) -> None:
    from limpet.dispatch.terminator import Terminator  # loads OpenSSL, which a dispatcher does not need
    from limpet.net import tls

    _leave_signals_to_the_supervisor()
    tls.ignore_names_that_are_no_text()
    row = Scoreboard(place.scoreboard_fd).terminator(place.row)
    logs.count_lost(functools.partial(row.add, "log_lines_lost"))
    outboxes = [Outbox(Channel.inherit(fds), row) for fds in place.channel_fds]
    listeners = [(socket.socket(fileno=fd), text) for fd, text in place.listeners]
    terminator = Terminator(place.settings, place.pem, listeners, outboxes, link, row)
    link.send(news.message(news.Ready()))
    terminator.run()


def _leave_signals_to_the_supervisor() -> None:
    for number in (
        signal.SIGTERM,
        signal.SIGINT,
    ):  # a service manager may signal all processes: see dispatch/dispatcher.py
        signal.signal(number, lambda *_: None)


def _collect_rarely() -> None:
    """Let the garbage collector examine old objects a hundred times less often.

    Examining 10,000 connections that wait for their head takes 25 ms, during which all other connections wait. The
    dispatcher makes no reference cycles. Young objects, such as those of a user's key function, are examined as usual.
    """
    gc.freeze()
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, 100 * old)


def _work(place: boot.Boot, link: Link) -> None:
    descriptors.be_content_with(place.descriptors)
    from limpet.entry import worker  # loads the server, which a dispatcher does not need

    worker.work(place, link)


if __name__ == "__main__":
    sys.exit(main())
