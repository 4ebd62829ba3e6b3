"""Columns of names, as Arrow has them: to Python's text."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from histodistill.training.running.errors import InputError


def is_text_column(kind: pa.DataType) -> bool:
    """Whether values are text, written out or by their number in a list of texts (pandas' categories)."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def texts_of_column(cells: pa.Array, names: Sequence[str] | None, where: str) -> list[str | None]:
    """Cells of text or of whole numbers as text; None for those without a value.

    Args:
        cells: The cells.
        names: What numbers stand for, of a column of type ClassLabel.
        where: What messages call the column.

    Raises:
        InputError: If text is no UTF-8, or a number stands for no name.
    """
    try:
        values = (cells.dictionary_decode() if pa.types.is_dictionary(cells.type) else cells).to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(f"{where} holds text that is no UTF-8: save it again") from error
    if names is None or is_text_column(cells.type):
        return [None if value is None else str(value) for value in values]
    for value in values:
        if value is not None and not 0 <= value < len(names):
            raise InputError(f"{where} holds {value}, which stands for none of its {len(names)} names: correct it")
    return [None if value is None else names[value] for value in values]
