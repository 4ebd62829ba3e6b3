"""The pages of a review, without a browser, and the scores of the blinded sheet."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import stat

import numpy as np
import pytest
from html_pages import Page
from PIL import Image
from scipy.stats import binomtest

from histodistill.hub_cards.site_verdict import image_hash
from histodistill.hub_cards.tables import ImageTable
from histodistill.training.data.image_dataset import read_image_dataset, write_image_dataset
from histodistill.training.data.sources import load_tiles
from histodistill.training.end_to_end.leavings import PRIVATE, find_leavings
from histodistill.training.reporting import review, review_page
from histodistill.training.reporting.blinded_sheet import score_answers
from histodistill.training.reporting.review import ReviewConfig
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.options import run_script
from histodistill.training.running.stages import Stage, content_of


NAMES = ['"><img src="x">', "</script><script>alert(1)</script>", "fat <5 % & co"]


class ReviewPage(Page):
    """It keeps texts by their element, too."""

    void = Page.void | {"input"}

    def __init__(self, html: str):
        self.texts: dict[str, str] = {}
        super().__init__(html)

    def handle_data(self, data):
        place = self.open[-1] if self.open else ""
        self.texts[place] = self.texts.get(place, "") + data

    def all(self, tag, **wanted):
        return [attrs for name, attrs in self.tags if name == tag and wanted.items() <= attrs.items()]


def read_page(path):
    """A page, after the checks that it needs nothing else and runs its own script alone."""
    html = path.read_text(encoding="utf-8")
    page = ReviewPage(html)
    (policy,) = [attrs["content"] for attrs in page.all("meta", **{"http-equiv": "Content-Security-Policy"})]
    digest = base64.b64encode(hashlib.sha256(page.texts["script"].encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on") or name in ("style", "action", "srcset")]
        assert all(attrs[name].startswith("data:") for name in ("src", "href") if name in attrs)
    assert "url(" not in page.texts["style"] and "@import" not in page.texts["style"]
    return page


def pixels(attrs):
    with Image.open(io.BytesIO(base64.b64decode(attrs["src"].removeprefix("data:image/png;base64,")))) as image:
        return np.asarray(image)


def test_the_page_shows_the_set_by_class(reviewed_run, capsys):
    path = review.run(ReviewConfig(run=reviewed_run))
    assert path == reviewed_run / "review" / "review.html"
    assert capsys.readouterr().out == f"review: {path}\n"
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["review.html"]
    page = read_page(path)
    images, columns, names = read_image_dataset(reviewed_run / "distilled")
    (main,) = page.all("main")
    assert main["data-about"] == content_of(reviewed_run / "distilled") and main["data-kind"] == "review"
    cards, shown = page.all("li", **{"class": "card"}), page.all("img")
    rows = [int(card["data-row"]) for card in cards]
    assert rows == list(range(15))  # of a set, whose rows are in the order of classes
    np.testing.assert_array_equal([int(card["data-seed"]) for card in cards], columns["seed"])
    assert [card["data-image"] for card in cards] == [image_hash(image) for image in images]
    np.testing.assert_array_equal([pixels(attrs) for attrs in shown], images)
    assert [attrs["alt"] for attrs in shown] == [f"{names[row // 3]}, image {row % 3 + 1}:" for row in rows]
    # A box and a note for each, and the reviewer's sign.
    assert [attrs["name"] for attrs in page.all("input", type="checkbox")] == [f"out-{row}" for row in rows]
    assert [attrs["name"] for attrs in page.all("textarea")] == [f"note-{row}" for row in rows]
    assert len(page.all("input", name="reviewer")) == 1


def test_names_of_classes_are_text(reviewed_run, monkeypatch):
    images = np.random.default_rng(0).integers(256, size=(3, 8, 8, 3), dtype=np.uint8)
    columns = {"label": np.array([0, 1, 2]), "seed": np.array([4, 2, 9])}
    # No set is read that has such names.
    monkeypatch.setattr(review_page, "read_image_table", lambda folder: ImageTable(images, columns, NAMES))
    page = read_page(review.run(ReviewConfig(run=reviewed_run)))
    assert len(page.all("img")) == 3 and len(page.all("script")) == 1
    assert all(name in page.texts["h2"] for name in NAMES)
    assert [attrs["alt"] for attrs in page.all("img")] == [f"{name}, image 1:" for name in NAMES]


def test_large_images_are_shown_smaller(tmp_path):
    columns = {"label": np.array([0]), "seed": np.array([4])}
    write_image_dataset(tmp_path / "distilled" / "data", np.zeros((1, 300, 300, 3), np.uint8), columns, ["a"])
    Stage(tmp_path / "distilled", {"stage": "distilled"}).finish()
    page = read_page(review.run(ReviewConfig(run=tmp_path)))
    assert pixels(page.all("img")[0]).shape == (256, 256, 3)


@pytest.fixture
def sheet(reviewed_run, tiny_npz):
    """A run with a blinded sheet of two images of either kind of each class."""
    review.run(ReviewConfig(run=reviewed_run, data=tiny_npz, per_class=2, seed=7))
    return reviewed_run


def test_the_sheet_mixes_generated_images_and_tiles_that_no_model_saw(sheet, tiny_npz):
    page, key = read_page(sheet / "review" / "blinded.html"), read_json(sheet / "review" / "blinded_key.json")
    generated, columns, _ = read_image_dataset(sheet / "distilled")
    real = load_tiles(tiny_npz).split("validation")
    found = [pixels(attrs) for attrs in page.all("img")]
    places = {
        "generated": {image_hash(image): label for image, label in zip(generated, columns["label"], strict=True)},
        "real": {image_hash(image): label for image, label in zip(real.images, real.labels, strict=True)},
    }
    assert len(found) == 20 == len({image_hash(image) for image in found})
    for image, kind, label in zip(found, key["kinds"], key["labels"], strict=True):
        assert places[kind][image_hash(image)] == label
    for kind in places:
        labels = [label for label, each in zip(key["labels"], key["kinds"], strict=True) if each == kind]
        assert np.bincount(labels).tolist() == [2] * 5
    # They alternate as chance has it, and not by a pattern.
    assert 4 < sum(one != other for one, other in zip(key["kinds"], key["kinds"][1:], strict=False)) < 16


def test_the_page_does_not_tell_which_is_which(sheet):
    html = (sheet / "review" / "blinded.html").read_text()
    page = ReviewPage(html)
    # But for its pixels, an image is told by its number alone.
    cards = re.findall(r'<fieldset class="card">.*?</fieldset>', html, re.DOTALL)
    plain = {re.sub(r'base64,[^"]+', "", re.sub(r"(answer-|Image )\d+", r"\1", card)) for card in cards}
    assert len(cards) == 20 and len(plain) == 1
    assert {(attrs["src"][:30], attrs["alt"]) for attrs in page.all("img")} == {("data:image/png;base64,iVBORw0K", "")}
    assert not [name for name in read_image_dataset(sheet / "distilled")[2] if name in html]
    assert "data-seed" not in html and "data-image" not in html and "kinds" not in html
    for name in ("blinded.html", "blinded_key.json"):
        assert stat.S_IMODE((sheet / "review" / name).stat().st_mode) == 0o600


def test_the_sheet_goes_with_what_is_private(sheet):
    assert [path for files in find_leavings(sheet).values() for path in files] == ["review/blinded.html"]
    assert "review" in PRIVATE


def test_a_seed_makes_the_same_sheet(sheet, tiny_npz):
    folder = sheet / "review"
    before = (folder / "blinded.html").read_bytes()
    again = ReviewConfig(run=sheet, data=tiny_npz, per_class=2)
    review.run(again)  # with the seed of the sheet that is there
    assert (folder / "blinded.html").read_bytes() == before
    review.run(ReviewConfig(run=sheet, data=tiny_npz, per_class=2, seed=8))
    assert (folder / "blinded.html").read_bytes() != before
    seeds = set()
    for _ in range(2):
        (folder / "blinded_key.json").unlink()
        review.run(again)
        seeds.add(read_json(folder / "blinded_key.json")["seed"])
    assert len(seeds) == 2  # secret ones


def test_classes_with_few_images_have_as_many_tiles(reviewed_run, tiny_npz, capsys):
    review.run(ReviewConfig(run=reviewed_run, data=tiny_npz, seed=0))
    assert "warning: the blinded sheet has fewer than 20 images of some classes: " in capsys.readouterr().err
    key = read_json(reviewed_run / "review" / "blinded_key.json")
    assert np.bincount(key["labels"]).tolist() == [6] * 5 and key["kinds"].count("real") == 15


def answers(run, path, wrong=(), none=(), reviewer=""):
    """A file of a reader who takes some images for what they are not, and says nothing of others."""
    key = read_json(run / "review" / "blinded_key.json")
    other = {"real": "generated", "generated": "real"}
    said = [other[kind] if i in wrong else None if i in none else kind for i, kind in enumerate(key["kinds"])]
    write_json(path, {"format": 1, "kind": "answers", "reviewer": reviewer, "sheet": key["sheet"], "answers": said})
    return path


def test_answers_are_scored_with_intervals(sheet, tmp_path, capsys):
    one = answers(sheet, tmp_path / "one.json", wrong=[0, 1, 2, 3, 4], reviewer="AB")
    two = answers(sheet, tmp_path / "two.json", wrong=[0], none=[1, 2, 3])
    path = review.run(ReviewConfig(run=sheet, answers=(one, two)))
    scores = read_json(path)
    assert path == sheet / "review" / "blinded_scores.json" and scores["num_answers"] == 37
    expected = {"all": (31, 37), "AB": (15, 20), "two": (16, 17)}
    for name, (right, of) in expected.items():
        interval = binomtest(right, of).proportion_ci(method="wilson")
        found = scores["all"] if name == "all" else scores["readers"][name]
        np.testing.assert_allclose([*found.values()], [right / of, interval.low, interval.high])
    key = read_json(sheet / "review" / "blinded_key.json")
    for label, name in enumerate(key["class_names"]):
        mine = np.array(key["labels"]) == label
        right = mine.sum() - mine[:5].sum() + mine.sum() - mine[:4].sum()
        assert scores["classes"][name]["value"] == pytest.approx(right / (2 * mine.sum() - mine[1:4].sum()))
    told = capsys.readouterr().out
    assert "right: 84% (95 % interval 69% to 92%) of 37 answers by 2 readers; guessing gives 50 %" in told
    assert "  reader AB: 75% (95 % interval 53% to 89%)\n" in told and "too narrow" in told
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sheet": "0" * 64}, "is about another sheet than"),
        ({"answers": ["real"]}, "is about another sheet than"),
        ({"answers": ["real", "fake"]}, "holds something unknown (answers.1"),
        ({"answers": [None] * 20}, "there is no answer in it"),
        ({"kind": "review"}, "holds something unknown (kind"),
        ({"reviewer": "x" * 41}, "holds something unknown (reviewer"),
    ],
)
def test_bad_answers_are_one_sentence(sheet, tmp_path, change, message):
    path = answers(sheet, tmp_path / "bad.json")
    path.write_text(json.dumps(read_json(path) | change))
    with pytest.raises(InputError) as caught:
        score_answers(sheet, [path])
    assert str(caught.value).startswith(f"{path} ") and message in str(caught.value)
    assert not (sheet / "review" / "blinded_scores.json").exists()


def test_a_reader_counts_once(sheet, tmp_path):
    files = [answers(sheet, tmp_path / name, reviewer="AB") for name in ("a.json", "b.json")]
    with pytest.raises(
        InputError, match=r"is of the same reader as another file \(AB\): give one file of each reader"
    ):
        score_answers(sheet, files)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--answers", "a.json"], "has no blinded sheet: make one with --data first"),
        (["--answers", "a.json", "--data", "phantom"], "--answers are to the sheet that is there: leave --data out"),
        (["--per-class", "0"], "--per-class=0 is out of range"),
    ],
)
def test_bad_options_are_one_sentence(reviewed_run, argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_script(review.make_parser, review.run, [str(reviewed_run), *argv])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert not (reviewed_run / "review").exists()


def test_tiles_that_the_run_was_not_made_from(reviewed_run, tiny_npz):
    with pytest.raises(InputError, match=r"with audit_share 0\.5 is not what .* was trained on: give the same tiles"):
        review.run(ReviewConfig(run=reviewed_run, data=tiny_npz, audit_share=0.5))
    assert not (reviewed_run / "review").exists()


def test_without_a_set_there_is_nothing_to_review(tmp_path):
    with pytest.raises(InputError, match="holds no finished distilled set: run histodistill select first"):
        review.run(ReviewConfig(run=tmp_path))
