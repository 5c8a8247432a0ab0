"""The list of a run folder's files: the same each time, and every change of a file is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nybble.errors import NybbleError
from nybble.results.manifest import MANIFEST, check_manifest, write_manifest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    names = ("summary.json", "rows/b.parquet", "rows/a.parquet", "report.html", ".lock",
             "rows/c.tmp", ".cache/x", "inner/summary.json", "inner/rows/a.parquet")  # fmt: skip
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    (folder / "link").symlink_to("/etc/hostname")
    return folder


def test_the_same_each_time(run: Path) -> None:
    path = write_manifest(run)
    first = path.read_bytes()
    assert path == run / MANIFEST and write_manifest(run).read_bytes() == first
    files = json.loads(first)["files"]
    assert [f["path"] for f in files] == [
        "report.html", "rows/a.parquet", "rows/b.parquet", "summary.json"
    ]  # fmt: skip
    assert files[3]["bytes"] == 23 and len(files[3]["sha256"]) == 64
    assert check_manifest(run) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "report.html").unlink(), ["missing: report.html"]),
        (lambda f: (f / "summary.json").write_text("content of summary.jsoN"),
         ["changed: summary.json"]),
        (lambda f: (f / "rows/a.parquet").write_text(""), ["changed: rows/a.parquet"]),
        (lambda f: (f / "rows/d").write_text(""), ["not in the manifest: rows/d"]),
        (lambda f: (f / "rows/a.parquet").rename(f / "z"),
         ["missing: rows/a.parquet", "not in the manifest: z"]),
        (lambda f: (f / ".lock").write_text("more"), []),
    ],
)  # fmt: skip
def test_changes(run: Path, change: Callable[[Path], object], words: list[str]) -> None:
    write_manifest(run)
    change(run)
    assert check_manifest(run) == words


def _entry(**changes: object) -> str:
    entry = {"path": "summary.json", "bytes": 1, "sha256": "0" * 64, **changes}
    return json.dumps({"files": [entry], "schema_version": 1})


def test_no_file_outside_is_read(run: Path) -> None:
    for path in ("../../etc/passwd", "/etc/passwd", "link"):
        (run / MANIFEST).write_text(_entry(path=path))
        assert check_manifest(run)[0] == f"missing: {path}"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"files": 3, "schema_version": 1}', '{"files": [3], "schema_version": 1}',
     _entry(path=3), _entry(bytes="1"), _entry(bytes=True), _entry(sha256="x"), _entry(sha256=None),
     _entry(more=1)],
)  # fmt: skip
def test_damaged(run: Path, text: str) -> None:
    (run / MANIFEST).write_text(text)
    with pytest.raises(NybbleError, match="manifest of a run"):
        check_manifest(run)


def test_newer(run: Path) -> None:
    (run / MANIFEST).write_text('{"files": [], "schema_version": 2}')
    with pytest.raises(NybbleError, match="newer nybble"):
        check_manifest(run)
