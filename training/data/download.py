"""Fetching one file whose checksum is known."""

from __future__ import annotations

import os
from pathlib import Path

import requests
from filelock import FileLock

from histodistill.training.running.errors import InputError
from histodistill.training.running.files import md5_of
from histodistill.training.running.progress import Progress


# Connections that are opened at most for one file, as long as each of them brings something.
_ATTEMPTS = 5
# Seconds that a server may take to be connected with, and to send the next piece.
_TIMEOUT = (10, 60)
# Bytes that are written at a time; no more is lost when a connection breaks.
_PIECE = 2**16


def fetch(url: str, path: Path, md5: str) -> None:
    """Fetches `url` to `path`, with a progress bar; `path` appears only once it is whole and its MD5 is right.

    The bytes go to `path` + `.part`, where a later call takes up what an earlier one left (HTTP Range). A
    connection that breaks after some progress is taken up again at once, a few times. Several processes may call this
    at the same time: one fetches, the others wait.

    Args:
        url: What to fetch.
        path: The file that it becomes; folders that are missing are made.
        md5: Its MD5, 32 hex digits.

    Raises:
        InputError: No connection, an HTTP error, a folder that cannot be written, or a wrong checksum.
    """
    part = path.with_name(path.name + ".part")
    by_hand = f"put {url} there by hand (MD5 {md5})"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{part}.lock"):
            if path.is_file():  # another process was faster
                return
            _fetch_part(url, part, f"{path.name} is not in {path.parent} and", by_hand)
            found = md5_of(part)
            if found != md5:
                part.unlink()
                raise InputError(
                    f"what {url} sent has MD5 {found} instead of {md5} and was deleted: try again, or {by_hand}"
                )
            os.replace(part, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): make room or choose another cache folder"
        ) from error


def _fetch_part(url: str, part: Path, why: str, by_hand: str) -> None:
    """Fetches to `part`, connecting again where a connection breaks; `why` and `by_hand` are for the messages."""
    for attempt in range(1, _ATTEMPTS + 1):
        before = part.stat().st_size if part.exists() else 0
        try:
            if _transfer(url, part, before):
                return
            reason = "the server closed the connection"
        except requests.HTTPError as error:
            assert error.response is not None  # it is what raised the error
            status = f"{error.response.status_code} {error.response.reason}".strip()
            raise InputError(f"{why} {url} answered {status}: check the address, or {by_hand}") from error
        except requests.RequestException as error:
            reason = "no connection" if isinstance(error, requests.ConnectionError) else "the connection broke"
        after = part.stat().st_size if part.exists() else 0
        if after <= before or attempt == _ATTEMPTS:
            break
    if after:
        raise InputError(
            f"the download of {url} stopped after {after} bytes ({reason}): "
            f"run the same again to take it up there, or {by_hand}"
        )
    raise InputError(f"{why} cannot be fetched ({reason}): {by_hand}, or connect to the network")


def _transfer(url: str, part: Path, start: int) -> bool:
    """Appends to `part`, which has `start` bytes, what is missing; whether it is then as long as the server says."""
    headers = {"Accept-Encoding": "identity"}  # a compressed answer would have other byte positions
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        if answer.status_code == 416 and start:
            # Nothing is left to send, so the part is whole. If it is too long or of another file, the checksum tells.
            return True
        answer.raise_for_status()
        if answer.status_code != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            if answer.status_code == 206:
                raise requests.RequestException("the server sent another range than was asked for")
            start = 0  # the server does not do ranges and starts again
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdigit() else None
        with (
            open(part, "ab" if start else "wb") as file,
            Progress(total, part.stem, "B", initial=start, scaled=True) as progress,
        ):
            for piece in answer.iter_content(_PIECE):
                file.write(piece)
                progress.update(len(piece))
            return total is None or file.tell() == total
