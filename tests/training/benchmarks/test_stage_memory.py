import numpy as np

from histodistill.training.benchmarks import stage_memory
from histodistill.training.benchmarks.stage_memory import StageMemoryConfig, save_tiles, table_lines
from histodistill.training.data.sources import load_tiles


def test_tiles_are_drawn_once_and_a_part_of_them_is_a_source(tmp_path):
    for count in (200, 80):
        save_tiles(tmp_path / f"{count}.npz", count, 200, 16, tmp_path / "tiles.npy")
    drawn = np.load(tmp_path / "tiles.npy")
    source = load_tiles(tmp_path / "80.npz")
    assert [len(tiles) for tiles in source.splits.values()] == [64, 8, 8] and source.group_kind == "group"
    assert np.array_equal(source.split("train").images[:], drawn[:64])
    assert np.array_equal(load_tiles(tmp_path / "200.npz").split("train").images[:64], drawn[:64])


def test_steps_are_measured_once(tmp_path, monkeypatch, capsys):
    measured = []

    def measure(module, argv):
        measured.append(module)
        return {"bytes": 10**8 + 1000 * int("2000" in str(argv)), "seconds": 1.0}

    monkeypatch.setattr(stage_memory, "measure", measure)
    config = StageMemoryConfig(output=tmp_path, tiles=(1000, 2000), image_size=16)
    stage_memory.run(config)
    assert len(measured) == 16 and measured[0].endswith("inspect_tiles") and measured[7].endswith("audit")
    table = (tmp_path / "memory.md").read_text().splitlines()
    assert table[0] == "| step | 1,000 tiles | 2,000 tiles | for each further tile |"
    assert table[-1] == "| privacy audit | 100 MB | 100 MB | 1 B |"
    stage_memory.run(config)
    assert len(measured) == 16 and "100 MB" in capsys.readouterr().out


def test_a_table_of_one_size():
    assert table_lines({1000: {"pool": {"bytes": 5 * 10**6}}})[-1] == "| pool | 5 MB | 0 B |"
