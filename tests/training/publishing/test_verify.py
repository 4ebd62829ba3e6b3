"""`histodistill verify` on what `publish` puts together, as it is and after something in it was changed."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape

import pytest
from audited_sites import make_sites
from audits import add_audit

from histodistill.hub_cards.part_files import hash_contents
from histodistill.hub_cards.set_record import SET_RECORD
from histodistill.hub_cards.table_files import read_table, write_table
from histodistill.training.distillation import merge
from histodistill.training.distillation.merge import MergeConfig
from histodistill.training.evaluation import audit
from histodistill.training.evaluation.audit import AuditConfig
from histodistill.training.publishing import verify
from histodistill.training.publishing.publish import PublishConfig
from histodistill.training.publishing.publish import run as publish
from histodistill.training.publishing.verify import VerifyConfig, verify_folder
from histodistill.training.running.errors import InputError


DATA = "data/train-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def published(tiny_run, tmp_path_factory):
    """The upload of the set of a run whose audit passed."""
    place = tmp_path_factory.mktemp("audit") / "audit.json"
    add_audit(tiny_run.folder, place)
    (upload,) = publish(PublishConfig(run=tiny_run.folder, namespace="me", name="toy", only=("dataset",), audit=place))
    return upload


@pytest.fixture
def received(published, tmp_path):
    """The set as somebody has downloaded it, with what git and the Hub put beside it."""
    folder = tmp_path / "set"
    for name, data in {**published.files, ".gitattributes": b"", ".cache/huggingface/x": b"x"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def rewrite_record(folder):
    """Puts the hashes of all files as they are into the record, as a forger would."""
    record = json.loads((folder / SET_RECORD).read_text())
    there = (path for path in folder.rglob("*") if path.is_file() and path.name not in (SET_RECORD, ".gitattributes"))
    names = (path.relative_to(folder).as_posix() for path in there)
    record["files"] = hash_contents({n: (folder / n).read_bytes() for n in names if not n.startswith(".cache/")})
    (folder / SET_RECORD).write_text(json.dumps(record))


def replace_image(folder):
    table = read_table((folder / DATA).read_bytes())
    table.images[4] = 255 - table.images[4]
    (folder / DATA).write_bytes(write_table(table))


def test_what_was_published_passes(received, published, capsys):
    found = verify.run(VerifyConfig(set=received, fingerprint=published.fingerprint))
    assert (found.findings, found.fingerprint, found.audit_passed) == ((), published.fingerprint, True)
    assert verify.exit_code(found) == 0
    printed = capsys.readouterr().out
    assert "audit passed" in printed and f"fingerprint {published.fingerprint}\n" in printed
    assert "that nobody has rewritten both" not in printed
    verify.run(VerifyConfig(set=received))
    assert "that nobody has rewritten both, only --fingerprint tells" in capsys.readouterr().out


def test_the_record_says_what_the_files_beside_it_say(published, tiny_run):
    record = json.loads(published.files[SET_RECORD])
    assert record["files"] == hash_contents({n: data for n, data in published.files.items() if n != SET_RECORD})
    card = unescape(published.files["README.md"].decode())
    for sentence in (*record["audit"]["findings"], *record["audit"]["controls"]):
        assert f"- {sentence}\n" in card
    pool = json.loads((tiny_run.folder / "pool" / "stage.json").read_text())
    assert record["generation"] == {
        "num_inference_steps": 2, "guidance_scale": 1.5, "guidance_interval": pool["settings"]["guidance_interval"],
        "chunk_size": 20, "mixed_precision": "no", "pipeline": pool["inputs"]["pipeline"],
    }  # fmt: skip
    assert "histodistill verify me/toy-distilled" in card


def one_byte(folder):
    data = bytearray((folder / DATA).read_bytes())
    data[len(data) // 3] ^= 1
    (folder / DATA).write_bytes(bytes(data))


PUBLISHED = r"is not the file that was published: its SHA-256 begins with [0-9a-f]{12}, and that in set.json with"
CHANGES = {
    "a byte of the table": (one_byte, f"^{DATA} {PUBLISHED}"),
    "an image": (replace_image, f"^{DATA} {PUBLISHED}"),
    "a picture": (lambda folder: (folder / "assets/distilled.png").write_bytes(b"x"), "^assets/distilled.png is not"),
    "a verdict on the card": (
        lambda folder: edit(folder / "README.md", "- ✓ 0 of 15", "- ✗ 1 of 15"),
        "^README.md says of the audit what set.json does not: ✗ 1 of 15 images are copies",
    ),
    "a verdict in the record": (
        lambda folder: edit(folder / SET_RECORD, "0 of 15", "3 of 15"),
        "^set.json says of the audit what README.md does not: ✓ 3 of 15 images are copies",
    ),
    "the mark of a verdict in the record": (
        lambda folder: edit(folder / SET_RECORD, '"passed": true', '"passed": false'),
        "^set.json holds something unknown .*passed does not agree with the findings",
    ),
    "a verdict left out of the record": (
        lambda folder: (folder / SET_RECORD).write_text(
            json.dumps({**json.loads((folder / SET_RECORD).read_text()), "audit": None})
        ),
        "^README.md tells that the audit passed, and set.json of no audit$",
    ),
    "a file more": (
        lambda folder: (folder / "data" / "notes.txt").write_text("x"),
        "^data/notes.txt was added: set.json does not list it$",
    ),
    "a file less": (
        lambda folder: (folder / "assets" / "distilled.png").unlink(),
        "^assets/distilled.png is missing: set.json lists it$",
    ),
    "the card less": (
        lambda folder: ((folder / "README.md").unlink(), rewrite_record(folder)),
        "^README.md is missing: each set has one$",
    ),
    "a program that is listed": (
        lambda folder: ((folder / "load.py").write_text("x"), rewrite_record(folder)),
        "^load.py is no file of a set, and set.json lists it$",
    ),
    "a link to the same": (
        lambda folder: ((folder / DATA).rename(folder.parent / "x"), (folder / DATA).symlink_to(folder.parent / "x")),
        f"^{DATA} is a link, or no ordinary file: give the files themselves",
    ),
    "a link more": (lambda folder: (folder / "x").symlink_to("README.md"), "^x was added: set.json does not list it$"),
    "a hash of the record in itself": (
        lambda folder: edit(folder / SET_RECORD, '"files": {', f'"files": {{"{SET_RECORD}": "{64 * "0"}", '),
        "^set.json holds something unknown .*it lists itself",
    ),
    "how images are made": (
        lambda folder: edit(folder / SET_RECORD, '"num_inference_steps": 2', '"num_inference_steps": 3'),
        "^README.md has other options of the pipeline than set.json",
    ),
    "in which precision they are made": (
        lambda folder: edit(folder / SET_RECORD, '"mixed_precision": "no"', '"mixed_precision": "fp16"'),
        "^README.md has other options of the pipeline than set.json",
    ),
    "the table less": (lambda folder: (folder / DATA).unlink(), f"^{DATA} is missing: set.json lists it$"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_and_named(received, change, capsys):
    alter, expected = CHANGES[change]
    alter(received)
    found = verify.run(VerifyConfig(set=received))
    assert verify.exit_code(found) == 1
    assert [finding for finding in found.findings if re.search(expected, finding)], found.findings
    printed = capsys.readouterr().out
    assert [f"✗ {finding}" for finding in found.findings] == [x for x in printed.splitlines() if x.startswith("✗")]
    assert str(received.parent) not in "".join(found.findings)


CONTRADICTIONS = {
    "numbers": ("15 synthetic 16×16 images", "16 synthetic 16×16 images", "tells in its first sentence of other"),
    "a class": ("| 1 | ", "| 1 | not ", "does not list the class 1,"),
    "a column": ("  - name: rank\n", "  - name: place\n", r"in its header \(dataset_info\)"),
    "the verdict": ("**The privacy audit passed**", "**The privacy audit did not pass.**", "tells that the audit did"),
}


@pytest.mark.parametrize("which", CONTRADICTIONS)
def test_a_card_that_says_otherwise_is_found_without_its_hash(received, which):
    old, new, expected = CONTRADICTIONS[which]
    edit(received / "README.md", old, new)
    rewrite_record(received)
    (finding,) = verify_folder(received).findings
    assert re.search(f"^README.md .*{expected}", finding), finding


def test_what_was_rewritten_together_is_told_by_the_fingerprint_alone(received, published):
    replace_image(received)
    rewrite_record(received)
    assert verify_folder(received).findings == ()
    (finding,) = verify_folder(received, published.fingerprint).findings
    assert finding.startswith("the fingerprint of the files is ") and published.fingerprint in finding


def test_files_that_the_hub_has_beside_the_set_are_told(received):
    (finding,) = verify_folder(received, others=["model.bin"]).findings
    assert finding == "model.bin was added: set.json does not list it"


def test_a_set_without_a_passing_audit_says_so(tiny_run, tmp_path, capsys):
    config = PublishConfig(
        run=tiny_run.folder, namespace="me", name="toy", only=("dataset",), audit=tmp_path / "none",
        i_accept_the_risk=True,
    )  # fmt: skip
    (upload,) = publish(config)
    for name, data in upload.files.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    capsys.readouterr()
    found = verify.run(VerifyConfig(set=tmp_path / "set"))
    assert (found.findings, found.audit_passed) == ((), None)
    assert "the privacy audit was not made" in capsys.readouterr().out


def test_publishing_shows_the_fingerprint(tiny_run, published, tmp_path, capsys):
    add_audit(tiny_run.folder, tmp_path / "audit.json")
    publish(PublishConfig(run=tiny_run.folder, namespace="me", name="toy", audit=tmp_path / "audit.json"))
    printed = capsys.readouterr().out
    assert printed.count("fingerprint ") == 1 and len(published.fingerprint) == 32


def test_what_is_no_published_set_is_refused(tiny_run, received, tmp_path):
    for config, message in (
        ({"set": tiny_run.folder / "distilled"}, "holds no set.json, by which a set is checked: give one that"),
        ({"set": tmp_path / "nothing"}, "is no folder: give the folder of a distilled set or its id on the Hub"),
        ({"set": received, "fingerprint": "5F2C"}, "fingerprint=5F2C is out of range: it must be 32 digits"),
    ):
        with pytest.raises(InputError, match=message):
            verify.run(VerifyConfig(**config))
    shutil.move(received / SET_RECORD, tmp_path / "record")
    (received / SET_RECORD).symlink_to(tmp_path / "record")
    with pytest.raises(InputError, match=r"set.json is a link: put the file itself there$"):
        verify_folder(received)


@pytest.fixture(scope="module")
def merged_upload(tmp_path_factory):
    """The upload of a merged set, of sites with numbers for names."""
    place = tmp_path_factory.mktemp("merged")
    merge.run(MergeConfig(sites=tuple(make_sites(place)), output=place / "all", names=("1", "2", "south [3]")))
    audit.run(AuditConfig(run=place / "all"))
    (upload,) = publish(PublishConfig(run=place / "all", namespace="me", name="toy"))
    return upload


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", None),
        ("| 1 | glands | 9 |", "| 1 | glands | 8 |", "does not list the class 1, glands, in its table with 9 images"),
        ("| 1 | 15 | 3 |", "| 1 | 16 | 3 |", "does not list the site 1 in its table with 15 images"),
        ("| 2 | 15 | 3 |", "| two | 15 | 3 |", "does not list the site 2 in its table with 15 images"),
        ("| 2 | 15 | 3 |", "| none | 0 | 0 |\n| 2 | 15 | 3 |", "lists 4 sites in its table, and the set has 3"),
    ],
)
def test_the_card_of_a_merged_set(merged_upload, tmp_path, old, new, expected):
    for name, data in merged_upload.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    edit(tmp_path / "README.md", old, new)
    rewrite_record(tmp_path)
    assert list(verify_folder(tmp_path).findings) == ([f"README.md {expected}"] if expected else [])
