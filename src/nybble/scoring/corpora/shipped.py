"""Reads the JSONL files that are shipped in `data/`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources

from nybble.errors import NybbleError
from nybble.scoring.corpora.document import Document
from nybble.scoring.corpora.records import parse_record


def shipped(category: str, *, source: str = "written for nybble") -> Iterator[Document]:
    """Yield the documents of `data/<category>.jsonl` in file order.

    The lines pass the same checks as a user's own file, so a damaged install says so.
    """
    name = f"{category}.jsonl"
    try:
        data = resources.files(__package__).joinpath("data", name).read_bytes()
    except OSError as error:
        raise NybbleError(
            f"The file {name} of the built-in corpora cannot be read",
            seen=str(error),
            hint="install nybble again: pip install --force-reinstall nybble",
        ) from error
    for number, line in enumerate(data.splitlines(), start=1):
        record = parse_record(line, where=name, number=number, source=source, licence="MIT")
        yield record.to_document(category=category, name=f"{category}/{record.id}")
