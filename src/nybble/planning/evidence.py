"""What stored measurements say of a KV setting's quality; a plan reads them and runs none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nybble.errors import NybbleError
from nybble.results.base.find import MAX_BYTES, SUMMARY, run_folders
from nybble.results.plans import Quality
from nybble.results.records import Measurement, Row, from_json

MAX_RUNS = 1000


@dataclass(frozen=True)
class Identity:
    """How a planned model is recognized in a measurement.

    Attributes:
        architecture: the GGUF's, or config.json's model_type.
        file: name of the file, None for a catalogue's.
        size_bytes: of the file.
        aliases: other names of the same architecture, such as "gemma3_text" for "gemma3".
    """

    architecture: str
    file: str | None = None
    size_bytes: int | None = None
    aliases: tuple[str, ...] = field(default=())


def qualities(folders: Iterable[Path], model: Identity) -> Mapping[str, Quality]:
    """KV setting -> what it cost, from the run folders under `folders`.

    A measurement of the same file goes before one of another model of the same architecture;
    among those of one rank the one with more documents does, then the longer context.

    Raises:
        NybbleError: a folder that was named is not there.
    """
    best: dict[str, tuple[tuple[bool, int, int], Quality]] = {}
    for path in _summaries(folders):
        try:
            run = from_json(path.read_text(encoding="utf-8"))
            rows = list(_rows(run, model, path.parent))
        except (OSError, UnicodeDecodeError, NybbleError, AttributeError, TypeError, ValueError):
            continue  # of another tool, of a newer nybble, damaged or not finished
        for rank, setting, quality in rows:
            if setting not in best or rank > best[setting][0]:
                best[setting] = (rank, quality)
    return {setting: quality for setting, (_, quality) in best.items()}


def _summaries(folders: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise NybbleError(
                "there are no measurements here", seen=str(folder),
                allowed="a folder that nybble measure wrote, or one that holds such folders",
                hint="nybble measure MODEL",
            )  # fmt: skip
        names = [run / SUMMARY for run in run_folders(folder)[:MAX_RUNS]]
        found += [p for p in names if p.stat().st_size <= MAX_BYTES]
    return found


def _rows(
    run: Measurement, model: Identity, folder: Path
) -> Iterable[tuple[tuple[bool, int, int], str, Quality]]:
    models = {m.label: m for m in run.models}
    known = {model.architecture, *model.aliases}
    for row in run.rows:
        mean = row.metrics.get("mean_kld")
        if row.role != "candidate" or row.status != "done" or mean is None:
            continue
        if row.served is not None:
            continue  # a lower bound does not say that a setting is within a limit
        measured = models.get(row.model)
        # A model against another one's 16-bit cache says what the model costs, not its cache.
        if measured is None or row.reference != row.model or measured.architecture not in known:
            continue
        if not _sound(row):
            raise ValueError("a damaged row")
        same = model.file == measured.file and model.size_bytes == measured.size_bytes
        quality = Quality(
            mean_kld=mean, same_top=row.metrics.get("same_top"),
            verdict=row.verdict.label if row.verdict else "unresolved",
            model=measured.name, same_model=same, context=row.context, source=str(folder),
            simulated=row.simulated,
        )  # fmt: skip
        yield (same, row.n_documents, row.context), row.setting, quality


def _sound(row: Row) -> bool:
    """Whether a row that came from a file holds numbers and words where it should."""
    found = [e for e in (row.metrics["mean_kld"], row.metrics.get("same_top")) if e is not None]
    ends = [end for e in found for end in (e.value, e.low, e.high) if end is not None]
    numbers = [*(e.value for e in found), *ends, row.n_documents, row.context]
    return isinstance(row.setting, str) and all(isinstance(n, (int, float)) for n in numbers)
