from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file

from histodistill.hub_cards.gate import (
    AUDIT_FORMAT,
    AuditError,
    audit_sentences,
    check_audit,
    check_metadata,
    files_to_audit,
    hash_files,
    risk_statement,
)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "distilled"
    (place / "data").mkdir(parents=True)
    (place / "data" / "train.parquet").write_bytes(b"tiles")
    (place / "stage.json").write_text("{}")
    (place / "README.md").write_text("card")
    return place


def make_audit(folder, passed=True, **changes):
    findings = [
        {"name": "copies", "passed": passed, "sentence": "3 of 500 images are copies of real tiles"},
        {"name": "overfitting", "passed": True, "sentence": "all is well"},
    ]
    files = hash_files(folder, files_to_audit(folder))
    part = {"passed": passed, "findings": findings, "files": files}
    return {"format": AUDIT_FORMAT, "parts": {"distilled": part}} | changes


def test_what_passed_goes_through_and_its_card_may_change(folder):
    audit = make_audit(folder)
    assert sorted(audit["parts"]["distilled"]["files"]) == ["data/train.parquet", "stage.json"]
    # From sha256sum.
    expected = "ad9243fa6fb22714f45277ba907cb9383a18674fbcdb7b4b05a86929b2d853cd"
    assert audit["parts"]["distilled"]["files"]["data/train.parquet"] == expected
    check_audit(folder, audit)
    (folder / "README.md").write_text("another card")
    check_audit(folder, audit)
    check_audit(folder, audit, files=["data/train.parquet", "README.md"])
    check_audit(folder.rename(folder.with_name("elsewhere")), audit, part="distilled")


def refusal(*args, **options) -> str:
    with pytest.raises(AuditError) as error:
        check_audit(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_has_no_audit_is_refused(folder):
    assert refusal(folder, None) == f"{folder} has not been audited: run histodistill audit on the run first"
    assert "of another version" in refusal(folder, make_audit(folder, format=0))
    assert "the audit is not about pipeline" in refusal(folder, make_audit(folder), part="pipeline")


def test_other_files_than_those_audited_are_refused(folder):
    audit = make_audit(folder)
    (folder / "data" / "more.parquet").write_bytes(b"")
    assert f"{folder / 'data' / 'more.parquet'} was not audited" in refusal(folder, audit)
    check_audit(folder, audit, files=["data/train.parquet"])
    (folder / "data" / "train.parquet").write_bytes(b"Tiles")
    assert "is not the file that was audited" in refusal(folder, audit, files=["data/train.parquet"])
    (folder / "data" / "train.parquet").unlink()
    assert "is not the file that was audited" in refusal(folder, audit, files=["data/train.parquet"])
    assert "holds nothing that was audited" in refusal(folder, audit, files=["README.md"])


def test_what_failed_is_refused_with_its_reasons(folder):
    message = refusal(folder, make_audit(folder, passed=False))
    assert "did not pass the privacy audit (3 of 500 images are copies of real tiles)" in message
    assert "all is well" not in message and message.endswith("with `i_accept_the_risk`")
    statement = risk_statement(message)
    assert statement.startswith("**This was published although it did not pass a privacy audit.**")
    assert "3 of 500 images are copies of real tiles" in statement and "accept_the_risk" not in statement


def test_sentences_for_a_card(folder):
    assert audit_sentences(make_audit(folder, passed=False), "distilled") == [
        "✗ 3 of 500 images are copies of real tiles.",
        "✓ All is well.",
    ]


def test_working_folders_and_hidden_files_are_not_audited(folder):
    for name in ("checkpoints/1/model.bin", "progress/step.png", ".cache/x", "unet/model.bin"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"")
    assert files_to_audit(folder) == ["data/train.parquet", "stage.json", "unet/model.bin"]


# Metadata.


def saved(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, format=kind, **options)
    return buffer.getvalue()


def png(**options) -> bytes:
    return saved("PNG", **options)


def write_parquet(folder, image: bytes, path=None, **columns):
    features = {"image": ImageFeature(), "label": ClassLabel(names=["a", "b"]), "seed": Value("int64")}
    rows = {"image": [{"bytes": image, "path": path}], "label": [0], "seed": [3]}
    for name, value in columns.items():
        rows[name], features[name] = [value], Value("string")
    Dataset.from_dict(rows, features=Features(features)).to_parquet(folder / "data" / "train.parquet")


def metadata_of(folder) -> str:
    with pytest.raises(AuditError) as error:
        check_metadata(folder)
    return str(error.value)


def test_pixels_alone_go_through(folder):
    write_parquet(folder, png())
    (folder / "map.png").write_bytes(png(dpi=(100, 100)))
    (folder / "stage.json").write_text('{"path": "data/train.parquet", "url": "https://example.org/home/x"}')
    check_metadata(folder)


def with_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", "somebody")
    return png(pnginfo=info)


def with_exif(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0132] = "2024:01:01 10:00:00"
    return saved(kind, exif=exif)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (with_text(), "metadata (tEXt)"),
        (with_exif("PNG"), "metadata (eXIf)"),
        (png() + b"somebody", "something after the end of an image"),
        (png() + b"?", "something after the end of an image"),
        (png()[:-12] + b"\0\0\0\x08IENDsomebody\0\0\0\0", "something in the end of an image"),
        (png()[:-12], "an image that is cut off"),
        (png()[:-1], "an image that is cut off"),
        (with_exif("JPEG"), "an image that is no PNG file"),
        (saved("JPEG") + b"somebody", "an image that is no PNG file"),
        (saved("TIFF", description="somebody"), "an image that is no PNG file"),
        (b"", "an image that is no PNG file"),
    ],
)
def test_metadata_of_images(folder, image, found):
    write_parquet(folder, image)
    assert found in metadata_of(folder)
    write_parquet(folder, png())
    (folder / "picture.png").write_bytes(image)
    assert found in metadata_of(folder)
    (folder / "picture.png").rename(folder / "picture.TIFF")
    assert found in metadata_of(folder)


