"""Uploads finished repositories to the Hub: all of a repository in one commit, and nothing where nothing changed.

The token comes from where huggingface_hub looks for it (the variable `HF_TOKEN`, `hf auth login`); no message has it.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypedDict, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from histodistill.hub_cards.part_files import PARTS, hash_contents, matches
from histodistill.hub_cards.set_record import SET_RECORD, set_fingerprint


# What a function that is tried again returns.
T = TypeVar("T")

#: A card with this tag is one that histodistill wrote.
MARK = "histodistill"
#: What a repository of each kind may hold, and no other file is ever uploaded. `*` does not stand for `/`.
ALLOWED = {
    "pipeline": (
        "README.md",
        "assets/distilled.png",
        *PARTS["pipeline"].published,
    ),
    "selector": ("README.md", "assets/community_map.png", *PARTS["selector"].published),
    "dataset": ("README.md", SET_RECORD, "assets/distilled.png", "assets/community_map.png", "data/train-*.parquet"),
    "metric": ("README.md", "index.html", "requirements.txt", "*.py"),
}
#: What the Hub calls a repository of each kind.
REPO_TYPES = {"pipeline": "model", "selector": "model", "dataset": "dataset", "metric": "space"}


class PublishError(Exception):
    """Something stands in the way of publishing; the message is one sentence."""


@dataclass(frozen=True)
class Upload:
    """One repository as it is to be.

    Attributes:
        kind: A key of `ALLOWED`.
        repo_id: `namespace/name`.
        files: Path in the repository → content: bytes that were checked, and no file that could change before it goes
            up. One must be `README.md`, with the tag `MARK` in its header.

    Raises:
        TypeError: For a content that is not bytes.
        ValueError: For a file that a repository of this kind may not hold, or without a card.
    """

    kind: str
    repo_id: str
    files: Mapping[str, bytes]

    def __post_init__(self) -> None:
        # A copy that nobody changes: what was checked is what goes up.
        object.__setattr__(self, "files", MappingProxyType(dict(self.files)))
        for path, content in self.files.items():
            if type(content) is not bytes:
                raise TypeError(f"{path} is no bytes: read it first")
            if not is_allowed(self.kind, path):
                raise ValueError(f"{path} may not be published in a {self.kind} repository")
        if "README.md" not in self.files:
            raise ValueError(f"{self.repo_id} has no card: add README.md")

    @property
    def repo_type(self) -> str:
        """What the Hub calls the kind."""
        return REPO_TYPES[self.kind]

    @property
    def fingerprint(self) -> str:
        """What `histodistill verify` shows of these files: see `set_fingerprint`."""
        return set_fingerprint(hash_contents(self.files))

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, the card first."""
        names = sorted(self.files, key=lambda name: (name != "README.md", name))
        return {name: len(self.files[name]) for name in names}


@dataclass(frozen=True)
class Published:
    """What became of an upload.

    Attributes:
        upload: The upload.
        url: Address of the repository.
        commit: Its newest commit.
        status: "created", "updated" or "unchanged".
    """

    upload: Upload
    url: str
    commit: str
    status: str


class _Where(TypedDict):
    """What each call of the Hub takes to name a repository."""

    repo_id: str
    repo_type: str


@dataclass(frozen=True)
class _State:
    """What a repository holds before the commit: its newest commit, files by path, and what the tag points to."""

    commit: str
    files: Mapping[str, RepoFile]
    private: bool
    tagged: str | None
    is_new: bool


def is_allowed(kind: str, path: str) -> bool:
    """Whether a repository of this kind may hold a file."""
    return matches(path, ALLOWED[kind])


def publish(uploads: Sequence[Upload], *, public: bool = False, tag: str | None = None) -> Iterator[Published]:
    """Creates or updates repositories, one after the other; each is complete when it is yielded.

    All are looked at before anything is uploaded. A repository changes by one commit, on top of what was looked at;
    files that this kind of repository may hold and that are not in the upload are deleted by it, others stay. A new
    repository is private until its commit is there.

    Args:
        uploads: What to upload.
        public: Whether everybody may see the repositories. Without it, a repository that is public already is refused.
        tag: A tag to be set to the commit.

    Raises:
        PublishError: What stands in the way. What was yielded before stays; the same call again goes on.
    """
    api = HfApi()
    _check_namespaces(api, uploads)
    states = [_call(upload.repo_id, partial(_prepare, api, upload, tag)) for upload in uploads]
    for upload, state in zip(uploads, states, strict=True):
        _check_state(upload, state, public, tag)
    for upload, state in zip(uploads, states, strict=True):
        yield _call(upload.repo_id, partial(_push, api, upload, state, public, tag))


def _check_namespaces(api: HfApi, uploads: Sequence[Upload]) -> None:
    me = _call(None, api.whoami)
    mine = [me["name"], *(org["name"] for org in me.get("orgs", []))]
    for upload in uploads:
        namespace = upload.repo_id.split("/")[0]
        if namespace not in mine:
            raise PublishError(
                f"the token belongs to {me['name']}, who has no rights in {namespace!r}: give one of "
                f"{', '.join(mine)} as `namespace`, or use another token"
            )


