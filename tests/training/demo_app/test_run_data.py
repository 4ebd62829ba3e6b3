from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from audits import add_audit
from PIL import Image

from histodistill.training.data.image_dataset import write_image_dataset
from histodistill.training.demo_app import run_data as show
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import write_bytes, write_json


NAMES = ["fat <5 %", "stroma & co"]
COMMUNITIES = np.array([4, 4, 4, 0, 0, 7, 1, 1, 2, 2, 2, 2])


@pytest.fixture
def run(tmp_path):
    """A run of 2 × 6 distilled images with nothing else in it."""
    folder = tmp_path / "private-name"
    images = np.random.default_rng(0).integers(256, size=(12, 8, 8, 3), dtype=np.uint8)
    labels = np.repeat([0, 1], 6)
    columns = {
        "label": labels,
        "soft_label": np.where(np.arange(2) == labels[:, None], 0.75, 0.25).astype(np.float32),
        "seed": np.arange(100, 112),
        "community": COMMUNITIES,
    }
    write_image_dataset(folder / "distilled" / "data", images, columns, NAMES)
    return folder


def add_scores(run):
    def score(mean, std=None):
        return {"mean": mean, "std": std, "values": [mean]}

    rows = [
        {
            "row": name,
            "title": title,
            "architecture": "convnet",
            "num_train": number,
            "seeds": [0],
            "accuracy": score(accuracy),
            "auc": score(None),
            "f1": score(0.5),
        }
        for name, title, number, accuracy in (
            ("real_all", "All real tiles", 1000, 0.8),
            ("distilled_ce", "Distilled, cross-entropy", 12, 0.6),
        )
    ]
    results = {"data": str(run), "rows": rows, "recovery": {"convnet": 0.75}, "recovery_row": "distilled_ce"}
    write_json(run / "results.json", results)
    places = (("random", 50, 0.55), ("kernel_herding@loss=joint", 10, 0.45), ("real_all", None, 0.81))
    table = [
        {
            "architecture": "convnet",
            "row": row,
            "size": size,
            "seeds": [0],
            "steps": 2000,
            "batch_size": 32,
            "test": {metric: score(mean, 0.01) for metric in ("accuracy", "auc", "f1")},
        }
        for row, size, mean in places
    ]
    write_json(run / "benchmark" / "benchmark.json", {"rows": table})


