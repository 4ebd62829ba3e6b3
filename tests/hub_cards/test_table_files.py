from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset
from PIL import Image as PILImage

from histodistill.hub_cards import table_files
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.pictures import encode_png
from histodistill.hub_cards.table_files import TableFile, read_table, table_schema, write_table
from histodistill.hub_cards.tables import DISTILLED, MAX_VIEWS, POOL, ImageTable, canonical, encode_soft_label_views


NAMES = ["adipose", "H&E, pT3 (≥ 2 mm)", "ムチン"]


def make(count: int = 9, size: int = 8) -> ImageTable:
    rng = np.random.default_rng(count)
    columns = {
        "label": np.arange(count) % 3,
        "soft_label": rng.dirichlet(np.ones(3), count).astype(np.float32),
        "seed": rng.permutation(2**20)[:count],
        "community": np.arange(count) - 1,
        "modular_centrality": rng.normal(size=count),
        "rank": np.arange(count) // 3 + 1,
    }
    return ImageTable(rng.integers(256, size=(count, size, size, 3), dtype=np.uint8), columns, NAMES)


def equal(a: ImageTable, b: ImageTable) -> bool:
    return (
        (a.class_names, a.site_names, list(a.columns)) == (b.class_names, b.site_names, list(b.columns))
        and np.array_equal(a.images, b.images)
        and all(np.array_equal(a.columns[name], b.columns[name]) for name in a.columns)
    )


def arrow(table: ImageTable | None = None) -> pa.Table:
    """A good table, to be changed."""
    return pq.read_table(io.BytesIO(write_table(table or make())))


def parquet(table: pa.Table, **options) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def with_column(table: pa.Table, name: str, values: pa.Array, feature: dict | None = None) -> pa.Table:
    """A table with a column replaced or added, and what `datasets` notes of it too."""
    about = json.loads(table.schema.metadata[b"huggingface"])
    if feature:
        about["info"]["features"][name] = feature
    place = table.schema.get_field_index(name)
    table = table.append_column(name, values) if place < 0 else table.set_column(place, name, values)
    return table.replace_schema_metadata({"huggingface": json.dumps(about)})


def with_cells(change) -> pa.Table:
    """A table whose cell of images 4 is changed."""
    table = arrow()
    cells = table["image"].to_pylist()
    cells[4] = change(cells[4])
    return table.set_column(0, table.schema.field("image"), pa.array(cells, table.schema.field("image").type))


