"""What setup.cfg cannot say, above all the README as the package index shows it.

The index shows the README alone, so that its links to other files of the repository and its pictures would lead
nowhere. With the address of a public repository they lead there; without one, a link is its text and a picture what it
shows, in words.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from setuptools import setup


#: Address of the public repository, such as "https://github.com/OWNER/NAME"; None as long as there is none.
REPOSITORY: str | None = None
# The branch whose files are shown there.
_BRANCH = "main"

# Code, in which nothing is a link: blocks between fences, and spans, which end with their paragraph.
_CODE = re.compile(r"^```.*?^```$|`(?:[^`\n]|\n(?!\n))+`", re.MULTILINE | re.DOTALL)
# Where a file of the repository is meant: neither an address nor a place on the same page.
_FILE = r"(?![a-z]+:|#|/)(?P<file>[^)\s\"']+)"
_PICTURE = re.compile(rf"!\[(?P<text>[^\]]*)\]\({_FILE}\)")
# The text of a link may hold a span of code, of which there is a mark in place of the code.
_LINK = re.compile(rf"(?<!!)\[(?P<text>(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\({_FILE}\)")
# Of a picture with a second one for dark mode the index shows the first alone.
_HTML_PICTURE = re.compile(r"<picture>.*?(?P<img><img\b[^>]*>).*?</picture>", re.DOTALL)
_HTML_IMAGE = re.compile(rf"<img\b[^>]*?\bsrc=[\"']{_FILE}[\"'][^>]*>")
_HTML_TEXT = re.compile(r"\balt=[\"'](?P<text>[^\"']*)[\"']")


def for_the_index(readme: str, repository: str | None = REPOSITORY) -> str:
    """The README without links and pictures that break outside of the repository.

    Args:
        readme: The text, in Markdown.
        repository: The address of the repository where there is one.

    Returns:
        The same text; links to files and pictures lead to the repository, or are text.
    """
    # Code is taken out and put back, so that a link may hold some.
    code: list[str] = []

    def mark(found: re.Match[str]) -> str:
        code.append(found[0])
        return f"\0{len(code) - 1}\0"

    def picture(found: re.Match[str]) -> str:
        return (
            f"![{found['text']}]({repository}/raw/{_BRANCH}/{found['file']})" if repository else _words(found["text"])
        )

    def html_image(found: re.Match[str]) -> str:
        if repository:
            return found[0].replace(found["file"], f"{repository}/raw/{_BRANCH}/{found['file']}")
        described = _HTML_TEXT.search(found[0])
        return _words(described["text"] if described else "")

    def link(found: re.Match[str]) -> str:
        return f"[{found['text']}]({repository}/blob/{_BRANCH}/{found['file']})" if repository else found["text"]

    text = _CODE.sub(mark, readme)
    text = _HTML_PICTURE.sub(lambda found: found["img"], text)
    text = _HTML_IMAGE.sub(html_image, _PICTURE.sub(picture, text))
    text = _LINK.sub(link, text)
    return re.sub(r"\0(\d+)\0", lambda found: code[int(found[1])], text)


def _words(text: str) -> str:
    return f"*(Picture: {text.strip().rstrip('.')}.)*" if text.strip() else ""


if __name__ == "__main__":
    # setuptools-scm of a shallow clone, whose version counts too few commits since the release; nothing else is wrong.
    warnings.filterwarnings("ignore", message=".* is shallow and may cause errors")
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(long_description=for_the_index(readme), long_description_content_type="text/markdown")
