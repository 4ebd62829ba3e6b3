"""The files of a run that are judged and published: read once, and seen to hold nothing but what they may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from histodistill.hub_cards.contents import (
    PipelineContent,
    SelectorContent,
    SetContent,
    about,
    check_pipeline,
    check_selector,
    check_set,
)
from histodistill.hub_cards.documents import parse_json
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.part_files import hash_contents, read_part
from histodistill.training.evaluation.results_file import parse_results
from histodistill.training.evaluation.verdicts import JUDGES, RECORDS, read_records
from histodistill.training.models.loading import installed_code
from histodistill.training.running.notes import warn


@dataclass(frozen=True, repr=False)
class RunContents:
    """What of a run goes up, part by part; None for a part that was not read."""

    pipeline: PipelineContent | None
    selector: SelectorContent
    distilled: SetContent


@dataclass(frozen=True, repr=False)
class RunFiles:
    """The files of a run as they were when they were read.

    Attributes:
        folder: The run.
        parts: Part → file → content; the files of each part that a verdict is about.
        records: File that cards tell of → content.
    """

    folder: Path
    parts: dict[str, dict[str, bytes]]
    records: dict[str, bytes]

    @classmethod
    def read(cls, folder: Path, parts: Sequence[str] = tuple(JUDGES)) -> RunFiles:
        """Reads each file once.

        Args:
            folder: The run.
            parts: Those to read.

        Raises:
            ContentError: For a file that a part may not hold, a link, or one that cannot be read.
        """
        return cls(folder, {part: read_part(folder / part) for part in parts}, read_records(folder))

    def part_hashes(self) -> dict[str, dict[str, str]]:
        """Part → file → SHA-256."""
        return {part: hash_contents(files) for part, files in self.parts.items()}

    def record_hashes(self) -> dict[str, str]:
        """File of `RECORDS` → SHA-256."""
        return hash_contents(self.records)

    def check(self) -> RunContents:
        """Sees that the files hold nothing but what they may, and fit each other.

        Returns:
            What of each part goes up.

        Raises:
            ContentError: Names the file.
        """
        distilled = check_set(self.folder / "distilled", self.parts["distilled"])
        names = distilled.table.class_names
        selector = check_selector(self.folder / "selector", self.parts["selector"], distilled.table, self._pool_size())
        pipeline = None
        if "pipeline" in self.parts:
            pipeline = check_pipeline(self.folder / "pipeline", self.parts["pipeline"], self._pipeline_code())
            size = distilled.table.images.shape[1]
            if (pipeline.class_names, pipeline.image_size) != (names, size):
                raise ContentError(
                    f"{self.folder}/pipeline makes other classes or sizes than {self.folder}/distilled has: make them "
                    "anew"
                )
        if "results.json" in self.records:
            with about(self.folder, "results.json"):
                results = parse_results(self.records["results.json"])
                if list(results.class_names) != names:
                    raise ContentError("is about other classes than those of the distilled set")
        return RunContents(pipeline, selector, distilled)

    def copies_dropped(self, class_names: list[str]) -> dict[str, int] | None:
        """Images of each class that were dropped as copies of real tiles; None where none were looked for.

        Raises:
            ContentError: If the record of the selection says something else.
        """
        with about(self.folder, "distilled/stage.json"):
            record = parse_json(self.parts["distilled"]["stage.json"])
            found = record.get("copies_dropped") if isinstance(record, dict) else {}
            if found is None:
                return None
            if not isinstance(found, dict) or sorted(found) != sorted(class_names):
                raise ContentError("does not say of each class how many copies were dropped")
            if not all(type(count) is int and count >= 0 for count in found.values()):
                raise ContentError("says that something else than a number of copies was dropped")
            return found

    def _pool_size(self) -> int:
        """Images of the pool, as its record has them."""
        name = "pool/stage.json"
        assert name in RECORDS
        with about(self.folder, name):
            if name not in self.records:
                raise ContentError("is missing")
            record = parse_json(self.records[name])
            size = record.get("num_images") if isinstance(record, dict) else None
            if type(size) is not int or size < 1:
                raise ContentError("does not say how many images the pool has")
            return size

    def _pipeline_code(self) -> bytes:
        """The file of the class that is installed; a word where the run has another one."""
        code = installed_code()
        if self.parts["pipeline"].get("pipeline.py", code) != code:
            warn(
                f"{self.folder}/pipeline/pipeline.py is not the file of the installed histodistill: that one is taken "
                "in its place"
            )
        return code
