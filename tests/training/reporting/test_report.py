from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from audits import add_audit
from html_pages import Page
from PIL import Image

from histodistill.training.data.image_dataset import write_image_dataset
from histodistill.training.reporting import report
from histodistill.training.reporting.report_page import IMAGES_PER_CLASS, write_report
from histodistill.training.reporting.summary import summary_lines
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json


NAMES = ["fat <5 %", "stroma & co"]
PER_CLASS = 30


class ReportPage(Page):
    """It keeps the text outside style, too."""

    def __init__(self, html: str):
        self.text = ""
        super().__init__(html)

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
    page = ReportPage(html)
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
    text = " ".join(ReportPage(write_report(run).read_text()).text.split())
    assert "72.8% Distilled, joint loss 60 synthetic images 60.0% Random real tiles 60 real tiles" in text
    assert "7,180 real test tiles that a ConvNet classifies correctly when trained on these." in text
    assert (
        "ConvNet trained on the 60 distilled images by their labels gets 0.728 of the test tiles right, 91.0% of what "
        "all 11,592 real training tiles give (0.800); 60 random real tiles give 0.600, but real tiles may "
        "not be shared (mean of 2 seeds)." in text
    )
    assert "Distilled, joint loss 60 images 0.728 ± 0.012 0.912 0.655" in text
    assert "All real tiles 11,592 images 0.750 – 0.655" in text
    assert "standard deviation of 2 seeds" in text
    assert "Random real tiles: left out for <i>resnet18</i>" in text
    assert "no privacy audit has been made" in text
    assert "not for diagnosis" in text


def test_the_numbers_of_real_tiles_are_reconciled(run):
    sentence = "All 11,592 real training tiles are the 11,000 that"
    assert sentence not in write_report(run).read_text()
    record = read_json(run / "run.json")
    write_json(run / "run.json", {**record, "num_tiles": {"train": 11000, "held_out": 592, "test": 7180}})
    text = " ".join(ReportPage(write_report(run).read_text()).text.split())
    assert sentence in text
    assert "made from 11,000 real training tiles (592 more were held out for the privacy audit)" in text


def test_communities_times_and_settings_are_there(run):
    html = write_report(run).read_text()
    text = " ".join(ReportPage(html).text.split())
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
        page = ReportPage(html)
        assert caption in page.text
        pictures = [
            attributes for tag, attributes in page.tags if "picture" in (attributes.get("class") or "").split()
        ]
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
    text = " ".join(ReportPage(write_report(run).read_text()).text.split())
    assert f"{sentence}, as not recognised or outlying: 1,200 of {NAMES[0]}, 7 of {NAMES[1]}." in text


def test_names_are_escaped(run):
    html = write_report(run).read_text()
    assert "fat &lt;5 %" in html
    for markup in ("fat <5", "<i>resnet18", "<u>community"):
        assert markup not in html


def test_images_are_the_best_ranked_distilled_ones(run):
    page = ReportPage(write_report(run).read_text())
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
    text = " ".join(ReportPage(write_report(tmp_path).read_text()).text.split())
    assert "No scores yet" in text
    assert "run.json is missing" in text
    assert "The record of the selection does not say" in text
    assert "Communities" not in text
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
    for part in ("distilled", "selector", "pipeline"):
        write_json(tmp_path / part / ("config.json" if part == "selector" else "stage.json"), {})
    plain = summary_lines(tmp_path)
    add_audit(tmp_path)
    assert summary_lines(tmp_path) == plain
    add_audit(tmp_path, copies=2, weights_auc=0.7)
    copies = "which did not pass the privacy audit (2 of 15 images are copies of real tiles"
    *before, distilled, pipeline, where = summary_lines(tmp_path)
    assert before == plain
    # Parts with the same reasons share a line.
    assert distilled == f"Must not be published: {tmp_path / 'distilled'}, {tmp_path / 'selector'}, {copies})"
    assert pipeline.startswith(f"Must not be published: {tmp_path / 'pipeline'}, {copies}; one who holds the weights")
    assert where == f"What was found:        {tmp_path / 'audit.json'}"


