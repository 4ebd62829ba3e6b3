from __future__ import annotations

import io
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histodistill.training.commands import evaluate_pool as command
from histodistill.training.commands.evaluate_pool import ROWS, parse_args
from histodistill.training.data.image_dataset import read_image_dataset, write_image_dataset
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles
from histodistill.training.evaluation import evaluate_pool as script
from histodistill.training.evaluation.evaluate_pool import (
    accuracy_scores,
    compare_with_validation,
    draw_equal,
    measure_distances,
    reconstruct,
)
from histodistill.training.evaluation.evaluation_figures import (
    CANDIDATES,
    DISTANCES,
    distance_lines,
    draw_distances,
    draw_tiles,
    format_distance,
)
from histodistill.training.evaluation.generation_metrics import frechet_distance, kernel_distance, neighbourhoods
from histodistill.training.models.autoencoder import build_autoencoder
from histodistill.training.models.embedders import embed_images, embedder_fingerprint
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.stages import is_complete, read_record


# The command line.


def test_defaults():
    args = parse_args(["runs/one", "--data", "phantom"])
    assert (args.run, args.pool, args.output) == (Path("runs/one"), Path("runs/one/pool"), Path("runs/one/evaluation"))
    assert args.embedder is None
    assert args.plan == [("resnet18", 300, ["real_all", "reconstructed", "pool_all"])]
    assert (args.seeds, args.n_neighbors, args.num_processes) == ([0], 5, 1)


