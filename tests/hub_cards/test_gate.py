from __future__ import annotations

import hashlib
import json

import pytest

from histodistill.hub_cards import GateError, check_audit


@pytest.fixture
def audited(tmp_path):
    """A distilled folder with an audit of it that passed."""
    folder = tmp_path / "distilled"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("a card, which is made anew when it is published")
    files = {}
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"):
        (folder / "data" / name).write_bytes(name.encode())
        files[f"data/{name}"] = hashlib.sha256(name.encode()).hexdigest()
    audit = tmp_path / "audit.json"
    audit.write_text(json.dumps({"passed": True, "reasons": [], "files": files}))
    return folder, audit


def change(audit, **values):
    audit.write_text(json.dumps(json.loads(audit.read_text()) | values))


def test_a_passing_audit_of_these_files_opens_the_gate(audited):
    assert check_audit(*audited) is None


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder, audit: audit.unlink(), "audit.json is missing, so nothing is known"),
        (lambda folder, audit: audit.write_text("{"), "is no audit or is damaged"),
        (lambda folder, audit: audit.write_text("[]"), "is no audit or is damaged"),
        (lambda folder, audit: audit.write_text('{"passed": true}'), "is no audit or is damaged"),
        (lambda folder, audit: change(audit, passed=False, reasons=["2 copies"]), r"did not pass \(2 copies\)"),
        (lambda folder, audit: change(audit, passed="yes"), "did not pass: "),
        (lambda folder, audit: change(audit, files={}), "00000-of-00002.parquet is not the file that was audited"),
        (
            lambda folder, audit: (folder / "data" / "train-00001-of-00002.parquet").write_bytes(b"other"),
            "00001-of-00002.parquet is not the file that was audited",
        ),
        (lambda folder, audit: (folder / "data" / "new.parquet").touch(), "new.parquet is not the file that was"),
        (lambda folder, audit: [file.unlink() for file in (folder / "data").iterdir()], "holds no data"),
    ],
)
def test_anything_else_shuts_it(audited, break_it, message):
    break_it(*audited)
    with pytest.raises(GateError, match=message) as raised:
        check_audit(*audited)
    assert "\n" not in str(raised.value)
