"""Audits what a run would publish: copies of real tiles, overfitting, and whether training tiles can be told.

    histodistill audit runs/phantom --data phantom

Compares the distilled set and the pool with the real training tiles and, as the control, with tiles that no model was
trained on: those that `--audit-share` held out, or else the validation tiles. Known copies of training tiles are
planted to see whether they would be found. `docs/privacy-audit.md` tells what is measured, and how far it carries.

Leaves `RUN/audit.json`: the figures, and for the distilled set, the selector and the pipeline a verdict with the
SHA-256 of every file that it is about. Publishing goes by it. Files that hold what may not be published are refused
before anything is measured. Where only the scores have changed since (`results.json`, `benchmark/`), the same command
renews their hashes, and measures nothing again. `RUN/audit/` has two pictures of real tiles beside the
generated images that are most like them, of the distilled set and of the pool, and must not be shared.
`RUN/distilled/README.md` is written anew, with the verdict and the scores, and `RUN/distilled/audit.json`
is the verdict on the set as it goes with the set to where it is merged with others.

With `--label-attack 3` another thing is measured in place of all this: what the soft labels of the distilled set
give away beside its images, since their teacher has seen the real tiles. It takes the training of twice as many
classifiers, and no verdict rests on it.

With `--merged` a set that `merge` joined is audited in place of the run's own, by the tiles of this run alone: each
site asks so whether the whole gives away anything about its own tiles.

A merged set itself is audited without tiles, which nobody has of all sites: `histodistill audit merged`. Seen are the
verdict that came with each site's set, that no image is another than those it was about, and whether sites have images
in common. It leaves `merged/audit.json`, by which the set is published.

The exit code is 0 where all that was audited passes, 1 where a part does not, and 2 for errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histodistill.training.running.claims import claiming
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import is_step_of_distill
from histodistill.training.running.options import StepParser, config, option, run_script
from histodistill.training.running.program import ANSWER_IS_NO
from histodistill.training.running.source_options import SourceOptions


#: Name of the file in a run that holds the verdicts and figures.
AUDIT = "audit.json"
#: The same of a merged set, by the tiles of this run.
MERGED_AUDIT = "audit_merged.json"
#: What the soft labels of the distilled set give away beside its images.
LABEL_AUDIT = "audit_labels.json"


@config
class AuditConfig(SourceOptions):
    """Options of `audit`."""

    run: Path = option(
        "folder with pipeline/, pool/ and distilled/, or a merged set by itself",
        positional=True,
        setting=False,
    )
    data: str | Path | None = option(
        "the real tiles: the source that the run was made from; none for a merged set", default=None, setting=False
    )
    audit_share: float | None = option(
        "share of the training tiles that no model saw; default: what run.json says, or 0",
        default=None,
        at_least=0,
        below=1,
        setting=False,  # the fingerprint of the tiles tells it
    )
    merged: Path | None = option(
        "audits what merge made of this run's set and others, by the tiles of this run; leaves RUN/audit_merged.json",
        default=None,
        setting=False,
    )
    label_attack: int = option(
        "in place of the audit, trains so many classifiers on the labels of the distilled set, and as many on its "
        "soft labels, to tell training tiles by their losses; leaves RUN/audit_labels.json; 0: does not",
        default=0,
        at_least=0,
        setting=False,
    )
    plant: int = option(
        "copies of each kind to plant; 0 plants none, and then nothing passes", default=100, at_least=0
    )
    embedders: tuple[str, ...] | None = option(
        "embedding spaces beside pixels: what --embedder of select takes, but no classifier of these tiles; "
        "default: untrained and RUN/autoencoder",
        default=None,
        setting=False,  # their fingerprints tell them
    )
    weight_tiles: int = option("tiles of either kind whose loss is measured", default=2000, at_least=2)
    seed: int = option("seed of all that is random", default=0, at_least=0)

    def check(self) -> None:
        """Checks that one thing is asked for."""
        if self.label_attack and self.merged is not None:
            raise InputError(
                f"{param('label_attack')}={self.label_attack} is about the run's own set: leave {param('merged')} out"
            )

    def claims(self) -> Path | None:
        """The run. Of a merged set nothing: it is read as the gate does, which takes no file beside those of a set."""
        from histodistill.training.running.stages import is_merged

        return None if is_merged(self.run) else self.run

    @property
    def spaces(self) -> tuple[str, ...]:
        """The embedding spaces beside pixels, those of the run where none were named."""
        return ("untrained", str(self.run / "autoencoder")) if self.embedders is None else self.embedders


def make_parser() -> StepParser[AuditConfig]:
    """The parser of the command line."""
    return StepParser(AuditConfig, prog="histodistill audit", description=__doc__)


@claiming
def run(config: AuditConfig) -> dict[str, Any]:
    """Audits what is finished of a run, and writes audit.json.

    Returns:
        What audit.json holds: a verdict for each part, and the figures.

    Raises:
        InputError: For a run that is not finished, whose parts do not belong together or hold what may not be
            published, tiles that it was not made from, or a run that was audited with other options or has changed
            since.
    """
    from histodistill.training.running.stages import Stage, is_merged, require_parts

    if is_merged(config.run):
        return _audit_merged_set(config)
    if config.data is None:
        raise InputError(f"{param('data')} is missing: give the real tiles that {config.run} was made from")

    from histodistill.training.data.sources import check_source

    # Before the libraries are imported, which takes seconds.
    require_parts(config.run, "pipeline", "pool", "distilled", "autoencoder")
    check_source(config.data, config.source_options(config.run).get("labels"))

    from histodistill.hub_cards.audit_record import AUDIT_FORMAT
    from histodistill.training.evaluation.run_audit import (
        audit_record,
        audit_run,
        draw_pairs,
        read_run,
        renew_audit,
        summary_lines,
        write_audit,
    )
    from histodistill.training.evaluation.set_card import renew_card, write_site_verdict
    from histodistill.training.models.embedders import embedder_fingerprint
    from histodistill.training.running.files import read_json

    audited = read_run(config.run, config.data, config.audit_share, config.spaces, config.source_options(config.run))
    if config.merged is not None:
        from histodistill.training.evaluation.merged_audit import audit_merged

        path = config.run / MERGED_AUDIT
        record = audit_merged(audited, config.merged, config.spaces, config.plant, config.seed)
        write_audit(path, record)
        print("\n".join(summary_lines(record)))
        print(f"audit: saved to {path}; it is about {config.merged}, by the tiles of this site alone")
        return read_json(path)
    if config.label_attack:
        from histodistill.training.evaluation.label_attack import attack_labels, summary_line
        from histodistill.training.running.files import write_json

        found = attack_labels(audited, config.label_attack, config.weight_tiles, config.seed)
        write_json(config.run / LABEL_AUDIT, found)
        print(summary_line(found))
        print(f"audit: saved to {config.run / LABEL_AUDIT}")
        return found
    settings = {
        "stage": "audit",
        "format": AUDIT_FORMAT,
        "data": audited.source.fingerprint(),
        "pool": audited.records["pool"]["fingerprint"],
        "files": audited.files.part_hashes(),
        "embedders": [embedder_fingerprint(name) for name in config.spaces],
        **config.settings(),
    }
    folder, path = config.run / "audit", config.run / AUDIT
    # A run has one audit, and files that have changed need another one.
    stage = Stage(folder, settings, remedy=f"delete {folder} to audit anew")
    if stage.complete and path.is_file():
        known = renew_audit(path, audited)
        renew_card(audited.files, audited.contents, known)
        write_site_verdict(audited.files, audited.contents, known)
        return read_json(path)
    stage.begin()
    path.unlink(missing_ok=True)

    result = audit_run(audited, config.spaces, config.plant, config.weight_tiles, config.seed)
    draw_pairs(folder / "closest_distilled.png", audited.published.images, audited.real, result.published, result)
    draw_pairs(folder / "closest_pool.png", audited.pool.images, audited.real, result.pool, result)
    record = audit_record(audited, result)
    stage.finish()
    renew_card(audited.files, audited.contents, record)
    write_site_verdict(audited.files, audited.contents, record)
    # The very last: where it is there, it is of these files.
    write_audit(path, record)
    print("\n".join(summary_lines(record, brief=is_step_of_distill())))
    print(f"audit: saved to {path}; {folder} shows real tiles and must not be shared")
    return read_json(path)


def _audit_merged_set(config: AuditConfig) -> dict[str, Any]:
    """Audits what `merge` left, and writes its audit.json and its card.

    Returns:
        What audit.json holds.

    Raises:
        InputError: For tiles that were given, and a set that was changed or does not go with the verdicts in it.
    """
    from histodistill.hub_cards import AuditFacts, render_dataset_card
    from histodistill.hub_cards.site_verdict import SET_AUDIT
    from histodistill.training.evaluation.merged_set import MergedSet, judge_merged, merged_card
    from histodistill.training.running.files import write_json, write_text

    for name in ("data", "merged", "label_attack"):
        if value := getattr(config, name):
            raise InputError(
                f"{param(name)}={value} is for a run, and {config.run} is a merged set, which is judged by the "
                f"verdicts of its sites: leave {param(name)} out"
            )
    merged = MergedSet.read(config.run)
    record = judge_merged(merged)
    facts = AuditFacts.of(record, "distilled")
    write_text(config.run / "README.md", render_dataset_card(merged_card(merged, facts)))
    write_json(config.run / SET_AUDIT, record.model_dump(mode="json"))
    print(f"audit of {config.run}: {'passed' if facts.passed else 'NOT PASSED: it cannot be published'}")
    print("\n".join(f"  {sentence}" for sentence in facts.findings))
    print(f"audit: saved to {config.run / SET_AUDIT}")
    return record.model_dump(mode="json")


def exit_code(record: dict[str, Any]) -> int:
    """0 where all parts that were audited pass, and 1 where one does not: the record says which, and why.

    Args:
        record: What `run` returns.
    """
    parts = record.get("parts", {})  # of an attack on soft labels there is no verdict
    return 0 if all(verdict["passed"] is True for verdict in parts.values()) else ANSWER_IS_NO


if __name__ == "__main__":
    run_script(make_parser, run, exit_code=exit_code)
