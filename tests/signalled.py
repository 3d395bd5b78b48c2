"""A program that a signal finds at a place of its own, where one who watches from outside may come too late.

    python tests/signalled.py SIGNAL MODULE:NAME CALLS PROGRAM ...

Runs PROGRAM, which is sent the signal (SIGTERM, say) by itself after so many calls of a function.
"""

import functools
import importlib
import os
import runpy
import signal
import sys


def main(number, place, calls, program, *arguments):
    sys.path.insert(0, os.getcwd())
    module, _, names = place.partition(":")
    *owners, name = names.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    usual, left = getattr(owner, name), int(calls)

    def counted(*what, **how):
        nonlocal left
        found, left = usual(*what, **how), left - 1
        if left == 0:
            os.kill(os.getpid(), signal.Signals[number])
        return found

    setattr(owner, name, counted)
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
