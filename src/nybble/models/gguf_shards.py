"""The files of a split GGUF, found next to its first one and checked to belong together."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from nybble.errors import ModelFileError
from nybble.models.file_kinds import show
from nybble.models.gguf_header import GGUFHeader, read_header


def read_shards(path: Path) -> list[GGUFHeader]:
    """Read the header of the model `path`, and those of its other files when it is split.

    Raises:
        ModelFileError: a file is missing, damaged (see `read_header`) or of another model.
    """
    first = read_header(path)
    return [first, *_other_shards(path, first)]


def _other_shards(path: Path, first: GGUFHeader) -> list[GGUFHeader]:
    """Read the headers of the other files of a split model, and check that they belong to it."""
    n = first.split_count
    if n == 1:
        return []
    number = first.metadata.get("split.no", 0)
    index = number if isinstance(number, int) else 0
    ending = f"-{index + 1:05d}-of-{n:05d}.gguf"
    if not path.name.endswith(ending):
        raise ModelFileError("A file of a split model was renamed", seen=path.name,
                             allowed=f"a name that ends with {ending}",
                             hint="give the files the names they had")  # fmt: skip
    stem = path.name.removesuffix(ending)
    paths = [path.with_name(f"{stem}-{i:05d}-of-{n:05d}.gguf") for i in range(1, n + 1)]
    gone = [p.name for p in islice((p for p in paths if not p.is_file()), 5)]
    if gone:
        raise ModelFileError(f"The model is split into {n:,} files and some are missing next to "
                             f"{path}", seen=f"missing: {', '.join(gone)}", allowed=f"all {n:,}",
                             hint="download the missing files into the same folder")  # fmt: skip
    if index != 0:
        raise ModelFileError("This is not the first file of the split model", seen=path.name,
                             allowed=paths[0].name, hint=f"use {paths[0]}")  # fmt: skip
    others = []
    names = {t.name for t in first.tensors}
    for i, other in enumerate(paths[1:], start=1):
        header = read_header(other)
        here = {t.name for t in header.tensors}
        found = header.metadata.get("split.no")
        if header.split_count != n or found != i or names & here:
            raise ModelFileError(f"{other.name} belongs to another model", seen=f"split.no {found}",
                                 allowed=f"split.no {i} of {n} and its own tensors",
                                 hint="download all the files of one model again")  # fmt: skip
        names |= here
        others.append(header)
    total = first.metadata.get("split.tensors.count", len(names))
    if total != len(names):
        raise ModelFileError("The files of the split model do not hold all its tensors", seen=path,
                             allowed=f"{show(total)} tensors, not {len(names):,}",
                             hint="download all the files of one model again")  # fmt: skip
    return others
