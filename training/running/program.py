"""What makes a step a program: output that every terminal takes, one sentence for what the user can mend, exit codes.

A program ends with

- 0 where it did its work;
- 1 where it did its work, and the answer is no: `audit` of something that does not pass;
- 2 where it could not do its work: wrong options, unusable files, a full disk, or a bug, which shows its traceback;
- 128 and the signal where one ended it, as shells have it: 130 after Ctrl-C.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import NoReturn

from histodistill.training.running.errors import InputError, one_line
from histodistill.training.running.memory import keep_freed_memory
from histodistill.training.running.notes import tell, warn
from histodistill.training.running.progress import quiet_libraries
from histodistill.training.running.system_errors import find_refusal, is_full_disk, machine_sentence, refusal_sentence
from histodistill.training.running.threads import thread_variables


#: Exit code of a step whose answer is no.
ANSWER_IS_NO = 1
#: Exit code of what could not do its work. Python's own for an uncaught exception is 1.
ERROR = 2
# The environment variable that says where torch keeps what it compiles.
_COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"


@contextlib.contextmanager
def as_program() -> Iterator[None]:
    """Runs the block as a program: the one place through which commands and scripts begin and end.

    Raises:
        SystemExit: As the block raises it; with `ERROR` for any exception, after one sentence where the system refused
            something, such as to write to a full disk, or memory is short, and otherwise after its traceback.
    """
    write_any_text()
    keep_freed_memory()
    os.environ.update(thread_variables(os.environ))
    with quiet_libraries(), _warnings_as_notes():
        try:
            yield
        except Exception as error:
            if refusal := find_refusal(error):
                close_progress_bars(error)
                fail(refusal_sentence(refusal))
            if sentence := machine_sentence(error):
                close_progress_bars(error)
                fail(sentence)
            traceback.print_exc()
            raise SystemExit(ERROR) from error


@contextlib.contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Has each of Python's warnings told as one line, above a bar where one stands."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: warn(str(message).strip())
        yield


def write_any_text() -> None:
    """Lets standard output and standard error take every character, whatever their encoding, and line by line.

    On Windows and in Latin-1 locales, a file or a pipe cannot take a check mark or a name in Chinese; what it cannot
    take is then written as Python writes it, such as `\\u2713`. A step must not lose its work by what it prints.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Line by line, results and notes that go to the same file come in their order.
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def require_temporary_folders() -> None:
    """Sees that there are folders for what is not kept, before any work is done.

    Where there is none for temporary files, the program ends. Where that of torch's compiler cannot be made, which
    diffusers has torch make although nothing of ours is compiled, a temporary one takes its place.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        fail("no folder for temporary files can be written: make room in /tmp, or set TMPDIR to another folder")
    if folder := os.environ.get(_COMPILER_CACHE):
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            os.environ[_COMPILER_CACHE] = other = tempfile.mkdtemp(prefix="histodistill-")
            atexit.register(shutil.rmtree, other, ignore_errors=True)
            tell(f"{_COMPILER_CACHE}={folder} cannot be made ({error.strerror}): a temporary folder takes its place")


def fail(message: str) -> NoReturn:
    """Prints one sentence to standard error and exits with `ERROR`."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    raise SystemExit(ERROR)


def close_progress_bars(error: BaseException | None) -> None:
    """Lets go of what functions that an exception ended still hold: a bar draws itself once more when it is let go.

    The sentence of the error is then the last line, and stands on a line of its own.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def speaks() -> bool:
    """Whether this process tells the user what is wrong: of several that fail alike, the first one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def end_with(error: InputError, called: Mapping[str, str] | None = None) -> NoReturn:
    """Ends the program for bad input.

    Args:
        error: Says what is wrong.
        called: What the command line calls some parameters: see `InputError.for_command_line`.
    """
    close_progress_bars(error)
    refusal = find_refusal(error)
    # What cannot be written because the disk is full is no bad input, and any of several processes may find it so.
    if refusal and is_full_disk(refusal):
        fail(refusal_sentence(refusal))
    if not speaks():
        raise SystemExit(ERROR) from None
    fail(error.for_command_line(called))
