"""Cards as HTML pages: they look as on the Hub, load nothing, and let no name become markup."""

from __future__ import annotations

import re

import pytest

from histodistill.hub_cards import Upload
from histodistill.hub_cards.preview import render_preview, render_preview_index, split_card


CARD = """\
---
license: cc-by-4.0
tags:
- histodistill
- synthetic
configs:
- config_name: default
---

# Toy

**Bold**, [a link](https://example.org).

![The set](assets/distilled.png)

| a | b |
|---|---:|
| 1 | 2 |

<details>
<summary>More</summary>

- folded

</details>

```python
print("<b>")
```
"""


def make_upload(text: str = CARD, **files: bytes) -> Upload:
    return Upload("dataset", "me/toy", {"README.md": text.encode(), "assets/distilled.png": b"PNG", **files})


def body_of(page: str) -> str:
    return page.split("<main>")[1].split("</main>")[0]


def test_a_card_as_a_page():
    page = render_preview(make_upload())
    body = body_of(page)
    assert "<h1>Toy</h1>" in body and "<strong>Bold</strong>" in body and '<a href="https://example.org">' in body
    assert '<td style="text-align:right">2</td>' in body and "<details>\n<summary>More</summary>" in body
    assert "<li>folded</li>" in body and "print(&quot;&lt;b&gt;&quot;)" in body
    # The header stands above as a table.
    head = page.split("<main>")[0]
    assert '<th scope="row">license</th><td>cc-by-4.0</td>' in head and "<td>histodistill, synthetic</td>" in head
    assert "config_name: default" in head and "refused:" not in page


def test_pictures_are_in_the_page_and_nothing_is_loaded():
    page = render_preview(make_upload(CARD + "\n![elsewhere](https://example.org/x.png)\n"))
    assert re.findall(r'src="([^"]*)"', page) == ["data:image/png;base64,UE5H", "data:,"]
    assert "default-src 'none'" in page and "<script" not in page


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        '<details onclick="alert(1)">',
        "<summary><b>x</b></summary>",
        "[x](javascript:alert(1))",
    ],
)
@pytest.mark.parametrize("place", ["inline {}", "\n{}\n"])
def test_names_do_not_become_markup(name, place):
    """Even where a name came through that the card should have escaped."""
    body = body_of(render_preview(make_upload(CARD + place.format(name))))
    tags = set(re.findall(r"<([a-z]+[^<>]*)>", body))
    known = {"h1", "p", "strong", "thead", "tbody", "tr", "th", "td", "details", "summary", "ul", "li", "pre"}
    others = {tag for tag in tags if tag not in known}
    assert all(
        re.match(r'(a href="https://|img src="data:|table tabindex="0"|t[hd] style="|code)', tag) for tag in others
    )
    assert "javascript:" not in "".join(tags)


def test_a_hostile_header_is_text():
    text = CARD.replace("license: cc-by-4.0", "license: '<script>alert(1)</script>'")
    page = render_preview(make_upload(text), "the audit of <b>x</b> failed")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<b>This would be refused:</b> the audit of &lt;b&gt;x&lt;/b&gt; failed." in page


def test_the_index_leads_to_all_pages():
    uploads = [make_upload(), Upload("pipeline", "me/toy-ldm", {"README.md": CARD.encode()})]
    page = render_preview_index(uploads, {"me/toy-ldm": "no <audit>"}, {"dataset": "d.html", "pipeline": "p.html"})
    assert '<a href="d.html">me/toy</a>' in page and '<a href="p.html">me/toy-ldm</a>' in page
    assert "A dataset of 2 files:" in page and page.count("refused:") == 1 and "no &lt;audit&gt;." in page


def test_a_card_is_a_header_and_a_body():
    header, body = split_card(CARD)
    assert header["tags"] == ["histodistill", "synthetic"] and body.startswith("\n# Toy\n")