def refusal(data: bytes | pa.Table, columns=DISTILLED, **options) -> str:
    with pytest.raises(ContentError) as error:
        read_table(data if isinstance(data, bytes) else parquet(data), columns, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_canonical_table_comes_back():
    table = canonical(make())
    data = write_table(table)
    assert equal(read_table(data), table)
    assert equal(read_table(io.BytesIO(data), DISTILLED), table)
    assert write_table(read_table(data)) == data


def test_datasets_reads_what_is_written(tmp_path):
    (tmp_path / "t.parquet").write_bytes(write_table(make()))
    dataset = load_dataset("parquet", data_files=str(tmp_path / "t.parquet"), split="train", cache_dir=str(tmp_path))
    features = {
        "image": Image(),
        "label": ClassLabel(names=NAMES),
        "soft_label": List(Value("float32"), length=3),
        "seed": Value("int64"),
        "community": Value("int64"),
        "modular_centrality": Value("float64"),
        "rank": Value("int64"),
    }
    assert dict(dataset.features) == features == dict(Features.from_arrow_schema(table_schema(canonical(make()))))
    np.testing.assert_array_equal(np.asarray(dataset[3]["image"]), make().images[3])


def test_a_table_of_datasets_is_read_and_written_in_the_one_form():
    """As versions before wrote it: not rounded, with other settings of the writer."""
    table = make()
    cells = [{"bytes": encode_png(image), "path": None} for image in table.images]
    features = Features.from_arrow_schema(table_schema(canonical(table)))
    rows = {"image": cells, **{name: values.tolist() for name, values in table.columns.items()}}
    file = io.BytesIO()
    Dataset.from_dict(rows, features=features).to_parquet(file)
    found = read_table(file.getvalue(), DISTILLED)
    assert equal(found, table)
    assert write_table(found) == write_table(table)


def test_order_groups_of_rows_and_encoding_of_columns_do_not_matter():
    table = arrow()
    ways = [
        parquet(table.select([*reversed(table.column_names)])),
        parquet(table, row_group_size=2),
        parquet(table, compression="zstd", use_dictionary=True, write_page_index=True, write_statistics=True),
        parquet(table, store_schema=True, version="1.0", data_page_size=100),
    ]
    assert {write_table(read_table(way)) for way in ways} == {write_table(make())}


def test_bytes_that_no_reader_sees_are_not_written_again():
    data = write_table(make())
    length = int.from_bytes(data[-8:-4], "little")
    hidden = data[: -8 - length] + b"slide 17" + data[-8 - length :]
    noted = arrow().replace_schema_metadata({**arrow().schema.metadata, "content_defined_chunking": "slide 17"})
    for way in (hidden, parquet(noted)):
        assert b"slide 17" in way
        assert write_table(read_table(way)) == data


def test_many_images_are_in_several_groups_of_rows(monkeypatch):
    monkeypatch.setattr(table_files, "_GROUP_BYTES", 4 * make().images[0].size)
    monkeypatch.setattr(table_files, "_BATCH", 3)
    data = write_table(make())
    assert pq.ParquetFile(io.BytesIO(data)).metadata.num_row_groups == 3
    assert equal(read_table(data), canonical(make()))


def number(dtype: str) -> dict:
    return {"dtype": dtype, "_type": "Value"}


IMAGE = {"_type": "Image"}
ONES = np.ones(9)


@pytest.mark.parametrize(
    ("name", "values", "feature"),
    [
        ("image_2", arrow()["image"], IMAGE),
        ("x", pa.array([[1, 2]] * 9, pa.list_(pa.uint8())), {"feature": number("uint8"), "_type": "List"}),
        ("seed\u200b", pa.array(ONES, pa.int64()), number("int64")),
        ("Seed", pa.array(ONES, pa.int64()), number("int64")),
        (" seed", pa.array(ONES, pa.int64()), number("int64")),
        ("patient", pa.array(["a"] * 9), number("string")),
        ("", pa.array(ONES, pa.int64()), number("int64")),
        ("__index_level_0__", pa.array(ONES, pa.int64()), None),
        ("site", pa.array(ONES * 0, pa.int64()), {"names": ["slide 17"], "_type": "ClassLabel"}),
    ],
)
def test_further_columns_are_refused(name, values, feature):
    assert f"it has a column {name!r}" in refusal(with_column(arrow(), name, values, feature))


def test_kinds_of_tables_have_their_own_columns():
    assert "it has a column 'soft_label'" in refusal(arrow(), POOL)
    pool = make()
    pool = replace(pool, columns={name: pool.columns[name] for name in POOL})
    assert list(read_table(write_table(pool), POOL).columns) == list(POOL)


@pytest.mark.parametrize(
    ("name", "values", "feature"),
    [
        ("label", pa.array(make().columns["label"], pa.int8()), None),
        ("label", pa.array(["a"] * 9).dictionary_encode(), None),
        ("label", pa.array(make().columns["label"], pa.float64()), None),
        ("label", pa.array([[0]] * 9, pa.list_(pa.int64())), None),
        ("seed", pa.array(make().columns["seed"], pa.uint64()), number("uint64")),
        ("seed", pa.array([1] * 9, pa.timestamp("us")), number("timestamp[us]")),
        ("seed", pa.array(make().columns["seed"].astype(str)), number("string")),
        ("community", pa.array(make().columns["community"], pa.int32()), number("int32")),
        ("modular_centrality", pa.array(ONES, pa.float32()), number("float32")),
        ("modular_centrality", pa.array([[1.0, 2.0]] * 9), None),
        ("soft_label", pa.array([[1.0, 0, 0]] * 9, pa.list_(pa.float64(), 3)), None),
        ("soft_label", pa.array([[1.0, 0, 0]] * 9, pa.list_(pa.float32())), None),
        ("soft_label", pa.array([[1.0, 0]] * 9, pa.list_(pa.float32(), 2)), None),
        ("soft_label", pa.array([[1.0, 0, 0, 0]] * 9, pa.list_(pa.float32(), 4)), None),
        ("image", pa.array([{"bytes": b"", "path": None, "more": b"x"}] * 9), None),
        ("image", pa.array([{"bytes": b""}] * 9), None),
        ("image", pa.array([b""] * 9), None),
        ("image", pa.array([{"bytes": b"", "path": None}] * 9,
                           pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])), None),
        ("image", pa.array([{"bytes": b"", "path": None}] * 9,
                           pa.struct([("bytes", pa.binary()), ("path", pa.binary())])), None),
    ],
)  # fmt: skip
def test_columns_of_other_types_are_refused(name, values, feature):
    message = refusal(with_column(arrow(), name, values, feature))
    assert f"its column {name} is of the type" in message or "what its footer says of its columns" in message


