"""The gate before publishing: only what has passed the privacy audit goes up.

Goes by `audit.json` as `histodistill audit` writes it. For each part of a run, such as `distilled`, that file has a
verdict, the findings behind it, and the SHA-256 of every file that they are about. What files may hold at all is the
business of `contents`, which no option overrides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from histodistill.hub_cards.audit_record import AuditRecord
from histodistill.hub_cards.part_files import hash_contents
from histodistill.hub_cards.site_verdict import MergedRecord


class AuditError(ValueError):
    """Something may not be published; the message is one sentence that says why and what to do."""


def check_audit(
    folder: str | Path, files: Mapping[str, bytes], audit: AuditRecord | MergedRecord | None, part: str | None = None
) -> None:
    """Lets what has passed the audit through, and nothing else.

    Args:
        folder: Where the files were read from, for messages.
        files: The files of the part, as `read_part` gives them.
        audit: The audit of the run or of a merged set, or None where there is none.
        part: The part of the run that it is: `distilled`, `selector` or `pipeline`; by default the folder's name.

    Raises:
        AuditError: There is no audit, it did not pass, or it was made of other files.
    """
    folder = Path(folder)
    part = part or folder.name
    if audit is None:
        raise AuditError(f"{folder} has not been audited: run histodistill audit on the run first")
    verdict = audit.parts.get(part)  # type: ignore[call-overload]
    if verdict is None:
        raise AuditError(f"the audit is not about {part}: run histodistill audit on the run that {folder} belongs to")
    for name, digest in hash_contents(files).items():
        if name not in verdict.files:
            raise AuditError(f"{folder / name} was not audited: run histodistill audit again, or leave the file out")
        if digest != verdict.files[name]:
            raise AuditError(f"{folder / name} is not the file that was audited: run histodistill audit again")
    if missing := sorted(verdict.files.keys() - files.keys()):
        raise AuditError(f"{folder / missing[0]} was audited and is not there: run histodistill audit again")
    if not verdict.passed:
        reasons = "; ".join(finding.sentence for finding in verdict.findings if not finding.passed)
        if isinstance(audit, MergedRecord):
            # The risk is that of the patients of each site, which nobody accepts for another.
            raise AuditError(f"{folder} may not be published ({reasons}): merge sets that passed, each image once")
        raise AuditError(
            f"{part} did not pass the privacy audit ({reasons}): mend it, or publish it all the same with "
            "`i_accept_the_risk`"
        )


def check_records(run: str | Path, records: Mapping[str, bytes], audit: AuditRecord | None) -> None:
    """Sees that what the cards tell of is what was there when the audit was made.

    Args:
        run: Folder of the run, for messages.
        records: Files of the run that the cards tell of, path → content.
        audit: The audit of the run, or None where there is none.

    Raises:
        AuditError: For a file that was not there, is not the same, or is not there any more.
    """
    if audit is None:
        return
    found = hash_contents(records)
    for name in sorted(found.keys() | audit.records.keys()):
        if found.get(name) != audit.records.get(name):
            raise AuditError(f"{Path(run) / name} is not what was audited: run histodistill audit again")


def risk_statement(refusal: str) -> str:
    """What the card of something published with `i_accept_the_risk` says in its first lines.

    Args:
        refusal: The message of the `AuditError`.
    """
    reason = refusal.rpartition(": ")[0] or refusal
    return (
        "**This was published although it did not pass a privacy audit.** Whoever published it has accepted the risk "
        f"that it gives away real tiles or who they are from. The gate said: {reason}."
    )


def audit_sentences(audit: AuditRecord | MergedRecord, part: str) -> list[str]:
    """The findings on a part in plain words, for its card: sentences with a mark of whether each holds."""
    return [
        f"{'✓' if finding.passed else '✗'} {finding.sentence[0].upper()}{finding.sentence[1:]}."
        for finding in audit.parts[part].findings  # type: ignore[index]
    ]
