"""What the loopback Hub must refuse, and the parts of its protocol that no other test looks at."""

from __future__ import annotations

import http.client
import json

import pytest
from loopback_hub import LoopbackHub, User


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path, {"mine": User("me"), "other": User("you")}) as hub:
        repo = hub.repo("dataset", "me/set")
        repo.create(private=True, sdk=None)
        head, oid = repo.resolve("main"), "0" * 64
        hub.store.add_lfs(oid, b"0123456789")
        files = {**repo.commit(head)["files"], "data/a.parquet": {"size": 10, "oid": "1" * 40, "lfs": oid}}
        repo.set_state(branches={"main": repo.add_commit(head, "rows", files)})
        yield hub


def ask(hub, method: str, path: str, token: str | None = "mine", body: str | None = None, **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=30)
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, answer.headers


@pytest.mark.parametrize(
    ("token", "status", "code"), [("mine", 200, None), ("other", 404, "RepoNotFound"), (None, 401, "RepoNotFound")]
)
def test_private_means_private(hub, token, status, code):
    for path in ("/api/datasets/me/set", "/api/datasets/me/set/tree/main", "/api/datasets/me/set/refs"):
        found, _, headers = ask(hub, "GET", path, token)
        assert (found, headers["X-Error-Code"]) == (status, code)


def test_a_token_that_nobody_has(hub):
    status, _, headers = ask(hub, "GET", "/api/whoami-v2", "made-up")
    assert status == 401 and headers["X-Error-Message"] == "Invalid credentials in Authorization header"


def test_others_may_read_but_not_write_what_is_public(hub):
    hub.repo("dataset", "me/set").set_state(private=False)
    assert ask(hub, "GET", "/api/datasets/me/set", "other")[0] == 200
    assert ask(hub, "POST", "/api/datasets/me/set/commit/main", "other", "{}")[0] == 403


def test_large_files_are_elsewhere_and_may_be_read_in_parts(hub):
    status, _, headers = ask(hub, "HEAD", "/datasets/me/set/resolve/main/data/a.parquet")
    assert (status, headers["X-Linked-Size"], headers["X-Linked-Etag"]) == (302, "10", f'"{"0" * 64}"')
    host, _, path = headers["Location"].removeprefix("http://").partition("/")
    assert host == f"localhost:{hub.port}"
    for asked, status, content in (("bytes=2-4", 206, b"234"), ("bytes=7-", 206, b"789"), ("bytes=-2", 206, b"89"),
                                   ("bytes=10-", 416, b"")):  # fmt: skip
        assert ask(hub, "GET", f"/{path}", None, Range=asked)[:2] == (status, content)
    assert ask(hub, "GET", f"/{path}")[0] == 400  # with a token
    assert ask(hub, "GET", f"/{path.replace('signature=', 'signature=0')}", None)[0] == 403


def test_a_commit_on_another_parent_is_refused(hub):
    lines = [{"key": "header", "value": {"summary": "late", "parentCommit": "2" * 40}}]
    body = "\n".join(map(json.dumps, lines))
    assert ask(hub, "POST", "/api/datasets/me/set/commit/main", body=body)[0] == 412
    assert hub.repo("dataset", "me/set").history() == ["rows", "initial commit"]


def test_revisions_paths_and_tags(hub):
    assert ask(hub, "POST", "/api/datasets/me/set/tag/main", body='{"tag": "v1"}')[0] == 200
    assert ask(hub, "POST", "/api/datasets/me/set/tag/main", body='{"tag": "v1"}')[0] == 409
    assert json.loads(ask(hub, "GET", "/api/datasets/me/set/refs")[1])["tags"][0]["name"] == "v1"
    assert ask(hub, "GET", "/api/datasets/me/set/revision/v2")[2]["X-Error-Code"] == "RevisionNotFound"
    assert ask(hub, "GET", "/datasets/me/set/resolve/v1/none")[2]["X-Error-Code"] == "EntryNotFound"
    _, content, _ = ask(hub, "POST", "/api/datasets/me/set/paths-info/v1", body="paths=data&paths=none")
    assert [(entry["type"], entry["path"]) for entry in json.loads(content)] == [("directory", "data")]
    assert ask(hub, "DELETE", "/api/datasets/me/set/tag/v1")[0] == 200
    assert json.loads(ask(hub, "GET", "/api/datasets/me/set/refs")[1])["tags"] == []
    assert ask(hub, "DELETE", "/api/repos/delete", body='{"name": "set", "type": "dataset"}')[0] == 200
    assert ask(hub, "GET", "/api/datasets/me/set")[0] == 404