def test_names_and_dates_in_a_table(folder):
    write_parquet(folder, png(), path="slide-17.png")
    assert "the file name 'slide-17.png' in the column 'image'" in metadata_of(folder)
    write_parquet(folder, png(), patient="somebody")
    assert "text in the column 'patient'" in metadata_of(folder)


TEXT = pa.array(["somebody"])
BYTES = pa.array([b"somebody"])


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array([0], pa.timestamp("s")), "dates"),
        (pa.array([[0]], pa.list_(pa.date32())), "dates"),
        (pa.array([0], pa.duration("s")), "dates"),
        (TEXT, "text"),
        (TEXT.cast(pa.large_string()), "text"),
        (TEXT.cast(pa.string_view()), "text"),
        (pa.array([["somebody"]]), "text"),
        (pa.array([[["somebody"]]], pa.list_(pa.list_(pa.string(), 1))), "text"),
        (TEXT.dictionary_encode(), "values of the type dictionary<values=string, indices=int32, ordered=0>"),
        (BYTES, "values of the type binary"),
        (BYTES.cast(pa.binary(8)), "values of the type fixed_size_binary[8]"),
        (pa.array([[b"somebody"]]), "values of the type list<element: binary>"),
        (pa.array([{"name": 1}]), "values of the type struct<name: int64>"),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "values of the type map<string, int64"),
        # Almost an image.
        (pa.array([{"bytes": png()}]), "values of the type struct<bytes: binary>"),
        (pa.array([{"bytes": png(), "path": None, "name": 1}]), "values of the type struct<bytes: binary"),
        (pa.array([{"bytes": "somebody", "path": "x"}]), "values of the type struct<bytes: string"),
    ],
)
def test_columns_of_anything_but_numbers_and_images(folder, column, found):
    pq.write_table(pa.table({"a": [1], "when": column}), folder / "data" / "train.parquet")
    message = metadata_of(folder)
    assert f"holds {found}" in message and message.endswith(" in the column 'when': remove it before publishing")


def test_columns_of_numbers_go_through(folder):
    columns = {
        "whole": pa.array([1], pa.uint8()), "share": pa.array([0.5], pa.float16()), "is_kept": pa.array([True]),
        "scores": pa.array([[0.5, 0.5]], pa.list_(pa.float32(), 2)), "ids": pa.array([[1, 2]]),
        "flags": pa.array([[True]], pa.large_list(pa.bool_())), "grid": pa.array([[[1.0]]]),
    }  # fmt: skip
    pq.write_table(pa.table(columns), folder / "data" / "train.parquet")
    check_metadata(folder)


FEATURES = b'{"info": {"features": {"a": {"dtype": "int64", "_type": "Value"}}}}'


@pytest.mark.parametrize(
    ("about", "found"),
    [
        ({b"Patient": b"somebody"}, "Patient"),
        ({b"huggingface": b'{"info": {"features": {}, "dataset_name": "ward 7"}}'}, "huggingface"),
        ({b"huggingface": b'{"info": {"features": {}}, "fingerprint": "somebody"}'}, "huggingface"),
        ({b"huggingface": b"somebody"}, "huggingface"),
        ({b"huggingface": b'["somebody"]'}, "huggingface"),
        ({b"huggingface": FEATURES}, None),
        (None, None),
    ],
)
def test_what_a_table_says_about_itself(folder, about, found):
    table = pa.table({"a": [1]}).replace_schema_metadata(about)
    pq.write_table(table, folder / "data" / "train.parquet")
    if found is None:
        check_metadata(folder)
    else:
        assert f"holds metadata ({found}): " in metadata_of(folder)


