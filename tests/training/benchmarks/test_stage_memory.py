import numpy as np

from histodistill.training.benchmarks import stage_memory
from histodistill.training.benchmarks.stage_memory import StageMemoryConfig, measure, save_tiles, table_lines
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
        many = int("_2000" in str(argv))
        return {"bytes": 10**8 + 1000 * many, "seconds": 2.0, "processor": 1.0 + 0.5 * many}

    monkeypatch.setattr(stage_memory, "measure", measure)
    config = StageMemoryConfig(output=tmp_path, tiles=(1000, 2000), image_size=16)
    stage_memory.run(config)
    assert len(measured) == 16 and measured[0].endswith("inspect_tiles") and measured[7].endswith("audit")
    table = (tmp_path / "memory.md").read_text().splitlines()
    assert table[0] == "| step | 1,000 tiles | 2,000 tiles | for each further tile |"
    assert table[9] == "| privacy audit | 100 MB | 100 MB | 1 B |"
    assert table[11] == "| step | 1,000 tiles | 2,000 tiles | for twice the tiles |"
    assert table[-1] == "| privacy audit | 1.0 s | 1.5 s | × 1.50 |"
    stage_memory.run(config)
    assert len(measured) == 16 and "100 MB" in capsys.readouterr().out


def test_a_table_of_one_size():
    pool = {"bytes": 5 * 10**6, "processor": 2.0}
    assert table_lines({1000: {"pool": pool}})[2] == "| pool | 5 MB | 0 B |"


def test_growth_is_by_doubling_as_far_as_a_step_was_measured():
    found = {
        1000: {"pool": {"bytes": 10**6, "processor": 2.0}, "audit": {"bytes": 10**6, "processor": 1.0}},
        4000: {"pool": {"bytes": 10**6, "processor": 8.0}, "audit": {"bytes": 10**6, "processor": 16.0}},
        8000: {"pool": {"bytes": 10**6, "processor": 16.0}},
    }
    assert table_lines(found)[-2:] == [
        "| pool | 2.0 s | 8.0 s | 16.0 s | × 2.00 |",
        "| audit | 1.0 s | 16.0 s |  | × 4.00 |",
    ]


def test_a_process_is_told_of_by_its_memory_and_the_processors_time():
    found = measure("timeit", ["-n", "1", "-r", "1", "sum(range(10**7))"])
    assert found["bytes"] > 10**6 and found["processor"] > 0 and found["seconds"] > 0
