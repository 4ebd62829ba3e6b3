"""The gate before publishing: only what has passed the privacy audit goes up, and no metadata with it.

Goes by `audit.json` as `histodistill audit` writes it. For each part of a run, such as `distilled`, that file has a
verdict, the findings behind it, and the SHA-256 of every file that they are about.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import pyarrow as pa


#: Version of the layout of `audit.json` that this module reads.
AUDIT_FORMAT = 2
# Files that need no audit: cards are written for publishing, from plain data, and the Hub itself adds the second.
_CARDS = ("README.md", ".gitattributes")
# Folders that a stage keeps for itself, and nobody publishes.
_WORKING_FOLDERS = ("checkpoints", "progress")

# Chunks of a PNG file that hold pixels or say how to show them. All others can carry text, names or dates.
_PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"sRGB", b"gAMA", b"cHRM", b"sBIT", b"pHYs"}
# The bytes that every PNG file begins with.
_PNG_BEGINNING = b"\x89PNG\r\n\x1a\n"
# Keys of what Arrow and datasets write about a table; the value of "huggingface" is looked into.
_PARQUET_KEYS = {b"ARROW:schema", b"huggingface", b"content_defined_chunking"}
# Endings of the files that are looked into as images.
_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
# Endings of the files that are searched for paths.
_TEXTS = (".json", ".md", ".txt", ".csv", ".yaml", ".yml")
# An absolute path of this machine anywhere in a text: only below a folder that machines have, since words between
# slashes may be anything.
_PATHS = re.compile(r"(?<![\w.:/])(?:/(?:home|Users|root|mnt|media|srv|tmp|var|data|opt)/|[A-Za-z]:\\\\?)[^\s\"']+")
# An absolute path in quotes, below whatever folder.
_QUOTED_PATHS = re.compile(r"""(?<=["'])(?:/[^/\s"']+/|[A-Za-z]:[\\/]|\\{2,4}[\w.$-]+\\)[^"'\n]*""")
# The same for a string of a JSON file, which is a path as a whole or is none.
_WHOLE_PATHS = re.compile(r"(?:/[^/\s][^/]*/|[A-Za-z]:[\\/]|\\\\\w|file:/).*", re.DOTALL)


class AuditError(ValueError):
    """Something may not be published; the message is one sentence that says why and what to do."""


def files_to_audit(folder: str | Path) -> list[str]:
    """Paths, relative and sorted, of the files of a part of a run that a verdict is about.

    All but the card, hidden files, and what a stage keeps for itself (`checkpoints/`, `progress/`).
    """
    folder = Path(folder)
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in found
        if path.name not in _CARDS
        and not any(part.startswith(".") for part in path.parts)
        and path.parts[0] not in _WORKING_FOLDERS
    )


def hash_files(folder: str | Path, files: Iterable[str]) -> dict[str, str]:
    """SHA-256, as 64 hex digits, of each of `files` in `folder`."""
    return {name: _sha256(Path(folder) / name) for name in files}


def check_audit(
    folder: str | Path,
    audit: Mapping[str, Any] | None,
    *,
    part: str | None = None,
    files: Iterable[str] | None = None,
) -> None:
    """Lets what has passed the audit through, and nothing else.

    Args:
        folder: What is to be published.
        audit: What `audit.json` of the run holds, or None where there is none.
        part: The part of the run that it is: `distilled`, `selector` or `pipeline`; by default the folder's name.
        files: What of the folder is to be published; by default `files_to_audit`. Cards need no audit.

    Raises:
        AuditError: There is no audit, it did not pass, or it was made of other files.
    """
    folder = Path(folder)
    part = part or folder.name
    if not audit:
        raise AuditError(f"{folder} has not been audited: run histodistill audit on the run first")
    if audit.get("format") != AUDIT_FORMAT:
        raise AuditError(f"the audit of {folder} is of another version of histodistill: run histodistill audit again")
    verdict = audit.get("parts", {}).get(part)
    if verdict is None:
        raise AuditError(f"the audit is not about {part}: run histodistill audit on the run that {folder} belongs to")
    names = files_to_audit(folder) if files is None else [name for name in files if Path(name).name not in _CARDS]
    known = verdict["files"]
    for name in names:
        if name not in known:
            raise AuditError(f"{folder / name} was not audited: run histodistill audit again, or leave the file out")
        if not (folder / name).is_file() or _sha256(folder / name) != known[name]:
            raise AuditError(f"{folder / name} is not the file that was audited: run histodistill audit again")
    if not names:
        raise AuditError(f"{folder} holds nothing that was audited: give a folder of a finished run")
    if not verdict["passed"]:
        reasons = "; ".join(finding["sentence"] for finding in verdict["findings"] if not finding["passed"])
        raise AuditError(
            f"{part} did not pass the privacy audit ({reasons}): mend it, or publish it all the same with "
            "`i_accept_the_risk`"
        )


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


def audit_sentences(audit: Mapping[str, Any], part: str) -> list[str]:
    """The findings on a part in plain words, for its card: sentences with a mark of whether each holds."""
    return [
        f"{'✓' if finding['passed'] else '✗'} {finding['sentence'][0].upper()}{finding['sentence'][1:]}."
        for finding in audit["parts"][part]["findings"]
    ]


def check_metadata(folder: str | Path, files: Iterable[str] | None = None) -> None:
    """Sees that no file carries metadata of the tiles or of this machine.

    Images, also those within Parquet files, must be PNG files of pixels only: no EXIF, text, dates or names, and
    nothing after their end. Columns of Parquet files may hold integers, floats, booleans, lists of these, and images
    as `{bytes: binary, path: string}` with a null path. What these files and weights say about themselves may be no
    more than the types of the columns and the format. Texts may hold no absolute path: in JSON files no string may be
    one, in other texts none may be in quotes, and nowhere may a path of a folder such as /home be.

    Args:
        folder: What is to be published.
        files: What of it; by default all files but hidden ones.

    Raises:
        AuditError: For the first file with metadata.
    """
    from pyarrow import ArrowInvalid

    folder = Path(folder)
    if files is None:
        paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
        files = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    found: str | None
    for name in files:
        path = folder / name
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            try:
                found = next(_parquet_metadata(path), None)
            except ArrowInvalid:
                found = "something else than a table"
        elif suffix == ".safetensors":
            found = _weights_metadata(path)
        elif suffix in _IMAGES:
            found = _image_metadata(path.read_bytes())
        elif suffix in _TEXTS and (absolute := _absolute_path(path.read_bytes(), is_json=suffix == ".json")):
            found = f"the path {' '.join(absolute.split())}"
        else:
            found = None
        if found:
            raise AuditError(f"{path} holds {found}: remove it before publishing")


def _absolute_path(data: bytes, *, is_json: bool) -> str | None:
    """The first absolute path in a text, None where there is none."""
    if is_json:
        # Escapes, such as \/ for /, hide a path from a search of the text; pairs keep what equal keys would replace.
        try:
            for string in _strings(json.loads(data, object_pairs_hook=list)):
                if match := _WHOLE_PATHS.match(string) or _PATHS.search(string):
                    return match.group()
            return None
        except (ValueError, RecursionError):
            pass  # it is searched as any other text
    text = data.decode("utf-8", errors="replace")
    match = _PATHS.search(text) or _QUOTED_PATHS.search(text)
    return match.group() if match else None


def _strings(value: Any) -> Iterator[str]:
    """All strings of a JSON document, keys as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


def _parquet_metadata(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image_type = {"bytes": pa.binary(), "path": pa.string()}
    with pq.ParquetFile(path) as file:
        if found := _about_table(file.metadata.metadata or {}, file.schema_arrow):
            yield f"metadata ({found})"
        images = []
        for field in file.schema_arrow:
            if pa.types.is_struct(field.type) and {part.name: part.type for part in field.type} == image_type:
                images.append(field.name)
            elif found := _column_metadata(field.type):
                yield f"{found} in the column {field.name!r}"
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=images) if images else ():
            for name in images:
                for place, image in enumerate(batch.column(name).to_pylist(), start=row):
                    if image is None or image["bytes"] is None:
                        yield f"a cell without an image in row {place} of the column {name!r}"
                        continue
                    if image["path"] is not None:
                        yield f"the file name {image['path']!r} in the column {name!r}"
                    if found := _image_metadata(image["bytes"]):
                        yield f"{found} in row {place} of the column {name!r}"
            row += batch.num_rows


def _about_table(keys: Mapping[bytes, bytes], schema: pa.Schema) -> str | None:
    """The key of something in the footer of a Parquet file that is not needed to read it."""
    about = {**keys, **(schema.metadata or {})}
    if unknown := sorted(about.keys() - _PARQUET_KEYS):
        return unknown[0].decode("utf-8", "replace")
    try:
        kept = json.loads(about.get(b"huggingface", b'{"info": {}}'))
        if kept.keys() != {"info"} or not kept["info"].keys() <= {"features"}:
            return "huggingface"
    except (AttributeError, ValueError):
        return "huggingface"
    fields = list(schema)
    while fields:
        field = fields.pop()
        fields += [field.type.field(place) for place in range(field.type.num_fields)]
        if unknown := sorted((field.metadata or {}).keys() - {b"PARQUET:field_id"}):
            return f"{unknown[0].decode('utf-8', 'replace')} of the column {field.name!r}"
    return None


def _weights_metadata(path: Path) -> str | None:
    """What a safetensors file says beside names, types and shapes, in words."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
    except SafetensorError:
        return "something else than tensors"
    if about.keys() <= {"format"} and about.get("format", "pt") in ("pt", "np"):
        return None
    return f"metadata ({', '.join(sorted(about))})"


def _column_metadata(kind: pa.DataType) -> str | None:
    """What a column of a type may hold beside numbers, in words."""
    import pyarrow as pa

    whole = kind
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_temporal(kind):
        return "dates"
    return f"values of the type {whole}"


def _image_metadata(data: bytes) -> str | None:
    """What an image file holds beside pixels, in words; all that is no PNG file may hold anything."""
    if not data.startswith(_PNG_BEGINNING):
        return "an image that is no PNG file"
    place, kind = len(_PNG_BEGINNING), b""
    while kind != b"IEND":
        if place + 12 > len(data):
            return "an image that is cut off"
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        if kind not in _PNG_CHUNKS:
            return f"metadata ({kind.decode('ascii', 'replace')})"
        if kind == b"IEND" and length:
            return "something in the end of an image"
        place += 12 + length
    return "something after the end of an image" if place < len(data) else None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
