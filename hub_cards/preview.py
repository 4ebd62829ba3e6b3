"""How cards will look on the Hub: each repository as a page of its own, which loads nothing and runs nothing."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.token import Token
from markupsafe import Markup

from histodistill.hub_cards.rendering import PROJECT_URL, render_page
from histodistill.hub_cards.uploading import REPO_TYPES, Upload


# The YAML header of a card, and the Markdown below it.
_CARD = re.compile(r"---\n(.*?)\n---\n(.*)", re.DOTALL)
# The HTML that our own templates hold. Any other is shown as text: names on a card are not ours.
_OWN_HTML = re.compile(r"\s*(</?details>|<summary>[^<>]*</summary>|\s)*")


def render_preview(upload: Upload, refusal: str | None = None) -> str:
    """A repository's card as an HTML page: its header as a table, its text as the Hub shows it, with its pictures.

    Args:
        upload: The repository as it is to be.
        refusal: Why it would not be published; None where it would.
    """
    header, body = split_card(upload.files["README.md"].decode())
    values = {
        "upload": upload,
        "refusal": refusal,
        "header": [(name, _plain(value)) for name, value in header.items()],
        # All that is not of our templates was escaped.
        "body": Markup(_to_html(body, upload.files)),
    }
    return render_page("preview.html", values)


def render_preview_index(uploads: Sequence[Upload], refusals: Mapping[str, str], pages: Mapping[str, str]) -> str:
    """The page that leads to those of the repositories.

    Args:
        uploads: The repositories.
        refusals: Id of a repository → why it would not be published; of those alone.
        pages: Kind of a repository → file name of its page.
    """
    values = {
        "uploads": uploads,
        "refusals": refusals,
        "pages": pages,
        "repo_types": REPO_TYPES,
        "project_url": PROJECT_URL,
    }
    return render_page("preview_index.html", values)


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """The YAML header of a card, and its Markdown."""
    found = _CARD.fullmatch(text)
    assert found is not None, "a card begins with its header"
    return yaml.safe_load(found[1]), found[2]


def _plain(value: Any) -> str:
    """A value of the header on as few lines as it needs."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).removesuffix("...\n").strip()


def _to_html(text: str, files: Mapping[str, bytes]) -> str:
    """Markdown as HTML, with pictures of the repository in the page itself."""
    markdown = MarkdownIt("commonmark").enable("table")
    tokens = markdown.parse(text)
    for token in _all_tokens(tokens):
        if token.type in ("html_block", "html_inline") and not _OWN_HTML.fullmatch(token.content):
            token.content = escapeHtml(token.content)
        elif token.type == "image":
            picture = files.get(str(token.attrs["src"]))
            token.attrs["src"] = "data:," if picture is None else f"data:image/png;base64,{_base64(picture)}"
        elif token.type == "table_open":
            token.attrs["tabindex"] = "0"  # a wide one is scrolled by keys as well
    return markdown.renderer.render(tokens, markdown.options, {})


def _all_tokens(tokens: Sequence[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _all_tokens(token.children or ())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
