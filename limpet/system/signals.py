"""Signals: the supervisor records them, and holds them back while it replaces itself. Its children ignore them.

This file owns the handlers, the signal mask, and the socket that wakes the loop. It does not know what a signal means:
the supervisor does.

1. A handler only records the signal and wakes the loop.
2. An exec removes the handlers but keeps the mask. A signal that arrives after `hold` is delivered at the next
   `recorded`.
3. A SIGHUP, SIGINT or SIGQUIT that was ignored at the start stays ignored. `nohup`, and a shell that starts a job in
   the background, use this to protect a process from what happens at the terminal.
4. In the first process of a container, the kernel drops a signal that has no handler and keeps one that is blocked. So
   such a process holds signals back before it imports anything (__main__.py).
5. In children a handler does nothing. SIG_IGN would be wrong here, since programs that an application starts would
   inherit it. Only SIGTTIN and SIGTTOU are ignored: with a handler, a forbidden write to a terminal would never end.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import selectors

_READ: Final = 1  # selectors.EVENT_READ
_FROM_TERMINALS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_FOR_ALL: Final = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)  # sent to a whole control group
_STOPPING: Final = (signal.SIGTTIN, signal.SIGTTOU)
_EARLY: Final = (signal.SIGTERM, *_FOR_ALL)  # not SIGINT, for which Python installs a handler at its start


@contextlib.contextmanager
def recorded(selector: selectors.BaseSelector, numbers: Iterable[int]) -> Iterator[list[int]]:
    """Record the signals *numbers* in the list that is yielded, and wake *selector* at each.

    A signal that `is_ignored` stays ignored. On exit the former handlers are back.
    """
    numbers = tuple(numbers)
    seen: list[int] = []
    import socket  # not before: the command line imports this file first of all

    waking, woken = socket.socketpair()
    waking.setblocking(False)
    woken.setblocking(False)
    selector.register(woken, _READ, lambda _: woken.recv(4096))
    old_fd = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    before: dict[int, Any] = {
        number: signal.signal(number, lambda number, _: seen.append(number))
        for number in numbers
        if not is_ignored(number)
    }
    release(numbers)
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_fd)
        selector.unregister(woken)
        waking.close()
        woken.close()


def hold(numbers: Iterable[int]) -> None:
    """Block the signals *numbers*, so that the kernel keeps them. Signals that came before are recorded already."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def release(numbers: Iterable[int]) -> None:
    """Unblock the signals *numbers*, so that those that the kernel kept are delivered."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def leave_to_the_supervisor() -> None:
    """Make signals that a service manager or operator sends to all processes of a server harmless to this child.

    Their default action would end or stop the child. SIGTERM and SIGINT are left as they are: entry/child.py and the
    servers in workers handle them.
    """
    for number in _FOR_ALL:
        if not is_ignored(number):
            signal.signal(number, lambda *_: None)
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


def is_ignored(number: int) -> bool:
    """Return whether signal *number* comes from terminals and was set to be ignored when this process started."""
    return number in _FROM_TERMINALS and signal.getsignal(number) == signal.SIG_IGN


def hold_as_first_process() -> None:
    """In the first process of a container, block signals until `recorded` takes them; in others do nothing."""
    if os.getpid() == 1:
        hold(_EARLY)


def has_terminal() -> bool:
    """Return whether this process has a controlling terminal. A terminal that was closed does not count."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True
