from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from histodistill.hub_cards import table_files
from histodistill.hub_cards.table_files import write_table
from histodistill.hub_cards.tables import ImageTable
from histodistill.selection.image_rows import ImageRows, batches, rows_of
from histodistill.training.data import image_dataset, limits, stored_images
from histodistill.training.data.image_dataset import (
    find_shards,
    open_image_table,
    read_image_table,
    shard_name,
    write_image_dataset,
)
from histodistill.training.running.errors import InputError


NAMES = ["adipose", "glands", "mucus"]
COUNT = 23


@pytest.fixture(autouse=True)
def many(monkeypatch):
    """Everything is large: groups have 3 images at most, and no dataset is read into memory at once."""
    monkeypatch.setattr(table_files, "_GROUP_ROWS", 3)
    monkeypatch.setattr(image_dataset, "FEW_BYTES", 0)


@pytest.fixture
def table() -> ImageTable:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    return ImageTable(images, {"label": np.arange(COUNT) % 3, "seed": np.arange(COUNT) + 5}, NAMES)


@pytest.fixture(params=[1, 2, 4])
def pool(request, tmp_path, table):
    """A dataset in so many files."""
    (tmp_path / "pool" / "data").mkdir(parents=True)
    for number, rows in enumerate(np.array_split(np.arange(COUNT), request.param)):
        columns = {name: values[rows] for name, values in table.columns.items()}
        part = write_table(ImageTable(table.images[rows], columns, NAMES))
        (tmp_path / "pool" / "data" / shard_name(number, request.param)).write_bytes(part)
    return tmp_path / "pool"


def test_the_images_are_those_of_the_whole_table(pool, table):
    opened, whole = open_image_table(pool), read_image_table(pool)
    assert isinstance(opened.images, ImageRows) and isinstance(whole.images, np.ndarray)
    assert opened.images.shape == table.images.shape and len(opened) == COUNT
    assert (opened.class_names, opened.site_names) == (whole.class_names, whole.site_names)
    for name in whole.columns:
        np.testing.assert_array_equal(opened.columns[name], whole.columns[name])
    np.testing.assert_array_equal(opened.images[:], table.images)
    np.testing.assert_array_equal(np.concatenate(list(batches(opened.images, 5))), table.images)
    rows = np.random.default_rng(1).integers(COUNT, size=50)
    np.testing.assert_array_equal(opened.images[rows], table.images[rows])
    np.testing.assert_array_equal(rows_of(opened.images, rows)[10:20], table.images[rows[10:20]])
    np.testing.assert_array_equal(opened.images[-1], table.images[-1])
    assert opened.images[[]].shape == (0, 8, 8, 3)


def test_a_small_dataset_is_read_at_once(pool, table, monkeypatch):
    monkeypatch.setattr(image_dataset, "FEW_BYTES", table.images.nbytes)
    images = open_image_table(pool).images
    assert isinstance(images, np.ndarray)
    np.testing.assert_array_equal(images, table.images)


def test_only_the_groups_that_are_asked_for_are_read(pool, table, monkeypatch):
    read = []
    read_group = stored_images._read_group
    monkeypatch.setattr(stored_images, "_read_group", lambda groups, i: read.append(i) or read_group(groups, i))
    images = open_image_table(pool).images
    images[[22, 0, 1]]
    assert len(read) == 2
    images[[21, 22]]  # of the group that was read last
    assert len(read) == 2
    read.clear()
    for _ in batches(images, 2):
        pass
    assert read == sorted(set(read))  # each once


def test_several_threads_may_ask(pool, table):
    images = open_image_table(pool).images
    draws = [np.random.default_rng(i).integers(COUNT, size=30) for i in range(8)]
    with ThreadPoolExecutor(4) as threads:
        for rows, found in zip(draws, threads.map(images.__getitem__, draws), strict=True):
            np.testing.assert_array_equal(found, table.images[rows])


def test_pixels_do_not_travel_to_other_processes(pool):
    with pytest.raises(TypeError):
        pickle.dumps(open_image_table(pool).images)


def test_what_was_opened_is_read_whatever_takes_its_place(pool, tmp_path, table):
    images = open_image_table(pool).images
    shutil.rmtree(pool)
    write_image_dataset(pool / "data", 255 - table.images, table.columns, NAMES)
    np.testing.assert_array_equal(images[:], table.images)
    np.testing.assert_array_equal(open_image_table(pool).images[:], 255 - table.images)


