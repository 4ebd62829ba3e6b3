"""One owner per folder: a step claims the folder that it writes to before it writes anything, and others are refused.

A claim is a file in the folder, `LOCK`, which names the processes that hold it. It is taken by making the file, which
one alone can, on network drives as well. Folders in a claimed folder, and those that it lies in, are claimed with it,
but for the processes that the owner starts. What a killed process left is noticed and taken over: on this machine by
its number and the time of its start, of other machines by a sign of life that an owner gives.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import re
import secrets
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, TypeVar

from histodistill.training.running.errors import InputError, one_line
from histodistill.training.running.files import remove, write_json
from histodistill.training.running.notes import tell, warn


#: The file of a claim, in the folder that is claimed.
LOCK = ".histodistill.lock"
# The variable by which the processes that an owner starts know its claims: their tokens, with commas between them.
_VARIABLE = "HISTODISTILL_CLAIMS"
# Seconds between two signs of life, and without one after which the owner on another machine is taken for gone.
_SIGN_OF_LIFE, _GONE = 30, 600
# Seconds that processes of this machine are given to end, where another one that held the claim with them is gone.
_ENDING = 10
# How deep folders in a claimed folder are looked at for other claims: benchmark/infodist is the deepest that has one.
_DEPTH = 2
# What is written under a temporary name: see `new_file`, `new_folder` and `new_files`.
_TEMPORARY = re.compile(r"\..+\.(\d+|[0-9a-f]{16})\.tmp")
# How often the file of a claim is tried to be made, where others make and remove it at the same time.
_TRIES = 100
# Characters of a command in a message, at most.
_SHOWN_LENGTH = 80


class _Mine(threading.local):
    """Claims of this thread that are not given back yet: folder, token, and the folders that were made for it."""

    def __init__(self) -> None:
        self.claims: list[tuple[Path, str, list[Path]]] = []


_mine = _Mine()
# Tokens of the claims that this thread holds.
_held: ContextVar[tuple[str, ...]] = ContextVar("held", default=())


class _Claims(Protocol):
    def claims(self) -> Path | None: ...


_Config = TypeVar("_Config", bound=_Claims)
_Result = TypeVar("_Result")


def claiming(run: Callable[[_Config], _Result]) -> Callable[[_Config], _Result]:
    """Has a step claim the folder that its options say, as long as it runs.

    Args:
        run: The step; its configuration says in `claims` what it writes to.
    """

    @functools.wraps(run)
    def claimed_run(config: _Config) -> _Result:
        count = len(_mine.claims)
        try:
            with claimed(config.claims()):
                return run(config)
        except BaseException:
            # A signal may come just where the block has ended, and before what gives its claim back, or within that.
            # An empty file may be another's by now.
            for claim in _mine.claims[count:]:
                _release(*claim, is_made=False)
            del _mine.claims[count:]
            raise

    return claimed_run


@contextlib.contextmanager
def claimed(folder: Path | None) -> Iterator[None]:
    """Claims a folder for the block, and for the processes that `inherited` is given to there.

    The folder is made if it is missing, and is gone afterwards if nothing was put there. Where the file of a claim
    cannot be made, since a disk can only be read or is full, the block runs without one: it is told what it may not
    write.

    Args:
        folder: What is written to; None claims nothing. Of several processes that share the work the main one claims.

    Raises:
        InputError: If another process holds it, a folder in it or one that it lies in.
    """
    if folder is None or os.environ.get("RANK", "0") != "0":
        yield
        return
    place = Path(os.path.realpath(folder))
    with contextlib.ExitStack() as stack:
        if found := _own_lock(place):
            stack.enter_context(_joined(*found))
        else:
            stack.enter_context(_taken(folder, place))
        yield


def inherited() -> dict[str, str]:
    """What the environment of a process holds that works for this one: the claims are its own, too."""
    return {_VARIABLE: ",".join(_tokens())}


def works_for_another() -> bool:
    """Whether this process was started with `inherited` by another, which tells the user what to do."""
    return _VARIABLE in os.environ


def _tokens() -> tuple[str, ...]:
    return (*filter(None, os.environ.get(_VARIABLE, "").split(",")), *_held.get())


def _own_lock(place: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file by which a folder, or one that it lies in, is claimed for this process already, and what it holds."""
    if tokens := _tokens():
        for lock in (parent / LOCK for parent in (place, *place.parents)):
            if (record := _read(lock)) and record["token"] in tokens:
                return lock, record
    return None


@contextlib.contextmanager
def _joined(lock: Path, record: Mapping[str, Any]) -> Iterator[None]:
    """Puts this process beside those that hold a claim, so that it holds where the others are killed."""
    this = _this_process()
    if this in record["holders"]:
        yield
        return
    _rewrite(lock, record["token"], lambda holders: [*holders, this])
    try:
        yield
    finally:
        _rewrite(lock, record["token"], lambda holders: [holder for holder in holders if holder != this])


