from __future__ import annotations

import numpy as np
import pytest

from histodistill.training.data.kept_arrays import read_kept_arrays, write_arrays


def test_objects_are_refused(tmp_path):
    with pytest.raises(TypeError, match="values holds objects"):
        write_arrays(tmp_path / "kept.npz", step=3, values=np.array([{}]))
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_read(tmp_path, capsys):
    file = tmp_path / "kept.npz"
    assert read_kept_arrays(file) == {}
    write_arrays(file, step=3, values=np.arange(4.0))
    kept = read_kept_arrays(file)
    assert kept.keys() == {"step", "values"} and int(kept["step"]) == 3
    np.testing.assert_array_equal(kept["values"], np.arange(4.0))
    assert "".join(capsys.readouterr()) == "" and [path.name for path in tmp_path.iterdir()] == ["kept.npz"]


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: b"[]", lambda data: data[:-40], lambda data: data[40:]]
)
def test_a_damaged_file_counts_as_none_and_is_told(tmp_path, capsys, damage):
    file = tmp_path / "kept.npz"
    write_arrays(file, values=np.arange(4.0))
    file.write_bytes(damage(file.read_bytes()))
    assert read_kept_arrays(file) == {}
    assert f"{file} is damaged: it is made anew" in "".join(capsys.readouterr())
