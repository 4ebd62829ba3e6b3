"""Readers of the gate, given any bytes: a refusal in one sentence, or what the bytes hold, and nothing else."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from histodistill.hub_cards.audit_record import read_audit
from histodistill.hub_cards.documents import parse_json, read_model_index, read_selector_config
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.parquet_pages import measure_pages
from histodistill.hub_cards.pictures import decode_png, encode_png
from histodistill.hub_cards.weights import ArraySpec, read_arrays, write_arrays


PNG = encode_png(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
ARRAYS = write_arrays({"a": np.arange(3.0)}, None)
SPEC = {"a": ArraySpec("float64", (3,))}
TEXT = st.text("aZ_0.\0\n\u202e\ud800", max_size=5)
#: Documents of any form, and with numbers and texts that few expect.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
many = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def check(read, *args) -> object:
    """What is read, or None for a refusal."""
    try:
        return read(*args)
    except ContentError as error:
        assert "\n" not in str(error) and str(error)
        return None


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """Some bytes with a stretch of others in place of one of theirs."""
    places = st.integers(0, len(data))
    return st.builds(
        lambda a, b, new: data[: min(a, b)] + new + data[max(a, b) :], places, places, st.binary(max_size=9)
    )


@many
@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 990 + b"]" * 990)
@example(b'{"a":' * 990 + b"1" + b"}" * 990)
@example(b'{"format": "\\ud800"}')
@example(b"1" * 5000)
def test_documents(data):
    for read in (read_model_index, read_selector_config, lambda data: read_audit(parse_json(data))):
        assert check(read, data) is None


@many
@given(damaged(PNG) | st.binary())
def test_pictures(data):
    pixels = check(decode_png, data)
    assert pixels is None or (pixels.dtype == np.uint8 and pixels.shape[2] == 3)
    if data == PNG:
        assert pixels is not None


@many
@given(damaged(ARRAYS) | st.binary())
@example((2).to_bytes(8, "little") + b"[]")
@example((2**64 - 1).to_bytes(8, "little"))
def test_arrays(data):
    found = check(read_arrays, data, SPEC, None)
    assert found is None or found["a"].shape == (3,)


@many
@given(st.binary(max_size=60), st.integers(0, 60))
@example(b"\x2c\x00\x16\x02\x00", 9)  # a struct in place of the size
@example(b"\x27" + bytes(8) + b"\x16\x02\x00", 9)  # eight bytes in its place
@example(b"\x25\x02\x15\x00\x2c\x1c\x00\x00\x00", 9)  # a struct in place of the number of values
@example(b"\x25\x02\x15\x00\x28\x00\x00", 9)  # a text in place of what is said of the page
def test_pages(data, size):
    chunk = SimpleNamespace(
        data_page_offset=1, has_dictionary_page=False, dictionary_page_offset=None, total_compressed_size=size
    )
    try:
        found = measure_pages(io.BytesIO(b"\0" + data), chunk)
    except ValueError as error:
        assert str(error)
    else:
        assert min(found.num_bytes, found.num_values, found.dictionary) >= 0
