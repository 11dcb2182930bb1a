"""Signals: those that the supervisor obeys are recorded, and held back while it is replaced; its children ignore them.

Owns handlers, the mask and what wakes the loop. What a signal means is the supervisor's business.

1. A handler only records and wakes.
2. An exec takes the handlers away but not the mask: what comes after `hold` is delivered at the next `recorded`.
3. A hangup, an interrupt or a quit that was ignored at the start stays ignored: so `nohup`, and a shell that starts a
   job in the background, keep a process from what happens at the terminal.
4. The kernel drops a signal without a handler that is sent to the first process of a container, but keeps one that is
   blocked: such a process holds them back before it imports anything (__main__.py).
5. In children a handler does nothing, in place of SIG_IGN, which programs that an application starts would inherit.
   Only SIGTTIN and SIGTTOU are ignored: with a handler, a write to a terminal that they forbid would never end.
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
_FOR_ALL: Final = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)  # of a control group, by an operator
_STOPPING: Final = (signal.SIGTTIN, signal.SIGTTOU)
_EARLY: Final = (signal.SIGTERM, *_FOR_ALL)  # not SIGINT, for which Python has a handler from the beginning


@contextlib.contextmanager
def recorded(selector: selectors.BaseSelector, numbers: Iterable[int]) -> Iterator[list[int]]:
    """Record the signals with these *numbers*, but for those that a terminal's user ignores, and wake *selector*."""
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
    """Leave the signals with these *numbers* to the kernel from now on; all that came before are recorded."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def release(numbers: Iterable[int]) -> None:
    """Undo `hold`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def leave_to_the_supervisor() -> None:
    """Have what a service manager or operator sends to all processes of a server do nothing to this child.

    A default action would end or stop it. TERM and INT mean something to children: see dispatch/dispatcher.py.
    """
    for number in _FOR_ALL:
        if not is_ignored(number):
            signal.signal(number, lambda *_: None)
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


def is_ignored(number: int) -> bool:
    """Return whether the signal *number* comes from terminals, and who started this process wants it ignored."""
    return number in _FROM_TERMINALS and signal.getsignal(number) == signal.SIG_IGN


def hold_as_first_process() -> None:
    """Keep what is sent to the first process of a container until `recorded` takes it; does nothing in others."""
    if os.getpid() == 1:
        hold(_EARLY)


def has_terminal() -> bool:
    """Return whether this process has a controlling terminal, which one that was closed is no more."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True
