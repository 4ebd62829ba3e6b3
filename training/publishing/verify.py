"""Checks a distilled set as it was received, a downloaded folder or an id on the Hub, without the run that it is of.

    histodistill verify you/colon-distilled
    histodistill verify downloads/colon-distilled --fingerprint 5f2c…

Every file must have the SHA-256 that stands in set.json, which `publish` puts into each set, and none may be missing
or added; the table must hold images, labels and known columns and nothing else; the card must tell of its columns,
classes and numbers, and of the verdict that stands in set.json. Each finding is one sentence. Nothing is written, and
nothing that the set holds is run.

A set, its card and set.json that were rewritten together agree with each other. Only the fingerprint tells: one short
text for all files, which `publish` shows to whoever publishes. Ask for it by another way, and give it as
--fingerprint.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from histodistill.training.running.errors import InputError
from histodistill.training.running.options import StepConfig, StepParser, config, option, require, run_script
from histodistill.training.running.program import ANSWER_IS_NO


# What lies in a downloaded folder and is not of the set: of git, of the Hub, and of its client.
_NOT_OF_THE_SET = (".git", ".gitattributes", ".cache")


@config
class VerifyConfig(StepConfig):
    """Options of `verify`."""

    set: str | Path = option("folder of a published set, as it was downloaded, or its id on the Hub", positional=True)
    fingerprint: str | None = option(
        "what `publish` showed to whoever published the set, and told you by another way", default=None
    )

    def check(self) -> None:
        """Checks that a fingerprint is one."""
        found = self.fingerprint
        is_one = found is None or (len(found) == 32 and set(found) <= {*"0123456789abcdef"})
        require(is_one, "fingerprint", found, "it must be 32 digits and letters from a to f, as `publish` shows them")


@dataclass(frozen=True)
class Verification:
    """What was found of a set.

    Attributes:
        findings: What does not agree, one sentence each; empty where all does.
        fingerprint: Of all files of the set, as they are.
        audit_passed: Whether the privacy audit passed, as the set says; None where it tells of none.
    """

    findings: tuple[str, ...]
    fingerprint: str
    audit_passed: bool | None


def make_parser() -> StepParser[VerifyConfig]:
    """The parser of the command line."""
    return StepParser(VerifyConfig, prog="histodistill verify", description=__doc__)


def run(config: VerifyConfig) -> Verification:
    """Checks a set, and says what does not agree.

    Raises:
        InputError: For what is no set that `publish` has made, or cannot be fetched or read.
    """
    from histodistill.selection.summaries import counted
    from histodistill.training.models.hub_files import set_folder

    # A set of the Hub is fetched anew: what a cache holds may not be what the Hub has.
    with tempfile.TemporaryDirectory() as place:
        others: list[str] = []
        folder = set_folder(config.set, "set", lambda name: _fetch(name, place, others))
        try:
            found = verify_folder(folder, config.fingerprint, others)
        except InputError as error:
            # A set of the Hub by its id: its folder is gone when this is read.
            raise InputError(error.marked().replace(str(folder), str(config.set))) from error
    for finding in found.findings:
        print(f"✗ {finding}")
    verdict = {True: "passed", False: "did not pass", None: "was not made"}[found.audit_passed]
    print(f"verify: the privacy audit {verdict}, by what the set says of itself; fingerprint {found.fingerprint}")
    if found.findings:
        print(f"verify: {config.set} is not as it was published: {counted(len(found.findings), 'finding')}")
    elif config.fingerprint is None:
        print(
            f"verify: {config.set} agrees with its own record; that nobody has rewritten both, only --fingerprint "
            "tells"
        )
    else:
        print(f"verify: {config.set} is what was published under this fingerprint")
    return found


def verify_folder(folder: Path, fingerprint: str | None = None, others: Sequence[str] = ()) -> Verification:
    """What is found of a set in a folder.

    Args:
        folder: Of the set.
        fingerprint: What its fingerprint must be.
        others: Files of the set that are not in the folder, since no set has them.

    Raises:
        InputError: If it is no set that `publish` has made, or cannot be read.
    """
    from histodistill.hub_cards.errors import ContentError
    from histodistill.hub_cards.part_files import hash_files, read_file
    from histodistill.hub_cards.set_record import SET_RECORD, read_set_record, set_fingerprint
    from histodistill.training.data.image_dataset import read_shards, require_shards
    from histodistill.training.publishing.set_check import (
        CARD,
        check_card,
        check_files,
        check_generation,
        check_verdict,
    )

    if not os.path.lexists(folder / SET_RECORD):
        raise InputError(
            f"{folder} holds no {SET_RECORD}, by which a set is checked: give one that histodistill publish has made"
        )
    try:
        names = _names(folder)
        hashes = dict.fromkeys(names, "") | hash_files(folder, [n for n in names if _is_ordinary(folder / n)])
        data = read_file(folder / SET_RECORD)
        card = read_file(folder / CARD).decode(errors="replace") if hashes.get(CARD) else None
    except ContentError as error:
        raise InputError(str(error)) from error
    findings: list[str] = []
    record = table = None
    try:
        record = read_set_record(data)
    except ContentError as error:
        findings.append(f"{SET_RECORD} {error}")
    else:
        findings += check_files(record, hashes | dict.fromkeys(others, ""))
    try:
        table = read_shards(require_shards(folder))
    except (ContentError, InputError, OSError) as error:
        # Without the place of the folder: that of a set of the Hub is gone when this is read.
        reason = str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "it")
        findings.append(f"data is not that of a distilled set: {reason}")
    if card is not None and table is not None:
        findings += check_card(card, table)
    if card is not None and record is not None:
        findings += check_verdict(card, record)
        findings += check_generation(card, record)
    found = set_fingerprint(hashes)
    if fingerprint not in (None, found):
        findings.append(f"the fingerprint of the files is {found}, and not {fingerprint}, which was given")
    return Verification(tuple(findings), found, record.audit.passed if record and record.audit else None)


def _names(folder: Path) -> list[str]:
    """The files of a set in a folder, links included, by their places in it."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path.relative_to(folder).parts[0] not in _NOT_OF_THE_SET
    )


def _is_ordinary(path: Path) -> bool:
    """Whether it is a file itself, and no link, pipe or device."""
    return stat.S_ISREG(path.lstat().st_mode)


def _fetch(name: str, place: str, others: list[str]) -> str:
    """Fetches the files of a set from the Hub to a place; `others` are those that no set has, and stay there."""
    from huggingface_hub import HfApi, snapshot_download

    from histodistill.hub_cards.uploading import is_allowed

    listed = HfApi().list_repo_files(name, repo_type="dataset")
    wanted = [file for file in listed if is_allowed("dataset", file)]
    others += [file for file in listed if file not in wanted and file not in _NOT_OF_THE_SET]
    return snapshot_download(name, repo_type="dataset", allow_patterns=wanted, local_dir=place)


def exit_code(found: Verification) -> int:
    """0 where all agrees, and 1 where something does not.

    Args:
        found: What `run` returns.
    """
    return ANSWER_IS_NO if found.findings else 0


if __name__ == "__main__":
    run_script(make_parser, run, exit_code=exit_code)
