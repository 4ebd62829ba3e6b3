from __future__ import annotations

import io
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset
from PIL import Image as PILImage

from histodistill.hub_cards import DistilledDatasetCardData, render_dataset_card
from histodistill.hub_cards.rendering import escape_markdown, format_score, size_category
from histodistill.hub_cards.tables import decode_soft_label_views, encode_soft_label_views
from histodistill.selection.views import apply_symmetry
from histodistill.training.data.image_dataset import write_image_dataset


NAMES = ["adipose", "no: 'yes' | <b>"]
FEATURES = Features(
    {
        "image": Image(),
        "label": ClassLabel(names=NAMES),
        "soft_label": List(Value("float32"), length=2),
        "seed": Value("int64"),
        "community": Value("int64"),
        "modular_centrality": Value("float64"),
    }
)


def make_card(**changes) -> DistilledDatasetCardData:
    values = {
        "class_names": NAMES,
        "n_per_class": 3,
        "image_size": 8,
        "pool_size": 2000,
        "selector": "DistillSelector",
        "selector_params": {"n_neighbors": 15, "quota": "proportional"},
        "features": FEATURES,
    }
    return DistilledDatasetCardData(**(values | changes))


def code_of(text: str) -> str:
    """The Python code of a card."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


def header(text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL).group(1))


def write_parquet(folder):
    rng = np.random.default_rng(0)
    images = []
    for pixels in rng.integers(256, size=(6, 8, 8, 3), dtype=np.uint8):
        buffer = io.BytesIO()
        PILImage.fromarray(pixels).save(buffer, format="PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    rows = {
        "image": images,
        "label": [0, 0, 0, 1, 1, 1],
        "soft_label": [[0.9, 0.1]] * 6,
        "seed": list(range(6)),
        "community": [0, 1, 0, 2, 2, 2],
        "modular_centrality": [0.5] * 6,
    }
    (folder / "data").mkdir(parents=True)
    Dataset.from_dict(rows, features=FEATURES).to_parquet(folder / "data" / "train-00000-of-00001.parquet")


def test_folder_with_the_card_opens_offline(tmp_path):
    folder = tmp_path / "distilled"
    write_parquet(folder)
    (folder / "README.md").write_text(render_dataset_card(make_card()))
    (folder / "stage.json").write_text("{}")  # stands beside it in a run, and must not be taken for data
    dataset = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.features == FEATURES
    assert dataset.features["label"].names == NAMES
    assert len(dataset) == 6
    assert dataset[3]["image"].size == (8, 8)


def test_header_is_what_the_hub_reads():
    data = header(render_dataset_card(make_card(source_name="crc", license="cc-by-4.0")))
    assert data["license"] == "cc-by-4.0"
    assert data["task_categories"] == ["image-classification"]
    assert {"histopathology", "synthetic", "dataset-distillation"} <= set(data["tags"])
    assert data["size_categories"] == ["n<1K"]
    assert data["pretty_name"] == "Distilled crc"
    assert data["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    label = next(f for f in data["dataset_info"]["features"] if f["name"] == "label")
    assert label["dtype"]["class_label"]["names"] == {"0": NAMES[0], "1": NAMES[1]}
    assert "license" not in header(render_dataset_card(make_card()))


def test_text_is_true_of_the_data():
    text = render_dataset_card(make_card(attribution="Kather et al."))
    assert "6 synthetic 8×8 images, 3 of each of 2 classes" in text
    assert "pool of 2,000 images" in text
    assert "| n_neighbors | 15 |" in text
    assert "Synthetic is not the same as safe: no privacy audit has been made." in text
    assert "diagnosis" in text
    assert "2406.13536" in text
    assert "Original tiles: Kather et al." in text
    assert "## Results" not in text
    for column in FEATURES:
        assert f"\n| {column} | " in text


def test_names_cannot_make_markup():
    body = render_dataset_card(make_card()).split("\n---\n", 1)[1]
    assert "<b>" not in body
    assert "| 1 | no: 'yes' &#124; &#60;b&#62; |" in body
    assert escape_markdown("a\n# b") == "a &#35; b"
    assert escape_markdown("_a_ b_c") == "&#95;a&#95; b_c"


def test_the_embedder_is_told_where_it_is_known():
    assert "of the pool was embedded, and the selector" in render_dataset_card(make_card())
    text = render_dataset_card(make_card(embedder="user/a_model"))
    assert "of the pool was embedded (user/a&#95;model), and the selector" in text or "(user/a_model), and" in text


def test_phantom_is_not_called_histology():
    text = render_dataset_card(make_card(source_name="phantom"))
    assert "histopathology" not in header(text)["tags"]
    assert "They are not tissue" in text
    assert "They are not tissue" not in render_dataset_card(make_card())


def test_results_are_shown():
    row = {
        "title": "Distilled, joint loss",
        "architecture": "convnet",
        "num_train": 11592,
        "accuracy": {"mean": 0.7514, "std": 0.0123},
        "auc": {"mean": None, "std": None},
        "f1": {"mean": 0.5, "std": None},
    }
    text = render_dataset_card(make_card(results=[row]))
    assert "| Distilled, joint loss | 11,592 | convnet | 0.751 ± 0.012 | – | 0.500 |" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_per_class": 0}, "n_per_class=0 is out of range"),
        ({"features": Features({"image": Image()})}, "no 'label' column"),
        ({"class_names": ["b", "a"]}, "must be class_names"),
    ],
)
def test_data_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_card(**changes)


def test_small_parts():
    assert [size_category(n) for n in (999, 1000, 50_000, 10**8)] == ["n<1K", "1K<n<10K", "10K<n<100K", "n>10M"]
    assert format_score(None) == "–"
    assert format_score({"mean": 0.0, "std": 0.0}) == "0.000 ± 0.000"


def test_imports_no_other_package_of_ours():
    code = "import sys, histodistill.hub_cards; print(*[m for m in sys.modules if m.startswith('histodistill.')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found
    assert all(name.startswith("histodistill.hub_cards") for name in found)


def test_filters_and_options_of_the_pipeline_are_told_where_there_are_some():
    bare = render_dataset_card(make_card())
    assert "filter before the selection" not in bare
    assert "option of the pipeline" not in bare
    full = render_dataset_card(
        make_card(
            filters={"min_probability": 0.5}, generation={"guidance_scale": 1.5, "guidance_interval": [0.3, 0.9]}
        )
    )
    assert re.search(
        r"^\| filter before the selection \| value \|\n\|---\|---\|\n\| min.?_probability \| 0\.5 \|$", full, re.M
    )
    assert re.search(r"^\| guidance.?_interval \| .*0\.3, 0\.9.* \|$", full, re.M)


def make_merged_card(**changes) -> DistilledDatasetCardData:
    site = {
        "name": "a | <b>",
        "num_images": 3,
        "n_per_class": [1, 2],
        "is_phantom": False,
        "source_name": None,
        "license": None,
        "selector": None,
        "pool_size": None,
        "fingerprint": None,
    }
    other = site | {
        "name": "c",
        "num_images": 4,
        "n_per_class": [2, 2],
        "source_name": "*crc*",
        "selector": "infomap",
        "pool_size": 2000,
        "fingerprint": "0123456789abcdef",
    }
    features = Features({**FEATURES, "site": ClassLabel(names=["a | <b>", "c"])})
    values = {"n_per_class": [3, 4], "pool_size": None, "selector": None, "features": features, "sites": [site, other]}
    return make_card(**(values | changes))


def test_sites_of_a_merged_set():
    text = render_dataset_card(make_merged_card())
    assert "7 synthetic 8×8 images, 3 to 4 of each of 2 classes, joined from 2 sites, meant" in text
    assert "| 0 | adipose | 3 |\n| 1 | no: 'yes' &#124; &#60;b&#62; | 4 |\n" in text
    assert "## Sites\n" in text
    assert "| a &#124; &#60;b&#62; | 3 | 1 to 2 | – | – | – | – | – | – |\n" in text
    assert "| c | 4 | 2 | &#42;crc&#42; | – | infomap | 2,000 | – | 0123456789ab |\n" in text
    assert "| site | ClassLabel | the site that the image comes from |" in text
    assert "within a class by site" in text and "No licence has been stated" in text
    assert "None" not in text and "parameter of" not in text
    assert header(text)["size_categories"] == ["n<1K"]


def test_a_set_that_is_not_merged_has_no_sites():
    text = render_dataset_card(make_card())
    assert "site" not in text.lower()
    assert "| label | class |\n|---:|---|\n| 0 | adipose |\n" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_per_class": [3]}, r"n_per_class=\[3\] does not fit: give one number, or one for each class"),
        ({"n_per_class": [3, 0]}, r"n_per_class=\[3, 0\] is out of range"),
        ({"sites": []}, "pool_size=None is out of range"),
        ({"sites": [], "pool_size": 9}, "selector is missing: name it, or give the sites of a merged set"),
    ],
)
def test_a_merged_card_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_merged_card(**changes)


@pytest.mark.parametrize("target", ["soft_label", "label"])
def test_the_code_for_training_runs_as_it_stands(target, tmp_path):
    write_parquet(tmp_path)
    features = FEATURES
    if target == "label":
        features = Features({name: kind for name, kind in FEATURES.items() if name != "soft_label"})
        (file,) = tmp_path.glob("data/*.parquet")
        Dataset.from_parquet(str(file)).remove_columns("soft_label").to_parquet(str(file))
    (tmp_path / "README.md").write_text(render_dataset_card(make_card(features=features)))
    code = code_of((tmp_path / "README.md").read_text()).replace("path/to/this/folder", str(tmp_path))
    found: dict = {}
    exec(compile(code, "card", "exec"), found)
    assert found["targets"].dtype.is_floating_point == (target == "soft_label")
    # It has learned the six images by heart.
    predicted = found["model"](found["images"] / 127.5 - 1).softmax(1).detach().numpy()
    wanted = np.eye(2)[found["rows"]["label"]] if target == "label" else found["targets"].numpy()
    assert found["class_names"] == NAMES and np.abs(predicted - wanted).max() < 0.15


def test_the_code_for_views_runs_as_it_stands(tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "label": np.repeat([0, 1], 20),
        "soft_label": rng.dirichlet([1, 1], 40).astype(np.float32),
        "soft_label_views": encode_soft_label_views(rng.dirichlet([1, 1], (40, 5))),
        "rank": np.tile(np.arange(1, 21), 2),
    }
    images = rng.integers(256, size=(40, 8, 8, 3), dtype=np.uint8)
    features = write_image_dataset(tmp_path / "data", images, columns, ["a", "b"])
    card = make_card(class_names=["a", "b"], n_per_class=20, features=features)
    text = render_dataset_card(card)
    assert "2 numbers of 8 bits for each of 5 views" in text
    assert "soft_label_views" not in render_dataset_card(make_card())
    _, code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "README.md").write_text(text)
    found: dict = {}
    exec(compile(code.replace("path/to/this/folder", str(tmp_path)), "card", "exec"), found)
    np.testing.assert_array_equal(found["images"], apply_symmetry(images[:32], 1))
    np.testing.assert_allclose(
        found["targets"], decode_soft_label_views(columns["soft_label_views"])[:32, 0], rtol=1e-5
    )


def test_models_from_elsewhere_are_named_with_their_licences():
    used = {"use": "embedded the images for the selection", "name": "MahmoodLab/UNI", "license": "cc-by-nc-nd-4.0"}
    text = " ".join(render_dataset_card(make_card(encoders=[used, {**used, "license": None}])).split())
    binds = "; whether it binds this set is for you to check."
    assert "Made with MahmoodLab/UNI, which embedded the images for the selection, and whose licence is cc" in text
    assert text.count(binds) == 2 and "whose licence is not known here" in text
    assert binds not in render_dataset_card(make_card())
