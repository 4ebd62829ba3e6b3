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
    errno.EIO: ("the disk failed", "see that it works, then run the same command again"),
    errno.ESTALE: ("the network disk has lost the file", "see that it works, then run the same command again"),
    errno.ENOTCONN: ("the network disk is gone", "see that it works, then run the same command again"),
    errno.ENAMETOOLONG: ("the name is too long for this disk", "give a folder with a shorter path"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n), then run the same command again"),
    errno.ENFILE: ("too many files are open on this machine", "run the same command again later"),
}
# What a full disk is told by.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
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


def is_full_disk(refusal: OSError) -> bool:
    """Whether there is no room left, or none for this user or for so large a file."""
    return refusal.errno in _FULL


def refusal_sentence(refusal: OSError) -> str:
    """What `find_refusal` found, for the user: the path where it is known, what was refused, and the remedy."""
    reason, remedy = _REFUSALS[refusal.errno or 0]
    path = refusal.filename
    where = f"{os.fsdecode(path)}: " if isinstance(path, (str, bytes, os.PathLike)) and path else ""
    return f"{where}{reason}: {remedy}"