def test_columns_that_are_missing_or_doubled_are_refused():
    table = arrow()
    for names in (["label", "seed"], ["image", "seed"], ["image", "label", "seed", "seed"]):
        assert "its columns are not image, label and others, each once" in refusal(table.select(names))


@pytest.mark.parametrize(
    ("name", "place"), [("label", 4), ("seed", 0), ("soft_label", 8), ("modular_centrality", 2), ("community", 1)]
)
def test_cells_without_a_number_are_refused(name, place):
    table = arrow()
    values = table[name].to_pylist()
    values[place] = None
    assert f"its column {name} has cells without a number" in refusal(
        with_column(table, name, pa.array(values, table.schema.field(name).type))
    )


def test_an_empty_number_within_a_list_is_refused():
    table = arrow()
    values = table["soft_label"].to_pylist()
    values[3][1] = None
    values = pa.array(values, table.schema.field("soft_label").type)
    assert "its column soft_label has cells without a number" in refusal(with_column(table, "soft_label", values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cell: None, "a cell without an image, or with a file name"),
        (lambda cell: {**cell, "bytes": None}, "a cell without an image, or with a file name"),
        (lambda cell: {**cell, "path": "slide-17.png"}, "a cell without an image, or with a file name"),
        (lambda cell: {**cell, "path": ""}, "a cell without an image, or with a file name"),
        (lambda cell: {**cell, "bytes": cell["bytes"] + b"x"}, "row 4: the image has something after its end"),
        (lambda cell: {**cell, "bytes": b"BM"}, "row 4: the image is no PNG file"),
        (lambda cell: {**cell, "bytes": encode_png(np.zeros((9, 8, 3), np.uint8))}, "of another size than the first"),
        (lambda cell: {**cell, "bytes": saved_grey()}, "row 4: the image is of another kind"),
    ],
)
def test_cells_that_are_no_plain_images_are_refused(change, message):
    assert message in refusal(with_cells(change))


def saved_grey() -> bytes:
    file = io.BytesIO()
    PILImage.new("L", (8, 8)).save(file, "PNG")
    return file.getvalue()


