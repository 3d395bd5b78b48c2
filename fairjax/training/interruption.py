"""Ending a run when the machine, or its user, asks for it: after what is under way, with everything saved."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from fairjax import parallel

TO_GO_ON = os.EX_TEMPFAIL
"""The exit code of a program that was asked to end, and has: not 0, since what starts jobs again goes by that."""


_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, the end of a machine or a job, that of a terminal, and what Slurm's `--signal` is usually told to send before
a time limit: each would end the program as it is."""


class Interrupted(Exception):
    """The run was asked to end, and everything that it has done is kept."""


class Interruption:
    """Whether a run has been asked to end.

    Signals ask, the first Ctrl-C among them; a further Ctrl-C ends the program at once.
    """

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, signum: int, frame: object) -> None:
        if self.asked and signum == signal.SIGINT:
            os._exit(130)
        self.asked = True
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        print(f"\n{name}: ending after what is under way; a further Ctrl-C ends at once", file=sys.stderr, flush=True)

    def on_any_host(self) -> bool:
        """Whether any host was asked to end, which each tells the others; all must ask."""
        return parallel.any_of_all(self.asked)

    def checking(self, on_batch: Callable[[int], None]) -> Callable[[int], None]:
        """`on_batch`, raising Interrupted between batches of work that goes on from where it was, if a host was asked.

        Every host must have the same batches.
        """

        def told(count: int) -> None:
            on_batch(count)
            if self.on_any_host():
                raise Interrupted

        return told


@contextlib.contextmanager
def interruption() -> Iterator[Interruption]:
    """Listens to the signals while in it."""
    asked = Interruption()
    if threading.current_thread() is not threading.main_thread():  # the only one that Python lets listen
        yield asked
        return
    kept_away = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()  # by nohup
    before = {number: signal.signal(number, asked) for number in _ASKING if number not in kept_away}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