def test_what_a_column_says_about_itself(folder):
    inner = pa.field("element", pa.int64(), metadata={"Patient": "somebody"})
    for field in (pa.field("a", pa.list_(pa.int64()), metadata={"Patient": "x"}), pa.field("a", pa.list_(inner))):
        table = pa.table([[[1]]], schema=pa.schema([field]))
        pq.write_table(table, folder / "data" / "train.parquet")
        assert "holds metadata (Patient of the column '" in metadata_of(folder)


def test_what_is_no_table(folder):
    assert "train.parquet holds something else than a table: " in metadata_of(folder)


def test_what_weights_say_about_themselves(folder):
    write_parquet(folder, png())
    weights = {"weight": np.zeros(3, np.float32)}
    for about in (None, {"format": "pt"}, {"format": "np"}):
        save_file(weights, folder / "unet.safetensors", metadata=about)
        check_metadata(folder)
    for about in ({"Patient": "x"}, {"format": "pt", "Patient": ""}, {"format": "somebody"}):
        save_file(weights, folder / "unet.safetensors", metadata=about)
        assert f"holds metadata ({', '.join(sorted(about))}): " in metadata_of(folder)
    save_file(weights, folder / "unet.safetensors")
    with open(folder / "unet.safetensors", "ab") as file:
        file.write(b"somebody")
    assert "holds something else than tensors" in metadata_of(folder)


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}, {"bytes": None, "path": "slide-17.png"}])
def test_a_cell_without_an_image(folder, cell):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = [{"bytes": png(), "path": None}] * 300 + [cell]
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), folder / "data" / "train.parquet")
    assert "holds a cell without an image in row 300 of the column 'image'" in metadata_of(folder)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"data": "/home/me/tiles.npz"}', "/home/me/tiles.npz"),
        ("{'data': 'C:\\\\Users\\\\me'}", r"C:\\Users\\me"),
        ('{"_name_or_path": "/scratch/lab/patient_7/ae"}', "/scratch/lab/patient_7/ae"),
        ('{"data": [{"a": 1}, ["/work/my tiles/x.npz"]]}', "/work/my tiles/x.npz"),
        ('{"data": "\\/scratch\\/x.npz"}', "/scratch/x.npz"),
        ('{"data": "\\u002fscratch/x.npz"}', "/scratch/x.npz"),
        ('{"data": "see /home/me/x"}', "/home/me/x"),
        ('{"data": "file:///scratch/x.npz"}', "file:///scratch/x.npz"),
        ('{"data": "D:/tiles/x.npz"}', "D:/tiles/x.npz"),
        ('{"data": "D:\\\\tiles"}', "D:\\tiles"),
        (r'{"data": "\\\\server\\share\\x.npz"}', r"\\server\share\x.npz"),
        ('{"/scratch/lab/x.npz": 1}', "/scratch/lab/x.npz"),
        ('{"data": "/scratch/x.npz", "data": "x"}', "/scratch/x.npz"),
        ('{"data": "/scratch/x.npz"', "/scratch/x.npz"),
        ("[" * 100_000 + '"/scratch/x.npz"', "/scratch/x.npz"),
    ],
)
def test_paths_of_this_machine_in_texts(folder, text, path):
    write_parquet(folder, png())
    (folder / "stage.json").write_text(text)
    assert metadata_of(folder) == f"{folder / 'stage.json'} holds the path {path}: remove it before publishing"


def test_what_only_looks_like_a_path_goes_through(folder):
    write_parquet(folder, png())
    values = [
        "/", "//", "a/b", "lab/model-7", "https://example.org/scratch/x", "hf://datasets/a/b", "</div></a>", "1/2/3",
        "/ 3 images / class", "data/train-*.parquet", "./x/y", "and/or", "C: 1", r"\n", r"\alpha\beta", "A: b/c/d",
    ]  # fmt: skip
    (folder / "stage.json").write_text(json.dumps({value: [value] for value in values}))
    (folder / "page.md").write_text(
        '[map](assets/map.png) <a href="https://example.org/a/b"></a> N/A, and/or "a/b" `"/"`, km/h, \'/\' and \'/\', '
        "S. 3/4/5, either /this/ or /that/"
    )
    check_metadata(folder)
