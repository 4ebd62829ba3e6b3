from __future__ import annotations

import numpy as np
import pytest
import torch

from histodistill.hub_cards import table_files
from histodistill.hub_cards.table_files import write_table
from histodistill.hub_cards.tables import ImageTable
from histodistill.training.engine import pool
from histodistill.training.engine.pool import (
    cut_into_chunks,
    gather_into_shards,
    is_written,
    plan_pool,
    read_chunk,
    write_chunk,
    write_shards,
)
from histodistill.training.running.errors import InputError


def test_plan_pool():
    labels, seeds = plan_pool(3, 4, seed=7)
    assert (labels.dtype, seeds.dtype) == (np.int64, np.int64)
    assert labels.tolist() == [0, 1, 2] * 4
    assert len(set(seeds.tolist())) == 12
    larger_labels, larger_seeds = plan_pool(3, 6, seed=7)
    np.testing.assert_array_equal(larger_labels[:12], labels)
    np.testing.assert_array_equal(larger_seeds[:12], seeds)
    assert plan_pool(3, 4, seed=0)[1].tolist() == list(range(12))
    largest = plan_pool(2, 3, seed=2**31 - 1)[1]
    assert len(set(largest.tolist())) == 6 and largest.min() >= 0  # no overflow
    for seed in (-1, 2**31):
        with pytest.raises(InputError, match=f"^seed={seed} is out of range: it must be at least 0 and below 2"):
            plan_pool(2, 3, seed)
    with pytest.raises(InputError, match=r"^per_class=1073741825 is out of range: there are 2\^32 seeds"):
        plan_pool(4, 2**30 + 1, 0)


def test_pools_of_other_seeds_have_other_images():
    # With 5 classes, seeds that differ by a multiple of 5 gave the same images with the same labels.
    pools = [plan_pool(5, 200, seed)[1] for seed in (*range(100), 1234, 2**31 - 1)]
    assert len(np.unique(np.concatenate(pools))) == len(pools) * 1000
    # torch reads the low 32 bits of a seed: the noise itself is to differ.
    noise = {torch.randn(1, generator=torch.Generator().manual_seed(int(seeds[0]))).item() for seeds in pools}
    assert len(noise) == len(pools)


@pytest.mark.parametrize(("size", "sizes"), [(5, [5, 5, 2]), (12, [12]), (100, [12])])
def test_chunks_are_the_pool_cut_up(tmp_path, size, sizes):
    labels, seeds = plan_pool(3, 4, 1)
    chunks = cut_into_chunks(tmp_path, labels, seeds, size)
    assert [len(chunk.labels) for chunk in chunks] == sizes
    assert [chunk.path.name for chunk in chunks] == [f"chunk-{number:06d}.npz" for number in range(len(sizes))]
    np.testing.assert_array_equal(np.concatenate([chunk.labels for chunk in chunks]), labels)
    np.testing.assert_array_equal(np.concatenate([chunk.seeds for chunk in chunks]), seeds)


@pytest.mark.parametrize(
    ("limit", "sizes"), [(10**6, [23]), (5 * 192, [5, 5, 5, 5, 3]), (14 * 192, [10, 10, 3]), (1, [5, 5, 5, 5, 3])]
)
def test_shards_are_whole_chunks(tmp_path, monkeypatch, limit, sizes):
    monkeypatch.setattr(pool, "SHARD_BYTES", limit)
    labels, seeds = plan_pool(1, 23, 1)
    chunks = cut_into_chunks(tmp_path, labels, seeds, 5)
    shards = gather_into_shards(tmp_path / "shards", chunks, image_size=8)
    assert [len(shard.labels) for shard in shards] == sizes
    assert [chunk.path for shard in shards for chunk in shard.chunks] == [chunk.path for chunk in chunks]
    np.testing.assert_array_equal(np.concatenate([shard.seeds for shard in shards]), seeds)
    assert [s.path.name for s in shards] == [f"train-{i:05d}-of-{len(sizes):05d}.parquet" for i in range(len(sizes))]


def test_write_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "_GROUP_ROWS", 3)  # which chunks do not end with
    labels, seeds = plan_pool(2, 5, 0)
    images = np.random.default_rng(0).integers(0, 255, (10, 8, 8, 3), dtype=np.uint8)
    chunks = cut_into_chunks(tmp_path, labels, seeds, 4)
    shards = gather_into_shards(tmp_path, chunks, image_size=8)
    for number, chunk in enumerate(chunks):
        assert write_shards(shards, ["a", "b"]) == shards
        assert not is_written(shards[0], ["a", "b"], 8)
        write_chunk(chunk.path, images[4 * number : 4 * number + 4], chunk.labels, chunk.seeds)
    assert write_shards(shards, ["a", "b"]) == []
    assert list(tmp_path.iterdir()) == [shards[0].path]
    table = ImageTable(images, {"label": labels, "seed": seeds}, ["a", "b"])
    assert shards[0].path.read_bytes() == write_table(table)

    assert is_written(shards[0], ["a", "b"], 8)
    assert not is_written(shards[0], ["a", "c"], 8)
    assert not is_written(shards[0], ["a", "b"], 16)
    others = cut_into_chunks(tmp_path, labels, seeds + 1, 4)
    assert not is_written(shards[0]._replace(chunks=others), ["a", "b"], 8)
    assert not is_written(shards[0]._replace(chunks=chunks[:2]), ["a", "b"], 8)


def test_a_damaged_chunk_is_not_written(tmp_path):
    labels, seeds = plan_pool(2, 4, 0)
    chunks = cut_into_chunks(tmp_path, labels, seeds, 4)
    for chunk in chunks:
        write_chunk(chunk.path, np.zeros((4, 8, 8, 3), np.uint8), chunk.labels, chunk.seeds)
    chunks[1].path.write_bytes(chunks[1].path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"chunk-000001.npz is damaged: run the same command again"):
        write_shards(gather_into_shards(tmp_path / "shards", chunks, 8), ["a", "b"])
    assert list((tmp_path / "shards").iterdir()) == []


def test_read_chunk(tmp_path):
    labels, seeds = plan_pool(2, 2, 0)
    images = np.random.default_rng(0).integers(0, 255, (4, 4, 4, 3), dtype=np.uint8)
    path = tmp_path / "deep" / "chunk.npz"
    assert read_chunk(path, labels, seeds) is None
    write_chunk(path, images, labels, seeds)
    assert list(path.parent.iterdir()) == [path]
    np.testing.assert_array_equal(read_chunk(path, labels, seeds), images)
    assert read_chunk(path, labels, seeds + 1) is None
    assert read_chunk(path, labels[::-1], seeds) is None

    whole = path.read_bytes()
    for damaged in (b"", whole[:10], whole[:-30], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], b"no archive"):
        path.write_bytes(damaged)
        assert read_chunk(path, labels, seeds) is None
    np.savez(path, labels=labels, seeds=seeds)
    assert read_chunk(path, labels, seeds) is None
    np.savez(path, images=np.array([object()]), labels=labels, seeds=seeds)
    assert read_chunk(path, labels, seeds) is None  # pickled objects are not loaded
