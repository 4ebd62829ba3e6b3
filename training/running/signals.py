"""Ctrl-C and SIGTERM: whatever a program is at, it ends with one sentence, and what it began is put in order."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from histodistill.training.running.program import close_progress_bars


class _TerminatedError(BaseException):
    """This process was told to end by SIGTERM."""


@contextlib.contextmanager
def on_signal(number: int, answer: Callable[..., None]) -> Iterator[None]:
    """Has a signal answered by a function as long as the block runs, where this is the main thread.

    Python lets only that thread handle signals.

    Args:
        number: Of the signal.
        answer: See `signal.signal`.
    """
    handles = threading.current_thread() is threading.main_thread()
    before = signal.signal(number, answer) if handles else None
    try:
        yield
    finally:
        if handles:
            signal.signal(number, signal.SIG_DFL if before is None else before)


@contextlib.contextmanager
def ended_by_signals(sentence: str | None) -> Iterator[None]:
    """Runs the block so that Ctrl-C and SIGTERM end it as exceptions do, and then the program.

    What a library makes of such an exception, while it is imported or calls back, is taken for the signal that it was.

    Args:
        sentence: What the user is told, with `{}` for "interrupted" or "told to end"; None leaves it to the process
            that started this one.

    Raises:
        SystemExit: With 128 and the signal, as shells have it.
    """
    came: list[int] = []

    def answer(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else _TerminatedError

    _end_in_silence()
    try:
        with contextlib.ExitStack() as stack:
            # Processes that share the work may just wait for each other, where only the system can end them.
            if "RANK" not in os.environ:
                stack.enter_context(on_signal(signal.SIGTERM, answer))
            # It is switched off for what a shell runs in the background.
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                stack.enter_context(on_signal(signal.SIGINT, answer))
                # Where `interrupts_wait` held it back until now.
                _mask(signal.SIG_UNBLOCK)
            yield
    except BaseException as error:
        if not came and not isinstance(error, KeyboardInterrupt):
            raise
        close_progress_bars(error)
        number = came[0] if came else signal.SIGINT
        if sentence is not None:
            how = "interrupted" if number == signal.SIGINT else "told to end"
            print(f"error: {sentence.format(how)}", file=sys.stderr)
        raise SystemExit(128 + number) from None


@functools.cache
def _end_in_silence() -> None:
    """Has Ctrl-C while Python itself ends, after all work, end it without a traceback."""
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Has Ctrl-C wait in the processes that are started in the block, until they can answer it: see above.

    Python would show a traceback while it starts and imports.
    """
    waited = _mask(signal.SIG_BLOCK)
    try:
        yield
    finally:
        if not waited:
            _mask(signal.SIG_UNBLOCK)


def _mask(how: int) -> bool:
    """Lets Ctrl-C wait in this thread, or come, where the system can; returns whether it has waited until now."""
    return hasattr(signal, "pthread_sigmask") and signal.SIGINT in signal.pthread_sigmask(how, {signal.SIGINT})