def test_summary_without_results(tmp_path):
    assert summary_lines(tmp_path)[0].startswith("No scores yet")


# Charts.


def svg(html, name):
    """A chart of the page, or None; it is well-formed XML, so names in it are escaped."""
    start = html.find(f'<svg class="chart" id="{name}"')
    depth = 0
    for tag in re.finditer("<(/?)svg", html[start:]) if start >= 0 else ():
        depth += -1 if tag.group(1) else 1
        if not depth:
            return ElementTree.fromstring(html[start : start + tag.end()] + ">")
    return None


def per_cent(text):
    assert text.endswith("%")
    return float(text[:-1])


def test_bars_are_the_accuracies(run):
    html = write_report(run).read_text()
    chart = svg(html, "scores-1")
    assert chart.get("role") == "img"
    about = {part.get("id"): part.text for part in chart if part.tag in ("title", "desc")}
    assert list(about) == chart.get("aria-labelledby").split() and all(about.values())
    rows = [row for row in chart.findall("svg") if row.find("rect") is not None]
    found = [
        (row.find("text").text, row.findall("text")[1].text, per_cent(row.findall("rect")[1].get("width")))
        for row in rows
    ]
    assert found == [
        ("All real tiles", "0.800 ± 0.004", 80.0),
        ("Random real tiles", "0.600 ± 0.030", 60.0),
        ("Distilled, joint loss", "0.728 ± 0.012", 72.8),
    ]
    # The deviation, and what random real tiles give.
    places = [per_cent(line.get("x1")) for line in rows[2].findall("line")]
    assert places == [71.6, 71.6, 74.0, 60.0]
    # One seed has no deviation, and without random real tiles there is nothing to mark.
    assert not list(svg(html, "scores-2").iter("line"))
    assert svg(html, "scores-3") is None


def test_the_recommended_way_is_what_stands_out(run):
    results = read_json(run / "results.json")
    results["rows"].insert(0, row("distilled_soft", "Distilled, soft labels", "convnet", 60, score(0.75)))
    results["rows"].append(row("real_random", "Random real tiles", "resnet18", 60, score(None)))
    write_json(run / "results.json", results)
    html = write_report(run).read_text()
    assert "75.0% Distilled, soft labels 60 synthetic images" in " ".join(ReportPage(html).text.split())
    assert re.findall(r'<tr class="own"><th scope="row">(.*?)<small', html)[:2] == [
        "Distilled, soft labels",
        "Distilled, joint loss",
    ]
    # What has no score has no bar.
    assert len(svg(html, "scores-2").findall("svg")) == 2 + 1


def write_cells(run, **changes):
    """Cells of the comparison of the ConvNet's rows; `changes` are of the test scores of the distilled set's last."""
    for name, num_train in (("real_all", 11592), ("real_random", 60), ("distilled_joint", 60)):
        for seed in (0, 1):
            test = {"per_class_f1": [0.8 + seed / 10, 0.5], "confusion": [[333, 667 - seed], [0, 0]]}
            if (name, seed) == ("distilled_joint", 1):
                test.update(changes)
            cell = {"num_train": num_train, "test": {key: value for key, value in test.items() if value is not None}}
            write_json(run / "comparison" / f"convnet-{name}-seed{seed}.json", cell)


