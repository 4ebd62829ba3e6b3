from histodistill.training.benchmarks import decoding
from histodistill.training.benchmarks.decoding import DecodingConfig
from histodistill.training.running.files import read_json


def test_files_are_made_once_and_each_start_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decoding, "_FIELDS_PER_CLASS", 4)
    monkeypatch.setattr(decoding, "time_pillow", lambda files, processes: float(decoding.open_files(files) > 0))
    config = DecodingConfig(output=tmp_path, tiles=100, image_size=16, rounds=2)
    found = decoding.run(config)
    assert found["tiles"] == 100 and len(found["first_start"]) == 2 and found["pillow"] == [1.0, 1.0]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    assert len(files) == 100 and read_json(tmp_path / "decoding.json")["share"] == found["share"]
    decoding.run(config)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")} == files
    assert "% of the speed of" in capsys.readouterr().out