def change_note(change) -> pa.Table:
    table = arrow()
    note = json.loads(table.schema.metadata[b"huggingface"])
    change(note)
    return table.replace_schema_metadata({"huggingface": json.dumps(note)})


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.update(more=1),
        lambda note: note["info"].update(description="slide 17"),
        lambda note: note["info"]["features"].update(seed=number("int32")),
        lambda note: note["info"]["features"].pop("seed"),
        lambda note: note["info"]["features"].update(more=number("int64")),
        lambda note: note["info"]["features"]["seed"].update(id="slide 17"),
        lambda note: note["info"]["features"]["image"].update(decode=False),
        lambda note: note["info"]["features"]["label"].update(names_file="labels.txt"),
        lambda note: note["info"]["features"]["label"].update(names=NAMES[:2]),
        lambda note: note["info"]["features"]["label"].update(names=[]),
        lambda note: note["info"]["features"]["label"].update(names="abc"),
        lambda note: note["info"]["features"].update(label=number("int64")),
        lambda note: note["info"]["features"]["soft_label"].update(length=-1),
        lambda note: note["info"].update(features=[]),
        lambda note: note.clear(),
    ],
)
def test_what_the_footer_says_of_the_columns_is_what_they_are(change):
    refusal(change_note(change))


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"huggingface": "slide 17"},
        {"huggingface": "[" * 100_000},
        {**arrow().schema.metadata, "pandas": "{}"},
        {**arrow().schema.metadata, "note": "slide 17"},
        {**arrow().schema.metadata, "Huggingface": "slide 17"},
    ],
)
def test_other_notes_in_the_footer_are_refused(metadata):
    refusal(arrow().replace_schema_metadata(metadata))


def test_notes_of_columns_are_refused():
    table = arrow()
    seed = table.schema.field("seed").with_metadata({"who": "slide 17"})
    assert "its column seed has notes" in refusal(table.cast(table.schema.set(3, seed)))
    kind = pa.struct([pa.field("bytes", pa.binary(), metadata={"who": "slide 17"}), ("path", pa.string())])
    image = pa.field("image", kind)
    cells = pa.array(table["image"].to_pylist(), kind)
    assert "its column image has notes" in refusal(table.set_column(0, image, cells))
    kind = pa.list_(pa.field("element", pa.float32(), metadata={"who": "slide 17"}), 3)
    assert "its column soft_label has notes" in refusal(
        table.set_column(2, pa.field("soft_label", kind), table["soft_label"].combine_chunks().cast(kind))
    )


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("label", 2, 3, "row 2: its column label holds 3, which is out of range"),
        ("label", 2, -1, "row 2: its column label holds -1"),
        ("seed", 0, 2**32, "row 0: its column seed holds 4294967296"),
        ("seed", 0, -1, "row 0: its column seed holds -1"),
        ("seed", 0, make().columns["seed"][1], "its column seed has a number twice"),
        ("community", 8, -2, "row 8: its column community holds -2"),
        ("community", 8, 2**31, "row 8: its column community holds 2147483648"),
        ("modular_centrality", 1, np.inf, "row 1: its column modular_centrality holds inf"),
        ("modular_centrality", 1, np.nan, "row 1: its column modular_centrality holds nan"),
        ("rank", 0, 0, "row 0: its column rank holds 0, which is out of range"),
        ("rank", 6, 2, "row 6: its column rank holds 2: those of a class must be the numbers from 1 on, each once"),
        ("rank", 1, 4, "row 4: its column rank holds 2: those of a class must be the numbers from 1 on, each once"),
        ("soft_label", 5, [0.5, 0.6, 0], "row 5: its column soft_label has the sum 1.1: it must be probabilities"),
        ("soft_label", 5, [1.5, -0.5, 0], "row 5: its column soft_label holds -0.5"),
        ("soft_label", 5, [np.nan, 1, 0], "row 5: its column soft_label holds nan"),
        ("soft_label", 5, [0, 0, 0], "row 5: its column soft_label has the sum 0"),
    ],
)
def test_numbers_out_of_range_are_refused_by_reader_and_writer(name, place, value, message):
    table = make()
    table.columns[name][place] = value
    kind = arrow().schema.field(name).type
    data = with_column(arrow(), name, pa.array(table.columns[name].tolist(), kind))
    assert message in refusal(data)
    with pytest.raises(ContentError, match=message.partition(":")[0]):
        write_table(table)