def test_classes_are_shown_one_by_one(run):
    assert "Class by class" not in write_report(run).read_text()
    write_cells(run)
    html = write_report(run).read_text()
    text = " ".join(ReportPage(html).text.split())
    assert f"{NAMES[0]} 0.850 ± 0.071 0.850 ± 0.071 0.850 ± 0.071 {NAMES[1]} 0.500 ± 0.000" in text
    chart = svg(html, "class-f1")
    titles = [part.text for part in chart.findall("text") if part.get("class") == "on-grid"]
    assert titles == NAMES
    ticks = {float(part.text): per_cent(part.get("x")) for part in chart.findall("text") if part.get("x")}
    marks = [(part.get("class"), per_cent(part.get("x"))) for part in chart.findall("svg")]
    middle = (ticks[0.8] + ticks[0.9]) / 2
    assert marks == [
        (kind, pytest.approx(place, abs=0.02))
        for place in (middle, ticks[0.5])
        for kind in ("real_all", "real_random", "distilled")
    ]
    # Per cent of a class, not numbers of tiles; a class without test tiles has none.
    assert re.findall(r"--share:([\d.]+)", html) == ["0.33", "0.67", "0.0", "0.0"]
    assert f"1 {NAMES[0]} 33 67 2 {NAMES[1]} 0 0" in text
    assert "666" not in text and "667" not in text
    assert "trained on: Distilled, joint loss." in text


@pytest.mark.parametrize(
    "changes",
    [
        {"per_class_f1": None},
        {"per_class_f1": [0.5]},
        {"per_class_f1": [0.5, 7.0]},
        {"confusion": [[1, 2], [3]]},
        {"confusion": [[1, 2, 3], [4, 5, 6]]},
    ],
)
def test_cells_that_do_not_say_what_classes_got_are_left_out(run, changes):
    write_cells(run, **changes)
    text = " ".join(ReportPage(write_report(run).read_text()).text.split())
    assert f"{NAMES[0]} 0.850 ± 0.071 0.850 ± 0.071 {NAMES[1]}" in text
    assert "trained on: Random real tiles." in text


def test_cells_of_another_comparison_are_left_out(run):
    write_cells(run)
    for path in (run / "comparison").glob("*.json"):
        write_json(path, {**read_json(path), "num_train": 7})
    (run / "comparison" / "convnet-real_all-seed0.json").write_text("{")
    assert "Class by class" not in write_report(run).read_text()


def benchmark_row(name, size, mean, std=None, architecture="convnet"):
    one = {"mean": mean, "std": std}
    return {
        "row": name,
        "architecture": architecture,
        "size": size,
        "seeds": [0, 1] if std else [0],
        "test": {"accuracy": one, "auc": one, "f1": one},
    }


def test_results_table_is_a_curve(run):
    rows = [
        benchmark_row("real_all", None, 0.9, 0.01),
        *(benchmark_row(f"infomap:n_neighbors={n}", size, 0.5) for n in range(3, 12) for size in (10, 100)),
        benchmark_row("kernel_herding", 100, 0.8, 0.05),
        benchmark_row("kernel_herding", 10, 0.6, 0.1),
        benchmark_row("real_all", None, 0.7, architecture="vit"),
    ]
    write_json(run / "benchmark" / "benchmark.json", {"rows": rows})
    for name in ("accuracy_by_size.png", "confusion.png"):
        (run / "benchmark" / name).write_bytes(name.encode())
    html = write_report(run).read_text()
    chart = svg(html, "sizes-1")
    ticks = {float(part.text): float(part.get("y")) + 4 for part in chart.findall("text") if not part.get("x")}
    sizes = {part.text: part.get("x") for part in chart.findall("text") if part.get("x")}
    assert list(sizes) == ["10", "100"]
    groups = {group.get("class"): group for group in chart.findall("g")}
    assert set(groups) == {f"series series-{number}" for number in range(8)}  # as many as can be told apart
    assert float(groups["series series-0"].find("line").get("y1")) == pytest.approx(ticks[0.9])
    points = [(point.get("x"), float(point.get("y"))) for point in groups["series series-1"].findall("svg")]
    assert points == [(sizes["10"], pytest.approx(ticks[0.6])), (sizes["100"], pytest.approx(ticks[0.8]))]
    # All are in the table, and one without sizes is no curve.
    text = " ".join(ReportPage(html).text.split())
    assert "Trained on 10 100 all all real training tiles 0.900 ± 0.010 kernel_herding 0.600 ± 0.100 0.800" in text
    assert "infomap:n_neighbors=11 0.500 0.500" in text
    assert "ViT , one seed" in text and svg(html, "sizes-2") is None
    # The picture that shows the same is not needed.
    shown = [base64.b64decode(data) for data in re.findall(r'class="picture plot" src="[^,]*,([^"]*)', html)]
    assert shown == [b"confusion.png"]


