"""The HTTP side of the loopback Hub: `http.server`, one thread for each connection."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from loopback_hub.card_rules import card_errors, read_header
from loopback_hub.faults import Fault
from loopback_hub.store import DATE, Repo, Store, git_oid, is_large


@dataclass
class User:
    """Whom a token belongs to.

    Attributes:
        name: of the user.
        orgs: organisations whose repositories the user may read, and write if `can_write`.
        can_write: False for a token that may only read.
    """

    name: str
    orgs: list[str] = field(default_factory=list)
    can_write: bool = True


class HubError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str | None = None, **details: str):
        super().__init__(message)
        self.status, self.message, self.code, self.details = status, message, code, details


class LoopbackHub:
    """A Hub on 127.0.0.1, to be used as a context manager.

    Args:
        root: folder for the repositories.
        users: token → user.

    Attributes:
        url: the endpoint.
        store: the repositories.
        faults: what goes wrong; emptied by `reset`.
        requests: method and path of every request since `reset`.
        unknown: requests that no route answers: a client did something that this Hub does not know.
        one_namespace: whether a name can belong to one type of repository only.
    """

    def __init__(self, root: Path, users: dict[str, User]):
        self.store, self.users = Store(Path(root)), users
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.unknown: list[tuple[str, str]] = []
        self.one_namespace = False
        self.lock = threading.RLock()
        self.secret = secrets.token_bytes(16)
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # Large files come from another host, as they do on the Hub: clients must not send it their token.
        self.storage_url = f"http://localhost:{self.port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self.faults:
            fault.release.set()
        self._server.shutdown()
        self._server.server_close()

    def reset(self, *faults: Fault) -> None:
        """Forgets the requests, and lets these faults happen from now on."""
        with self.lock:
            self.faults, self.requests = list(faults), []

    def repo(self, kind: str, repo_id: str) -> Repo:
        return self.store.repo(kind, repo_id)

    def environment(self, home: Path, token: str | None) -> dict[str, str]:
        """Environment variables that lead clients to this Hub, and nowhere else."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            # No certificates are needed here, and reading all of them takes longer than a request.
            "SSL_CERT_DIR": str(home),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        return variables if token is None else {**variables, "HF_TOKEN": token}

    def signature(self, oid: str) -> str:
        return hmac.new(self.secret, oid.encode(), hashlib.sha256).hexdigest()[:32]


_TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
_API = r"/api/(?P<type>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>[^/]+)"
_RESOLVE = rf"(?P<prefix>/datasets|/spaces)?/(?P<id>[^/]+/[^/]+)/resolve/{_REVISION}/(?P<path>.+)"
_ROUTES: list[tuple[str, re.Pattern[str], str]] = []