def pixels(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def all_html(run: show.DemoRun) -> str:
    pages = [show.communities_html(run, label) for label in range(2)]
    pages += [show.generated_html(run, 0, [1], run.images[:1])]
    makers = [show.intro_html, show.overview_html, show.example_html]
    makers += [show.maps_html, show.audit_html, show.scores_html]
    return "".join([*pages, *(make(run) for make in makers)])


# The distilled set.


def test_images_are_grouped_by_community_the_largest_first(run):
    found = show.read_demo_run(run)
    groups = [(number, members.tolist()) for number, members in show.communities_of(found, 0)]
    assert groups == [(4, [0, 1, 2]), (0, [3, 4]), (7, [5])]
    html = show.communities_html(found, 0)
    assert re.findall(r"Community (\d+) (\d+) chosen", words(html)) == [("4", "3"), ("0", "2"), ("7", "1")]
    assert np.array_equal(pixels(html), found.images[:6])
    assert re.findall(r"seed (\d+)", words(html)) == ["100", "101", "102", "103", "104", "105"]
    assert "with a probability of 0.75" in html


def test_one_community_shows_its_images_alone(run):
    found = show.read_demo_run(run)
    assert np.array_equal(pixels(show.communities_html(found, 1, 2)), found.images[8:])


def test_set_without_communities_and_seeds_is_shown_whole(run):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    write_image_dataset(run / "distilled" / "data", images, {"label": np.array([0, 0, 1, 1])}, NAMES)
    found = show.read_demo_run(run)
    assert [number for number, _ in show.communities_of(found, 1)] == [-1]
    html = show.communities_html(found, 1)
    assert len(pixels(html)) == 2 and "seed" not in html
    assert show.find_distilled(found, 0, 0) is None


def test_large_images_are_shrunk():
    html = f'src="{show.data_url(np.zeros((224, 224, 3), np.uint8))}"'
    assert [image.shape for image in pixels(html)] == [(96, 96, 3)]


def test_nothing_distilled_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no image dataset"):
        show.read_demo_run(tmp_path)


# The overview.


def test_overview_has_images_of_each_class_verdict_and_scores(run):
    add_audit(run)
    add_scores(run)
    found = show.read_demo_run(run)
    html = show.overview_html(found)
    shown = pixels(html)
    # First the best of each class side by side, then each class.
    assert np.array_equal(shown[:2], found.images[[0, 6]]) and np.array_equal(shown[2:], found.images)
    text = words(html)
    assert text.startswith("fat &lt;5 % stroma &amp; co What a classifier learns")
    assert "fat &lt;5 % 6 of 6 images" in text and "stroma &amp; co 6 of 6 images" in text
    assert "Privacy audit Passed ✓ The distilled set: passed" in text
    assert "ConvNet, one seed, trained on: All real tiles 1,000 0.800 Distilled, cross-entropy 12 0.600" in text
    assert re.findall(r"--share: ([\d.]+)%", html) == ["80.0", "60.0"]
    assert found.recovery[0]["sentence"] in text


def test_overview_shows_the_best_of_large_sets(run):
    labels = np.repeat(np.arange(11), 12)
    images = np.arange(132, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    write_image_dataset(run / "distilled" / "data", images, {"label": labels}, [f"class {i}" for i in range(11)])
    html = show.overview_html(show.read_demo_run(run))
    first = [12 * label for label in range(9)]
    assert [image[0, 0, 0] for image in pixels(html)] == first + [start + i for start in first for i in range(10)]
    assert "class 8 10 of 12 images" in words(html) and "The other 2 classes are under Browse." in words(html)


def test_overview_of_a_bare_run_says_what_is_missing(run):
    text = words(show.overview_html(show.read_demo_run(run)))
    assert "This run has no scores yet" in text and "Privacy audit Not audited" in text
    assert "nothing of it should be shared" in text


@pytest.mark.parametrize("outdated", [False, True])
def test_overview_tells_what_has_not_passed(run, outdated):
    write_bytes(run / "pipeline" / "model_index.json", b"{}")
    add_audit(run, weights_auc=0.7)
    if outdated:
        (run / "pipeline" / "model_index.json").unlink()
    text = words(show.overview_html(show.read_demo_run(run)))
    assert "Not all of it has passed ✓ The distilled set: passed ✗ The pipeline" in text
    assert ("changed since the audit" if outdated else "not passed, it should not be shared") in text


# Generated images.


def test_example_is_what_the_first_seed_generates(run):
    found = show.read_demo_run(run)
    html = show.example_html(found)
    assert words(html) == "fat &lt;5 % seed 100 distilled"
    assert np.array_equal(pixels(html), found.images[:1])
    images = np.zeros((2, 8, 8, 3), np.uint8)
    write_image_dataset(run / "distilled" / "data", images, {"label": np.array([0, 1])}, NAMES)
    assert show.example_html(show.read_demo_run(run)) == ""


def test_generated_image_of_the_distilled_set_is_recognised(run):
    found = show.read_demo_run(run)
    images = np.stack([found.images[3], found.images[4] ^ 1, found.images[6]])
    text = words(show.generated_html(found, 0, [103, 104, 106], images))
    # Seed 106 belongs to an image of the other class.
    assert text == "fat &lt;5 % seed 103 distilled seed 104 distilled, up to 1/255 apart seed 106"


@pytest.mark.parametrize("value", [0, 7.0, 2**32 - 1])
def test_whole_numbers_are_seeds(value):
    seed = show.parse_seed(value)
    assert seed == value and isinstance(seed, int)


@pytest.mark.parametrize("value", [None, -1, 1.5, 2.0**53, float("nan"), float("inf")])
def test_anything_else_is_no_seed(value):
    with pytest.raises(InputError, match="must be a whole number from 0 to 4,294,967,295") as caught:
        show.parse_seed(value)
    assert "\n" not in str(caught.value)


# Audit and scores.


@pytest.mark.parametrize(
    ("passed", "verdict", "sentence"),
    [(True, "passed", "Passed."), (False, "failed", "Not passed: it should not be shared.")],
)
def test_audit_is_told_in_its_words(run, passed, verdict, sentence):
    add_audit(run, copies=0 if passed else 2)
    found = show.read_demo_run(run)
    assert [part.verdict for part in found.audit] == [verdict]
    html = show.audit_html(found)
    assert sentence in words(html)
    assert f"{'✓ 0' if passed else '✗ 2'} of 15 images are copies of real tiles." in html


def test_findings_that_parts_share_are_told_once(run):
    write_bytes(run / "pipeline" / "model_index.json", b"{}")
    add_audit(run, weights_auc=0.7)
    (run / "pipeline" / "model_index.json").unlink()
    found = show.read_demo_run(run)
    set_sentences, own = [part.sentences for part in found.audit]
    assert len(set_sentences) == 13 and "✓ 0 of 15 images are copies of real tiles." in set_sentences
    assert [sentence[:9] for sentence in own] == ["✓ 0 of 40", "✗ One who"]
    # The pipeline is not what was audited.
    assert [part.verdict for part in found.audit] == ["passed", "outdated"]
    assert "The findings above, and these: ✓ 0 of 40 generated" in words(show.audit_html(found))


def test_audit_of_other_files_is_outdated(run):
    add_audit(run)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    write_image_dataset(run / "distilled" / "data", images, {"label": np.array([0, 1])}, NAMES)
    found = show.read_demo_run(run)
    assert [part.verdict for part in found.audit] == ["outdated"]
    text = words(show.audit_html(found))
    assert "Its files are not the ones that were audited" in text and "Passed." not in text


@pytest.mark.parametrize("audit", [None, {"format": 0, "parts": {}}])
def test_run_without_an_audit_should_not_be_shared(run, audit):
    if audit:
        write_json(run / "audit.json", audit)
    assert "nothing of it should be shared" in show.audit_html(show.read_demo_run(run))


def test_scores_are_shown(run):
    assert "has no scores yet" in show.scores_html(show.read_demo_run(run))
    add_scores(run)
    found = show.read_demo_run(run)
    text = words(show.scores_html(found))
    assert (
        "ConvNet trained on the 12 distilled images by their labels gets 0.600 of the test tiles right, 75.0% of"
        in text
    )
    assert "Distilled, cross-entropy 12 0.600 – 0.500" in text
    assert "kernel_herding, loss=joint 10 2,000 of 32 0.450 ± 0.010" in text
    rows = [(row["title"], row["images"], row["scores"][0].mean) for row in found.benchmark[0]["rows"]]
    assert rows == [
        ("all real training tiles", "all", "0.810"),
        ("kernel_herding, loss=joint", "10", "0.450"),
        ("random", "50", "0.550"),
    ]


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '{"rows": 1}', '{"rows": [{"row": "random"}]}'])
def test_a_damaged_results_table_is_one_sentence(run, text):
    write_bytes(run / "benchmark" / "benchmark.json", text.encode())
    with pytest.raises(InputError, match=r"benchmark\.json cannot be read \(.*\): delete it and run histodistill"):
        show.read_demo_run(run)


