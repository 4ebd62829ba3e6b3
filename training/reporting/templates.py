"""Makes HTML pages of the templates in this folder."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def render_page(name: str, values: Mapping[str, Any]) -> str:
    """A page, with all values escaped: names of classes and of data come from outside.

    Args:
        name: The file of the template.
        values: What it shows.
    """
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name).render(values)


def script_values(name: str) -> dict[str, Any]:
    """What a template needs for a script that is part of the page, and may run as the only one.

    Args:
        name: The file of the script.

    Returns:
        `script`, its text, and `script_source`, its hash as a Content-Security-Policy has it.
    """
    text = _read(name)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_source": f"sha256-{digest}"}


def _read(name: str) -> str:
    """A text file of this folder."""
    return resources.files("histodistill.training.reporting").joinpath(name).read_text(encoding="utf-8")
