"""Reads cases, each in a process of its own, and says what became of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile.cases import Case, make_valid
from hostile.places import Place


#: Bytes that reading a case may take beyond what the process has.
MOST_MEMORY = 2**30
# Address space that it may take; what it asks for beyond that is refused.
_MOST_SPACE = 2**33
# Seconds that it may take.
_MOST_SECONDS = 60
#: What nothing that reads tiles does: whoever brings a file must not be able to have it done.
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
    "ctypes.dlopen",
)


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        case: The case.
        result: "refused", "read", or what is wrong: "traceback", "no sentence", "wrong result", "memory", "ran code",
            "wrote elsewhere", "crash", "too slow".
        text: The sentence, or what is wrong.
        memory: Bytes that it took at most, beyond what the process had.
        seconds: That it took.
    """

    case: Case
    result: str
    text: str
    memory: int
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether it ended as it should."""
        return self.result in ("refused", "read")


def read_cases(cases: Iterable[Case], scratch: Path) -> Iterator[Outcome]:
    """What becomes of cases, in their order.

    Args:
        cases: The cases.
        scratch: An empty folder; what is made in it is removed again.
    """
    contents: dict[str, Any] = {}
    for case in cases:
        place = case.place
        valid = scratch / "valid" / place.name.replace("/", " ")
        if place.name not in contents:
            make_valid(place, valid)
            # Libraries that are loaded here need not be loaded by the children.
            content = place.load(valid)
            contents[place.name] = content if place.is_sealed else None
        folder = scratch / "case"
        shutil.copytree(valid, folder, symlinks=True)
        case.change(folder)
        yield _read(case, folder, contents[place.name] if case.is_damage else None)
        shutil.rmtree(folder)


def _read(case: Case, folder: Path, expected: Any) -> Outcome:
    """Reads a case in a child."""
    begin = time.monotonic()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Threads that decoded a picture before have ended.
        warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
        child = os.fork()
    if not child:
        os.close(reader)
        result = ("crash", "nothing was told", 0)
        try:
            result = _in_child(case.place, folder, expected)
        finally:
            os.write(writer, json.dumps([result[0], result[1][:60_000], result[2]]).encode())
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - begin
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        wrong = "too slow" if number == signal.SIGALRM else "crash"
        return Outcome(case, wrong, f"ended by {signal.Signals(number).name}", 0, seconds)
    result, text, memory = json.loads(told)
    if any(folder.rglob("executed")) or Path("executed").exists():
        result, text = "ran code", "a command was run"
    return Outcome(case, result, text, memory, seconds)


def _in_child(place: Place, folder: Path, expected: Any) -> tuple[str, str, int]:
    """What became of it, what there is to say, and bytes that it took."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_MOST_SECONDS)
    os.chdir(folder)
    used = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used + _MOST_SPACE, used + _MOST_SPACE))
    before = _status("VmRSS")
    seen: list[str] = []
    sys.addaudithook(lambda event, arguments: _watch(event, arguments, folder, seen))
    told = io.StringIO()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # libraries in C write there
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            found = place.load(folder)
        result, text = "read", ""
        if expected is not None and found != expected:
            result, text = "wrong result", "it was read, and is not what was written"
    except place.errors as error:
        result, text = "refused", str(error)
        if fault := _fault_of(text, place):
            result, text = "no sentence", f"{fault}: {text[:400]!a}"
        elif type(error) is not place.errors[0]:
            chain = traceback.extract_tb(error.__traceback__)
            if not chain[-1].filename.startswith(str(Path(__file__).parents[2])):
                result, text = "traceback", f"of a library: {type(error).__name__}: {text[:300]!a}"
    except BaseException as error:
        line = traceback.extract_tb(error.__traceback__)
        own = [
            each for each in line if "hostile" not in each.filename and "site-packages" not in each.filename
        ] or line
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
        result, text = "traceback", f"{type(error).__name__} in {where}: {str(error)[:300]!a}"
    memory = max(0, _status("VmHWM") - before)
    if seen:
        return "wrote elsewhere" if seen[0].startswith("open") else "ran code", seen[0], memory
    if memory > MOST_MEMORY:
        return "memory", f"{memory / 2**20:.0f} MiB ({result}: {text[:200]})", memory
    return result, text, memory


def _watch(event: str, arguments: tuple[Any, ...], folder: Path, seen: list[str]) -> None:
    """Notes what nothing that reads may do."""
    if event.startswith(FORBIDDEN) or (event == "import" and str(folder) in str(arguments[1])):
        seen.append(f"{event} {arguments!a:.200}")
    elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else ""
        allowed = (os.environ["HISTODISTILL_CACHE"], os.devnull)
        if path and not os.path.abspath(path).startswith(allowed):
            seen.append(f"{event} {path!a:.200}")


def _fault_of(message: str, place: Place) -> str | None:
    """What is wrong with a sentence; None where nothing is."""
    if not message.strip():
        return "no words"
    if not message.isprintable():
        return "characters that a terminal obeys, or more than one line"
    if len(message) > 1000:
        return f"{len(message)} characters"
    # What `hub_cards` says stands within a longer sentence, which has the file and the remedy.
    return None if place.errors[0].__name__ == "ContentError" or ": " in message else "no remedy"


def _status(name: str) -> int:
    """Bytes of memory of this process, by its name in Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
