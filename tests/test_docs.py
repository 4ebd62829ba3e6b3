"""The pages of `docs/` with code in them are programs that run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


DOCS = Path(__file__).parents[1] / "docs"


def code_of(page: str) -> str:
    """The Python blocks of a page as one program."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL))


def test_the_python_page_runs(tmp_path, offline_environment):
    done = subprocess.run(
        [sys.executable, "-c", code_of("python.md")],
        env=offline_environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "per_class=0 is out of range: it must be at least 1\n" in done.stdout
    assert "(60, 16, 16, 3)" in done.stdout  # the pool: 12 images of each of five classes
    assert (tmp_path / "runs" / "small" / "student" / "results.json").is_file()
    # Nothing that is printed dumps pixels.
    assert max(map(len, done.stdout.splitlines())) < 300
