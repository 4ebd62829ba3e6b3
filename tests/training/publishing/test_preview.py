"""`histodistill publish --preview`: the cards of a run as pages."""

from __future__ import annotations

import inspect
import shutil

import pytest
from audits import add_audit

from histodistill.pipelines import HistologyPipeline
from histodistill.training.generate import CALL_OPTIONS, PIPELINE_OPTIONS, GenerateConfig
from histodistill.training.publishing import publish, pushing
from histodistill.training.publishing.preview import INDEX, PAGES
from histodistill.training.publishing.publish import PublishConfig
from histodistill.training.running.errors import InputError


PAGE_FILES = sorted([INDEX, *PAGES.values()])


@pytest.fixture
def run(tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.folder, folder)
    add_audit(folder)
    return folder


def preview(run, folder, **options):
    return publish.run(PublishConfig(run=run, preview=folder, name="toy", license="cc0-1.0", **options))


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_preview_needs_no_namespace_and_uploads_nothing(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pushing, "publish", None)  # whoever calls it fails
    uploads = preview(run, tmp_path / "cards")
    assert [upload.repo_id for upload in uploads] == ["you/toy-ldm", "you/toy-selector", "you/toy-distilled"]
    assert files_of(tmp_path / "cards") == PAGE_FILES
    assert capsys.readouterr().out == f"Nothing was uploaded. Look at the cards: {tmp_path / 'cards' / INDEX}\n"
    page = (tmp_path / "cards" / "dataset.html").read_text()
    assert (
        "<h1>Distilled toy</h1>" in page
        and "The privacy audit passed" in page
        and "refused" not in page.split("</style>")[1]
    )
    for file in PAGE_FILES:
        assert str(tmp_path) not in (tmp_path / "cards" / file).read_text()
    # Again, with less: pages of what is not published any more go.
    preview(run, tmp_path / "cards", only=("dataset",), namespace="lab")
    assert files_of(tmp_path / "cards") == ["dataset.html", INDEX]
    assert "lab/toy-distilled" in (tmp_path / "cards" / INDEX).read_text()


def test_what_the_gate_refuses_is_shown_and_said_to_be_refused(run, tmp_path, capsys):
    add_audit(run, weights_auc=0.7)
    preview(run, tmp_path / "cards")
    assert "Publishing would refuse you/toy-ldm: the pages say why." in capsys.readouterr().out
    pages = {kind: (tmp_path / "cards" / page).read_text() for kind, page in PAGES.items()}
    banner = "<b>This would be refused:</b> pipeline did not pass the privacy audit"
    assert [banner in pages[kind] for kind in PAGES] == [True, False, False]
    assert "--i-accept-the-risk" in pages["pipeline"] and "The privacy audit did not pass." in pages["pipeline"]
    assert "was published although" not in pages["pipeline"]
    assert (tmp_path / "cards" / INDEX).read_text().count("This would be refused") == 1
    # As it would be published all the same.
    preview(run, tmp_path / "cards", i_accept_the_risk=True)
    page = (tmp_path / "cards" / "pipeline.html").read_text()
    assert banner not in page and "was published although it did not pass" in page


def test_a_run_without_an_audit_is_shown(run, tmp_path):
    (run / "audit.json").unlink()
    preview(run, tmp_path / "cards")
    page = (tmp_path / "cards" / "dataset.html").read_text()
    assert "<b>This would be refused:</b> distilled has not been audited" in page and str(tmp_path) not in page
    assert "no privacy audit has been made" in page


def test_what_may_not_leave_is_not_shown_either(run, tmp_path):
    (run / "distilled" / "notes.txt").write_text("private")
    with pytest.raises(InputError, match=r"notes.txt is no file of a distilled"):
        preview(run, tmp_path / "cards")
    assert not (tmp_path / "cards").exists()


@pytest.mark.parametrize("place", ["", "pipeline", "run.json"])
def test_pages_are_not_written_beside_other_files(run, place):
    with pytest.raises(InputError, match=r"^preview=.* holds something else than a preview: give a new folder"):
        preview(run, run / place)
    assert not list(run.rglob("*.html")) or [path.name for path in run.rglob("*.html")] == ["report.html"]


def test_options_told_of_the_pipeline_are_those_of_its_call():
    parameters = inspect.signature(HistologyPipeline.__call__).parameters
    assert set(CALL_OPTIONS) <= set(parameters)
    # And all of them that `generate` takes, with what else decides what a seed becomes.
    assert set(CALL_OPTIONS) == set(parameters) & set(GenerateConfig.__dataclass_fields__)
    assert set(PIPELINE_OPTIONS) - set(CALL_OPTIONS) == {"mixed_precision"}