@pytest.mark.parametrize(
    "name",
    [
        "", " stroma", "stroma ", "a\nb", "a\tb", "a\u200bb", "a\u202eb", "a\u00adb", "a\ufe0fb", "a\U000e0101",
        "a\u3164b", "a\u034fb", "\x00", "\ue000", "\ud800", "e\u0301", "ﬁ".replace("ﬁ", "A\u030a"), "a\u00a0b",
        "x" * 101,
    ],
)  # fmt: skip
def test_names_are_plain_text(name):
    message = "give it a plain name"
    with pytest.raises(ContentError, match=message):
        write_table(replace(make(), class_names=[*NAMES[:2], name]))
    if name != "\ud800":
        assert message in refusal(
            change_note(lambda note: note["info"]["features"]["label"]["names"].__setitem__(2, name))
        )


def test_names_differ_and_have_an_image():
    with pytest.raises(ContentError, match="its class 'adipose' is named twice"):
        write_table(replace(make(), class_names=["adipose", "glands", "adipose"]))
    table = make()
    more = replace(table, class_names=[*NAMES, "slide 17"], columns={"label": table.columns["label"]})
    with pytest.raises(ContentError, match="its class 'slide 17' has no image: leave the name out"):
        write_table(more)
    names = [f"class {n}" for n in range(100_000)]
    assert "names of a class: it may have" in refusal(
        change_note(lambda note: note["info"]["features"]["label"].update(names=names))
    )


def test_names_of_sites_go_with_their_column():
    table = make()
    columns = {**table.columns, "rank": np.arange(9) // 6 + 1, "site": np.arange(9) % 2}  # ranks of each site
    merged = replace(table, columns=columns, site_names=["north", "b: 2 (c)"])
    assert equal(read_table(write_table(merged)), canonical(merged))
    for wrong in (
        replace(merged, site_names=[]),
        replace(table, site_names=["north"]),
        replace(merged, site_names=["north", "south", "east"]),
        replace(merged, site_names=["north", "a\u200b"]),
        replace(merged, columns={**columns, "rank": table.columns["rank"]}),
    ):
        with pytest.raises(ContentError):
            write_table(wrong)
    # Sites make images by generators of their own, so that two of them may have one seed.
    merged.columns["seed"] = np.arange(9) // 2
    assert equal(read_table(write_table(merged)), canonical(merged))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((9, 8, 9, 3), np.uint8), np.zeros((9, 8, 8), np.uint8), np.zeros((9, 8, 8, 4), np.uint8),
        np.zeros((9, 8, 8, 3), np.uint16), np.zeros((0, 8, 8, 3), np.uint8), np.zeros((9, 0, 0, 3), np.uint8),
        np.zeros((8, 8, 8, 3), np.uint8),
    ],
)  # fmt: skip
def test_images_are_rgb_squares(images):
    with pytest.raises((ContentError, ValueError)):
        write_table(replace(make(), images=images))


def test_columns_that_are_not_known_are_not_written():
    table = make()
    for columns in (
        {**table.columns, "x": np.ones(9)},
        {"seed": table.columns["seed"]},
        {"label": np.ones((9, 2), int)},
    ):
        with pytest.raises(ContentError):
            write_table(replace(table, columns=columns))


@pytest.mark.parametrize("cut", [0, 3, 100, -4, -8, -50])
def test_files_that_are_no_tables_are_refused(cut):
    assert "it is no Parquet file that can be read" in refusal(write_table(make())[:cut])


def test_a_table_without_rows_is_refused():
    assert "0 rows" in refusal(arrow().slice(0, 0))


def test_rows_that_the_footer_does_not_count_are_refused():
    """The number of rows stands in the footer twice: once for all, and once for each group."""
    data = write_table(make(200))
    length = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - length : -8]
    told = b"\x90\x03"  # 200 as Thrift writes it
    places = [place for place in range(len(footer)) if footer.startswith(told, place)]
    refused = 0
    for place in places:
        lie = data[: -8 - length] + footer[:place] + b"\x8e\x03" + footer[place + 2 :] + data[-8:]
        try:
            assert equal(read_table(lie), canonical(make(200)))  # what no reader goes by
        except ContentError:
            refused += 1
    assert refused >= 2


