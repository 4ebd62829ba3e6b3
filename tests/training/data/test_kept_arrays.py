from __future__ import annotations

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from histodistill.training.data import limits
from histodistill.training.data.kept_arrays import read_arrays, read_kept_arrays, write_arrays
from histodistill.training.running.errors import InputError


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


def packed_otherwise(file):
    data = bytearray(file.read_bytes())
    for signature, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        data[data.find(signature) + place] = 0x5B  # a method that zipfile does not know
    file.write_bytes(data)


def no_array(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("values.npy", pickle.dumps({}, 2))


def swollen(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("values.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (2**22,)})
        member.write(bytes(2**22))


def lying(file):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**50,)})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("values.npy", header.getvalue())


def pipe(file):
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    "damage", [packed_otherwise, no_array, swollen, lying, *([pipe] if hasattr(os, "mkfifo") else [])]
)
def test_an_archive_that_is_none_of_ours_counts_as_damaged(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(limits, "_HARMLESS", 2**16)
    file = tmp_path / "kept.npz"
    write_arrays(file, values=np.arange(4.0))
    damage(file)
    assert read_kept_arrays(file) == {}
    with pytest.raises(InputError, match=f"{file} is damaged: delete it"):
        read_arrays(file)


def test_arrays_of_other_names_are_not_taken(tmp_path):
    file = tmp_path / "kept.npz"
    write_arrays(file, values=np.arange(4.0))
    assert read_arrays(file, ["values"]).keys() == {"values"}
    with pytest.raises(InputError, match="is damaged"):
        read_arrays(file, ["values", "labels"])
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none.npz")
