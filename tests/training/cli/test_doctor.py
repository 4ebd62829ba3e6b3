from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from collections import namedtuple
from importlib import metadata
from types import SimpleNamespace

import pytest

from histodistill.training import cli
from histodistill.training.cli import doctor, machine_checks, software_checks
from histodistill.training.running.findings import FAIL, PASS, WARN, Finding


GIB = 2**30
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def nothing_is_asked(monkeypatch):
    """No test needs the network, or sends a token that is on this machine."""

    def refuse(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("requests.head", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", refuse)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


def look_like(monkeypatch, **findings: str) -> None:
    """Every check finds nothing wrong, but those that are named, which find what is said."""
    for module in (software_checks, machine_checks):
        for name in vars(module):
            if name.startswith("check_") and name != "check_disk":
                status = findings.get(name.removeprefix("check_"), PASS)
                found = Finding(name, status, "what it is", "" if status == PASS else "do this")
                monkeypatch.setattr(module, name, lambda found=found, **_: found)


# ------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(("status", "code"), [(PASS, 0), (WARN, 0), (FAIL, 1)])
def test_exit_code_and_lines(status, code, monkeypatch, capsys):
    look_like(monkeypatch, memory=status)
    try:
        cli.main(["doctor"])
    except SystemExit as ended:
        assert ended.code == code
    else:
        assert code == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert [line for line in lines if not line.startswith("PASS")] == (
        [] if status == PASS else [f"{status}  check_memory  what it is: do this"]
    )
    assert last == {PASS: "12 PASS, 0 WARN, 0 FAIL", WARN: "11 PASS, 1 WARN, 0 FAIL"}.get(
        status, "11 PASS, 0 WARN, 1 FAIL"
    )


def test_one_json_object(monkeypatch, capsys):
    look_like(monkeypatch, gpu=WARN)
    cli.main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"PASS": 11, "WARN": 1, "FAIL": 0}
    assert {"name": "check_gpu", "status": "WARN", "found": "what it is", "mend": "do this"} in found["findings"]


def test_what_cannot_be_looked_at_is_a_finding(monkeypatch, capsys):
    look_like(monkeypatch)

    def broken():
        raise ImportError("libnothing.so is missing\nand more")

    monkeypatch.setattr(machine_checks, "check_disks", broken)
    findings = doctor.run(doctor.DoctorConfig())
    assert doctor.exit_code(findings) == 1
    assert "FAIL  Disk        cannot be looked at (libnothing.so is missing): see that" in capsys.readouterr().out


def test_this_machine(monkeypatch):
    """Everything is looked at for real, but for the network; whatever is not as it should be has a mend."""
    monkeypatch.setattr(software_checks, "_import_error", lambda name: "")
    findings = list(doctor.look())
    assert len({finding.name for finding in findings}) == len(findings) == 14
    assert all(bool(finding.mend) == (finding.status != PASS) for finding in findings)
    assert all(finding.line().count("\n") == 0 for finding in findings)
    by_name = {finding.name: finding for finding in findings}
    assert by_name["Python"].status == PASS
    assert by_name["Network"].status == WARN


# ------------------------------------------------------------------------------------------------- software


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(metadata, "metadata", lambda _: {"Requires-Python": ">=9.9"})
    finding = software_checks.check_python()
    assert (finding.status, finding.mend) == (FAIL, "install Python >=9.9 and make a new environment with it")


@pytest.fixture
def needed(monkeypatch):
    """`needed(...)` sets what histodistill needs."""

    def replace(*lines: str) -> None:
        monkeypatch.setattr(metadata, "requires", lambda _: list(lines))

    return replace


def test_libraries_that_are_missing_or_old(needed):
    needed(
        "numpy>=1", "numpy>=99,<100", "no-such-library>=2", "alien>=1; sys_platform == 'nowhere'", "x; extra == 'dp'"
    )
    finding = software_checks.check_libraries()
    version = metadata.version("numpy")
    assert finding.status == FAIL
    assert finding.found == f"numpy {version}, no-such-library is missing"
    assert finding.mend == "run pip install 'numpy<100,>=99' 'no-such-library>=2'"


def test_libraries_that_are_as_needed(needed):
    needed("numpy>=1", "torch")
    finding = software_checks.check_libraries()
    assert finding.status == PASS and finding.found.startswith("all 2 as needed (torch ")


def test_extras(needed):
    needed("torch", "numpy>=1; extra == 'dp'", "no-such-library>=2; extra == 'demo-app'")
    finding = software_checks.check_extras()
    assert finding.status == PASS
    assert finding.found == "dp for --dp-epsilon installed, demo-app for histodistill demo-app not installed"
    needed("torch", "numpy>=99; extra == 'dp'")
    finding = software_checks.check_extras()
    assert (finding.status, finding.mend) == (WARN, "run pip install 'numpy>=99'")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("pass", ""),
        ("raise ImportError('no symbol')", "ImportError: no symbol"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "killed by signal 4"),
    ],
)
def test_a_library_that_ends_the_process(program, reason, tmp_path, monkeypatch):
    (tmp_path / "infomap.py").write_text(program)
    (tmp_path / "faiss.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = software_checks.check_compiled()
    assert finding.status == (FAIL if reason else PASS)
    assert not reason or f"infomap cannot be imported ({reason})" in finding.found
    assert not reason or finding.mend.endswith(" infomap")


def test_a_library_that_hangs(monkeypatch):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert "faiss cannot be imported (not within 60 seconds)" in software_checks.check_compiled().found


def test_offline_by_choice(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    finding = software_checks.check_network()
    assert finding.status == WARN and finding.mend.startswith("unset HF_HUB_OFFLINE")


def test_a_network_that_answers_fails_or_hangs(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert software_checks.check_network().status == WARN
    monkeypatch.setattr("requests.head", lambda *_, **__: None)
    assert software_checks.check_network().status == PASS
    monkeypatch.setattr("requests.head", lambda *_, **__: time.sleep(60))
    monkeypatch.setattr(software_checks, "_NETWORK_SECONDS", 0.01)
    finding = software_checks.check_network()
    assert finding.status == WARN and "does not answer within" in finding.found


def test_a_token_is_asked_about_and_never_shown(monkeypatch):
    from huggingface_hub.errors import HfHubHTTPError

    def refused(*_):
        response = SimpleNamespace(status_code=401, headers={}, request=None)
        raise HfHubHTTPError("no", response=response)

    finding = software_checks.check_token(is_online=True)
    assert (finding.status, finding.mend) == (WARN, "run hf auth login")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    answers = [
        (True, lambda *_: {"name": "me"}, PASS, "that of me"),
        (True, refused, WARN, "the Hub does not know it any more"),
        (False, refused, PASS, "there is one; the Hub was not asked about it"),
    ]
    for is_online, whoami, status, found in answers:
        monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda _, token, whoami=whoami: whoami(token))
        finding = software_checks.check_token(is_online)
        assert (finding.status, finding.found) == (status, found)
        assert "secret" not in finding.line()


# ------------------------------------------------------------------------------------------------- the machine


def test_a_gpu(monkeypatch):
    import torch

    about = SimpleNamespace(name="Quick 9000", total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    finding = machine_checks.check_gpu()
    assert finding == Finding("GPU", PASS, "Quick 9000 with 80.0 GiB, Quick 9000 with 80.0 GiB, with bfloat16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    finding = machine_checks.check_gpu()
    assert (finding.status, finding.mend) == (WARN, "give --mixed-precision fp16 or no")


def test_no_gpu_and_one_that_torch_cannot_use(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(machine_checks, "_NVIDIA", os.devnull)
    finding = machine_checks.check_gpu()
    assert finding.status == WARN and "cannot use it" in finding.found
    monkeypatch.setattr(machine_checks, "_NVIDIA", "/no/such/device")
    finding = machine_checks.check_gpu()
    assert finding.status == WARN and finding.found.startswith("none")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert machine_checks.check_gpu().status == PASS


def test_torch_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    finding = machine_checks.check_gpu()
    assert finding.status == FAIL and finding.mend == "run pip install --force-reinstall torch"


@pytest.fixture
def control_groups(tmp_path, monkeypatch):
    """`control_groups(name=text)` sets the files in which Linux says what a container may use."""
    monkeypatch.setattr(machine_checks, "CONTROL_GROUPS", tmp_path)

    def write(**files: str) -> None:
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)

    return write


@pytest.mark.parametrize(
    ("threads", "status", "mend"),
    [(None, PASS, ""), ("8", PASS, ""), ("9", WARN, "set OMP_NUM_THREADS=8"), ("many", PASS, "")],
)
def test_cores_and_threads(threads, status, mend, monkeypatch):
    monkeypatch.setattr(machine_checks, "usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    finding = machine_checks.check_cores()
    assert (finding.status, finding.mend) == (status, mend)


@pytest.mark.parametrize(("usual", "found"), [("no", "float32, since"), ("bf16", "bfloat16")])
def test_precision(usual, found, monkeypatch):
    monkeypatch.setattr(machine_checks, "usual_precision", lambda: usual)
    finding = machine_checks.check_precision()
    assert finding.status == PASS and finding.found.startswith(found)


@pytest.mark.parametrize(
    ("free", "limit", "status", "found"),
    [
        (16, None, PASS, "16.0 GiB of 32.0 GiB are free"),
        (3, None, WARN, "3.0 GiB of 32.0 GiB are free"),
        (1, None, FAIL, "1.0 GiB of 32.0 GiB are free"),
        (16, 4, WARN, "3.0 GiB of 4.0 GiB are free"),  # in a container, of which 1 GiB is used
        (16, 64, PASS, "16.0 GiB of 32.0 GiB are free"),
    ],
)
def test_memory(free, limit, status, found, control_groups, monkeypatch):
    control_groups(memory_max="max" if limit is None else str(limit * GIB), memory_current=str(GIB))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free * GIB, total=32 * GIB))
    finding = machine_checks.check_memory()
    assert (finding.status, finding.found) == (status, found)


@pytest.mark.parametrize(("free", "status"), [(50, PASS), (2, WARN), (0.5, FAIL)])
def test_room_on_a_disk(free, status, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(100 * GIB, 0, int(free * GIB)))
    folder = tmp_path / "not" / "there" / "yet"
    finding = machine_checks.check_disk("Disk", folder, "take another")
    assert (finding.status, finding.mend) == (status, "" if status == PASS else "make room, or take another")
    assert not (tmp_path / "not").exists()


def test_a_disk_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    finding = machine_checks.check_disk("Disk", tmp_path, "take another")
    assert (finding.status, finding.mend) == (WARN, "take another")
    assert finding.found == f"{tmp_path} cannot be written (Read-only file system)"


def test_no_folder_for_temporary_files(monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", none)
    finding = machine_checks.check_disks()[-1]
    assert finding.status == FAIL and re.match("make room, or set TMPDIR", finding.mend)


def test_a_terminal_in_another_encoding(monkeypatch):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding="latin-1"))
    finding = machine_checks.check_terminal()
    assert finding.status == WARN and finding.mend.startswith("set PYTHONUTF8=1")
