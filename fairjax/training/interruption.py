"""Ending a run when the machine, or its user, asks for it: after the step under way, with everything saved."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):
    """The run was asked to end, and everything that it has done is kept."""


class Interruption:
    """Whether a run has been asked to end.

    SIGTERM, which preempted machines get, and the first Ctrl-C ask; a second Ctrl-C ends the program at once.
    """

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, signum: int, frame: object) -> None:
        if self.asked and signum == signal.SIGINT:
            os._exit(130)
        self.asked = True
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        print(f"\n{name}: ending after this step; once more ends at once", file=sys.stderr, flush=True)

    def before(self, step: int) -> bool:
        """Whether to end before this step is taken; several hosts agree on the step, one that each of them gets to."""
        if jax.process_count() == 1:
            return self.asked
        return multihost_utils.reached_preemption_sync_point(step)

    def checking(self, on_batch: Callable[[int], None]) -> Callable[[int], None]:
        """`on_batch`, raising Interrupted between batches of work that goes on from where it was, if it was asked."""

        def told(count: int) -> None:
            on_batch(count)
            if self.asked and jax.process_count() == 1:
                raise Interrupted

        return told


@contextlib.contextmanager
def interruption() -> Iterator[Interruption]:
    """Listens to the signals while in it. Among several hosts that is left to JAX, whose hosts tell each other."""
    asked = Interruption()
    if threading.current_thread() is not threading.main_thread():  # the only one that Python lets listen
        yield asked
        return
    signals = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ()
    before = {number: signal.signal(number, asked) for number in signals}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