def _route(method: str, pattern: str) -> Callable:
    def register(function: Callable) -> Callable:
        _ROUTES.append((method, re.compile(pattern), function.__name__))
        return function

    return register


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One packet for each answer; several would wait for each other.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    hub: LoopbackHub

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        self.body = self.answered = None
        hub, where = self.hub, urlsplit(self.path)
        with hub.lock:
            hub.requests.append((self.command, self.path))
            fault = next((f for f in hub.faults if f.meets(self.command, self.path)), None)
        if fault and fault.how == "cut":
            return self._cut()
        if fault and fault.how == "hold":
            fault.release.wait(60)
            return self._cut()
        if fault and fault.how == "slow":
            fault.release.wait(fault.seconds)
        self.body = self._read_body()
        if fault and fault.how == "status":
            return self._json({"error": "a fault on demand"}, fault.status, fault.headers)
        self.query = parse_qs(where.query)
        try:
            for method, pattern, name in _ROUTES:
                found = pattern.fullmatch(where.path)
                if found and method in (self.command, "GET" if self.command == "HEAD" else None):
                    parts = {key: unquote(value) for key, value in found.groupdict().items() if value}
                    with hub.lock:
                        answer = getattr(self, name)(**parts)
                    break
            else:
                hub.unknown.append((self.command, self.path))
                raise HubError(404, "no such page")
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            if error.code:
                headers["X-Error-Code"] = error.code
            answer = ({"error": error.message, **error.details}, error.status, headers)
        if fault and fault.how in ("cut after", "hold after"):
            if fault.how == "hold after":
                fault.reached.set()
                fault.release.wait(60)
            return self._cut()
        if isinstance(answer, dict | list):
            answer = (answer, 200, {})
        if isinstance(answer[0], bytes):
            self._bytes(*answer)
        else:
            self._json(*answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client may be gone
            self.connection.shutdown(socket.SHUT_RDWR)

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        headers = {"Content-Type": "application/json", **(headers or {})}
        self._bytes(json.dumps(value).encode(), status, headers)

    def _bytes(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Who asks, and what for.

    def _user(self) -> User | None:
        """Whose token it is; None without one. Raises HubError for one that nobody has."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not token:
            return None
        if token not in self.hub.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.users[token]

    def _owns(self, user: User | None, namespace: str) -> bool:
        return user is not None and namespace in (user.name, *user.orgs)

    def _open(self, kind: str, repo_id: str, write: bool = False) -> Repo:
        """A repository that the asker may see, or change if `write`."""
        user, repo = self._user(), self.hub.repo(kind, repo_id)
        owns = self._owns(user, repo_id.split("/")[0])
        if not repo.exists or (repo.state["private"] and not owns):
            # Without a token the Hub does not say whether there is one.
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and not (owns and user.can_write):
            raise HubError(403, "you don't have the rights to write to this repository")
        return repo

    def _at(self, repo: Repo, revision: str) -> str:
        oid = repo.resolve(revision)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    # The API.

    @_route("GET", "/api/whoami-v2")
    def whoami(self) -> dict:
        user = self._user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        role = "write" if user.can_write else "read"
        return {
            "type": "user",
            "name": user.name,
            "orgs": [{"type": "org", "name": name} for name in user.orgs],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": role}},
        }

    @_route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> tuple:
        asked = json.loads(self.body)
        errors, warnings = card_errors(asked["content"], asked["repoType"])
        answer = {
            "errors": [{"message": text} for text in errors],
            "warnings": [{"message": text} for text in warnings],
        }
        return answer, 400 if errors else 200, {}

    @_route("POST", "/api/repos/create")
    def create(self) -> dict:
        asked, user = json.loads(self.body), self._user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        kind = asked.get("type") or "model"
        namespace = asked.get("organization") or user.name
        repo_id = f"{namespace}/{asked['name']}"
        if not self._owns(user, namespace) or not user.can_write:
            raise HubError(403, f"You don't have the rights to create a {kind} under the namespace {namespace!r}")
        kinds = _TYPES.values() if self.hub.one_namespace else [kind]
        url = f"{self.hub.url}/{_prefix(kind)}{repo_id}"
        if any(self.hub.repo(other, repo_id).exists for other in kinds):
            raise HubError(409, f"You already created this {kind} repo", url=url)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repo(kind, repo_id).create(private, asked.get("sdk"))
        return {"url": url, "name": repo_id, "id": repo_id}

    @_route("DELETE", "/api/repos/delete")
    def delete(self) -> dict:
        asked = json.loads(self.body)
        namespace = asked.get("organization") or self._user().name
        self._open(asked.get("type") or "model", f"{namespace}/{asked['name']}", write=True).delete()
        return {}

    @_route("PUT", f"{_API}/settings")
    def settings(self, type: str, id: str) -> dict:
        asked, repo = json.loads(self.body), self._open(_TYPES[type], id, write=True)
        repo.set_state(private=asked.get("visibility") == "private")
        return {"private": repo.state["private"]}

    @_route("GET", _API)
    def info(self, type: str, id: str, revision: str = "main") -> dict:
        repo = self._open(_TYPES[type], id)
        oid = self._at(repo, revision)
        files = repo.commit(oid)["files"]
        card = {}
        if "README.md" in files:
            card = read_header(repo.read(files["README.md"]).decode()) or {}
        tags = [*card.get("tags", []), *([f"license:{card['license']}"] if "license" in card else [])]
        siblings = [{"rfilename": path, **self._sizes(entry)} for path, entry in files.items()]
        return {
            "id": id, "author": id.split("/")[0], "sha": oid, "private": repo.state["private"], "gated": False,
            "disabled": False, "tags": tags, "cardData": card, "siblings": siblings, "lastModified": DATE,
            "createdAt": DATE, **{key: card[key] for key in ("library_name", "pipeline_tag") if key in card},
        }  # fmt: skip

    def _sizes(self, entry: dict) -> dict:
        if "blobs" not in self.query:
            return {}
        lfs = {"lfs": {"sha256": entry["lfs"], "size": entry["size"], "pointerSize": 130}} if "lfs" in entry else {}
        return {"size": entry["size"], "blobId": entry["oid"], **lfs}

    @_route("GET", f"{_API}/revision/{_REVISION}")
    def revision_info(self, type: str, id: str, revision: str) -> dict:
        return self.info(type, id, revision)

    @_route("GET", f"{_API}/refs")
    def refs(self, type: str, id: str) -> dict:
        state = self._open(_TYPES[type], id).state

        def listed(names: dict[str, str], folder: str) -> list[dict]:
            return [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": oid} for name, oid in names.items()]

        return {"branches": listed(state["branches"], "heads"), "tags": listed(state["tags"], "tags"), "converts": []}

    @_route("POST", f"{_API}/tag/{_REVISION}")
    def tag(self, type: str, id: str, revision: str) -> dict:
        repo, name = self._open(_TYPES[type], id, write=True), json.loads(self.body)["tag"]
        oid, tags = self._at(repo, revision), repo.state["tags"]
        if name in tags:
            raise HubError(409, f"Tag reference exists already: {name}")
        repo.set_state(tags={**tags, name: oid})
        return {}

    @_route("DELETE", f"{_API}/tag/{_REVISION}")
    def delete_tag(self, type: str, id: str, revision: str) -> dict:
        repo = self._open(_TYPES[type], id, write=True)
        tags = repo.state["tags"]
        if revision not in tags:
            raise HubError(404, "no such tag", "RevisionNotFound")
        del tags[revision]
        repo.set_state(tags=tags)
        return {}

    # Uploading.

    @_route("POST", f"{_API}/preupload/{_REVISION}")
    def preupload(self, type: str, id: str, revision: str) -> dict:
        repo = self._open(_TYPES[type], id, write=True)
        known = repo.commit(self._at(repo, revision))["files"]
        files = []
        for file in json.loads(self.body)["files"]:
            entry = known.get(file["path"], {})
            mode = "lfs" if is_large(file["path"]) else "regular"
            base64.b64decode(file["sample"], validate=True)
            oid = entry.get("lfs") or entry.get("oid")
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    @_route("POST", r"/(?P<prefix>datasets/|spaces/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
    def lfs_batch(self, id: str, prefix: str = "models/") -> tuple:
        self._open(_TYPES[prefix[:-1]], id, write=True)
        asked, objects = json.loads(self.body), []
        assert asked["operation"] == "upload" and asked["hash_algo"] == "sha256"
        for item in asked["objects"]:
            if not self.hub.store.has_lfs(item["oid"]):
                href = f"{self.hub.storage_url}/storage/{item['oid']}?signature={self.hub.signature(item['oid'])}"
                verify = f"{self.hub.url}/{prefix.removeprefix('models/')}{id}.git/info/lfs/verify"
                item["actions"] = {"upload": {"href": href}, "verify": {"href": verify}}
            objects.append(item)
        return {"transfer": "basic", "objects": objects}, 200, {"Content-Type": "application/vnd.git-lfs+json"}

    @_route("PUT", "/storage/(?P<oid>[0-9a-f]{64})")
    def put_lfs(self, oid: str) -> dict:
        self._check_storage(oid)
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "the content has another checksum")
        self.hub.store.add_lfs(oid, self.body)
        return {}

    @_route("POST", r"/(?P<prefix>datasets/|spaces/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs/verify")
    def verify_lfs(self, id: str, prefix: str = "models/") -> dict:
        self._open(_TYPES[prefix[:-1]], id, write=True)
        if not self.hub.store.has_lfs(json.loads(self.body)["oid"]):
            raise HubError(404, "no such object")
        return {}

    @_route("POST", f"{_API}/commit/{_REVISION}")
    def commit(self, type: str, id: str, revision: str) -> dict:
        repo = self._open(_TYPES[type], id, write=True)
        head = self._at(repo, revision)
        files = repo.commit(head)["files"]
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, head):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            self._apply(repo, files, line["key"], line["value"])
        if "README.md" in files:
            errors, _ = card_errors(repo.read(files["README.md"]).decode(), repo.kind)
            if errors:
                raise HubError(400, "; ".join(errors))
        oid = repo.add_commit(head, header["summary"], files)
        repo.set_state(branches={**repo.state["branches"], revision: oid})
        url = f"{self.hub.url}/{_prefix(repo.kind)}{id}/commit/{oid}"
        return {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""}

    def _apply(self, repo: Repo, files: dict[str, dict], key: str, value: dict) -> None:
        """Does one operation of a commit to its files."""
        path = value["path"]
        if key == "file":
            files[path] = repo.add_blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if not self.hub.store.has_lfs(value["oid"]):
                raise HubError(400, f"the content of {path} has not been uploaded")
            size = (repo.lfs / value["oid"]).stat().st_size
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\nsize {size}\n"
            files[path] = {"size": size, "oid": git_oid(pointer.encode()), "lfs": value["oid"]}
        else:
            folder = f"{path.rstrip('/')}/"
            gone = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(folder))]
            if not gone:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            for name in gone:
                del files[name]

    # Reading.

    @_route("GET", rf"{_API}/tree/{_REVISION}(/(?P<path>.+))?")
    def tree(self, type: str, id: str, revision: str, path: str = "") -> list:
        repo = self._open(_TYPES[type], id)
        files = repo.commit(self._at(repo, revision))["files"]
        inside = f"{path.rstrip('/')}/" if path else ""
        found = self._entries({name: entry for name, entry in files.items() if name.startswith(inside)})
        if path and not found:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        below = [entry for entry in found if entry["path"].startswith(inside) and entry["path"] != path]
        return [entry for entry in below if recursive or "/" not in entry["path"][len(inside) :]]

    @_route("POST", f"{_API}/paths-info/{_REVISION}")
    def paths_info(self, type: str, id: str, revision: str) -> list:
        repo = self._open(_TYPES[type], id)
        files = repo.commit(self._at(repo, revision))["files"]
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        return [entry for entry in self._entries(files) if entry["path"] in paths]

    def _entries(self, files: dict[str, dict]) -> list[dict]:
        """Files and all folders that hold them."""
        last = {"lastCommit": {"id": "0" * 40, "title": "a commit", "date": DATE}}
        entries = {}
        for path, entry in files.items():
            lfs = {"lfs": {"oid": entry["lfs"], "size": entry["size"], "pointerSize": 130}} if "lfs" in entry else {}
            entries[path] = {
                "type": "file", "path": path, "size": entry["size"], "oid": entry["oid"], **lfs, **last,
            }  # fmt: skip
            for parent in Path(path).parents[:-1]:
                oid = hashlib.sha1(str(parent).encode()).hexdigest()
                entries[str(parent)] = {"type": "directory", "path": str(parent), "size": 0, "oid": oid, **last}
        return list(entries.values())

    @_route("GET", _RESOLVE)
    def resolve(self, id: str, revision: str, path: str, prefix: str = "/models") -> tuple:
        repo = self._open(_TYPES[prefix[1:]], id)
        oid = self._at(repo, revision)
        entry = repo.commit(oid)["files"].get(path)
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if "lfs" not in entry:
            return self._part(repo.read(entry), {**headers, "ETag": f'"{entry["oid"]}"'})
        headers |= {"X-Linked-Etag": f'"{entry["lfs"]}"', "X-Linked-Size": str(entry["size"])}
        signature = self.hub.signature(entry["lfs"])
        name = quote(Path(path).name)
        headers["Location"] = f"{self.hub.storage_url}/storage/{entry['lfs']}?signature={signature}&name={name}"
        return b"", 302, headers

    @_route("GET", "/storage/(?P<oid>[0-9a-f]{64})")
    def get_lfs(self, oid: str) -> tuple:
        self._check_storage(oid)
        data = (self.hub.store.root / "lfs" / oid).read_bytes()
        return self._part(data, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _check_storage(self, oid: str) -> None:
        if self.query.get("signature") != [self.hub.signature(oid)]:
            raise HubError(403, "the address is not signed")
        if "Authorization" in self.headers:
            raise HubError(400, "only one auth mechanism is allowed, and a token must not come here")

    def _part(self, data: bytes, headers: dict[str, str]) -> tuple:
        """The bytes that the header Range asks for, all without one."""
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return data, 200, headers
        first, last = asked.groups()
        if not first:
            start, stop = max(0, len(data) - int(last)), len(data)
        else:
            start, stop = int(first), min(len(data), int(last) + 1 if last else len(data))
        if start >= len(data):
            return b"", 416, {**headers, "Content-Range": f"bytes */{len(data)}"}
        return data[start:stop], 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}


def _prefix(kind: str) -> str:
    return {"model": "", "dataset": "datasets/", "space": "spaces/"}[kind]
