"""Validate a run folder or a whole result base: what a submission must hold."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from nybble.errors import NybbleError
from nybble.results.base.external import EXTERNAL_SCHEMA_VERSION, Imported
from nybble.results.base.find import SUMMARY, imported_files, read_text, run_folders
from nybble.results.manifest import MANIFEST, check_manifest
from nybble.results.rag import RAG_SCHEMA_VERSION, RagRun
from nybble.results.records import SCHEMA_VERSION, Measurement
from nybble.results.validate import guards, values
from nybble.results.validate.check import Check, Validation, verdict
from nybble.results.validate.guards import Smaller
from nybble.results.validate.rows import check_rows
from nybble.results.validate.schema import read_checked

_SCHEMA = "schema"


def validate(folder: Path, smaller: Smaller) -> list[Validation]:
    """Check every run and every imported file in a folder.

    Args:
        folder: of one run, of a base, or the place of a sweep.
        smaller: whether the first KV setting stores fewer bits than the second, and both are of
            a family that is ordered by bits.

    Raises:
        NybbleError: no such folder, or nothing in it.
    """
    runs, imported = run_folders(folder), imported_files(folder)
    if not runs and not imported:
        raise NybbleError("no run to validate", seen=folder, allowed=f"a folder with {SUMMARY}, or "
                          "a folder of such", hint="nybble measure MODEL --out FOLDER")  # fmt: skip
    return [*(validate_run(run, smaller) for run in runs), *map(_validate_import, imported)]


def validate_run(folder: Path, smaller: Smaller) -> Validation:
    """Check one run folder: schema, manifest, rows, guards and plausibility.

    A run of `nybble rag eval` has a summary.json too; of it only schema and manifest are checked.

    Args:
        folder: with a summary.json.
        smaller: as for `validate`.
    """
    try:
        text = read_text(folder / SUMMARY)
        record = _read(text)
    except NybbleError as error:
        checks = [Check(_SCHEMA, "fail", _line(error)), _manifest(folder)]
        return Validation(str(folder), checks)
    kind = "measurement" if isinstance(record, Measurement) else "run of nybble rag eval"
    checks = [Check(_SCHEMA, "pass", f"{kind}, version {record.schema_version}"),
              _manifest(folder)]  # fmt: skip
    if not isinstance(record, Measurement):
        return Validation(str(folder), checks)
    checks += check_rows(folder, record)
    checks += [guards.identity(record), guards.floor(record), guards.drift(record),
               guards.order(record, smaller)]  # fmt: skip
    checks += [values.finite(record), values.intervals(record), values.ranges(record),
               values.created(record, datetime.datetime.now(datetime.UTC)), values.hashes(record),
               values.command(record), values.privacy(text)]  # fmt: skip
    return Validation(str(folder), checks)


def _read(text: str) -> Measurement | RagRun:
    found: Measurement | RagRun
    if _has_retrieval(text):
        found = read_checked(text, RagRun, RAG_SCHEMA_VERSION, "run of nybble rag eval")
    else:
        found = read_checked(text, Measurement, SCHEMA_VERSION, "measurement")
    return found


def _has_retrieval(text: str) -> bool:
    try:
        return "retrieval" in json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False


def _manifest(folder: Path) -> Check:
    if not (folder / MANIFEST).exists():
        return Check("manifest", "skipped", f"no {MANIFEST}")
    try:
        return verdict("manifest", check_manifest(folder), "every file as listed")
    except NybbleError as error:
        return Check("manifest", "fail", _line(error))


def _validate_import(path: Path) -> Validation:
    try:
        found = read_checked(read_text(path), Imported, EXTERNAL_SCHEMA_VERSION, "import")
    except NybbleError as error:
        return Validation(str(path), [Check(_SCHEMA, "fail", _line(error))])
    return Validation(str(path), [Check(_SCHEMA, "pass", f"{len(found.rows):,} numbers of "
                                        f"{found.harness}")])  # fmt: skip


def _line(error: NybbleError) -> str:
    return f"{error.what}: {error.seen}" if error.seen else error.what
