"""The README as the package index shows it: every link leads somewhere, and none of its text is lost."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
REPOSITORY = "https://example.org/owner/name"


def for_the_index(readme: str, repository: str | None = None) -> str:
    spec = importlib.util.spec_from_file_location("histodistill_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    return setup.for_the_index(readme, repository)


@pytest.mark.parametrize(
    ("text", "alone", "linked"),
    [
        ("[how](docs/a.md#b) it", "how it", f"[how]({REPOSITORY}/blob/main/docs/a.md#b) it"),
        ("[two\nlines](a.md)", "two\nlines", f"[two\nlines]({REPOSITORY}/blob/main/a.md)"),
        ("[`a.md`](a.md)", "`a.md`", f"[`a.md`]({REPOSITORY}/blob/main/a.md)"),
        ("![A tile](docs/a.png)", "*(Picture: A tile.)*", f"![A tile]({REPOSITORY}/raw/main/docs/a.png)"),
        (
            "[![A tile](a.png)](a.md)",
            "*(Picture: A tile.)*",
            f"[![A tile]({REPOSITORY}/raw/main/a.png)]({REPOSITORY}/blob/main/a.md)",
        ),
        (
            '<img width="9" src="a.png" alt="A tile.">',
            "*(Picture: A tile.)*",
            f'<img width="9" src="{REPOSITORY}/raw/main/a.png" alt="A tile.">',
        ),
        (
            '<picture>\n<source srcset="dark.png">\n<img src="a.png" alt="A tile">\n</picture>',
            "*(Picture: A tile.)*",
            f'<img src="{REPOSITORY}/raw/main/a.png" alt="A tile">',
        ),
        ('<img src="a.png">', "", f'<img src="{REPOSITORY}/raw/main/a.png">'),
    ],
)
def test_files_are_text_or_in_the_repository(text, alone, linked):
    assert for_the_index(text) == alone
    assert for_the_index(text, REPOSITORY) == linked


@pytest.mark.parametrize(
    "text",
    [
        "[paper](https://arxiv.org/abs/1) and [below](#below) and [mail](mailto:a@example.org)",
        "![there](https://example.org/a.png)",
        "```python\nx = names[0](data)\n```",
        "code `a[b](c)` and `a\nb[0](c)`",
        "a list [1] (two) and [x] y",
    ],
)
def test_all_else_stays(text):
    assert for_the_index(text) == text
    assert for_the_index(text, REPOSITORY) == text


@pytest.mark.parametrize("repository", [None, REPOSITORY])
def test_the_readme_has_no_relative_links(repository):
    text = re.sub(
        r"^```.*?^```$|`[^`]+`", "", for_the_index((ROOT / "README.md").read_text(), repository), flags=re.M | re.S
    )
    targets = re.findall(r"\]\(([^)\s]+)|\b(?:src|srcset|href)=[\"']([^\"']+)", text)
    assert [a or b for a, b in targets if not re.match(r"https?://|mailto:|#", a or b)] == []
    assert targets
