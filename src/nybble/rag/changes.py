"""What changed in a folder since it was indexed, and the part of it that needs no reading."""

from __future__ import annotations

from dataclasses import dataclass, field

from nybble.rag.documents import Found, Skipped
from nybble.rag.loaders import UnreadableError, digest
from nybble.rag.store import Store


@dataclass(frozen=True)
class _Known:
    size: int
    mtime_ns: int
    sha256: str
    document: int | None
    reason: str | None


@dataclass
class Changes:
    """What has to be done.

    Attributes:
        read: files to read, each with the SHA-256 of its bytes.
        copies: files with the bytes of a document, or of one to be read.
        touched: files with another time of change but the same bytes.
        gone: paths that are no more, or hold something else now.
        had: paths to be read that are documents already.
    """

    read: list[tuple[Found, str]] = field(default_factory=list)
    copies: list[tuple[Found, str]] = field(default_factory=list)
    touched: list[Found] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    had: set[str] = field(default_factory=set)


def find_changes(store: Store, found: tuple[Found, ...], skipped: list[Skipped]) -> Changes:
    """Compare a folder's files with those that the index knows.

    Files whose size and time of change are known are taken as unchanged and not read. Reasons
    of files that were left out before and are as they were go to `skipped`, and so do new ones.
    """
    known = {
        str(row[0]): _Known(*row[1:])
        for row in store.all("SELECT path, size, mtime_ns, sha256, document, reason FROM files")
    }
    main = dict(store.all("SELECT path, id FROM documents"))
    changes, fresh = Changes(), []
    here = {f.path for f in found}
    changes.gone = [path for path in known if path not in here]
    for file in found:
        before = known.get(file.path)
        if before and (before.size, before.mtime_ns) == (file.size, file.mtime_ns):
            if before.reason is not None:
                skipped.append(Skipped(file.path, before.reason))
            continue
        fresh.append(file)
    owned = {str(s): int(i) for i, s in store.all("SELECT id, sha256 FROM documents")}
    for file in fresh:
        try:
            sha256 = digest(file)
        except UnreadableError as error:
            skipped.append(Skipped(file.path, str(error)))
            if file.path in known and not error.again:
                changes.gone.append(file.path)
            continue
        before = known.get(file.path)
        if before and before.sha256 == sha256 and before.reason is None:
            changes.touched.append(file)
        elif sha256 in owned:
            changes.copies.append((file, sha256))
            if before:
                changes.gone.append(file.path)
        else:
            owned[sha256] = -1
            changes.read.append((file, sha256))
            if file.path in main:
                changes.had.add(file.path)
    return changes


def apply_moves(store: Store, changes: Changes) -> tuple[int, int]:
    """Take account of what needs no reading; returns documents moved and deleted.

    A document whose path is gone goes on under the path of a copy, if there is one, and keeps
    its passages and vectors.
    """
    moved = deleted = 0
    waiting: dict[str, list[Found]] = {}
    for file, sha256 in changes.copies:
        waiting.setdefault(sha256, []).append(file)
    gone = []
    with store.transaction():
        for file in changes.touched:
            store.run("UPDATE files SET mtime_ns = ? WHERE path = ?", (file.mtime_ns, file.path))
        for path in changes.gone:
            gone += store.all("SELECT id, sha256 FROM documents WHERE path = ?", (path,))
            store.run("DELETE FROM files WHERE path = ?", (path,))
        # Two documents may change places: all leave their paths before any takes a new one.
        for document, _ in gone:
            store.run("UPDATE documents SET path = char(0) || id WHERE id = ?", (document,))
        for document, sha256 in gone:
            heirs = store.all("SELECT min(path) FROM files WHERE document = ?", (document,))
            new = waiting.get(sha256, [])
            if heirs[0][0] is not None:
                store.run("UPDATE documents SET path = ? WHERE id = ?", (heirs[0][0], document))
            elif new:
                _move(store, document, new[0], sha256)
            else:
                store.remove(document)
                deleted += 1
                continue
            moved += 1
        if gone:
            store.changed()
    return moved, deleted


def _move(store: Store, document: int, file: Found, sha256: str) -> None:
    store.run("UPDATE documents SET path = ? WHERE id = ?", (file.path, document))
    store.run(
        "INSERT OR REPLACE INTO files VALUES(?, ?, ?, ?, ?, NULL)",
        (file.path, file.size, file.mtime_ns, sha256, document),
    )


def note_copies(store: Store, changes: Changes, skipped: list[Skipped]) -> int:
    """Note the files whose bytes a document has already; returns how many copies there are."""
    documents = {str(s): int(i) for i, s in store.all("SELECT id, sha256 FROM documents")}
    reasons = {
        str(s): str(r)
        for s, r in store.all("SELECT sha256, reason FROM files WHERE reason IS NOT NULL")
    }
    with store.transaction():
        for file, sha256 in changes.copies:
            document, reason = documents.get(sha256), None
            if document is None:
                reason = reasons.get(sha256, "its bytes could not be read under another path")
                skipped.append(Skipped(file.path, reason))
            store.run("INSERT OR REPLACE INTO files VALUES(?, ?, ?, ?, ?, ?)",
                      (file.path, file.size, file.mtime_ns, sha256, document, reason))  # fmt: skip
    rows = store.all(
        "SELECT count(*) FROM files f JOIN documents d ON d.id = f.document WHERE f.path <> d.path"
    )
    return int(rows[0][0])
