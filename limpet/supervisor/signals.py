"""The signals that the supervisor obeys: recorded in the handler, read in the loop, and held back while it is replaced.

Owns handlers, the mask and what wakes the loop. What a signal means is the supervisor's business.

1. A handler only records and wakes.
2. An exec takes the handlers away but not the mask: what comes after `hold` is delivered at the next `recorded`.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
from collections.abc import Iterable, Iterator
from typing import Any


@contextlib.contextmanager
def recorded(selector: selectors.BaseSelector, numbers: Iterable[int]) -> Iterator[list[int]]:
    """Record the signals with these *numbers*, and wake *selector* for each."""
    seen: list[int] = []
    waking, woken = socket.socketpair()
    waking.setblocking(False)
    woken.setblocking(False)
    selector.register(woken, selectors.EVENT_READ, lambda _: woken.recv(4096))
    old_fd = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    before: dict[int, Any] = {
        number: signal.signal(number, lambda number, _: seen.append(number)) for number in numbers
    }
    release(before)
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
