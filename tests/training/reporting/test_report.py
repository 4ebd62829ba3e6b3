from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from audits import add_audit
from PIL import Image

from histodistill.training.data.image_dataset import write_image_dataset
from histodistill.training.reporting import report
from histodistill.training.reporting.report_page import IMAGES_PER_CLASS, write_report
from histodistill.training.reporting.summary import summary_lines
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json


NAMES = ["fat <5 %", "stroma & co"]
PER_CLASS = 30
VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """Checks that elements close in order, and keeps the start tags and the text outside style."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += f" {data}"


def score(mean, std=None):
    return {"mean": mean, "std": std, "values": [mean]}


def row(name, title, architecture, num_train, accuracy, auc=None, seeds=(0,)):
    return {
        "row": name,
        "title": title,
        "architecture": architecture,
        "num_train": num_train,
        "seeds": list(seeds),
        "accuracy": accuracy,
        "auc": auc or score(0.912),
        "f1": score(0.655),
    }


def write_distilled(run, size=8):
    images = np.random.default_rng(0).integers(256, size=(2 * PER_CLASS, size, size, 3), dtype=np.uint8)
    columns = {
        "label": np.repeat([0, 1], PER_CLASS),
        "community": np.concatenate([np.arange(PER_CLASS) % 3, np.full(PER_CLASS, 4)]),
    }
    write_image_dataset(run / "distilled" / "data", images, columns, NAMES)
    return images


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    write_distilled(folder)
    write_json(
        folder / "run.json",
        {
            "data": "crc",
            "preset": "cpu",
            "class_names": NAMES,
            "num_tiles": {"train": 11592, "validation": 100, "test": 7180},
            "image_size": 8,
            "seed": 7,
            "settings": {"autoencoder": {"learning_rate": 0.00123}, "compare": ["convnet:10"]},
        },
    )
    rows = [
        row("real_all", "All real tiles", "convnet", 11592, score(0.8, 0.004), seeds=(0, 1)),
        row("real_random", "Random real tiles", "convnet", 60, score(0.6, 0.03), seeds=(0, 1)),
        row("distilled_joint", "Distilled, joint loss", "convnet", 60, score(0.728, 0.012), seeds=(0, 1)),
        row("real_all", "All real tiles", "resnet18", 11592, score(0.75), auc=score(None)),
        row("distilled_joint", "Distilled, joint loss", "resnet18", 60, score(0.6)),
    ]
    results = {
        "class_names": NAMES,
        "n_per_class": PER_CLASS,
        "rows": rows,
        "recovery": {"convnet": 0.91, "resnet18": 0.8},
        "recovery_row": "distilled_joint",
        "notes": ["Random real tiles: left out for <i>resnet18</i>"],
    }
    write_json(folder / "results.json", results)
    facts = {
        "autoencoder": {"seconds": 75.4, "validation_psnr": 26.04},
        "pipeline": {"seconds": 3600.0, "validation_loss": 0.41},
        "pool": {"seconds": 12.3, "num_images": 2000},
        "distilled": {
            "seconds": 1.0,
            "num_images": 60,
            "community_sizes": {NAMES[0]: [70, 20, 10], NAMES[1]: [5] * 40},
            "warnings": ["class 1 has one <u>community</u>"],
        },
    }
    for name, record in facts.items():
        settings = {"stage": name, "batch_size": 1234}
        common = {"complete": name != "pool", "settings": settings, "fingerprint": "", "versions": {"torch": "2.13.0"}}
        write_json(folder / name / "stage.json", {**common, **record})
    return folder


def test_the_step_writes_the_page_and_says_where_it_is(run, capsys):
    path = report.run(report.make_parser().read([str(run)]))
    assert path == run / "report.html" == report.run(report.ReportConfig(run=str(run)))
    assert path.read_bytes() == write_report(run).read_bytes()
    assert capsys.readouterr().out == 2 * f"report: {path}\n"


def test_page_stands_alone_and_is_well_formed(run):
    path = write_report(run)
    assert path == run / "report.html"
    html = path.read_text()
    assert html.lstrip().startswith("<!DOCTYPE html>")
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "video", "audio"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "srcset", "data", "href"):
            if name in attributes and tag != "a":
                assert attributes[name].startswith("data:")
    assert "url(" not in html
    assert "@import" not in html
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)


def test_scores_and_recovery_are_there(run):
    text = " ".join(Page(write_report(run).read_text()).text.split())
    assert "91.0% ConvNet recovery" in text
    assert (
        "ConvNet trained on the 60 distilled images reaches 91.0% of the test accuracy that all 11,592 real training "
        "tiles give (0.728 of 0.800); 60 random real tiles reach 75.0%." in text
    )
    assert "Distilled, joint loss 60 images 0.728 ± 0.012 0.912 0.655" in text
    assert "All real tiles 11,592 images 0.750 – 0.655" in text
    assert "standard deviation of 2 seeds" in text
    assert "Random real tiles: left out for <i>resnet18</i>" in text
    assert "no privacy audit has been made" in text
    assert "not for diagnosis" in text


def test_communities_times_and_settings_are_there(run):
    html = write_report(run).read_text()
    text = " ".join(Page(html).text.split())
    assert "3 communities of 100 images; the chosen images are from 3" in text
    assert "70, 20, 10" in text
    assert "40 communities of 200 images; the chosen images are from 1" in text
    assert "and 10 smaller with 50 together" in text
    assert "class 1 has one <u>community</u>" in text
    assert "Autoencoder validation PSNR 26.0 dB 1 min 15 s" in text
    assert "Diffusion model validation loss 0.4100 1 h 00 min" in text
    assert "Pool of generated images 2,000 images, not finished 12.3 s" in text
    assert "Teacher classifier not run" in text
    assert "Total 1 h 01 min" in text
    assert "autoencoder.learning_rate 0.00123" in text
    assert "batch_size 1234" in text
    assert "torch 2.13.0" in text


def test_pictures_of_the_communities_are_shown_where_they_are(run):
    captions = {"community_map.png": "One panel is one class", "community_tiles.png": "One row is one community"}
    before = write_report(run).read_text()
    assert not any(caption in before for caption in captions.values())
    (run / "selector").mkdir()
    for count, (file, caption) in enumerate(captions.items(), start=1):
        data = f"picture {file}".encode()
        (run / "selector" / file).write_bytes(data)
        html = write_report(run).read_text()
        page = Page(html)
        assert caption in page.text
        pictures = [attributes for tag, attributes in page.tags if attributes.get("class") == "picture"]
        assert len(pictures) == count
        assert base64.b64decode(pictures[-1]["src"].removeprefix("data:image/png;base64,")) == data
        assert pictures[-1]["alt"]
    assert ".picture { display: block; max-width: 100%;" in html


def test_figures_of_the_benchmark_are_shown_where_they_are(run):
    assert "Results table" not in write_report(run).read_text()
    (run / "benchmark").mkdir()
    (run / "benchmark" / "confusion.png").write_bytes(b"picture")
    html = write_report(run).read_text()
    assert "<h2>Results table</h2>" in html
    assert f'src="data:image/png;base64,{base64.b64encode(b"picture").decode()}"' in html


def test_dropped_images_are_counted(run):
    sentence = "Dropped before the selection"
    record = read_json(run / "distilled" / "stage.json")
    for dropped in ({}, dict.fromkeys(NAMES, 0)):
        write_json(run / "distilled" / "stage.json", {**record, "dropped": dropped})
        assert sentence not in write_report(run).read_text()
    write_json(run / "distilled" / "stage.json", {**record, "dropped": {NAMES[0]: 1200, "none": 0, NAMES[1]: 7}})
    text = " ".join(Page(write_report(run).read_text()).text.split())
    assert f"{sentence}, as not recognised or outlying: 1,200 of {NAMES[0]}, 7 of {NAMES[1]}." in text


def test_names_are_escaped(run):
    html = write_report(run).read_text()
    assert "fat &lt;5 %" in html
    for markup in ("fat <5", "<i>resnet18", "<u>community"):
        assert markup not in html


def test_images_are_the_best_ranked_distilled_ones(run):
    page = Page(write_report(run).read_text())
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 2 * IMAGES_PER_CLASS
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(s.split(",")[1])))) for s in sources]
    images = write_distilled(run)
    first, second = images[:IMAGES_PER_CLASS], images[PER_CLASS : PER_CLASS + IMAGES_PER_CLASS]
    assert np.array_equal(np.stack(shown), np.concatenate([first, second]))


def test_large_images_are_shown_smaller(tmp_path):
    write_distilled(tmp_path, size=128)
    source = re.search(r"base64,([^\"]+)", write_report(tmp_path).read_text()).group(1)
    assert Image.open(io.BytesIO(base64.b64decode(source))).size == (96, 96)


def test_only_the_distilled_set_is_needed(tmp_path):
    write_distilled(tmp_path)
    text = " ".join(Page(write_report(tmp_path).read_text()).text.split())
    assert "No scores yet" in text
    assert "run.json is missing" in text
    assert "None recorded" in text
    assert "not run" in text


def test_without_distilled_set_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match="holds no image dataset"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_results_are_one_sentence(run):
    (run / "results.json").write_text('{"rows": [')
    with pytest.raises(InputError, match=r"results\.json cannot be read .*: delete it and"):
        write_report(run)


@pytest.mark.parametrize("file", ["run.json", "results.json"])
def test_files_of_a_later_format_are_one_sentence(run, file):
    before = write_report(run).read_bytes()
    values = read_json(run / file)
    # The number itself is nothing to show.
    write_json(run / file, {"format": 1, **values})
    assert write_report(run).read_bytes() == before
    write_json(run / file, {"format": 2, **values})
    with pytest.raises(InputError, match=rf"{file} has the format 2, .* install the version that made it"):
        write_report(run)


def test_phantom_is_called_drawn(run):
    sentence = "drawn by a program"
    assert sentence not in write_report(run).read_text()
    write_json(run / "run.json", {"data": "phantom"})
    assert sentence in write_report(run).read_text()
    # Stages that ran one by one leave no run.json, but the teacher's results name the tiles.
    for name in ("run.json", "results.json"):
        (run / name).unlink()
    assert sentence not in write_report(run).read_text()
    write_json(run / "teacher" / "results.json", {"data": {"train": "phantom"}})
    assert sentence in write_report(run).read_text()


def test_summary(run):
    lines = summary_lines(run)
    assert not any("report.html" in line for line in lines)
    write_report(run)
    lines = summary_lines(run)
    assert lines[-2:] == [f"Distilled set: {run / 'distilled'}", f"Report:        {run / 'report.html'}"]
    assert lines[0].split() == ["ConvNet", "images", "ACC", "AUC", "F1"]
    joint = next(line for line in lines if "joint" in line)
    assert joint.split()[-6:] == ["60", "0.728", "±", "0.012", "0.912", "0.655"]
    table = lines[:4]
    assert len({len(line) for line in table}) == 1
    assert any("91.0%" in line for line in lines)
    assert max(map(len, table)) <= 100


def test_summary_ends_with_what_may_not_be_published(tmp_path):
    for part in ("distilled", "pipeline"):
        write_json(tmp_path / part / "stage.json", {})
    plain = summary_lines(tmp_path)
    add_audit(tmp_path)
    assert summary_lines(tmp_path) == plain
    add_audit(tmp_path, copies=2, weights_auc=0.7)
    copies = "which did not pass the privacy audit (2 of 15 images are copies of real tiles"
    *before, distilled, pipeline, where = summary_lines(tmp_path)
    assert before == plain
    assert distilled == f"Must not be published: {tmp_path / 'distilled'}, {copies})"
    assert pipeline.startswith(f"Must not be published: {tmp_path / 'pipeline'}, {copies}; one who holds the weights")
    assert where == f"What was found:        {tmp_path / 'audit.json'}"


def test_summary_without_results(tmp_path):
    assert summary_lines(tmp_path)[0].startswith("No scores yet")


# The privacy audit.


def test_audit_is_shown_where_it_was_made(run):
    assert "Privacy audit" not in re.findall(r"<h2>(.*?)</h2>", write_report(run).read_text())
    record = read_json(run / "distilled" / "stage.json")
    write_json(run / "distilled" / "stage.json", {**record, "copies_dropped": {"fat": 3, "stroma": 4}})
    add_audit(run, weights_auc=0.7, is_random=False)
    page = Page(write_report(run).read_text())
    text = " ".join(page.text.split())
    assert "distilled: passed" in text and "pipeline: not passed; it should not be published" in text
    assert "✓ copies 0 of 15 images are copies of real tiles" in text
    assert "✗ weights one who holds the weights tells training tiles with an AUC of 0.700" in text
    assert "distance, pixels 0.500 [0.490, 0.510] 0.500 [0.490, 0.510] 0.010 [0.000, 0.020] too few tiles" in text
    assert "with the weights of the model 0.700 [0.690, 0.710]" in text
    assert "validation tiles stood in" in text and "no privacy audit has been made" not in text
    assert "7 generated images were dropped before the selection, as copies of real tiles" in text
    # Another distilled set is not the one that passed.
    write_distilled(run, size=16)
    text = " ".join(Page(write_report(run).read_text()).text.split())
    assert "distilled: not the audited files: run histodistill audit again" in text
    assert "pipeline: not passed; it should not be published" in text
    # What another version found is not shown.
    write_json(run / "audit.json", {**read_json(run / "audit.json"), "format": 0})
    assert "no privacy audit has been made" in write_report(run).read_text()


def test_differential_privacy_is_told_with_what_it_does_not_cover(run):
    assert "differential privacy" not in write_report(run).read_text()
    file = run / "pipeline" / "stage.json"
    spent = {"epsilon": 7.9876, "delta": 1.72e-5}
    write_json(file, {**read_json(file), "privacy": {**spent, "autoencoder": spent, "total": spent}})
    text = " ".join(Page(write_report(run).read_text()).text.split())
    assert "trained with differential privacy : ε = 7.99 and δ = 1.7e-05 for each training tile." in text
    assert "it does not cover all tiles of a patient" in text and "nor this: The soft labels of the" in text
