"""The Spaces of the metrics: the script of each, its card and its page, put together from what it says of itself."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from typing import Any

import yaml

from histodistill.hub_cards import MetricCardData, Upload, render_metric_card, render_metric_page
from histodistill.training.metrics import load_metric, metric_folder


# The packages that a script imports, as a Space lists them for `evaluate.load` to install.
REQUIREMENTS = "datasets\nevaluate\nnumpy\nscikit-learn\n"
# An entry of a docstring's section: name, type in parentheses, and meaning.
_ITEM = re.compile(r"(\w+) \(([^)]*)\): (.*)")


def metric_upload(name: str, repo_id: str) -> Upload:
    """The Space of a metric.

    Args:
        name: Of the metric, one of `METRICS`.
        repo_id: Id of the Space.
    """
    card = read_metric(name, repo_id)
    files = {
        "README.md": render_metric_card(card).encode(),
        "index.html": render_metric_page(card).encode(),
        "requirements.txt": REQUIREMENTS.encode(),
        f"{name}.py": (metric_folder(name) / f"{name}.py").read_bytes(),
    }
    return Upload("metric", repo_id, files)


def read_metric(name: str, repo_id: str) -> MetricCardData:
    """What the script and the notes of a metric say of it, with the result of the example computed anew."""
    metric, notes = load_metric(name), (metric_folder(name) / "README.md").read_text(encoding="utf-8")
    module = importlib.import_module(type(metric).__module__)
    sections = _sections(inspect.cleandoc(module._KWARGS_DESCRIPTION))
    call = _find(r"metric\.compute\((.*)\)", notes)
    result = metric.compute(**_arguments(call))
    return MetricCardData(
        repo_id=repo_id,
        title=yaml.safe_load(notes.split("---")[1])["title"],
        description=" ".join(module._DESCRIPTION.split()),
        inputs=_items(sections["Args"]),
        outputs=_items(sections["Returns"]),
        raises=[" ".join(sections["Raises"].split())] if "Raises" in sections else [],
        call=call,
        result=repr(result),
        limits=_find(r"(?s)## Limitations and bias\n\n(.*?)\n\n## ", notes),
        citation=module._CITATION.strip(),
    )


def _find(pattern: str, notes: str) -> str:
    """What the group of a pattern stands for in the notes of a metric, which are ours and so have it."""
    match = re.search(pattern, notes)
    assert match is not None, pattern
    return match[1]


def _arguments(call: str) -> dict[str, Any]:
    """The values of a call by their names, such as `a=1, b=[2]`."""
    expression = ast.parse(f"dict({call})", mode="eval").body
    assert isinstance(expression, ast.Call)
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in expression.keywords}


def _sections(text: str) -> dict[str, str]:
    """A docstring's parts by their headings."""
    parts = re.split(r"^(\w+):\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _items(text: str) -> list[tuple[str, str, str]]:
    """Name, type and meaning of each entry; lines that are indented further go on with the one before."""
    lines: list[str] = []
    for line in inspect.cleandoc(text).splitlines():
        if line[:1].strip():
            lines.append(line)
        elif line.strip():
            lines[-1] += f" {line.strip()}"
    return [_item(line) for line in lines]


def _item(line: str) -> tuple[str, str, str]:
    match = _ITEM.fullmatch(line)
    assert match is not None, line
    return match[1], match[2], match[3]
