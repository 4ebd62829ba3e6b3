import numpy as np
import pytest

from histodistill.training.cli import main
from histodistill.training.data.latent_store import Block, LatentsPlan, open_latents
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tile_cache import TileCache


@pytest.fixture
def cache(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", train_images=images, train_labels=np.arange(8) % 2)
    load_tiles(tmp_path / "mine.npz", cache_dir=tmp_path / "cache")
    return tmp_path / "cache"


def test_tiles_are_listed_and_taken_out(cache, capsys):
    main(["cache", "list", "--cache-dir", str(cache)])
    first, last = capsys.readouterr().out.splitlines()
    assert "8 tiles, 16 px" in first and first.endswith("mine") and last.endswith(f"of 100.0 GB in {cache}")
    main(["cache", "clear", "--cache-dir", str(cache)])
    assert capsys.readouterr().out.endswith(f" taken out of {cache}\n")
    main(["cache", "list", "--cache-dir", str(cache)])
    assert capsys.readouterr().out == f"0 B of 100.0 GB in {cache}\n"
    assert load_tiles(cache.parent / "mine.npz", cache_dir=cache).split("train")


def test_unfinished_tiles_are_told_of(cache, capsys):
    (cache / "unfinished" / "x").mkdir()
    (cache / "unfinished" / "x" / "images.npy").write_bytes(bytes(50_000))
    main(["cache", "list", "--cache-dir", str(cache)])
    assert "unfinished" in capsys.readouterr().out.splitlines()[1]


def test_nothing_is_taken_out_of_another_folder(tmp_path, capsys):
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "precious.png").write_text("1")
    (tmp_path / "notes.txt").write_text("1")
    with pytest.raises(SystemExit):
        main(["cache", "clear", "--cache-dir", str(tmp_path)])
    assert "is no cache of tiles" in capsys.readouterr().err
    assert (tmp_path / "tiles" / "precious.png").exists()
    main(["cache", "clear", "--cache-dir", str(tmp_path / "nothing")])
    assert not (tmp_path / "nothing").exists()


def test_latents_are_listed_and_taken_out(cache, capsys):
    plan = LatentsPlan("ab12", "mine", 16, (8, 8, 2, 4, 4), "float16", 8)
    open_latents(TileCache(cache), plan, lambda first, stop: Block(np.zeros(plan.shape, np.int16), 0.0, 0.0))
    main(["cache", "list", "--cache-dir", str(cache)])
    first, second, _ = capsys.readouterr().out.splitlines()
    assert "latents of 8 tiles, 16 px" in first and first.endswith("mine") and " 8 tiles, 16 px" in second
    main(["cache", "clear", "--cache-dir", str(cache)])
    capsys.readouterr()
    main(["cache", "list", "--cache-dir", str(cache)])
    assert capsys.readouterr().out == f"0 B of 100.0 GB in {cache}\n"
    assert list((cache / "latents").iterdir()) == []
