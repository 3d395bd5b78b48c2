"""Notices that a run stands still, and says where."""

from __future__ import annotations

import faulthandler
import statistics
import sys
import threading
import time
from collections import deque
from pathlib import Path

from fairjax.program import refused

STALLS = "stalls.txt"
"""Where in a run's folder the stacks of all threads go when no step comes."""

PATIENCE, LEAST = 10, 60
"""A run stands still that takes no step in so many times its usual one, and in so many seconds."""


class Watch:
    """Waits for the next step, from the second on, for ten times as long as steps take.

    Where none comes, that is a warning on standard error, and what every thread is at goes to the end of a file. Once
    for each stall; the run is left alone.

    Args:
        file: gets the stacks.
        patience: times the median of the last steps.
        least: seconds to wait in any case: a checkpoint or images come between two steps.
    """

    def __init__(self, file: Path, patience: float = PATIENCE, least: float = LEAST):
        self._file, self._patience, self._least = file, patience, least
        self._seconds: deque[float] = deque(maxlen=50)
        self._since: float | None = None  # the last step
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ending.set()
        self._thread.join()

    def beat(self) -> None:
        """A step has come."""
        now = time.monotonic()
        if self._since is not None:
            self._seconds.append(now - self._since)
        self._since = now

    def alive(self) -> None:
        """Something else than a step goes on."""
        if self._since is not None:
            self._since = time.monotonic()

    def _watch(self) -> None:
        reported = None
        while not self._ending.wait(self._least / 10):
            since = self._since
            if not self._seconds or since == reported:
                continue
            usual, silent = statistics.median(self._seconds), time.monotonic() - since
            if silent > max(self._patience * usual, self._least):
                reported = since
                self._tell(silent, usual)

    def _tell(self, silent: float, usual: float) -> None:
        what = f"no step for {silent:.0f} s, where one takes {usual:.1f} s"
        where = f"{self._file} says what the program is at"
        try:
            with self._file.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}: {what}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.write("\n")
        except OSError as error:
            where = f"{self._file} cannot be written: {refused(error, str(self._file))}"
        print(f"warning: {what}; {where}", file=sys.stderr, flush=True)
