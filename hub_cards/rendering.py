"""What all cards share: the YAML header, the templates, and text that Markdown cannot mistake for markup."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from huggingface_hub import CardData
from jinja2 import BaseLoader, Environment, FunctionLoader, StrictUndefined

from histodistill.hub_cards.card_facts import classifier_name
from histodistill.hub_cards.gate import risk_statement


#: Where the project is found.
PROJECT_URL = "https://pypi.org/project/histodistill/"
#: The paper whose method this is, as cards cite it.
PAPER = (
    "Li, Z. and Kainz, B. (2024). Image Distillation for Safe Data Sharing in Histopathology. "
    "Medical Image Computing and Computer Assisted Intervention – MICCAI 2024. https://arxiv.org/abs/2406.13536"
)
#: The same paper as a BibTeX entry.
PAPER_BIBTEX = """\
@inproceedings{li2024image,
  title = {Image Distillation for Safe Data Sharing in Histopathology},
  author = {Li, Zhe and Kainz, Bernhard},
  booktitle = {Medical Image Computing and Computer Assisted Intervention -- MICCAI 2024},
  year = {2024},
  eprint = {2406.13536},
  archivePrefix = {arXiv}
}"""

# Characters that Markdown or HTML may take for markup; an underscore between letters or digits is none.
_MARKUP = re.compile(r"[\\`*{}\[\]<>|#~&$]|(?<![^\W_])_|_(?![^\W_])")
# More than one blank line, which a block of a template leaves where it is left out.
_BLANK_LINES = re.compile(r"\n{3,}")
# The Hub's `size_categories`: the number of rows that is too large for each, and its name.
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)


def render_card(metadata: CardData, template: str, values: Mapping[str, Any]) -> str:
    """Fills a template of this package and puts the YAML header before it.

    Args:
        metadata: The header.
        template: File name in `hub_cards/templates`. It has the filters `md`, for any text that is not ours, `score`,
            for a mean with its standard deviation, `risk`, for what the gate said when it was overridden, and
            `classifier`, for the name of an architecture.
        values: What the template uses, beside `paper`, `paper_bibtex` and `project_url`.

    Returns:
        The whole card, ending in one newline.

    Raises:
        jinja2.UndefinedError: the template uses a value that is not there.
    """
    # Not autoescaped, for it is no HTML: text that is not ours goes through `md`.
    environment = Environment(
        loader=_templates(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,  # of a template that another includes
    )
    environment.filters |= {
        "md": escape_markdown,
        "score": format_score,
        "risk": risk_statement,
        "classifier": classifier_name,
    }
    body = environment.get_template(template).render(
        paper=PAPER, paper_bibtex=PAPER_BIBTEX, project_url=PROJECT_URL, **values
    )
    body = _BLANK_LINES.sub("\n\n", body).strip()
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"


def render_page(template: str, values: Mapping[str, Any]) -> str:
    """Fills an HTML template of this package; values are escaped.

    Raises:
        jinja2.UndefinedError: the template uses a value that is not there.
    """
    environment = Environment(
        loader=_templates(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values).strip() + "\n"


def _templates() -> BaseLoader:
    folder = resources.files("histodistill.hub_cards").joinpath("templates")
    return FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))


def escape_markdown(value: Any) -> str:
    """Text on one line in which Markdown and HTML find no markup, so that it also fits a table cell."""
    return _MARKUP.sub(lambda found: f"&#{ord(found.group())};", " ".join(str(value).split()))


@dataclass(frozen=True)
class ScoreText:
    """A score as text; as a whole, `0.757` or `0.757 ± 0.004`.

    Attributes:
        mean: With three decimals; a dash where there is none.
        std: The standard deviation likewise; None where there is one seed.
    """

    mean: str
    std: str | None = None

    @classmethod
    def of(cls, score: Mapping[str, Any] | None) -> ScoreText:
        """The text of `{"mean": .., "std": ..}`, either of which may be None."""
        if not score or score["mean"] is None:
            return cls("–")
        std = score.get("std")
        return cls(f"{score['mean']:.3f}", None if std is None else f"{std:.3f}")

    def __str__(self) -> str:
        return self.mean if self.std is None else f"{self.mean} ± {self.std}"


def format_score(score: Mapping[str, float | None] | None) -> str:
    """`{"mean": .., "std": ..}` as 0.757 or 0.757 ± 0.004; a dash where there is no mean."""
    return str(ScoreText.of(score))


def format_steps(steps: int | None, batch_size: int | None) -> str:
    """Steps of a training as `2,000 of 32`, where each took 32 tiles; a dash where there are none, as for a probe."""
    if steps is None:
        return "–"
    return f"{steps:,}" if batch_size is None else f"{steps:,} of {batch_size:,}"


def size_category(count: int) -> str:
    """The Hub's name for the size of a dataset of `count` rows."""
    return next((name for limit, name in _SIZES if count < limit), "n>10M")
