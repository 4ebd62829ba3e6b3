from __future__ import annotations

import os
import socket

import pytest

from histodistill.hub_cards import ContentError, part_files
from histodistill.hub_cards.part_files import (
    audited_names,
    hash_contents,
    hash_files,
    hash_part,
    read_file,
    read_part,
)


@pytest.fixture
def folder(tmp_path):
    """A distilled set, with what the stage keeps for itself."""
    place = tmp_path / "distilled"
    (place / "data").mkdir(parents=True)
    (place / "data" / "train-00000-of-00001.parquet").write_bytes(b"tiles")
    (place / "stage.json").write_text("{}")
    (place / "README.md").write_text("card")
    return place


def test_files_that_a_verdict_is_about(folder):
    files = read_part(folder)
    assert files == {"data/train-00000-of-00001.parquet": b"tiles", "stage.json": b"{}"}
    # From sha256sum.
    expected = "ad9243fa6fb22714f45277ba907cb9383a18674fbcdb7b4b05a86929b2d853cd"
    assert hash_part(folder)["data/train-00000-of-00001.parquet"] == expected
    assert hash_part(folder) == hash_contents(files)
    assert read_part(folder.rename(folder.with_name("elsewhere")), "distilled") == files


def test_working_files_of_a_pipeline_are_not_looked_into(tmp_path):
    folder = tmp_path / "pipeline"
    for name in ("model_index.json", "history.json", "checkpoints/1/model.bin", "progress/a/step.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    assert audited_names(folder) == ["model_index.json"]


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("distilled", ".hidden"),
        ("distilled", ".cache/x"),
        ("distilled", "data/train-00001-of-00002.parquet"),
        ("distilled", "data/train-old/real.parquet"),
        ("distilled", "names.csv"),
        ("distilled", "Stage.json"),
        ("distilled", "data/README.md"),
        ("distilled", "checkpoints/tiles.bin"),
        ("distilled", "two\nlines"),
        ("pipeline", "unet/diffusion_pytorch_model.fp16.safetensors"),
        ("pipeline", "unet/diffusion_pytorch_model-00001-of-00002.safetensors"),
        ("pipeline", "unet/diffusion_pytorch_model.safetensors.index.json"),
        ("pipeline", "unet/diffusion_pytorch_model.bin"),
        ("pipeline", "text_encoder/model.safetensors"),
        ("pipeline", "unet/progress/x.png"),
        ("pipeline", "checkpoints"),
        ("pipeline", ".git/config"),
        ("selector", "embeddings.npy"),
        ("selector", "stage.json"),
        ("selector", ".DS_Store"),
    ],
)
def test_any_other_file_is_refused_by_its_name(tmp_path, part, name):
    (tmp_path / part / name).parent.mkdir(parents=True)
    (tmp_path / part / name).write_bytes(b"x")
    with pytest.raises(ContentError) as caught:
        read_part(tmp_path / part)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / part}/{name.replace(chr(10), '?')} is no file of a {part}")
    assert message.endswith("or delete it") and "\n" not in message


def test_links_are_refused(folder, tmp_path):
    file = folder / "data" / "train-00000-of-00001.parquet"
    elsewhere = file.rename(tmp_path / "real.parquet")
    file.symlink_to(elsewhere)
    with pytest.raises(ContentError, match=r"parquet is a link: put the file itself there"):
        read_part(folder)
    file.unlink()
    (folder / "data").rmdir()
    (folder / "data").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ContentError, match=r"distilled/data is a link"):
        read_part(folder)
    (folder / "data").unlink()
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(folder / "nowhere")
    with pytest.raises(ContentError, match=r"README.md is a link"):
        read_part(folder)


def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path):
    pipe, plug, folder = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"
    os.mkfifo(pipe)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # the names of sockets are short
        server.bind("b.json")
        os.chdir(here)
    for path in (pipe, plug, folder):
        with pytest.raises(ContentError, match=r"\.json (is no ordinary file|cannot be read)"):
            read_file(path)
    distilled = tmp_path / "distilled"
    distilled.mkdir()
    os.mkfifo(distilled / "stage.json")
    for function in (read_part, hash_part):
        with pytest.raises(ContentError, match=r"stage\.json is no ordinary file"):
            function(distilled)
    (tmp_path / "d.json").symlink_to("/dev/zero")
    with pytest.raises(ContentError, match="is a link"):
        read_file(tmp_path / "d.json")


def test_large_files_and_other_endings_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setitem(part_files.LARGEST_FILES, ".json", 4)
    (tmp_path / "a.json").write_bytes(b"1234")
    assert read_file(tmp_path / "a.json") == b"1234"
    (tmp_path / "a.json").write_bytes(b"12345")
    with pytest.raises(ContentError, match="has more than the 4 bytes that such a file may have"):
        read_file(tmp_path / "a.json")
    (tmp_path / "a.bin").write_bytes(b"1")
    with pytest.raises(ContentError, match="has more than the 0 bytes"):
        read_file(tmp_path / "a.bin")


def test_what_is_missing_or_locked_is_one_sentence(tmp_path):
    with pytest.raises(ContentError, match=r"distilled/ cannot be read \(No such file or directory\)"):
        read_part(tmp_path / "distilled")
    with pytest.raises(ContentError, match=r"a.json cannot be read \(No such file or directory\)"):
        read_file(tmp_path / "a.json")


def test_hashes_of_files(tmp_path):
    folder, names = tmp_path / "pipeline", ["model_index.json", "unet/stray.safetensors"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    assert hash_files(folder, names) == hash_contents({name: name.encode() for name in names})


def test_no_more_memory_is_asked_for_than_a_file_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(part_files.LARGEST_FILES, ".safetensors", 2**60)
    (tmp_path / "a.safetensors").write_bytes(b"1234")
    assert read_file(tmp_path / "a.safetensors") == b"1234"
