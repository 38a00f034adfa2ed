"""Signals that ask for a stop: what is under way is saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Slurm sends the last two before it kills


class Stopped(BaseException):
    """A signal requested a stop, and what was under way is saved."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(what)
        self.number = number  # of the signal


class OtherRankFailed(BaseException):
    """The first of several ranks has said what was wrong; this one ends without a word."""


@contextmanager
def stop_signals(insist: bool = True) -> Iterator[list[int]]:
    """Collect the signals that ask for a stop, so that a step can be ended and saved first.

    A second SIGINT interrupts at once, but where `insist` is False: a launcher passes on the one that its ranks had
    from the terminal already. A signal that was ignored before stays so; outside the main thread nothing is collected.
    """
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if insist and number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for each in STOP_SIGNALS:
            if (handler := signal.getsignal(each)) not in (signal.SIG_IGN, None):
                before[each] = handler
                signal.signal(each, note)
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def ignore_stop_signals(_worker: int) -> None:
    """Leave a stop to the process that this worker works for, where a signal goes to all of them."""
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
