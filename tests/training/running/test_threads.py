from __future__ import annotations

import os
import subprocess
import sys

import pytest

from histodistill.training.running import threads


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """`groups(own, path=text, …)` sets the control groups of this process, and the files in which they bound it."""
    monkeypatch.setattr(threads, "CONTROL_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(threads, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)

    def write(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@pytest.mark.parametrize(
    ("own", "files", "quota", "cores"),
    [
        ("0::/", {"cpu.max": "max 100000"}, None, 64),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5, 2),
        ("0::/", {"cpu.max": "10000 100000"}, 0.1, 1),
        ("0::/", {"cpu.max": "9900000 100000"}, 99, 64),
        # Of a batch system, which bounds the job and not the step in it.
        ("0::/slurm/job_7/step", {"slurm/job_7/cpu.max": "400000 100000", "slurm/cpu.max": "max 100000"}, 4, 4),
        ("0::/a/b", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "200000 100000"}, 2, 2),
        # Of the first version.
        ("3:cpu,cpuacct:/docker/x", {"cpu/docker/x/cpu.cfs_quota_us": "150000"}, None, 64),
        (
            "2:memory:/y\n3:cpu,cpuacct:/docker/x\n",
            {"cpu/docker/x/cpu.cfs_quota_us": "150000\n", "cpu/docker/x/cpu.cfs_period_us": "100000\n"},
            1.5,
            2,
        ),
        ("", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3, 3),
        ("", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, 64),
        ("0::/../../etc", {"cpu.max": "nonsense"}, None, 64),
        ("nonsense\n\n::", {}, None, 64),
    ],
)
def test_what_the_system_gives_is_used_and_no_more(groups, own, files, quota, cores):
    groups(own, files)
    assert threads.cpu_quota() == quota
    assert threads.usable_cores() == cores


def test_libraries_start_no_more_threads_than_a_quota_lets_run(groups):
    groups("0::/", {"cpu.max": "150000 100000"})
    assert threads.thread_variables({}) == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    # What is set already stays.
    assert threads.thread_variables({"OMP_NUM_THREADS": "7"}) == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert threads.thread_variables({"OMP_WAIT_POLICY": "ACTIVE"}) == {"OMP_NUM_THREADS": "2"}
    assert threads.thread_variables({"GOMP_SPINCOUNT": "100"}) == {"OMP_NUM_THREADS": "2"}


def test_without_a_quota_libraries_count_for_themselves(groups):
    groups("0::/", {})
    assert threads.thread_variables({}) == {"OMP_WAIT_POLICY": "PASSIVE"}


def test_a_program_has_them_before_torch_is_loaded():
    code = (
        "import os, sys; from histodistill.training.running.program import as_program\n"
        "with as_program(): print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["PASSIVE", "False"]
