"""Fills the disk of every step at random sizes, takes away its right to write, and has it go on with more room.

    python tests/faults/disks.py [--sizes 20] [--steps NAME …] [--seed 0]    # as root, for small tmpfs

Each step works in a file system of its own with a little more room each time, and once in one that can only be read.
It must end with 2 and one sentence, leave nothing half-written, and in the end what it leaves without any of this,
byte for byte but for times, versions and memory in JSON. Prints a line for each step; the exit code is 1 where one is
not as it should be.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

from kills import STEPS, Steps, content, differences, parser_of, try_steps


def mount(folder: Path, options: str) -> None:
    """Mounts a tmpfs, or changes that which is mounted."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def fill(steps: Steps, name: str, sizes: int, draw: random.Random) -> tuple[int, list[str]]:
    """Gives a step more and more room until it is finished, so many sizes in all, beginning anew where it was.

    Returns:
        How often it met a full disk, and what is not as it should be.
    """
    run = steps.place / "run"
    run.mkdir(exist_ok=True)
    wrong: list[str] = []
    mount(run, "size=200m")
    try:
        begun_with = copy(steps, name, run)
        usual = steps.run(name, run)
        wanted = content(run)
        needed = used(run) - begun_with
    finally:
        subprocess.run(["umount", "-l", str(run)], check=True)
    met = tried = 0
    while tried < sizes:
        mount(run, "size=200m")
        try:
            copy(steps, name, run)
            subprocess.run(["mount", "-o", "remount,ro", str(run)], check=True)
            wrong += wrong_end(steps, name, run, "a disk that can only be read")
            subprocess.run(["mount", "-o", "remount,rw", str(run)], check=True)
            for share in sorted(draw.uniform(0, 1.2) for _ in range(4)):
                tried += 1
                size = used(run) // 4096 * 4096 + int(share * needed / 4096) * 4096
                subprocess.run(["mount", "-o", f"remount,size={max(size, 4096)}", str(run)], check=True)
                now = steps.run(name, run)
                if now.code == usual.code:
                    break
                met += 1
                wrong += wrong_said(now.code, now.said, f"{size:,} bytes")
                wrong += [f"left {path}" for path in run.rglob(".*") if path.suffix in (".lock", ".tmp")]
            subprocess.run(["mount", "-o", "remount,size=200m", str(run)], check=True)
            last = steps.run(name, run)
            if last.code != usual.code:
                wrong.append(f"it does not go on: {last.code}: {last.said[-300:]}")
            wrong += [f"{each} differs" for each in differences(wanted, content(run))]
        finally:
            subprocess.run(["umount", "-l", str(run)], check=True)
    return met, wrong


def copy(steps: Steps, name: str, run: Path) -> int:
    """Puts what a step needs into a folder, and returns the bytes used there."""
    for part in STEPS[name][1]:
        shutil.copytree(steps.made / part, run / part)
    return used(run)


def used(folder: Path) -> int:
    """Bytes that are used of the file system of a folder."""
    state = os.statvfs(folder)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def wrong_end(steps: Steps, name: str, run: Path, where: str) -> list[str]:
    """What is not as it should be where a step cannot write."""
    now = steps.run(name, run)
    return wrong_said(now.code, now.said, where)


def wrong_said(code: int, said: str, where: str) -> list[str]:
    """What is not as it should be in how a step ended."""
    lines = said.replace("\r", "\n").splitlines()
    if code != 2 or "Traceback" in said or not lines or not lines[-1].startswith("error: "):
        return [f"{where}: {code}: {said[-300:]}"]
    return []


def main() -> None:
    """Runs what the command line asks for."""
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", type=int, default=20)
    args = parser.parse_args()

    def attempt(steps: Steps, name: str, draw: random.Random) -> tuple[str, list[str]]:
        met, wrong = fill(steps, name, args.sizes, draw)
        return f"met a full disk {met} times", wrong

    try_steps(args, attempt, "as undisturbed in the end")


if __name__ == "__main__":
    main()
