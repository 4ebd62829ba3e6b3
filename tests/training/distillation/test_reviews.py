"""Selections without what reviewers left out."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from reviews import review_document, write_review

from histodistill.hub_cards.review_facts import ReviewFacts
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.distillation import distilled_set
from histodistill.training.distillation import select as script
from histodistill.training.distillation.reviews import LONGEST_NOTE
from histodistill.training.distillation.select import SelectConfig
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json


@pytest.fixture(scope="module")
def first(tmp_path_factory, tiny_pool, tiny_teacher):
    """A selection of two images of each class by kernel herding."""
    folder = tmp_path_factory.mktemp("first") / "run"
    script.run(SelectConfig(pool=tiny_pool, teacher=tiny_teacher, n_per_class=2, output=folder))
    return folder


@pytest.fixture
def run(first, tmp_path):
    return shutil.copytree(first, tmp_path / "run")


@pytest.fixture
def select(run, tiny_pool, tiny_teacher, monkeypatch):
    """`select(*files, …)` chooses anew in the run, without pictures, and returns the seeds of the set."""
    for picture in ("community_map", "community_tiles"):
        monkeypatch.setattr(distilled_set, picture, lambda *_: None)

    def choose(*files, **options):
        options = {"n_per_class": 2, "output": run} | options
        folder = script.run(SelectConfig(pool=tiny_pool, teacher=tiny_teacher, exclude=files, **options))
        return read_image_dataset(folder)[1]["seed"]

    return choose


def seeds_of(run):
    return read_image_dataset(run / "distilled")[1]["seed"]


def test_what_was_left_out_is_replaced_and_stays_out(run, select, tiny_pool, capsys):
    before = seeds_of(run)
    one = write_review(run.parent / "one.json", run / "distilled", [0, 3], "AB", notes={0: "nuclei < 5 µm in Mr K"})
    two = write_review(run.parent / "two.json", run / "distilled", [3, 8], " CD ")
    gone, others = before[[0, 3, 8]], np.delete(before, [0, 3, 8])
    after = select(one, two)
    assert not np.isin(gone, after).any() and len(set(after)) == 10
    columns = read_image_dataset(run / "distilled")[1]
    assert np.bincount(columns["label"]).tolist() == [2] * 5
    # Classes of which all images stay are what they were.
    untouched = ~np.isin(columns["label"], columns["label"][[0, 3, 8]])
    np.testing.assert_array_equal(after[untouched], before[untouched])

    facts = {"num_images": 10, "num_people": 2, "num_left_out": 3, "num_unseen": int((~np.isin(after, before)).sum())}
    record = read_json(run / "distilled" / "stage.json")
    assert record["reviewed"] == facts and facts["num_unseen"] >= 3
    sentence = ReviewFacts(**facts).sentence()
    assert "10 generated images were reviewed by 2 people: 3 were left out, and" in sentence
    assert sentence in (run / "distilled" / "README.md").read_text() and sentence in capsys.readouterr().out
    for path in (run / "distilled" / "README.md", run / "distilled" / "stage.json"):
        assert not [word for word in ("Mr K", "AB", "CD") if f'"{word}' in path.read_text()], path

    # The same files, in any order, and the command without them: it is finished.
    for files in ((one, two), (two, one), ()):
        np.testing.assert_array_equal(select(*files), after)
        assert "already finished" in capsys.readouterr().out
    # A second look at what came; images of both stay out.
    later = write_review(run.parent / "later.json", run / "distilled", [1], "AB")
    with pytest.raises(InputError, match=r"^3 images that earlier reviews left out .* would come back: give exclude"):
        select(later)
    second = after[1]
    # Nobody has seen what was in neither set.
    document = json.loads(one.read_text())
    more = run.parent / "more.json"
    unseen = next(seed for seed in read_image_dataset(tiny_pool)[1]["seed"].tolist() if seed not in {*before, *after})
    write_json(more, document | {"seeds": [*document["seeds"], unseen]})
    with pytest.raises(InputError, match=r"more\.json is about another set than"):
        select(more, two, later)
    final = select(one, two, later)
    assert not np.isin([*gone, second], final).any()
    assert read_json(run / "distilled" / "stage.json")["reviewed"] == {
        "num_images": len({*before, *after}),
        "num_people": 2,
        "num_left_out": 4,
        "num_unseen": int((~np.isin(final, [*before, *after])).sum()),
    }
    assert {*others, *gone} == {*before}


def test_the_same_reviews_choose_the_same(run, select, first, tmp_path):
    review = write_review(run.parent / "review.json", run / "distilled", [5])
    other = shutil.copytree(first, tmp_path / "other")
    np.testing.assert_array_equal(select(review), select(review, output=other))
    assert (run / "distilled/stage.json").exists() and read_json(other / "distilled/stage.json")["reviewed"]


def test_a_review_that_leaves_nothing_out_is_told_and_changes_no_image(run, select):
    before = seeds_of(run)
    np.testing.assert_array_equal(select(write_review(run.parent / "review.json", run / "distilled", [])), before)
    facts = ReviewFacts(**read_json(run / "distilled" / "stage.json")["reviewed"])
    assert facts.sentence() == (
        "10 generated images were reviewed by 1 person: none was left out. Not reviewed: none of the images here."
    )


def test_without_reviews_the_record_is_what_it_was(first):
    record = read_json(first / "distilled" / "stage.json")
    assert "reviewed" not in record and "review" not in record["settings"] and "exclude" not in record["settings"]


def test_a_selection_that_was_cut_off_keeps_what_was_left_out(run, select):
    after = select(write_review(run.parent / "review.json", run / "distilled", [0, 1]))
    record = read_json(run / "distilled" / "stage.json")
    write_json(run / "distilled" / "stage.json", record | {"complete": False})
    np.testing.assert_array_equal(select(), after)  # as distill would go on with it
    assert read_json(run / "distilled" / "stage.json")["reviewed"] == record["reviewed"]


def changed(**changes):
    return lambda document: json.dumps(document | changes)


def one_left_out(**changes):
    return lambda document: json.dumps(document | {"left_out": [document["left_out"][0] | changes]})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed(set="0" * 64), "is about another set than"),
        (changed(seeds=[2**31 - 1] * 10, left_out=[]), "is about another set than"),
        (lambda document: json.dumps(document | {"seeds": document["seeds"][:9]}), "is about another set than"),
        (lambda document: json.dumps(document)[:-9], "is no JSON as it should be"),
        (lambda document: "[]", "holds something unknown"),
        (changed(format=2), "holds something unknown (format"),
        (changed(kind="answers"), "holds something unknown (kind"),
        (changed(reviewer=7), "holds something unknown (reviewer"),
        (changed(more="x"), "holds something unknown (more"),
        (one_left_out(row=10), "the set has no row 10"),
        (one_left_out(row=-1), "holds something unknown (left_out.0.row"),
        (one_left_out(row=4), "row 4 has another seed"),
        (one_left_out(image="0" * 64), "is about another image in row 0"),
        (changed(notes=[{"row": 12, "note": "x"}]), "the set has no row 12"),
        (changed(notes=[{"row": 1, "note": "a<script>b"}]), "should be without HTML"),
        (changed(notes=[{"row": 1, "note": "x" * (LONGEST_NOTE + 1)}]), "holds something unknown (notes.0.note"),
    ],
)
def test_a_bad_file_is_one_sentence_and_changes_nothing(run, select, damage, message):
    before = (run / "distilled" / "stage.json").read_bytes()
    path = run.parent / "bad.json"
    path.write_text(damage(review_document(run / "distilled", [0])))
    with pytest.raises(InputError) as caught:
        select(path)
    assert str(caught.value).startswith(f"{path} ") and message in str(caught.value)
    assert "\n" not in str(caught.value) and ": " in str(caught.value)
    assert (run / "distilled" / "stage.json").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "message"), [("missing.json", "cannot be read"), ("review.txt", r"is no \.json file: give what the page")]
)
def test_a_file_that_is_none(run, select, name, message):
    (run.parent / "review.txt").write_text("{}")
    with pytest.raises(InputError, match=message):
        select(run.parent / name)


def test_too_many_left_out(run, select):
    files = []
    # The pool has six images of each class, of which two are shown at a time.
    for number in range(2):
        files.append(write_review(run.parent / f"{number}.json", run / "distilled", [0, 1]))
        select(*files)
    files.append(write_review(run.parent / "2.json", run / "distilled", [0]))
    kept = (run / "distilled" / "stage.json").read_bytes()
    with pytest.raises(InputError, match=r"^exclude leaves 1 of the 6 images of \w+.*, fewer than n_per_class=2: gen"):
        select(*files)
    assert (run / "distilled" / "stage.json").read_bytes() == kept


def test_where_nothing_was_selected_there_is_nothing_to_review(run, select):
    review = write_review(run.parent / "review.json", run / "distilled", [0])
    with pytest.raises(InputError, match="is about another set than"):
        select(review, output=run.parent / "new")
    with pytest.raises(InputError, match="was made with other settings"):
        select(review, n_per_class=1)


def test_what_was_made_of_the_old_set_is_not_left_beside_the_new(run, select):
    review = write_review(run.parent / "review.json", run / "distilled", [0])
    (run / "results.json").write_text("{}")
    with pytest.raises(InputError, match=r"made of the set that was reviewed \(results\.json\): move that away"):
        select(review)
    (run / "results.json").unlink()
    select(review)