def test_results_table_tells_the_steps_of_each_score(run):
    one = benchmark_row("random", 10, 0.5, 0.1)
    rows = [{**one, "steps": 600, "batch_size": 32}, {**one, "size": None, "steps": 2000, "batch_size": 128}]
    write_json(run / "benchmark" / "benchmark.json", {"rows": rows})
    text = " ".join(ReportPage(write_report(run).read_text()).text.split())
    assert "random 0.500 ± 0.100 600 of 32 0.500 ± 0.100 2,000 of 128" in text
    assert "below each score stand its steps" in text


@pytest.mark.parametrize("text", ["{", '{"rows": 1}', '{"rows": [{"row": "<b>"}]}'])
def test_a_damaged_results_table_is_one_sentence(run, text):
    (run / "benchmark").mkdir()
    (run / "benchmark" / "benchmark.json").write_text(text)
    with pytest.raises(InputError, match=r"benchmark\.json cannot be read \(.*\): delete it and run histodistill"):
        write_report(run)


# Looks.


def colours(html):
    """Variables of the page in light and in dark."""
    rules = re.findall(r":root \{(.*?)\}", html, re.DOTALL)
    light, dark = (dict(re.findall(r"--([a-z]+): (#\w{6})", rule)) for rule in rules)
    return light, dark


def luminance(colour):
    return np.dot(
        [0.2126, 0.7152, 0.0722], np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    )


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_follow_dark_mode_and_can_be_read(run):
    write_cells(run)
    html = write_report(run).read_text()
    light, dark = colours(html)
    assert light.keys() == dark.keys()
    assert set(re.findall(r"var\(--(\w+)\)", html)) - {"share", "colour"} == set(light)
    assert "@media screen and (prefers-color-scheme: dark)" in html  # paper is white
    # Charts have no colours of their own.
    assert not re.search(r"(fill|stroke)=|#[0-9a-f]{6}", html[html.index("<body>") :].replace("base64,", ""))
    for mode in (light, dark):
        rgb = {name: np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for name, code in mode.items()}
        for ground in ("ground", "panel"):
            for text in ("ink", "soft", "accent", "good", "bad"):
                assert contrast(rgb[text], rgb[ground]) >= 4.5, (text, ground)
        for shape in ("grey", "blue", "orange", "green", "red", "teal", "olive", "accent"):
            assert contrast(rgb[shape], rgb["ground"]) >= 3, shape
        # The darkest cells of the confusion, as the style mixes them.
        for colour, most in (("orange", 0.5), ("accent", 0.45)):
            cell = most * rgb[colour] + (1 - most) * rgb["ground"]
            assert contrast(rgb["ink"], cell) >= 4.5, colour
    assert "min(.5, var(--share)" in html and "calc(var(--share) * .45)" in html


def test_print_is_light_and_open(run):
    style = re.search(r"@media print \{(.*)</style>", write_report(run).read_text(), re.DOTALL).group(1)
    assert "details::details-content { content-visibility: visible" in style
    assert re.search(r"figure, table, .*\{ break-inside: avoid; \}", style)


# How the images were chosen.