def _prepare(api: HfApi, upload: Upload, tag: str | None) -> _State:
    """Makes the repository where there is none, and tells what it holds."""
    where: _Where = {"repo_id": upload.repo_id, "repo_type": upload.repo_type}
    is_new = False
    try:
        info = api.repo_info(**where)
    except RepositoryNotFoundError:
        try:
            api.create_repo(**where, private=True, space_sdk="static" if upload.kind == "metric" else None)
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code == 409:
                raise PublishError(
                    f"the name {upload.repo_id} is taken by a repository of another type: give another `name`"
                ) from error
            raise
        info, is_new = api.repo_info(**where), True
    assert info.sha is not None  # the Hub leaves it out only where other fields are asked for
    entries = api.list_repo_tree(**where, recursive=True, revision=info.sha)
    files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    if not is_new and not _is_ours(getattr(info, "tags", None), files):
        raise PublishError(
            f"{upload.repo_id} holds something that histodistill did not make: give another `name`, or delete it"
        )
    tagged = None
    if tag is not None:
        tagged = {ref.name: ref.target_commit for ref in api.list_repo_refs(**where).tags}.get(tag)
    return _State(info.sha, files, bool(info.private), tagged, is_new)


def _is_ours(tags: Sequence[str] | None, files: Mapping[str, RepoFile]) -> bool:
    # One that was killed between its creation and its first commit has only the Hub's own file.
    return MARK in (tags or []) or set(files) <= {".gitattributes"}


def _check_state(upload: Upload, state: _State, public: bool, tag: str | None) -> None:
    if not public and not state.private:
        raise PublishError(f"{upload.repo_id} is public already: add `public` to update it, or make it private first")
    if state.tagged is not None and (state.tagged != state.commit or _operations(upload, state)):
        raise PublishError(
            f"the tag {tag} of {upload.repo_id} stands for another version: give another `revision_tag`"
        )


def _operations(upload: Upload, state: _State) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What a commit has to do; nothing where the repository is as it should be."""
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for path, content in upload.files.items():
        if path not in state.files or not _is_same(state.files[path], content):
            operations.append(CommitOperationAdd(path, content))
    for path in state.files:
        if path not in upload.files and is_allowed(upload.kind, path):
            operations.append(CommitOperationDelete(path))
    return operations


def _is_same(entry: RepoFile, data: bytes) -> bool:
    if entry.size != len(data):
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == hashlib.sha256(data).hexdigest()
    return entry.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # git's own


def _push(api: HfApi, upload: Upload, state: _State, public: bool, tag: str | None) -> Published:
    where: _Where = {"repo_id": upload.repo_id, "repo_type": upload.repo_type}
    operations, commit, status = _operations(upload, state), state.commit, "unchanged"
    if operations:
        is_first = set(state.files) <= {".gitattributes"}
        message = f"{'Publish' if is_first else 'Update'} with histodistill"
        commit = api.create_commit(
            **where, operations=operations, commit_message=message, parent_commit=state.commit
        ).oid
        status = "created" if is_first else "updated"
    if tag is not None and state.tagged is None:
        api.create_tag(**where, tag=tag, revision=commit)
    if public and state.private:
        api.update_repo_settings(**where, private=False)
    prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}[upload.repo_type]
    return Published(upload, f"{api.endpoint}/{prefix}{upload.repo_id}", commit, status)


def _call(repo_id: str | None, function: Callable[[], T]) -> T:
    """Calls a function that talks to the Hub; whatever goes wrong becomes one sentence."""
    try:
        return function()
    except LocalTokenNotFoundError as error:
        raise PublishError("there is no token: set HF_TOKEN, or log in with `hf auth login`") from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise PublishError(_sentence(repo_id or "the account", error)) from error


def _sentence(what: str, error: Exception) -> str:
    """What went wrong and what to do about it, without addresses, tokens and request ids."""
    # An upload in a thread arrives wrapped.
    cause: Any = error
    while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
        cause = cause.__cause__
    again = "run the same command again to go on"
    if isinstance(cause, OfflineModeIsEnabled):
        return "the Hub cannot be reached, for HF_HUB_OFFLINE is set: unset it"
    response = getattr(cause, "response", None) if isinstance(cause, HfHubHTTPError) else None
    if response is None:
        if isinstance(cause, HTTPError | ConnectionError):
            return f"the Hub cannot be reached or broke off ({type(cause).__name__}): check the network, then {again}"
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return f"the disk is full: make room, then {again}"
        reason = " ".join(str(cause).split()) or type(cause).__name__
        return f"{what} cannot be published ({reason[:300]}): mend this, then {again}"
    status = response.status_code
    if status == 401:
        return "the Hub does not know the token: set HF_TOKEN to a valid one, or log in with `hf auth login`"
    if status == 403:
        return f"the token has no right to write to {what}: use one with write access to it"
    if status == 404:
        return f"{what} is not there any more, or the token may not see it: {again}"
    if status == 409:
        return f"{what} was changed by somebody else at the same time: {again}"
    if status == 412:
        return f"{what} was changed by somebody else in the meantime: look at it, then {again}"
    if status in (402, 413, 507):
        return f"the Hub has no room for {what} (status {status}): free storage of the account, then {again}"
    if status == 429:
        return f"the Hub asks to be left alone for a while (status 429): wait, then {again}"
    if status >= 500:
        return f"the Hub failed over {what} (status {status}): {again}"
    message = response.headers.get("X-Error-Message", "")
    return f"the Hub refused {what} (status {status}{f', {message}' if message else ''}): mend this, then {again}"
