"""Harnesses that can be imported, and which of them wrote a file."""

from __future__ import annotations

from nybble.errors import NybbleError, nearest, unknown
from nybble.results.importers import llama_perplexity, lm_eval, published
from nybble.results.importers.source import Importer, Source

_ALL: tuple[Importer, ...] = (llama_perplexity, lm_eval, published)
IMPORTERS = {importer.name: importer for importer in _ALL}


def importer_of(source: Source, name: str | None = None) -> Importer:
    """The importer named, or the one whose file this is.

    Raises:
        NybbleError: an unknown name, or a file that is nobody's or several's.
    """
    if name is not None:
        if name not in IMPORTERS:
            near = nearest(name, IMPORTERS)
            raise unknown("unknown format to import", name, IMPORTERS,
                          hint=f"--as {near or published.name}")  # fmt: skip
        return IMPORTERS[name]
    if '"doc_id"' in source.text[:100_000] and source.path.suffix == ".jsonl":
        raise NybbleError("these are lm-eval's samples, not its summary", seen=source.path,
                          allowed="results_*.json, in the same folder")  # fmt: skip
    found = [importer for importer in IMPORTERS.values() if importer.knows(source)]
    if len(found) != 1:
        what = "several formats fit this file" if found else "no known format fits this file"
        fits = found or list(IMPORTERS.values())
        raise NybbleError(what, seen=source.path, allowed="; ".join(i.about for i in fits),
                          hint=f"--as {fits[0].name}")  # fmt: skip
    return found[0]
