"""Repositories on disk: commits that are written whole, branches and tags that are moved in one step.

ROOT/lfs/SHA256                                   contents of large files, shared by all repositories
ROOT/TYPE/NAMESPACE/NAME/repo.json                visibility, branches, tags
ROOT/TYPE/NAMESPACE/NAME/commits/OID.json         parent, message, and the files of a commit
ROOT/TYPE/NAMESPACE/NAME/blobs/OID                contents of regular files
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any


GITATTRIBUTES = b"".join(
    f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n".encode()
    for kind in ("bin", "jpg", "npz", "parquet", "png", "safetensors")
)
DATE = "2024-01-02T03:04:05.000Z"


def git_oid(data: bytes) -> str:
    """What git calls a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(path: str) -> bool:
    """Whether a file goes to the large file storage."""
    return f"*.{path.rpartition('.')[2]} ".encode() in GITATTRIBUTES


@dataclass
class Repo:
    """One repository.

    Attributes:
        kind: "model", "dataset" or "space".
        id: `namespace/name`.
        folder: where it is kept.
        lfs: the shared storage of large files.
    """

    kind: str
    id: str
    folder: Path
    lfs: Path

    @property
    def exists(self) -> bool:
        return (self.folder / "repo.json").is_file()

    @property
    def state(self) -> dict[str, Any]:
        """`private`, `sdk`, `branches` and `tags`, the last two name → commit."""
        return json.loads((self.folder / "repo.json").read_text())

    def set_state(self, **changes: Any) -> None:
        _write(self.folder / "repo.json", json.dumps({**self.state, **changes}).encode())

    def create(self, private: bool, sdk: str | None) -> None:
        """Makes the repository, with a first commit as the Hub does."""
        (self.folder / "commits").mkdir(parents=True)
        (self.folder / "blobs").mkdir()
        files = {".gitattributes": self.add_blob(GITATTRIBUTES)}
        first = self.add_commit(None, "initial commit", files)
        state = {"private": private, "sdk": sdk, "branches": {"main": first}, "tags": {}}
        _write(self.folder / "repo.json", json.dumps(state).encode())

    def delete(self) -> None:
        shutil.rmtree(self.folder)

    def add_blob(self, data: bytes) -> dict[str, Any]:
        """Keeps a regular file; returns its entry in a commit."""
        oid = git_oid(data)
        _write(self.folder / "blobs" / oid, data)
        return {"size": len(data), "oid": oid}

    def add_commit(self, parent: str | None, summary: str, files: dict[str, dict[str, Any]]) -> str:
        """Writes a commit to which no branch points yet; returns its oid."""
        commit = {"parent": parent, "summary": summary, "files": files}
        data = json.dumps(commit).encode()
        number = len(list((self.folder / "commits").iterdir()))
        oid = hashlib.sha1(b"%d" % number + data).hexdigest()
        _write(self.folder / "commits" / f"{oid}.json", data)
        return oid

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit id."""
        state = self.state
        names = {**state["tags"], **state["branches"]}
        for prefix in ("refs/heads/", "refs/tags/"):
            revision = revision.removeprefix(prefix)
        if revision in names:
            return names[revision]
        return revision if (self.folder / "commits" / f"{revision}.json").is_file() else None

    def commit(self, oid: str) -> dict[str, Any]:
        return json.loads((self.folder / "commits" / f"{oid}.json").read_text())

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Contents of all files of a revision, `.gitattributes` left out; for tests."""
        entries = self.commit(self.resolve(revision))["files"]
        return {path: self.read(entry) for path, entry in entries.items() if path != ".gitattributes"}

    def history(self) -> list[str]:
        """Messages of the commits of main, the newest first; for tests."""
        summaries, oid = [], self.resolve("main")
        while oid:
            commit = self.commit(oid)
            summaries.append(commit["summary"])
            oid = commit["parent"]
        return summaries

    def read(self, entry: dict[str, Any]) -> bytes:
        return self.file_of(entry).read_bytes()

    def file_of(self, entry: dict[str, Any]) -> Path:
        """Where the content of a commit's entry is kept."""
        return self.lfs / entry["lfs"] if "lfs" in entry else self.folder / "blobs" / entry["oid"]


@dataclass
class Store:
    """All repositories below a folder."""

    root: Path

    def repo(self, kind: str, repo_id: str) -> Repo:
        return Repo(kind, repo_id, self.root / kind / repo_id, self.root / "lfs")

    def has_lfs(self, oid: str) -> bool:
        return (self.root / "lfs" / oid).is_file()

    def add_lfs(self, oid: str, data: bytes) -> None:
        _write(self.root / "lfs" / oid, data)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
