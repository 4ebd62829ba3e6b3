from __future__ import annotations

import json
import shutil

import huggingface_hub
import pytest

from histodistill.training.models.encoder_licences import encoder_records, licence_of, tell_licences
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    return folder


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("license: CC-BY-NC-ND-4.0", "cc-by-nc-nd-4.0"),
        ("license: other\nlicense_name: dinov3-license", "dinov3-license"),
        ("license: other", "other"),
        ("license: [mit, apache-2.0]", None),
        ("license: 'see /home/user'", None),
        ("tags: [x]", None),
        ("license: {", None),
    ],
)
def test_the_licence_is_that_of_the_models_own_card(model, header, expected):
    assert licence_of(model) is None
    (model / "README.md").write_text(f"---\n{header}\n---\n\n# A model\n")
    assert licence_of(model) == licence_of(f"timm:{model}") == expected


def test_the_card_of_a_model_of_the_hub_is_looked_at(model, monkeypatch):
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *names: asked.append(names) or str(model / "README.md")
    )
    names = ("user/model", "timm:user/model", "timm:vit_tiny")
    assert [licence_of(name) for name in names] == ["mit"] * 3
    assert [repo for repo, _ in asked] == ["user/model", "user/model", "timm/vit_tiny"]


def test_records_name_what_comes_from_elsewhere(model, tiny_teacher, tiny_autoencoder, tmp_path, capsys):
    own = ["untrained", "teacher", "convnet", "probe:untrained", "scratch:user/model", tiny_teacher, tiny_autoencoder]
    assert encoder_records(own, "selection") == []
    found = encoder_records([model, f"probe:{model}"], "copies", "cc-by-nc-4.0")
    assert len(found) == 1 and found[0]["name"].startswith("dinov2-")
    assert found[0] | {"name": ""} == {"use": "copies", "name": "", "license": "cc-by-nc-4.0"}
    # A classifier of this project that was made with another model does what that does.
    probe = tmp_path / "probe"
    shutil.copytree(tiny_teacher, probe)
    record = read_json(probe / "stage.json")
    uni = {"use": "soft_labels", "name": "user/uni", "license": "mit"}
    write_json(probe / "stage.json", {**record, "encoders": [uni]})
    assert encoder_records([probe], "selection") == [{**uni, "use": "selection"}]
    tell_licences([*found, *found, {"use": "selection", "name": "user/model", "license": None}])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "secret" not in lines[0]
    assert lines[0].endswith("whose licence is cc-by-nc-4.0; whether it binds this set is for you to check")
    assert lines[1].startswith("made with user/model, whose licence is not known")
    with pytest.raises(InputError, match="there is no folder"):
        encoder_records(["a/b/c"], "selection")
