"""Descriptor numbers that are kept for the moment at which there are no others.

A process without a free number can accept nobody, so it could not even say that it cannot serve. Owned by the
dispatcher, which gives the numbers to clients that get 503, and takes them back when those have gone.
"""

from __future__ import annotations

import os


class Reserve:
    """Up to *size* descriptor numbers. The process's end closes them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: list[int] = []
        self.fill()

    def fill(self) -> bool:
        """Take numbers until all are here; return whether that is so."""
        try:
            while len(self._kept) < self._size:
                self._kept.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return False
        return True

    def release(self) -> int:
        """Let others have the numbers; return how many those are."""
        released = len(self._kept)
        while self._kept:
            os.close(self._kept.pop())
        return released
