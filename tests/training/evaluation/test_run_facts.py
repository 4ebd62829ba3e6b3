from __future__ import annotations

from types import SimpleNamespace

import pytest

from histodistill.hub_cards.card_facts import PretrainedFacts
from histodistill.hub_cards.documents import read_document, write_document
from histodistill.hub_cards.errors import ContentError
from histodistill.training.evaluation.run_facts import (
    describe_test_tiles,
    own_row,
    pretrained_facts,
    privacy_facts,
)
from histodistill.training.evaluation.run_records import StageRecord


def pipeline_record(**changes) -> dict:
    own = {"epsilon": 2.0, "delta": 1e-5}
    return {"privacy": {**own, "autoencoder": own, "total": {"epsilon": 4.0, "delta": 2e-5}, **changes}}


def test_without_private_training_there_is_nothing_to_say():
    assert privacy_facts({}, {}) is None
    assert privacy_facts({"settings": {"dp_epsilon": None}}, {"settings": {"drop_copies": True}}) is None


def test_what_is_told_is_the_total():
    facts = privacy_facts(pipeline_record(), {})
    assert (facts.epsilon, facts.delta, facts.public_autoencoder) == (4.0, 2e-5, False)
    assert not facts.public_init
    assert privacy_facts(pipeline_record(autoencoder="public"), {}).public_autoencoder
    assert privacy_facts(pipeline_record(init="public"), {}).public_init


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"drop_copies": False, "typical_share": None, "min_probability": 0.0, "embedder": "untrained"}, []),
        ({"drop_copies": True}, ["too near to a real tile"]),
        ({"typical_share": 0.9, "min_probability": 0.5}, ["too far from real tiles", "went by a classifier"]),
        ({"embedder": "teacher"}, ["if what embedded them was trained on the real tiles"]),
    ],
)
def test_what_looked_at_real_tiles_is_told(settings, words):
    first, *others = privacy_facts(pipeline_record(), {"settings": settings}).uncovered
    assert first.startswith("The soft labels of the distilled set")
    assert len(others) == len(words)
    assert all(word in sentence for word, sentence in zip(words, others, strict=True))


def autoencoder_record(**stated) -> bytes:
    pretrained = {"class_name": "AutoencoderTiny", "is_taken": True, **stated}
    return write_document({"complete": True, "settings": {}, "pretrained": pretrained})


def test_where_an_autoencoder_comes_from():
    assert pretrained_facts({}) is None
    record = read_document(autoencoder_record(name="madebyollin/taesd", license="mit"), StageRecord)
    facts = pretrained_facts(record.model_dump(exclude_none=True))
    assert facts == PretrainedFacts(is_taken=True, name="madebyollin/taesd", license="mit")
    assert (
        pretrained_facts(read_document(autoencoder_record(), StageRecord).model_dump(exclude_none=True)).name is None
    )


@pytest.mark.parametrize("stated", [{"name": "/home/me/vae"}, {"license": "see /home/me"}, {"license": "MIT\n# x"}])
def test_a_path_is_no_name_of_an_autoencoder(stated):
    with pytest.raises(ContentError):
        read_document(autoencoder_record(**stated), StageRecord)


@pytest.mark.parametrize(
    ("known", "num_tiles", "text"),
    [
        ("phantom", {"test": 500}, "phantom: 500 test tiles that a program drew"),
        ("pathmnist", {"test": 7180}, "PathMNIST of MedMNIST: 7,180 test tiles"),
        (None, {"train": 9, "test": 3619}, "colon: 3,619 private test tiles"),
        (None, None, "colon: private test tiles"),
    ],
)
def test_what_test_tiles_are_called_in_public(known, num_tiles, text):
    assert describe_test_tiles(known, "colon", num_tiles) == text


def test_the_row_of_soft_labels_stands_for_the_set_where_it_was_measured():
    def results(*names):
        rows = [SimpleNamespace(row=name) for name in names]
        return SimpleNamespace(rows=rows, recovery_row="distilled_ce")

    assert own_row(results("real_all", "distilled_ce", "distilled_soft")) == "distilled_soft"
    assert own_row(results("real_all", "distilled_ce")) == "distilled_ce"
    assert own_row(None) is None