# What must not be seen.


def test_no_private_picture_and_no_path_is_shown(run):
    add_audit(run)
    add_scores(run)
    write_json(run / "run.json", {"data": str(run / "private-name.npz")})
    shown = ("selector/community_map.png", "selector/community_tiles.png", "benchmark/confusion.png")
    hidden = (
        "audit/closest_distilled.png",
        "audit/closest_pool.png",
        "autoencoder/progress/step-0000001.png",
        "pipeline/progress/step-0000001.png",
        "evaluation/tiles.png",
    )
    for name in (*shown, *hidden):
        write_bytes(run / name, f"picture {name}".encode())
    html = all_html(show.read_demo_run(run))
    decoded = {base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", html)}
    assert {f"picture {name}".encode() for name in shown} <= decoded
    assert decoded.isdisjoint(f"picture {name}".encode() for name in hidden)
    assert "private-name" not in html and str(run.parent) not in html
    assert "Private tiles, distilled" in words(html)


def test_phantom_is_not_taken_for_tissue(run):
    write_json(run / "run.json", {"data": "phantom"})
    assert "They are not tissue." in words(show.intro_html(show.read_demo_run(run)))


def test_html_is_escaped_and_loads_nothing(run):
    add_audit(run)
    add_scores(run)
    html = all_html(show.read_demo_run(run))
    assert "fat <5" not in html
    assert not re.search(r"<script|<link|url\(|\bon\w+=", html)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'(?:src|href)="([^"]*)"', html))


def test_unreadable_file_is_named_in_one_sentence(run):
    (run / "audit.json").write_text("{")
    with pytest.raises(InputError, match=r"audit\.json is no audit, or was changed") as caught:
        show.read_demo_run(run)
    assert "\n" not in str(caught.value)