def test_what_it_unpacks_to_is_told_before(monkeypatch):
    asked = []
    table = read_table(write_table(make()), check_size=asked.append)
    assert len(asked) == 2 and table.images.nbytes <= asked[-1] <= 2 * table.images.nbytes
    monkeypatch.setattr(table_files, "MAX_BYTES", 1000)
    assert "bytes: a set to be published may have 1,000" in refusal(write_table(make()))


def test_one_image_that_is_repeated_is_no_bomb(monkeypatch):
    """A dictionary holds it once; as many rows are read at a time as would fit if each were as large as all."""
    image = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    table = make(600)
    table = replace(table, images=np.broadcast_to(image, (600, 64, 64, 3)))
    data = parquet(arrow(table), use_dictionary=True)
    assert len(data) < 40_000
    monkeypatch.setattr(table_files, "_GROUP_BYTES", 100_000)
    sizes = []
    iter_batches = pq.ParquetFile.iter_batches

    def spy(self, size, **options):
        sizes.append(size)
        return iter_batches(self, size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    assert len(read_table(data)) == 600
    assert sizes[0] < 10


def test_a_file_that_is_read_in_groups_keeps_none_of_them(monkeypatch):
    """A pool has many files, which are all open."""

    class Recorded(io.BytesIO):
        def read(self, size=-1):
            given.append(super().read(size))
            return given[-1]

    monkeypatch.setattr(table_files, "_GROUP_ROWS", 10)
    given = []
    table = make(40, size=32)
    file = TableFile(Recorded(write_table(table)))
    assert file.first_rows.tolist() == [0, 10, 20, 30, 40] and file.in_groups
    assert (file.table.class_names, file.table.images.shape) == (NAMES, table.images.shape)
    given.clear()
    np.testing.assert_array_equal(file.read_group(1).decode(13), table.images[13])
    groups = [data for data in given if len(data) > 10_000]
    given.clear()
    # The list, the loop, and the argument; a thread of pyarrow's may let go of it a little later.
    deadline = time.monotonic() + 10
    while (counts := [sys.getrefcount(data) for data in groups]) != [3] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert counts == [3]


def test_part_of_a_set_need_not_have_every_class():
    data = write_table(make())
    table = pq.read_table(io.BytesIO(data)).slice(0, 2)
    assert "has no image" in refusal(table)
    assert len(read_table(parquet(table), is_whole=False)) == 2


@pytest.mark.parametrize("compression", ["zstd", "gzip", "snappy"])
def test_pages_are_measured_before_they_are_unpacked(compression):
    """Whatever the footer says: here cells of 2 MB that pack to nearly nothing, which the footer makes a few bytes."""
    table = arrow()
    cells = [{"bytes": bytes(2_000_000), "path": None}] * 9
    table = table.set_column(0, table.schema.field("image"), pa.array(cells, table.schema.field("image").type))
    data = parquet(table, compression=compression, use_dictionary=False)
    told = varint(pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(0).total_uncompressed_size)
    lie = data[:-20_000] + data[-20_000:].replace(told, b"\xc8" + b"\x80" * (len(told) - 2) + b"\0")
    assert pq.ParquetFile(io.BytesIO(lie)).metadata.row_group(0).column(0).total_uncompressed_size < 100
    asked = []

    def check_size(needed):
        asked.append(needed)
        raise ContentError("it is too much")

    for file in (data, lie):
        refusal(file, check_size=check_size)
    assert asked[0] >= 18_000_000 and all(needed >= 18_000_000 for needed in asked)


def varint(number: int) -> bytes:
    """A number as Thrift's compact protocol writes it."""
    number, parts = 2 * number, []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def with_views(num_views: int = 4, count: int = 9) -> ImageTable:
    table = make(count)
    said = np.random.default_rng(1).dirichlet(np.ones(3), (count, num_views - 1))
    return replace(table, columns={**table.columns, "soft_label_views": encode_soft_label_views(said)})


@pytest.mark.parametrize("num_views", [2, 4, MAX_VIEWS])
def test_soft_labels_of_views_come_back(tmp_path, num_views):
    table = canonical(with_views(num_views))
    data = write_table(table)
    assert equal(read_table(data, DISTILLED), table)
    assert write_table(read_table(data)) == data
    (tmp_path / "t.parquet").write_bytes(data)
    dataset = load_dataset("parquet", data_files=str(tmp_path / "t.parquet"), split="train", cache_dir=str(tmp_path))
    assert dataset.features["soft_label_views"] == List(Value("uint8"), length=3 * (num_views - 1))
    np.testing.assert_array_equal(
        np.reshape(dataset["soft_label_views"], (9, -1, 3)), table.columns["soft_label_views"]
    )


def test_soft_labels_of_views_take_no_more_bits_than_they_have():
    """A byte for each class of a view: more than so many, and a few for headers, would be for something else."""
    few, many = (len(write_table(with_views(num_views, count=300))) for num_views in (2, 16))
    assert many - few <= 1.1 * 300 * 3 * 14


def codes_like(change) -> ImageTable:
    table = with_views()
    codes = table.columns["soft_label_views"]
    changed = change(codes)
    return replace(table, columns={**table.columns, "soft_label_views": codes if changed is None else changed})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda codes: codes[5, 1].fill(0), "row 5: its column soft_label_views holds no probabilities of view 2"),
        (lambda codes: codes[8, 2].fill(255), "row 8: its column soft_label_views holds no probabilities of view 3"),
        (lambda codes: codes[:, :, :2], "is uint8 of shape (9, 3, 2): it must be uint8 of shape (9, 3, 3)"),
        (lambda codes: codes[:, 0], "is uint8 of shape (9, 3): it must be uint8 of shape (9, 1, 3)"),
        (lambda codes: codes[:, :0], "is uint8 of shape (9, 0, 3): it must be uint8 of shape (9, 1, 3)"),
        (
            lambda codes: np.repeat(codes[:, :1], MAX_VIEWS, axis=1),
            "is uint8 of shape (9, 16, 3): it must be uint8 of shape (9, 15, 3)",
        ),
    ],
)
def test_soft_labels_of_views_that_are_none_are_not_written(change, message):
    with pytest.raises(ContentError) as error:
        write_table(codes_like(change))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "length"),
    [(pa.uint8(), 4), (pa.uint8(), 2), (pa.uint8(), 3 * MAX_VIEWS), (pa.uint16(), 9), (pa.float32(), 9)],
)
def test_soft_labels_of_views_of_another_type_are_refused(kind, length):
    table = arrow(with_views())
    cells = pa.array([[8, 8, 255, 255][:length] + [255] * max(0, length - 4)] * 9, pa.list_(kind, length))
    feature = {"feature": number(str(kind).replace("float", "float32")), "length": length, "_type": "List"}
    message = refusal(with_column(table, "soft_label_views", cells, feature))
    assert "its column soft_label_views is of the type" in message or "what its footer says" in message


def test_changed_codes_are_refused_by_the_reader():
    table = arrow(with_views())
    cells = table["soft_label_views"].to_pylist()
    cells[4][3:6] = [0, 0, 0]
    kind = table.schema.field("soft_label_views").type
    assert "row 4: its column soft_label_views holds no probabilities of view 2" in refusal(
        with_column(table, "soft_label_views", pa.array(cells, kind))
    )
    cells[4][3] = None
    assert "its column soft_label_views has cells without a number" in refusal(
        with_column(table, "soft_label_views", pa.array(cells, kind))
    )


@pytest.mark.parametrize("name", ["soft_label", "rank"])
def test_soft_labels_of_views_that_nobody_could_make_are_refused(name):
    table = with_views()
    del table.columns[name]
    with pytest.raises(ContentError, match=f"soft_label_views and no column {name}, without which it says nothing"):
        write_table(table)


def test_soft_labels_of_views_are_of_one_site():
    table = with_views()
    table = replace(table, columns={**table.columns, "site": np.zeros(9, np.int64)}, site_names=["north"])
    with pytest.raises(ContentError, match="soft_label_views, and its images are of several sites"):
        write_table(table)
