"""What every program of fairjax is: a command line, exit codes, and mistakes told in one line.

Imports neither jax nor numpy, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import functools
import io
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

_LONGEST = 1_000
"""The most characters of an error."""

_PLAIN, _PLAINER = str.maketrans("–▁▂▃▄▅▆▇█", "-12345678"), "plainer"
"""What takes the place of characters that an output cannot have, and what codecs call it."""


class UserError(Exception):
    """Something the user can put right, in one line."""


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


@contextlib.contextmanager
def blame(subject: str) -> Iterator[None]:
    """Turns a ValueError, OSError or ImportError about the user's data into `UserError("subject: ...")`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{subject}: {refused(error, subject)}") from error
    except (ValueError, ImportError) as error:
        raise UserError(f"{subject}: {error}") from error


def refused(error: OSError, told: str = "") -> str:
    """What the system would not do, and of which file, if `told` does not have it yet."""
    where = "" if error.filename is None or str(error.filename) in told else f"{error.filename}: "
    return where + (error.strerror.lower() if error.strerror else str(error))


def legible(text: str) -> str:
    """What others wrote, as a terminal takes it for text alone: what it would obey, line breaks too, is escaped."""
    return "".join(part if part.isprintable() else repr(part)[1:-1] for part in text)


def _line(text: str) -> str:
    """On one line that a person would read."""
    line = legible(" ".join(text.split()))
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "replace").decode(), error.end


codecs.register_error(_PLAINER, _plainer)


def command(main: Callable[[list[str]], int | None]) -> Callable[..., int]:
    """Makes `main(argv)` a program: it returns an exit code and tells the user's mistakes on stderr.

    0 is success (or what `main` returns), 2 a `UserError` or what the system refuses, such as to write to a full disk,
    130 an interrupt (the signal itself, once `main` has returned), 1 without a word where nobody reads on (`| head`).
    Anything else is our fault and keeps its traceback. What the encoding of the output does not have is written in
    plainer characters.
    """

    @functools.wraps(main)
    def program(argv: list[str] | None = None) -> int:
        # of transformers only the tokenizer is used, which need not tell that PyTorch is missing
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        out = sys.stdout
        if isinstance(out, io.TextIOWrapper) and (out.encoding, out.errors) != ("utf-8", "surrogateescape"):
            out.reconfigure(errors=_PLAINER)
        try:
            try:
                return main(sys.argv[1:] if argv is None else argv) or 0
            except UserError as error:
                print(f"error: {_line(str(error))}", file=sys.stderr)
                return _leaving(2)
            finally:  # here, where it is told what is wrong with an output; when Python ends would be too late
                if out is not None:
                    out.flush()
        except OSError as error:
            if isinstance(error, BrokenPipeError) and _unread(out):
                os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # else Python would complain when it ends
                return _leaving(1)
            print(f"error: {_line(refused(error))}", file=sys.stderr)
            return _leaving(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return _leaving(130)
        except Exception:
            if _joined():
                traceback.print_exc()
            _leaving(1)
            raise
        finally:
            if argv is None:  # the process is over: Python, which tidies up, would answer Ctrl-C with a traceback
                signal.signal(signal.SIGINT, signal.SIG_DFL)

    return program


class _Lasting:
    """An output, of which what it does not take is lost; the first time, that is told where errors are."""

    def __init__(self, out: Any):
        self._out, self._told = out, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def write(self, text: str) -> int:
        self._trying(self._out.write, text)
        return len(text)

    def flush(self) -> None:
        self._trying(self._out.flush)

    def _trying(self, act: Callable[..., Any], *what: str) -> None:
        try:
            act(*what)
        except OSError as error:
            if not self._told:
                self._told = True  # first: it may be there that nothing is taken
                print(f"warning: not all that is told can be printed: {refused(error)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Long work in it goes on, to its own exit code, where what it prints is taken no more.

    A disk is full, a terminal closed, or who read a pipe has ended, as `| tee` does of the same Ctrl-C.
    """
    outs = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (out and _Lasting(out) for out in outs)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = outs
        for out in filter(None, outs):
            try:
                out.flush()
            except OSError:  # what is left would be an error once more, when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def _unread(out: Any) -> bool:
    """Whether an output is a pipe of which nobody reads the other end."""
    poll = select.poll()
    try:
        poll.register(out.fileno(), 0)
    except (AttributeError, OSError, ValueError):  # none, closed, or of a notebook
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _joined() -> bool:
    """Whether this is one of several processes; asked without importing jax."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _leaving(code: int) -> int:
    """Of several processes ends this one at once: JAX would wait minutes for the others, who wait for it."""
    if _joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