def test_options():
    args = parse_args([
        "run", "--data", "phantom", "--pool", "other", "--output", "here", "--seeds", "3", "1",
        "--train", "convnet:5:pool_all,real_all", "vit:7",
    ])  # fmt: skip
    assert (args.pool, args.output, args.seeds) == (Path("other"), Path("here"), [3, 1])
    assert args.plan == [("convnet", 5, ["pool_all", "real_all"]), ("vit", 7, list(ROWS))]
    assert parse_args(["run", "--data", "phantom", "--train"]).plan == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--n-neighbors", "0"], "--n-neighbors=0 is out of range: it must be at least 1"),
        (["--batch-size", "0"], "--batch-size=0 is out of range: it must be at least 1"),
        (["--num-processes", "0"], "--num-processes=0 is out of range: it must be at least 1"),
        (["--seeds", "0", "-1"], "--seeds=[0, -1] is out of range: each must be at least 0"),
        (["--seeds", "1", "1"], "--seeds=[1, 1] is out of range: each may be named once"),
        (["--train", "vgg:10"], "--train=vgg:10: the architecture must be one of convnet, resnet18, vit"),
        (["--train", "convnet"], "--train=convnet: after the architecture comes the number of steps"),
        (["--train", "convnet:0"], "--train=convnet:0: after the architecture comes the number of steps"),
        (
            ["--train", "convnet:5:distilled_ce"],
            "--train=convnet:5:distilled_ce: 'distilled_ce' is no row: use real_all, reconstructed, pool_all",
        ),
        (["--train", "convnet:5:pool_all,pool_all"], "--train=convnet:5:pool_all,pool_all names a row twice"),
        (["--train", "convnet:5:pool_all", "convnet:9"], "--train names convnet twice"),
    ],
)
def test_bad_options(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_args(["run", "--data", "phantom", *argv])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "named"), [(["--data", "phantom"], "RUN"), (["run"], "--data"), (["run", "--dat", "phantom"], "--data")]
)
def test_run_and_data_have_to_be_named(argv, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_args(argv)
    assert stopped.value.code == 2
    assert f"the following arguments are required: {named}" in capsys.readouterr().err


def test_command_hands_everything_to_the_script(monkeypatch):
    started = []
    monkeypatch.setattr(command, "run_module", lambda *call: started.append(call))
    argv = ["run", "--data", "phantom", "--train", "--num-processes", "2"]
    command.main(argv)
    assert started == [("histodistill.training.evaluation.evaluate_pool", argv, 2)]


# Equal numbers of each class.


label_sets = st.lists(st.lists(st.integers(0, 3), max_size=25), min_size=1, max_size=3)


@given(sets=label_sets, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_set_gives_as_many_of_a_class_as_the_smallest_has(sets, seed):
    sets = [np.array(labels, np.int64) for labels in sets]
    drawn = draw_equal(sets, 4, seed)
    assert len(drawn) == len(sets)
    for labels, rows_by_class in zip(sets, drawn, strict=True):
        assert len(rows_by_class) == 4
        for label, rows in enumerate(rows_by_class):
            assert len(rows) == min(np.sum(other == label) for other in sets)
            assert len(set(rows.tolist())) == len(rows)
            assert (labels[rows] == label).all()


def test_draw_depends_on_the_seed_alone():
    sets = [np.repeat([0, 1], 50), np.repeat([0, 1], 20)]
    first, again, other = (draw_equal(sets, 2, seed) for seed in (5, 5, 6))
    for label in (0, 1):
        assert np.array_equal(first[0][label], again[0][label])
        assert set(first[0][label]) != set(other[0][label])
        # Drawn from everywhere, not the first ones.
        assert first[0][label].max() > 50 * label + 25
        # Of the smallest set, all.
        assert set(first[1][label]) == set(np.flatnonzero(sets[1] == label))


# Reconstruction.


def test_reconstruction_is_the_decoded_latent():
    torch.manual_seed(0)
    autoencoder = build_autoencoder(16, [4, 4], latent_channels=2, layers_per_block=1).eval()
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    before = images.copy()
    found = reconstruct(autoencoder, images)
    assert (found.dtype, found.shape) == (np.uint8, images.shape)
    assert np.array_equal(images, before)
    with torch.no_grad():
        expected = autoencoder(to_model_input(images)).sample
    expected = (expected.numpy().transpose(0, 2, 3, 1) + 1) * 127.5
    assert np.abs(found - expected.clip(0, 255)).max() < 0.5 + 1e-3
    # Not one grey for all: the images must differ for the next lines to tell anything.
    assert len(np.unique(found.reshape(7, -1), axis=0)) == 7 and np.ptp(found) > 10
    for batch_size in (1, 3):
        # The sums of a convolution may be ordered otherwise, which can turn a rounding over.
        assert np.abs(reconstruct(autoencoder, images, batch_size).astype(int) - found).max() <= 1


# Distances.


def labelled(counts: list[int], seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float32 N×3 with so many of each class, and their labels."""
    labels = np.repeat(np.arange(len(counts)), counts)
    points = np.random.default_rng(seed).standard_normal((len(labels), 3)) + 4 * labels[:, None] + shift
    return points.astype(np.float32), labels


def compare(n_neighbors: int = 2, **sets: tuple[np.ndarray, np.ndarray]) -> list[dict]:
    embeddings, labels = ({name: pair[i] for name, pair in sets.items()} for i in (0, 1))
    names = [f"class {i}" for i in range(1 + max(int(of_set.max()) for of_set in labels.values()))]
    records = compare_with_validation(embeddings, labels, names, n_neighbors)
    assert [record["class"] for record in records] == [None, *names]
    assert all(list(record) == ["class", "num_images", "pool", "real_train"] for record in records)
    return records


def test_distances_are_those_of_the_measures():
    real, generated = labelled([20], 0)[0], labelled([20], 1, shift=0.5)[0]
    assert measure_distances(real, generated, 4) == {
        "frechet_distance": frechet_distance(real, generated),
        "kernel_distance": kernel_distance(real, generated),
        **vars(neighbourhoods(real, generated, 4)),
    }
    assert list(measure_distances(real, generated, 4)) == list(DISTANCES)
    assert measure_distances(real, generated, 19)["coverage"] > 0
    assert measure_distances(real, generated, 20) == dict.fromkeys(DISTANCES)


def test_the_same_tiles_have_no_distance():
    points = labelled([12, 8], 0)
    for record in compare(validation=points, pool=points, real_train=points):
        for name in CANDIDATES:
            assert record[name]["frechet_distance"] == pytest.approx(0, abs=1e-5)
            assert (record[name]["precision"], record[name]["recall"], record[name]["coverage"]) == (1, 1, 1)


def test_the_pool_is_measured_apart_from_real_tiles():
    points, labels = labelled([10, 10], 0)
    records = compare(validation=(points, labels), pool=(points + np.float32(3), labels), real_train=(points, labels))
    for record in records:
        assert record["real_train"]["frechet_distance"] == pytest.approx(0, abs=1e-5)
        assert record["pool"]["frechet_distance"] == pytest.approx(27, rel=1e-4)  # 3² in each of 3 dimensions


def test_each_class_is_compared_with_itself():
    # Classes lie 4 √3 apart; the pool has them the wrong way round, so together it has no distance.
    points, labels = labelled([10, 10], 0)
    records = compare(validation=(points, labels), pool=(points, 1 - labels), real_train=(points, labels))
    assert records[0]["pool"]["frechet_distance"] == pytest.approx(0, abs=1e-4)
    assert all(record["pool"]["frechet_distance"] > 30 for record in records[1:])
    assert all(record["pool"]["coverage"] == 0 for record in records[1:])


def test_class_with_too_few_tiles_is_not_measured():
    # What counts is the set that has the fewest: none of class 1, two of class 2, three of class 0.
    records = compare(
        validation=labelled([3, 5, 5], 0), pool=labelled([9, 0, 9], 1), real_train=labelled([9, 9, 2], 2)
    )
    assert [record["num_images"] for record in records] == [5, 3, 0, 2]
    assert records[0]["pool"]["coverage"] is not None and records[1]["pool"]["coverage"] is not None
    for record in records[2:]:
        assert record["pool"] == record["real_train"] == dict.fromkeys(DISTANCES)
    json.dumps(records, allow_nan=False)


def test_accuracy_score_is_the_share_of_the_accuracy_of_all_real_tiles():
    def row(architecture: str, name: str, accuracy: float) -> dict:
        return {"architecture": architecture, "row": name, "accuracy": {"mean": accuracy}}

    shares = accuracy_scores([
        row("convnet", "pool_all", 0.6), row("convnet", "real_all", 0.8), row("convnet", "reconstructed", 0.84),
        row("resnet18", "real_all", 0.5), row("resnet18", "pool_all", 0.4),
        # Without all real tiles, or where they taught nothing, there is no share.
        row("vit", "pool_all", 0.9), row("other", "real_all", 0.0), row("other", "pool_all", 0.5),
    ])  # fmt: skip
    assert shares == {
        "convnet": {"pool_all": pytest.approx(0.75), "reconstructed": pytest.approx(1.05)},
        "resnet18": {"pool_all": pytest.approx(0.8)},
    }
    assert accuracy_scores([]) == {}


# Text and figures.


MEASURED = {
    "frechet_distance": 12.3456, "kernel_distance": 0.0123456, "precision": 0.75, "recall": 0.5, "density": 1.0625,
    "coverage": 1.0,
}  # fmt: skip
REAL = {**MEASURED, "frechet_distance": 3.0, "kernel_distance": -0.00025, "density": 0.9996}
UNKNOWN = dict.fromkeys(DISTANCES)
RECORDS = [
    {"class": None, "num_images": 12345, "pool": MEASURED, "real_train": REAL},
    {"class": "smooth muscle", "num_images": 42, "pool": REAL, "real_train": MEASURED},
    {"class": "mucus", "num_images": 3, "pool": UNKNOWN, "real_train": UNKNOWN},
]


def test_a_distance_as_text():
    assert format_distance("frechet_distance", 12.345678) == "12.35"
    assert format_distance("kernel_distance", 0.0123456) == "12.35"
    assert format_distance("coverage", 0.97351) == "0.974"
    assert format_distance("coverage", 0.0) == "0.000"
    assert format_distance("density", None) == "–"


def test_lines_hold_every_figure_of_the_pool_and_its_ceiling():
    lines = distance_lines(RECORDS)
    assert len(lines) == 2 + len(RECORDS)
    assert lines[0] == "pool / real training tiles, both against validation tiles"
    assert " ".join(lines[2].split()) == (
        "all classes 12,345 12.35 / 3.00 12.35 / -0.25 0.750 / 0.750 0.500 / 0.500 1.062 / 1.000 1.000 / 1.000"
    )
    assert lines[3].startswith("smooth muscle ") and lines[3].split()[2:6] == ["42", "3.00", "/", "12.35"]
    assert lines[4].split() == ["mucus", "3"] + ["–", "/", "–"] * 6
    # Columns stand below their titles.
    assert len({len(line) for line in lines[1:]}) == 1
    for title, _ in DISTANCES.values():
        end = lines[1].index(title) + len(title)
        assert all(line[end - 1] != " " and line[end : end + 1] in ("", " ") for line in lines[1:])


def png_chunks(data: bytes) -> set[bytes]:
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    kinds, position = set(), 8
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        kinds.add(kind)
        position += 12 + length
    return kinds


def read_png(data: bytes) -> np.ndarray:
    """Pixels of a figure, after the check that it is a PNG that tells of nothing but its pixels."""
    assert png_chunks(data) <= {b"IHDR", b"pHYs", b"sRGB", b"gAMA", b"PLTE", b"IDAT", b"IEND"}
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def places_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns, 2×N, of pixels of exactly this colour."""
    return np.stack(np.nonzero((pixels == colour).all(axis=-1)))


POOL_BAR, REAL_BAR = (0x8E, 0x3B, 0x73), (0xB9, 0xBF, 0xC7)


def test_distances_as_a_figure():
    pixels = read_png(draw_distances(RECORDS))
    height, width, _ = pixels.shape
    assert width == 13 * 130 and 300 < height < width
    assert len(places_of(pixels, POOL_BAR)[0]) > 1000 and len(places_of(pixels, REAL_BAR)[0]) > 1000
    # More classes take more room.
    assert read_png(draw_distances(RECORDS * 3)).shape[0] > 1.5 * height


def test_unmeasured_classes_have_no_bar():
    nothing = [{**record, "pool": UNKNOWN, "real_train": UNKNOWN} for record in RECORDS]
    pool_alone = [{**record, "real_train": UNKNOWN} for record in RECORDS]
    sizes = {
        name: [len(places_of(read_png(draw_distances(records)), colour)[0]) for colour in (POOL_BAR, REAL_BAR)]
        for name, records in (("nothing", nothing), ("pool", pool_alone), ("all", RECORDS))
    }
    # What is left are the squares of the legend.
    assert 0 < sizes["nothing"][0] < 1000 and 0 < sizes["nothing"][1] < 1000
    assert sizes["pool"] == [pytest.approx(sizes["all"][0], rel=0.1), pytest.approx(sizes["nothing"][1], rel=0.1)]
    assert min(sizes["all"]) > 10 * max(sizes["nothing"])


def plain_tiles(counts: list[int], red: int) -> Tiles:
    """Tiles of one colour each: (`red`, 60 + 50 × class, number in its class)."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.empty((len(labels), 8, 8, 3), np.uint8)
    images[..., 0] = red
    images[..., 1] = (60 + 50 * labels)[:, None, None]
    images[..., 2] = np.concatenate([np.arange(count) for count in counts])[:, None, None]
    return Tiles(images, labels)


def shown(pixels: np.ndarray, red: int, label: int) -> dict[int, tuple[float, float]]:
    """Number in its class of each tile that is shown, and the middle of the place (row, column) where it is."""
    rows, columns = np.nonzero((pixels[..., 0] == red) & (pixels[..., 1] == 60 + 50 * label))
    numbers = pixels[rows, columns, 2]
    # Fewer pixels than a tile has are mixtures at an edge.
    large = [number for number, count in zip(*np.unique(numbers, return_counts=True), strict=True) if count > 1000]
    return {int(n): (rows[numbers == n].mean(), columns[numbers == n].mean()) for n in large}


def test_real_tiles_stand_above_generated_ones_of_their_class():
    pixels = read_png(draw_tiles(plain_tiles([25, 10], red=250), plain_tiles([10, 12], red=20), ["one", "two"]))
    assert pixels.shape[1] > pixels.shape[0] > 400
    rows = [shown(pixels, red, label) for label in (0, 1) for red in (250, 20)]
    assert [len(row) for row in rows] == [10, 10, 10, 10]
    heights = [np.mean([place[0] for place in row.values()]) for row in rows]
    assert heights == sorted(heights)
    for row, height in zip(rows, heights, strict=True):
        assert all(abs(place[0] - height) < 2 for place in row.values())
        columns = [row[number][1] for number in sorted(row)]
        assert columns == sorted(columns)
    # Of more than there is room for, some from everywhere.
    assert min(rows[0]) < 3 and max(rows[0]) > 21
    assert set(rows[1]) == set(range(10))


@pytest.mark.parametrize("count", [1, 4, 7])
def test_fewer_tiles_than_there_is_room_for_are_shown_once_each(count):
    pixels = read_png(draw_tiles(plain_tiles([count, 10], red=250), plain_tiles([10, 10], red=20), ["one", "two"]))
    row = shown(pixels, 250, 0)
    assert set(row) == set(range(count))
    # Each at one place alone: as large as a tile of the row below.
    sizes = [len(places_of(pixels, (250, 60, number))[0]) for number in row]
    assert max(sizes) < 1.5 * len(places_of(pixels, (20, 60, 0))[0])


def test_a_class_without_tiles_leaves_its_row_empty():
    pixels = read_png(draw_tiles(plain_tiles([10, 0], red=250), plain_tiles([0, 10], red=20), ["one", "two"]))
    assert [len(shown(pixels, red, label)) for label in (0, 1) for red in (250, 20)] == [10, 0, 0, 10]


# The whole way, on a copy of a finished run with 12 / 4 / 4 real tiles and 8 generated ones of each class.


OPTIONS = ("--mixed-precision", "no", "--batch-size", "20", "--n-neighbors", "3")


def copy_run(tiny_run, place: Path) -> Path:
    return shutil.copytree(tiny_run.folder, place / "run", ignore=shutil.ignore_patterns("checkpoints"))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, tiny_run, run_main) -> Path:
    """A run after `evaluate-pool --train convnet:2`; it is read, never changed."""
    folder = copy_run(tiny_run, tmp_path_factory.mktemp("evaluated"))
    run_main(script, folder, "--data", tiny_run.data, *OPTIONS, "--train", "convnet:2")
    return folder


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    return copy_run(tiny_run, tmp_path)


@pytest.fixture
def start(run, run_main, tiny_run):
    def start(*argv: object) -> None:
        run_main(script, run, "--data", tiny_run.data, *OPTIONS, *argv)

    return start


def finite_json(path: Path):
    return json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(f"{path} holds {constant}"))


def test_files_that_are_left(evaluated):
    folder = evaluated / "evaluation"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "stage.json", "metrics.json", "distances.json", "metrics.png", "tiles.png",
        "convnet-real_all-seed0.json", "convnet-reconstructed-seed0.json", "convnet-pool_all-seed0.json",
    }  # fmt: skip
    for name in ("metrics.png", "tiles.png"):
        assert read_png((folder / name).read_bytes()).std() > 5, name
    for path in folder.glob("*.json"):
        finite_json(path)
        assert str(evaluated.parent) not in path.read_text(), path.name


def test_results(evaluated, tiny_tiles):
    results = finite_json(evaluated / "evaluation" / "metrics.json")
    source = load_tiles(tiny_tiles)
    assert (results["data"], results["class_names"]) == (tiny_tiles.stem, source.class_names)
    assert (results["embedder"], results["n_neighbors"]) == ("teacher", 3)
    assert results["distances"] == finite_json(evaluated / "evaluation" / "distances.json")
    rows = results["rows"]
    assert [(row["row"], row["title"], row["num_train"]) for row in rows] == [
        ("real_all", "All real tiles", 60),
        ("reconstructed", "All real tiles, reconstructed by the autoencoder", 60),
        ("pool_all", "The whole pool", 40),
    ]
    accuracy = {row["row"]: row["accuracy"]["mean"] for row in rows}
    for row in rows:
        assert (row["architecture"], row["steps"], row["seeds"]) == ("convnet", 2, [0])
        cell = finite_json(evaluated / "evaluation" / f"convnet-{row['row']}-seed0.json")
        assert row["accuracy"]["values"] == [cell["validation"]["accuracy"]]
        assert np.sum(cell["validation"]["confusion"]) == 20
        assert cell["config"]["batch_size"] == 20 and cell["best_step"] == 2
    expected = {row: value / accuracy["real_all"] for row, value in accuracy.items() if row != "real_all"}
    assert results["accuracy_score"] == {"convnet": pytest.approx(expected)}


def test_distances_are_of_validation_tiles_in_the_space_of_the_teacher(evaluated, tiny_tiles):
    source = load_tiles(tiny_tiles)
    images, columns, names = read_image_dataset(evaluated / "pool")
    validation, train = source.split("validation"), source.split("train")
    labels = {"validation": validation.labels, "pool": columns["label"], "real_train": train.labels}
    pictures = {"validation": validation.images, "pool": images, "real_train": train.images}
    embeddings = {name: embed_images(evaluated / "teacher", batch) for name, batch in pictures.items()}
    expected = compare_with_validation(embeddings, labels, names, 3)
    found = read_json(evaluated / "evaluation" / "distances.json")
    assert [record["num_images"] for record in found] == [20, 4, 4, 4, 4, 4]
    for one, other in zip(found, expected, strict=True):
        for name in CANDIDATES:
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)
    assert found[0]["pool"]["frechet_distance"] > found[0]["real_train"]["frechet_distance"]


def test_record_names_all_inputs(evaluated, tiny_tiles):
    record = read_record(evaluated / "evaluation")
    assert record["complete"] and record["num_processes"] == 1
    assert record["settings"]["data"] == load_tiles(tiny_tiles).fingerprint()
    for name in ("pool", "pipeline", "teacher"):
        assert record["settings"][name] == read_record(evaluated / name)["fingerprint"]
    assert record["settings"]["train"] == ["convnet:2"]


def test_a_killed_evaluation_goes_on_and_each_row_has_its_tiles(start, run, evaluated, tiny_tiles, monkeypatch):
    trained, train_cell = {}, script.train_cell

    def watched(path, row, config, train, choose_on, score_on, *others):
        if len(trained) == limit:
            raise KeyboardInterrupt
        trained[row] = train
        assert choose_on is None
        assert list(score_on) == ["validation"]
        assert np.array_equal(score_on["validation"].images, source.split("validation").images)
        return train_cell(path, row, config, train, choose_on, score_on, *others)

    monkeypatch.setattr(script, "train_cell", watched)
    source, limit = load_tiles(tiny_tiles), 2
    with pytest.raises(KeyboardInterrupt):
        start("--train", "convnet:2")
    assert list(trained) == ["real_all", "reconstructed"]
    assert not is_complete(run / "evaluation") and not (run / "evaluation" / "metrics.json").exists()

    # Neither is embedded again, nor are the finished ones trained again.
    monkeypatch.setattr(script, "embed_images", None)
    limit = 3
    start("--train", "convnet:2")
    assert list(trained) == ["real_all", "reconstructed", "pool_all"]
    assert is_complete(run / "evaluation")
    assert read_json(run / "evaluation" / "metrics.json") == read_json(evaluated / "evaluation" / "metrics.json")

    images, columns, _ = read_image_dataset(run / "pool")
    real, reconstructed, pool = trained.values()
    assert np.array_equal(real.images, source.split("train").images)
    assert np.array_equal(pool.images, images) and np.array_equal(pool.labels, columns["label"])
    assert np.array_equal(reconstructed.labels, real.labels)
    assert not np.array_equal(reconstructed.images, real.images)
    autoencoder = AutoencoderDC.from_pretrained(run / "pipeline" / "vae").eval()
    assert np.abs(reconstruct(autoencoder, real.images).astype(int) - reconstructed.images).max() <= 1


def test_a_finished_evaluation_is_left_alone(evaluated, tiny_run, run_main, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in evaluated.rglob("*")}
    for name in ("embed_images", "train_cell", "reconstruct", "draw_tiles"):
        monkeypatch.setattr(script, name, None)
    run_main(script, evaluated, "--data", tiny_run.data, *OPTIONS, "--train", "convnet:2")
    assert f"evaluate-pool: {evaluated / 'evaluation'} is already finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in evaluated.rglob("*")} == before


def test_other_settings_are_refused(evaluated, tiny_run, run_main):
    before = {path: path.stat().st_mtime_ns for path in evaluated.rglob("*")}
    for argv, changed in (
        (["--train", "convnet:3"], 'train was ["convnet:2"] and is now ["convnet:3"]'),
        (["--train", "convnet:2", "--n-neighbors", 2], "n_neighbors was 3 and is now 2"),
        (["--train", "convnet:2", "--seeds", 0, 1], "seeds was [0] and is now [0, 1]"),
    ):
        with pytest.raises(InputError) as error:
            run_main(script, evaluated, "--data", tiny_run.data, *OPTIONS, *argv)
        folder = evaluated / "evaluation"
        assert str(error.value) == f"{folder} was made with other settings ({changed}): give another --output"
    assert {path: path.stat().st_mtime_ns for path in evaluated.rglob("*")} == before


def test_nothing_is_trained_where_nothing_is_asked_for(start, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "train_cell", None)
    start("--n-neighbors", 5, "--output", tmp_path / "other", "--train")
    assert not (run / "evaluation").exists()
    results = finite_json(tmp_path / "other" / "metrics.json")
    assert (results["rows"], results["accuracy_score"]) == ([], {})
    # 20 validation tiles together are enough for 5 neighbours, and 4 of a class are not.
    everything, *classes = results["distances"]
    assert None not in everything["pool"].values() and None not in everything["real_train"].values()
    assert all(record["pool"] == record["real_train"] == UNKNOWN for record in classes)
    printed = capsys.readouterr().out
    assert "\n".join(distance_lines(results["distances"])) in printed
    assert printed.splitlines()[-1] == f"evaluate-pool: saved to {tmp_path / 'other'}"


def test_test_tiles_are_not_touched(run, run_main, tiny_tiles, evaluated, tmp_path):
    with np.load(tiny_tiles) as arrays:
        kept = {name: array for name, array in arrays.items() if not name.startswith("test_")}
    np.savez(tmp_path / "tiles.npz", **kept)
    assert list(load_tiles(tmp_path / "tiles.npz").splits) == ["train", "validation"]
    run_main(script, run, "--data", tmp_path / "tiles.npz", *OPTIONS, "--train")
    found, expected = (read_json(folder / "evaluation" / "distances.json") for folder in (run, evaluated))
    assert found == expected


def test_another_pool_and_another_embedder(start, run, evaluated, tmp_path, capsys):
    # Where a model is named, no teacher is needed.
    shutil.move(run / "teacher", tmp_path / "model")
    shutil.move(run / "pool", tmp_path / "pool")
    start("--pool", tmp_path / "pool", "--embedder", tmp_path / "model", "--train")
    results = read_json(run / "evaluation" / "metrics.json")
    assert results["distances"] == read_json(evaluated / "evaluation" / "distances.json")
    settings = read_record(run / "evaluation")["settings"]
    assert "teacher" not in settings
    # A folder is known by its content: it may move, but not change.
    assert results["embedder"] == settings["embedder"] == embedder_fingerprint(tmp_path / "model")
    assert str(tmp_path) not in (run / "evaluation" / "metrics.json").read_text()
    shutil.move(tmp_path / "model", tmp_path / "moved")
    argv = ["--pool", tmp_path / "pool", "--embedder", tmp_path / "moved", "--train"]
    start(*argv)
    assert "is already finished" in capsys.readouterr().out
    (tmp_path / "moved" / "results.json").write_text("{}")
    with pytest.raises(InputError, match=r"was made with other settings \(embedder was "):
        start(*argv)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("pool", "run histodistill generate first"),
        ("pipeline", "run train_diffusion first"),
        ("teacher", "run train_classifier, or give --embedder"),
    ],
)
def test_stage_before_must_be_finished(missing, message, start, run):
    record = read_record(run / missing)
    write_json(run / missing / "stage.json", {**record, "complete": False})
    with pytest.raises(InputError) as error:
        start()
    assert str(error.value) == f"{run / missing} holds no finished {missing}: {message}"
    shutil.rmtree(run / missing)
    with pytest.raises(InputError) as error:
        start()
    assert str(error.value) == f"{run / missing} holds no finished {missing}: {message}"
    assert not (run / "evaluation").exists()


def test_other_classes_are_refused(start, run):
    images, columns, names = read_image_dataset(run / "pool")
    write_image_dataset(run / "pool" / "data", images, {"label": columns["label"]}, names[::-1])
    with pytest.raises(InputError) as error:
        start()
    assert str(error.value) == (
        f"{run / 'pool'} has the classes {', '.join(names[::-1])} and --data {', '.join(names)}: "
        "they must be the same, in the same order"
    )
    assert not (run / "evaluation").exists()


def test_another_size_is_refused(start, run):
    with pytest.raises(InputError) as error:
        start("--image-size", 24)
    assert str(error.value) == (
        f"the images of {run / 'pool'} are 16 px and the tiles of --data 24 px: give --image-size 16"
    )
    assert not (run / "evaluation").exists()


def test_more_validation_tiles_than_neighbours_are_needed(start, run):
    with pytest.raises(InputError) as error:
        start("--n-neighbors", 20)
    assert str(error.value) == "--n-neighbors=20 is too many for 20 validation tiles: give fewer"
    assert not (run / "evaluation").exists()
