"""What the system refuses while a step works, such as a write to a full disk, as one sentence with its remedy."""

from __future__ import annotations

import errno
import os
import re


# No step of ours can cause these by a mistake of its own: what it is refused, and what the user can do. An error that
# is not among them is a bug, and keeps its traceback.
_REFUSALS = {
    errno.ENOSPC: ("the disk is full", "make room, then run the same command again"),
    errno.EDQUOT: ("your quota of the disk is used up", "make room, then run the same command again"),
    errno.EFBIG: ("a file would be larger than allowed here", "raise the limit (ulimit -f), then run it again"),
    errno.EROFS: ("this disk can only be read", "give a folder on another one, or have it mounted for writing"),
    errno.EACCES: ("permission denied", "see that you may read and write there, then run the same command again"),
    errno.EPERM: ("the system does not allow it", "see that you may read and write there, then run it again"),
    errno.EXDEV: ("this disk cannot rename folders", "give a folder on another one"),
    errno.ENOTSUP: ("this disk cannot do what is asked of it", "give a folder on another one"),
    errno.EIO: ("the disk failed", "see that it works, then run the same command again"),
    errno.ESTALE: ("the network disk has lost the file", "see that it works, then run the same command again"),
    errno.ENOTCONN: ("the network disk is gone", "see that it works, then run the same command again"),
    errno.ENAMETOOLONG: ("the name is too long for this disk", "give a folder with a shorter path"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n), then run the same command again"),
    errno.ENFILE: ("too many files are open on this machine", "run the same command again later"),
}
# What a full disk is told by.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What torch says where it gets no memory of a CPU, and where another process does not answer any more.
_NO_MEMORY = re.compile(r"DefaultCPUAllocator: (can't|not enough)|CUDA out of memory")
_LOST = re.compile(
    r"gloo.*(closed by peer|reset by peer|Broken pipe)|Connection (closed|reset) by peer|ncclRemoteError"
)
# Libraries written in Rust, such as safetensors, have errors of their own that end like this.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def find_refusal(error: BaseException) -> OSError | None:
    """What the system refused, where that is why an exception was raised; None where it is anything else.

    Args:
        error: What came of it; some libraries raise errors of other kinds on top.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.errno in _REFUSALS:
            return cause
        if (told := _RUST_ERROR.search(str(cause))) and (number := int(told[1])) in _REFUSALS:
            return OSError(number, os.strerror(number))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def machine_sentence(error: BaseException) -> str | None:
    """What to tell where memory was short, or a process was lost that shares the work; None for anything else.

    Args:
        error: What came of it. torch has no kinds of its own for some: what they say tells them.
    """
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY.search(text):
        return "memory is short: close other programs or give a smaller batch, then run the same command again"
    if os.environ.get("WORLD_SIZE", "1") != "1" and _LOST.search(text):
        return "another process that shares the work has ended: run the same command again to go on"
    return None


def is_full_disk(refusal: OSError) -> bool:
    """Whether there is no room left, or none for this user or for so large a file."""
    return refusal.errno in _FULL


def refusal_sentence(refusal: OSError) -> str:
    """What `find_refusal` found, for the user: the path where it is known, what was refused, and the remedy."""
    reason, remedy = _REFUSALS[refusal.errno or 0]
    path = refusal.filename
    where = f"{os.fsdecode(path)}: " if isinstance(path, (str, bytes, os.PathLike)) and path else ""
    return f"{where}{reason}: {remedy}"
