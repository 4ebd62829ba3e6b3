from __future__ import annotations

import numpy as np
import pytest

from histodistill.training.benchmarks import large_pool
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.engine import pool
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "SHARD_BYTES", pool.SHARD_BYTES)  # which the benchmark changes for its own processes
    argv = ["--gib", "0.003", "--image-size", "64", "--chunk-size", "20", "--shard-mib", "1"]
    return large_pool.make_parser().read([*argv, "--output", str(tmp_path / "pool")])


def test_a_pool_is_killed_resumed_and_read(config, monkeypatch, fresh_accelerate):
    class Killed(BaseException):
        pass

    def watched(work, config, stop=lambda: False):
        """Works in this process, and is killed between two chunks."""
        write_chunk = pool.write_chunk

        def write(*args):
            if stop():
                raise Killed
            write_chunk(*args)

        monkeypatch.setattr(pool, "write_chunk", write)
        try:
            work(config)
        except Killed:
            works.append("killed")
        finally:
            monkeypatch.setattr(pool, "write_chunk", write_chunk)
        works.append(work.__name__)
        return {"seconds": 0.0, "peak_private_mib": 0.0}

    works = []
    monkeypatch.setattr(large_pool, "_watched", watched)
    figures = large_pool.run(config)
    assert works == ["_import", "killed", "_write", "_write", "_read"]
    assert figures["images"] == 3 * config.per_class and figures["files"] == 4
    assert figures["killed"]["share_in_shards"] == 0.5
    assert figures["gib"] > 0.003
    assert read_json(config.output / "stage.json")["complete"]
    images, columns, _ = read_image_dataset(config.output)
    drawn = large_pool.random_pictures(64, columns["seed"][:3].tolist())
    np.testing.assert_array_equal(images[:3], (drawn * 255).round())
    assert len(np.unique(images[:, 0, 0], axis=0)) > 200


def test_a_folder_that_is_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="is there already: give a new folder"):
        large_pool.LargePoolConfig(output=tmp_path)