def _rewrite(lock: Path, token: str, change: Callable[[list[Any]], list[Any]]) -> None:
    with contextlib.suppress(OSError), _alone(lock):  # of a full disk the owner hears elsewhere
        if (record := _read(lock)) and record["token"] == token:
            write_json(lock, {**record, "holders": change(record["holders"])})


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """No other process changes or removes the file of a claim in the block, if it does so by this function, too.

    Without it, of two that find a claim left behind one might remove what the other has just made in its place.
    """
    while True:
        file = _opened(lock)
        if file is None:
            yield
            return
        try:
            with contextlib.suppress(OSError):  # a disk that knows no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_still(lock, file):
                yield
                return
        finally:
            os.close(file)


def _opened(lock: Path) -> int | None:
    """The file of a claim, opened; None where there is none, or where it cannot be opened."""
    # Network drives lock only what is opened for writing, which another user's file, or a full disk, may not let.
    for mode in (os.O_RDWR, os.O_RDONLY):
        with contextlib.suppress(OSError):
            return os.open(lock, mode)
    return None


def _is_still(lock: Path, file: int) -> bool:
    """Whether an open file is still the one that has this name."""
    try:
        return os.path.samestat(os.stat(lock), os.fstat(file))
    except OSError:
        return False


@contextlib.contextmanager
def _taken(folder: Path, place: Path) -> Iterator[None]:
    """The claim of a folder that this process does not hold yet."""
    made: list[Path] = []
    token = secrets.token_hex(16)
    ended = threading.Event()
    lock = None
    _mine.claims.append((place, token, made))
    try:
        with contextlib.suppress(_CannotClaim):
            lock = _make(folder, place, token, made)
            _refuse_others(folder, place)
        if lock is not None:
            threading.Thread(target=_live, args=(lock, ended), name="claim", daemon=True).start()
        before = _held.set((*_held.get(), token))
        try:
            yield
        finally:
            _held.reset(before)
    finally:
        ended.set()
        _release(place, token, made, lock is not None)
        _mine.claims.remove((place, token, made))


def _release(place: Path, token: str, made: list[Path], is_made: bool) -> None:
    """Removes a claim, where it is still there, and then the folders that were `made` for it and hold nothing."""
    with contextlib.suppress(OSError), _alone(place / LOCK):
        record = _read(place / LOCK)
        # A signal may have come just when it was made; one that stayed empty is known by nothing else.
        if record["token"] == token if record else is_made:
            (place / LOCK).unlink()
    for each in made:
        with contextlib.suppress(OSError):  # what is not empty stays
            each.rmdir()


class _CannotClaim(Exception):
    """The file of a claim cannot be made."""


def _make(folder: Path, place: Path, token: str, made: list[Path]) -> Path:
    """Makes the file of a claim, and in `made` notes the folders that were made for it, the deepest first.

    Raises:
        InputError: If another process holds the folder.
        _CannotClaim: If the file cannot be made.
    """
    lock = place / LOCK
    record = {"token": token, "since": time.strftime("%Y-%m-%d %H:%M"), "holders": [_this_process()]}
    for _ in range(_TRIES):
        try:
            _make_folders(place, made)
            file = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            if not os.path.isfile(lock):
                raise _CannotClaim from None
            _take_away(lock, folder)
            continue
        except FileNotFoundError:
            continue  # another process has just removed what it had made, or there can be no such folder
        except OSError:
            raise _CannotClaim from None
        try:
            # On a full disk it stays empty: then nobody knows whose it is, but that it is somebody's.
            with contextlib.suppress(OSError):
                os.write(file, json.dumps(record).encode())
        finally:
            with contextlib.suppress(OSError):
                os.close(file)
        return lock
    raise _CannotClaim


def _make_folders(place: Path, made: list[Path]) -> None:
    missing = [each for each in (place, *place.parents) if not each.exists()]
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            each.mkdir()
            made.insert(0, each)


def _refuse_others(folder: Path, place: Path) -> None:
    """Sees that nobody else holds a folder in this one, or one that it lies in.

    Raises:
        InputError: If somebody does.
    """
    for parent in place.parents:
        if os.path.isfile(parent / LOCK):
            _take_away(parent / LOCK, parent)
    for inner in _folders_in(place, _DEPTH):
        if os.path.isfile(inner / LOCK):
            _take_away(inner / LOCK, folder / inner.relative_to(place))


def _folders_in(place: Path, depth: int) -> Iterator[Path]:
    try:
        with os.scandir(place) as entries:
            folders = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # what cannot be looked into is nobody's of ours
        return
    for each in folders:
        yield each
        if depth > 1:
            yield from _folders_in(each, depth - 1)


