"""Numbers that other tools measured, kept apart from nybble's by the harness that made them."""

from __future__ import annotations

from dataclasses import dataclass

EXTERNAL_SCHEMA_VERSION = 1
FOLDER = "imported"  # of a base, where imports are kept


@dataclass(frozen=True)
class External:
    """One number of another harness.

    Attributes:
        model: as the source names it.
        setting: KV setting as nybble writes it; empty where the source does not tell.
        metric: as the harness names it, for example "mean_kld", "acc_norm".
        value: the number, in the harness's unit.
        stderr: its standard error, None where it states none.
        task: what was run: a task's name, a text file; empty where not told.
        context: tokens of context, None where not told.
        n: samples or chunks behind it, None where not told.
        higher_is_better: None where the harness does not say.
        note: what a reader must know, for example a page or a table's number.
    """

    model: str
    setting: str
    metric: str
    value: float
    stderr: float | None = None
    task: str = ""
    context: int | None = None
    n: int | None = None
    higher_is_better: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Imported:
    """One imported file; `imported/<harness>-<key>.json` of a base is this record.

    Attributes:
        harness: "llama-perplexity", "lm-eval", or the name given to a published table. Numbers of
            different harnesses never share a column.
        harness_version: as the source tells it, else empty.
        source: name of the file, or the address given for it.
        sha256: of the file's bytes.
        rows: its numbers.
        created: when it was imported.
    """

    harness: str
    harness_version: str
    source: str
    sha256: str
    rows: list[External]
    created: str
    schema_version: int = EXTERNAL_SCHEMA_VERSION