def test_communities_are_as_large_as_their_part(run):
    record = read_json(run / "distilled" / "stage.json")
    for selector, is_small in (("infomap", False), ("kernel_herding", True)):
        settings = {**record["settings"], "selector": selector}
        write_json(run / "distilled" / "stage.json", {**record, "settings": settings})
        html = write_report(run).read_text()
        small = re.search(r"<details>\n<summary>Communities of each class</summary>(.*?)</details>", html, re.DOTALL)
        assert bool(small) == is_small
        assert html.count("40 communities of 200 images") == 1
        assert ("had no part in the choice, which was by kernel herding" in html) == is_small
    assert "Of each class, kernel herding chose one image after the other" in html
    assert small.group(1).count("<figure>") == 2


# The privacy audit.


def test_what_is_next_goes_by_the_audit(run):
    text = ReportPage(write_report(run).read_text()).text
    assert "histodistill audit --run RUN" in text and "histodistill publish" not in text
    add_audit(run)
    text = ReportPage(write_report(run).read_text()).text
    assert "histodistill publish --run RUN" in text and "histodistill audit --run RUN" not in text


def test_where_the_closest_pairs_are_is_told_and_how_to_read_them(run):
    sentence = "above 1 it is farther apart than a copy can be, below 1 it counts as a copy"
    add_audit(run)
    assert sentence not in write_report(run).read_text()
    (run / "audit").mkdir(exist_ok=True)
    (run / "audit" / "closest_distilled.png").write_bytes(b"real tiles")
    html = write_report(run).read_text()
    assert sentence in html and base64.b64encode(b"real tiles").decode() not in html


def test_audit_is_shown_where_it_was_made(run):
    assert "Privacy audit" not in re.findall(r"<h2[^>]*>(.*?)</h2>", write_report(run).read_text())
    record = read_json(run / "distilled" / "stage.json")
    write_json(run / "distilled" / "stage.json", {**record, "copies_dropped": {"fat": 3, "stroma": 4}})
    add_audit(run, weights_auc=0.7, is_random=False)
    page = ReportPage(write_report(run).read_text())
    text = " ".join(page.text.split())
    assert "distilled: passed" in text and "pipeline: not passed; it should not be published" in text
    assert "distilled: ✓ passed" in text and "pipeline: ✗ not passed; it should not be published" in text
    assert "Share nothing that did not pass" in text and "histodistill publish" not in text
    assert "✓ copies 0 of 15 images are copies of real tiles" in text
    assert "✗ weights one who holds the weights tells training tiles with an AUC of 0.700" in text
    assert "distance, pixels 0.500 [0.490, 0.510] 0.500 [0.490, 0.510] 0.010 [0.000, 0.020] too few tiles" in text
    assert "with the weights of the model 0.700 [0.690, 0.710]" in text
    assert "validation tiles stood in" in text and "no privacy audit has been made" not in text
    assert "7 generated images were dropped before the selection, as copies of real tiles" in text
    # Another distilled set is not the one that passed.
    write_distilled(run, size=16)
    text = " ".join(ReportPage(write_report(run).read_text()).text.split())
    assert "distilled: not the audited files: run histodistill audit again" in text
    assert "pipeline: not passed; it should not be published" in text
    # What another version found is not shown.
    write_json(run / "audit.json", {**read_json(run / "audit.json"), "format": 0})
    text = write_report(run).read_text()
    assert "no privacy audit has been made" in text
    assert "made by another version of histodistill" in text and "histodistill audit --run RUN" in text


def test_differential_privacy_is_told_with_what_it_does_not_cover(run):
    assert "differential privacy" not in write_report(run).read_text()
    file = run / "pipeline" / "stage.json"
    spent = {"epsilon": 7.9876, "delta": 1.72e-5}
    write_json(file, {**read_json(file), "privacy": {**spent, "autoencoder": spent, "total": spent}})
    text = " ".join(ReportPage(write_report(run).read_text()).text.split())
    assert "trained with differential privacy : ε = 7.99 and δ = 1.7e-05 for each training tile." in text
    assert "it does not cover all tiles of a patient" in text and "nor this: The soft labels of the" in text