def _take_away(lock: Path, folder: Path) -> None:
    """Removes a claim whose owner is gone, with what it was just writing.

    Args:
        lock: Its file.
        folder: The folder that it is in, as the user calls it.

    Raises:
        InputError: If its owner is not gone.
        _CannotClaim: If it cannot be removed.
    """
    deadline = time.monotonic() + _ENDING
    while True:
        while _is_ending(record := _read(lock)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if record is None and not os.path.isfile(lock):
            return
        if not _is_left_behind(lock, record):
            raise InputError(_refusal(lock, folder, record))
        try:
            with _alone(lock):
                if _read(lock) == record and _is_left_behind(lock, record):  # others may have been faster
                    lock.unlink()
                    break
        except FileNotFoundError:
            return
        except OSError:
            raise _CannotClaim from None
    tell(f"{folder}: what claimed it has ended without a word{_named(record)}, and this command goes on in its place")
    _clear_up(lock.parent)


def _clear_up(folder: Path) -> None:
    """Removes what was being written when the owner of a folder ended."""
    for path, names, files in os.walk(folder):
        for name in (*names, *files):
            if _TEMPORARY.fullmatch(name):
                with contextlib.suppress(OSError):
                    remove(Path(path, name))
        names[:] = [name for name in names if not _TEMPORARY.fullmatch(name)]


def _living(record: Mapping[str, Any] | None) -> list[bool] | None:
    """Of each who holds a claim, whether it is there; None where that is not known, as of other machines."""
    machine = _machine()
    if record is None or machine is None or any(each["machine"] != machine for each in record["holders"]):
        return None
    return [_start_of(each["process"]) == each["started"] for each in record["holders"]]


def _is_ending(record: Mapping[str, Any] | None) -> bool:
    """Whether some who hold a claim are gone and others are not yet, as where they were killed together."""
    living = _living(record)
    return living is not None and any(living) and not all(living)


def _is_left_behind(lock: Path, record: Mapping[str, Any] | None) -> bool:
    """Whether nobody who holds a claim is there any more."""
    living = _living(record)
    if living is not None:
        return not any(living)
    try:
        # Both by the clock of the disk, which may be another than that of this machine.
        with tempfile.TemporaryFile(dir=lock.parent) as now:
            return os.fstat(now.fileno()).st_mtime - lock.stat().st_mtime > _GONE
    except OSError:
        return False


def _refusal(lock: Path, folder: Path, record: Mapping[str, Any] | None) -> str:
    is_known = _living(record) is not None
    by_hand = "" if is_known else f"; if that has ended, delete {lock}, or wait {_GONE // 60} minutes"
    return f"{folder} is in use by another process{_named(record)}: wait until it has ended, or give another{by_hand}"


def _named(record: Mapping[str, Any] | None) -> str:
    """Who holds a claim, in brackets; nothing where that is not known."""
    if record is None:
        return ""
    owner = record["holders"][0]
    command = one_line(str(owner["command"]))
    if len(command) > _SHOWN_LENGTH:
        command = f"{command[: _SHOWN_LENGTH - 1]}…"
    where = "" if owner["host"] == socket.gethostname() else f" on {one_line(str(owner['host']))}"
    return f" ({command}, process {owner['process']}{where}, since {one_line(str(record['since']))})"


def _read(lock: Path) -> dict[str, Any] | None:
    """What a claim's file holds; None where there is none, or nothing that can be read."""
    try:
        record = json.loads(lock.read_text(encoding="utf-8"))
        known = {"machine", "process", "started", "host", "command"}
        is_record = bool(record["token"] and record["since"] and record["holders"])
        is_record = is_record and all(each.keys() >= known for each in record["holders"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return record if is_record else None


def _live(lock: Path, ended: threading.Event) -> None:
    """Gives a sign of life now and then, until the claim ends."""
    while not ended.wait(_SIGN_OF_LIFE):
        try:
            os.utime(lock)
        except FileNotFoundError:
            warn(f"{lock} was deleted: nothing keeps other commands out of its folder any more")
            return
        except OSError:  # a network drive that is away for a while
            continue


@functools.cache
def _machine() -> str | None:
    """What tells this machine, as it runs now, from all others: its processes have their numbers there.

    None where the system does not tell, and so not whether a process is still the one that it was.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_of(process: int) -> int | None:
    """When a process was started, in ticks since this machine was, whatever clocks say since; None if it is gone."""
    try:
        # Behind the name, which may hold anything: the state, and 19 fields later the start.
        state, *fields = Path(f"/proc/{int(process)}/stat").read_bytes().rpartition(b")")[2].split()
        return None if state in (b"Z", b"X") else int(fields[18])
    except (OSError, ValueError, IndexError):
        return None


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "started": _start_of(os.getpid()),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
