"""One owner per folder: who is refused, what a killed owner leaves, and that nothing else is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.part_files import audited_names
from histodistill.training import cli
from histodistill.training.running import claims
from histodistill.training.running.claims import LOCK, claimed, claiming, inherited
from histodistill.training.running.errors import InputError


# Claims a folder, says so, and waits for the end of its input.
OWNER = """
import sys
from pathlib import Path
from histodistill.training.running.claims import claimed

with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    sys.stdin.read()
"""
#: Commands that write to no folder that is named, or only to the cache or the Hub, or all at once under a new name.
CLAIM_NOTHING = {
    "inspect", "publish-metrics", "demo-app", "holds", "cache list", "cache clear", "doctor", "completion", "verify",
    "export",
}  # fmt: skip


@pytest.fixture
def owner():
    """`owner(folder, environment)` starts a process that claims a folder, and returns it once it has."""
    processes = []

    def start(folder: Path, environment: dict[str, str] | None = None) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "claimed\n", process.stderr.read()
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def locks(folder: Path) -> list[Path]:
    return sorted(folder.rglob(LOCK))


def test_a_claim_leaves_nothing(tmp_path):
    with claimed(tmp_path / "a" / "b"):
        assert locks(tmp_path) == [tmp_path / "a" / "b" / LOCK]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["kept"]


@pytest.mark.parametrize("place", ["_alone", "_release"])
def test_a_signal_while_a_claim_is_given_back_leaves_nothing(place, tmp_path, monkeypatch):
    usual, came = getattr(claims, place), []

    def interrupted(*args, **options):
        if not came:
            came.append(place)
            raise KeyboardInterrupt
        return usual(*args, **options)

    @claiming
    def run(config: SimpleNamespace) -> None:
        monkeypatch.setattr(claims, place, interrupted)

    with pytest.raises(KeyboardInterrupt):
        run(SimpleNamespace(claims=lambda: tmp_path / "a"))
    assert came and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("own", "place"),
    [
        ("run", "run"),
        ("run", "link"),
        ("run", "run/pool"),
        ("run", "run/benchmark/infodist"),
        ("run/pool", "run"),
        ("run/benchmark/infodist", "link"),
    ],
)
def test_another_process_is_refused(own, place, owner, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    process = owner(tmp_path / own)
    before = sorted(tmp_path.rglob("*"))
    named = rf"is in use by another process \(.+, process {process.pid}, since .+\)"
    with pytest.raises(InputError, match=named), claimed(tmp_path / place):
        pass
    assert sorted(tmp_path.rglob("*")) == before
    with claimed(tmp_path / "other"):
        pass
    process.communicate("")
    assert locks(tmp_path) == []


def test_another_thread_is_refused_and_this_one_goes_on(tmp_path):
    refused = []

    def other():
        try:
            with claimed(tmp_path):
                pass
        except InputError as error:
            refused.append(error)

    with claimed(tmp_path), claimed(tmp_path), claimed(tmp_path / "pool"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert locks(tmp_path) == [tmp_path / LOCK]
    assert len(refused) == 1


def test_processes_that_the_owner_starts_share_its_claim_and_hold_it_without_it(owner, tmp_path, monkeypatch):
    with claimed(tmp_path):
        inner = owner(tmp_path / "pool", inherited())
        content = (tmp_path / LOCK).read_bytes()
        assert [holder["process"] for holder in json.loads(content)["holders"]] == [os.getpid(), inner.pid]
        done = owner(tmp_path, inherited())
        done.communicate("")
        assert (tmp_path / LOCK).read_bytes() == content
    # As if this process had been killed, and the one that it started goes on.
    record = json.loads(content)
    record["holders"][0]["started"] = 0
    (tmp_path / LOCK).write_text(json.dumps(record))
    with monkeypatch.context() as patch:
        patch.setattr(claims, "_ENDING", 0.2)
        with pytest.raises(InputError, match="is in use"), claimed(tmp_path):
            pass
    # Both were killed, and one takes longer to end.
    threading.Timer(0.5, inner.kill).start()
    with claimed(tmp_path):
        pass
    assert locks(tmp_path) == []


def test_what_a_killed_owner_left_is_taken_over_with_what_it_was_writing(owner, tmp_path, capsys):
    run = tmp_path / "run"
    process = owner(run / "pool")
    half = run / "pool" / ".stage.json.0123456789abcdef.tmp"
    half.write_text("half")
    (run / "pool" / ".new.123.tmp").mkdir()
    (run / "pool" / ".mine.tmp").touch()
    process.send_signal(signal.SIGKILL)
    # Not waited for: a process that nobody has asked after still has its number.
    deadline = time.monotonic() + 60
    while claims._start_of(process.pid) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with claimed(run):
        pass
    assert sorted(path.name for path in run.rglob("*")) == [".mine.tmp", "pool"]
    told = capsys.readouterr().err
    assert told.startswith(f"{run}/pool: what claimed it has ended without a word (") and told.count("\n") == 1


@pytest.mark.parametrize("change", [{"started": 1}, {"process": 2**22 + 1}, {"process": "x"}], ids=str)
def test_a_number_that_another_process_has_now_is_no_owner(change, tmp_path):
    (tmp_path / LOCK).write_text(record_of(change))
    with claimed(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["holders"][0]["process"] == os.getpid()
    assert locks(tmp_path) == []


def record_of(change: dict) -> str:
    holder = claims._this_process() | change
    return json.dumps({"token": "0" * 32, "since": "2026-01-02 03:04", "holders": [holder]})


@pytest.mark.parametrize(
    "content",
    [record_of({"machine": "other", "host": "elsewhere"}), "", "{}", '{"token": 1, "since": 2, "holders": [3]}'],
    ids=["other machine", "empty", "no record", "odd record"],
)
def test_owners_elsewhere_are_told_by_their_sign_of_life(content, tmp_path):
    lock = tmp_path / LOCK
    lock.write_text(content)
    with pytest.raises(InputError) as refused, claimed(tmp_path):
        pass
    assert f"if that has ended, delete {lock}, or wait 10 minutes" in str(refused.value)
    assert not content.startswith('{"token": "0') or " on elsewhere, since 2026-01-02 03:04)" in str(refused.value)
    os.utime(lock, (time.time() - 601,) * 2)
    with claimed(tmp_path):
        assert json.loads(lock.read_text())["holders"][0]["process"] == os.getpid()


def test_an_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_SIGN_OF_LIFE", 0.01)
    with claimed(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        deadline = time.monotonic() + 60
        while (tmp_path / LOCK).stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_of_many_at_once_none_shares_a_folder(tmp_path):
    """Threads know nothing of each other's claims, as processes do not."""
    (tmp_path / LOCK).write_text(record_of({"started": 1}))
    inside, refused, most = [], [], []

    def work():
        for _ in range(20):
            try:
                with claimed(tmp_path / "a" if threading.get_ident() % 2 else tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.001)
                    inside.pop()
            except InputError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) + len(refused) == 160 and set(most) == {1}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/none", "file", "file/none"])
def test_what_cannot_be_claimed_is_told_by_the_step_itself(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with claimed(Path(place)):
        pass
    assert os.listdir() == ["file"]


def test_only_the_main_one_of_several_processes_claims(tmp_path, monkeypatch):
    (tmp_path / LOCK).touch()
    monkeypatch.setenv("RANK", "1")
    with claimed(tmp_path):
        pass


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_which_commands_claim(name):
    module = import_module(f"histodistill.training.{cli.COMMANDS[name].step}")
    assert hasattr(module.run, "__wrapped__") == (name not in CLAIM_NOTHING)


def test_a_claim_is_never_published(tmp_path):
    (tmp_path / "distilled").mkdir()
    with (
        claimed(tmp_path / "distilled"),
        pytest.raises(ContentError, match=r"is being worked on, as .+lock says: wait"),
    ):
        audited_names(tmp_path / "distilled")
