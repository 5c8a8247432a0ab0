"""Keep an import in a result base: one file a harness and source file, the same each time."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from dataclasses import dataclass
from pathlib import Path

from nybble.errors import NybbleError
from nybble.results.base.external import EXTERNAL_SCHEMA_VERSION, FOLDER, Imported
from nybble.results.base.find import read_text
from nybble.results.importers.registry import importer_of
from nybble.results.importers.source import Given, read_source
from nybble.results.records import read_record
from nybble.results.store import check_folder, content_key, disk_errors, write_text

_HARNESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_OWN = "nybble"  # its numbers come from runs, with rows to check them by


@dataclass(frozen=True)
class Kept:
    """What became of one file.

    Attributes:
        path: the record's file.
        record: the import.
        form: name of the importer that read it.
        state: "new", "changed" (the same file, told otherwise) or "unchanged".
        notes: what was left out, and why.
    """

    path: Path
    record: Imported
    form: str
    state: str
    notes: list[str]


def import_file(path: Path, base: Path, given: Given, form: str | None = None) -> Kept:
    """Read a file of another harness and keep its numbers in `base`/imported.

    Args:
        path: log, JSON or CSV.
        base: folder of the result base; made if missing.
        given: what the user tells of it.
        form: name of an importer; found out from the content without.

    Raises:
        NybbleError: a file that cannot be read as any format, a bad name of a harness, or a base
            that cannot be written.
    """
    source = read_source(path)
    importer = importer_of(source, form)
    found = importer.read(source, given)
    harness = given.harness or importer.name
    if not _HARNESS.fullmatch(harness) or harness.lower() == _OWN:
        raise NybbleError("not a name for another harness", seen=harness[:60],
                          allowed="1 to 40 of A-Z a-z 0-9 . _ - and not nybble, whose numbers "
                          "come from runs", hint="--harness NAME")  # fmt: skip
    record = Imported(
        harness=harness, harness_version=found.version, source=given.address or path.name,
        sha256=source.sha256, rows=found.rows,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    folder = base / FOLDER
    check_folder(folder, "the result base", "--base FOLDER where you may write")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{harness}-{content_key([harness, source.sha256])}.json"
    before = _before(target)
    if before == dataclasses.replace(record, created=before.created if before else ""):
        return Kept(target, before, importer.name, "unchanged", found.notes)
    write_text(target, json.dumps(dataclasses.asdict(record), sort_keys=True, indent=1,
                                  allow_nan=False, ensure_ascii=False) + "\n")  # fmt: skip
    return Kept(target, record, importer.name, "changed" if before else "new", found.notes)


def _before(target: Path) -> Imported | None:
    """What an earlier import left; a damaged one is written anew."""
    if not target.exists():
        return None
    try:
        found = read_record(read_text(target), Imported, EXTERNAL_SCHEMA_VERSION, "import")
    except NybbleError:
        return None
    return found if isinstance(found, Imported) else None