def change_cell(path, row, change, **options):
    """Changes an image of a file, which stays in the form that we write."""
    rows = pq.read_table(path)
    cells = rows["image"].to_pylist()
    cells[row] = change(cells[row])
    changed = rows.set_column(0, rows.schema.field("image"), pa.array(cells, rows.schema.field("image").type))
    pq.write_table(changed, path, **{"use_dictionary": ["label"], "row_group_size": 3, **options})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cell: {**cell, "bytes": b"nothing"}, "row 4: the image is no PNG file"),
        (lambda cell: {**cell, "bytes": cell["bytes"][:-3]}, "row 4: the image is cut off"),
        (lambda cell: {**cell, "path": "a.png"}, "its rows from 3 have a cell without an image, or with a file name"),
        (lambda cell: {**cell, "bytes": None}, "its rows from 3 have a cell without an image, or with a file name"),
    ],
)
def test_a_damaged_image_is_told_when_it_is_read(pool, table, change, message):
    change_cell(find_shards(pool)[0], 4, change)
    images = open_image_table(pool).images
    np.testing.assert_array_equal(images[:3], table.images[:3])
    with pytest.raises(InputError, match=rf"^{pool} cannot be read \({message}.*\): make it again$"):
        images[:5]
    with pytest.raises(InputError, match=message.removeprefix("its rows from 3 ")):
        read_image_table(pool)


def test_an_image_of_another_size_is_told_when_it_is_read(pool):
    other = table_files.encode_png(np.zeros((9, 9, 3), np.uint8))
    change_cell(find_shards(pool)[0], 4, lambda cell: {**cell, "bytes": other})
    images = open_image_table(pool).images
    with pytest.raises(InputError, match="row 4: the image is of another size than the first"):
        images[4]


@pytest.mark.parametrize("damage", ["cut off", "no table", "missing", "column"])
def test_what_a_whole_reading_refuses_is_refused_at_once(pool, damage):
    file = find_shards(pool)[-1]
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:-20])
    elif damage == "no table":
        file.write_bytes(b"nothing")
    elif damage == "missing":
        file.unlink()
    else:
        rows = pq.read_table(file)
        pq.write_table(rows.append_column("tiles", rows["label"]), file)
    messages = []
    for read in (open_image_table, read_image_table):
        with pytest.raises(InputError) as error:
            read(pool)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("change", ["classes", "size", "seeds"])
def test_files_that_do_not_belong_together_are_refused_at_once(tmp_path, table, change):
    other = {
        "classes": ImageTable(table.images, table.columns, [*NAMES[:2], "stroma"]),
        "size": ImageTable(table.images.repeat(2, axis=1).repeat(2, axis=2), table.columns, NAMES),
        "seeds": table,
    }[change]
    (tmp_path / "data").mkdir()
    for number, part in enumerate((table, other)):
        (tmp_path / "data" / shard_name(number, 2)).write_bytes(write_table(part))
    message = "has a number twice" if change == "seeds" else "its files differ in classes, columns or image size"
    with pytest.raises(InputError, match=rf"cannot be read \(.*{message}.*\): make it again"):
        open_image_table(tmp_path)


def test_a_file_whose_images_repeat_is_read_whole(pool, table):
    """One of another writer, in which a group may unpack to very much more than it has."""
    change_cell(find_shards(pool)[0], 4, lambda cell: cell, use_dictionary=True)
    images = open_image_table(pool).images
    assert isinstance(images, np.ndarray)
    np.testing.assert_array_equal(images, table.images)


def test_what_unpacks_to_too_much_is_refused_and_what_memory_has_no_room_for_is_not(pool, monkeypatch):
    monkeypatch.setattr(limits, "_free_memory", lambda: 1000)
    assert len(open_image_table(pool)) == COUNT
    with pytest.raises(InputError, match=r"1\.0 kB are free"):
        read_image_table(pool)
    monkeypatch.setattr(limits, "_HARMLESS", 100)
    monkeypatch.setenv(limits.MAX_GROWTH_VARIABLE, "1")
    change_cell(find_shards(pool)[0], 0, lambda cell: cell, compression="zstd", compression_level=20)
    monkeypatch.setattr(table_files, "_number_bytes", lambda file: 10**6)
    with pytest.raises(InputError, match="a file may grow 1 times"):
        open_image_table(pool)
