"""A site's files on disk: written, remembered in a manifest, and removed when they are stale.

Only files that the manifest of an earlier build names are ever removed or replaced, so a folder
of something else is refused, and what others put beside a site stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from nybble.errors import NybbleError
from nybble.results.store import check_folder

MANIFEST = "nybble-site.json"
_MAX_BYTES = 16 << 20  # a manifest of a hundred thousand pages
_HINT = "--out FOLDER that is new, empty or an earlier site"


def owned(out: Path) -> set[str]:
    """Files of an earlier build, by path relative to the folder; none in a new or empty one.

    Raises:
        NybbleError: the folder holds something else than a site, or cannot be written.
    """
    check_folder(out, "the site's folder", _HINT)
    with _disk_errors(out):
        return _manifest(out)


def write(out: Path, files: Mapping[str, str], old: Set[str]) -> int:
    """Write a site, and remove what an earlier build left that is not in it.

    Args:
        out: folder; made where missing.
        files: text by path relative to it, with slashes.
        old: what `owned` found there.

    Returns:
        Stale files removed.

    Raises:
        NybbleError: a file that is not the site's own is in the way, or the disk refuses.
    """
    foreign = sorted(n for n in files.keys() - old if (out / n).exists() or (out / n).is_symlink())
    if foreign:
        raise NybbleError(
            "the site would replace a file that is not its own",
            seen=out / foreign[0],
            hint="move it away, or give another --out FOLDER",
        )
    with _disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        # First what will be there: an interrupted build is still known as a site.
        _write_manifest(out, old | files.keys())
        for name, text in files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        removed = sum(_remove(out, name) for name in sorted(old - files.keys()))
        _write_manifest(out, files)
    return removed


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NybbleError(
            "the site cannot be written",
            seen=f"{error.filename or out}: {error.strerror}",
            hint="free space, or give an --out FOLDER where you may write",
        ) from error


def _manifest(out: Path) -> set[str]:
    """Files of an earlier build; none in a new or empty folder."""
    if not out.exists() or not any(out.iterdir()):
        return set()
    path = out / MANIFEST
    if not path.is_file():
        raise NybbleError("this folder is not empty and no site of nybble", seen=out,
                          allowed=f"a folder with {MANIFEST}, or an empty one",
                          hint=_HINT)  # fmt: skip
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES >> 20} MiB")
        found = json.loads(path.read_text(encoding="utf-8"))["files"]
        names = {str(name) for name in found}
        bad = next((n for n in names if not _inside(out, n)), None)
        if bad is not None:
            raise ValueError(f"{bad!r} is outside the site")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise NybbleError("the manifest of the site in this folder is damaged",
                          seen=f"{path}: {error}", hint=_HINT) from error  # fmt: skip
    return names


def _inside(out: Path, name: str) -> bool:
    path = PurePosixPath(name)
    plain = not path.is_absolute() and ".." not in path.parts and path.parts and "\0" not in name
    return bool(plain) and (out / path).parent.resolve().is_relative_to(out.resolve())


def _remove(out: Path, name: str) -> bool:
    path = out / name
    if not path.is_file() and not path.is_symlink():
        return False
    path.unlink()
    folder = path.parent
    if folder != out and not any(folder.iterdir()):
        folder.rmdir()
    return True


def _write_manifest(out: Path, names: Iterable[str]) -> None:
    text = json.dumps({"site": "nybble", "files": sorted(names)}, indent=1, ensure_ascii=False)
    (out / MANIFEST).write_text(text + "\n", encoding="utf-8", newline="\n")
