"""Published tables typed into CSV, a row a setting (wide) or a row a number (long).

A header names the columns: `model`; `kv`, or `k` and `v`; then either metrics with
`<metric>_stderr` beside them where stated, or `metric`, `value` and `stderr`. Cells that are empty
were not published. Values are kept in the unit of the source.
"""

from __future__ import annotations

import csv
import io
import re

from nybble.errors import NybbleError, unknown
from nybble.results.base.external import External
from nybble.results.importers.source import MAX_ROWS, Found, Given, Source, number

name = "csv"
about = "a published table in CSV, with --harness NAME and --source URL"
ABOUT_ROW = ("model", "kv", "k", "v", "task", "context", "n", "note")
LONG = ("metric", "value", "stderr", "higher_is_better")
_UP = ("same_top", "acc", "acc_norm", "exact_match", "pass@1", "f1")
_DOWN = (
    "mean_kld", "median_kld", "p95_kld", "p99_kld", "p999_kld", "max_kld", "flips", "rms_dp", "ppl",
    "ppl_ratio", "ppl_diff", "nll_diff", "word_perplexity", "bits_per_byte",
)  # fmt: skip
METRICS = {**dict.fromkeys(_DOWN, False), **dict.fromkeys(_UP, True)}
_FOREIGN = re.compile(r"[a-z0-9_]{2,40}/[a-z0-9_]{2,40}")  # K/V in full
_YES = {"true": True, "yes": True, "false": False, "no": False, "": None}


def knows(source: Source) -> bool:
    """Whether the first line is a header with a model or metric column."""
    header = next((line for line in source.text.splitlines() if line.strip()), "")
    names = {part.strip().strip('"').lower() for part in header[:10_000].split(",")}
    return len(names) > 1 and bool(names & {"model", "metric", "kv", "value"})


def read(source: Source, given: Given) -> Found:
    """Every number of the table.

    Raises:
        NybbleError: no --harness or --source, an unknown or missing column, or a cell that is no
            number; each with its line.
    """
    if not given.harness or not given.address:
        raise NybbleError("a table needs the harness that measured it and where it was published",
                          seen=source.path, hint="--harness NAME --source URL")  # fmt: skip
    rows = csv.reader(io.StringIO(source.text, newline=""), strict=True)
    found = Found()
    try:
        header = [h.strip().lower() for h in next((r for r in rows if any(r)), [])]
        _check_header(header, source, given)
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{source.path}, line {rows.line_num}"
            if len(cells) != len(header):
                raise NybbleError("a line has more or fewer cells than the header",
                                  seen=f"{where}: {len(cells)}",
                                  allowed=str(len(header)))  # fmt: skip
            row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
            found.rows += _row(row, where, given)
            if len(found.rows) > MAX_ROWS:
                raise NybbleError("too many numbers in one table", seen=source.path,
                                  allowed=f"{MAX_ROWS:,}")  # fmt: skip
    except csv.Error as error:
        raise NybbleError(
            "not a CSV file", seen=f"{source.path}, line {rows.line_num}: {error}",
            allowed="commas, and double quotes around cells with commas",
        ) from error  # fmt: skip
    if not found.rows:
        raise NybbleError("the table has no numbers", seen=source.path, allowed=about)
    return found


def _check_header(header: list[str], source: Source, given: Given) -> None:
    long = "metric" in header or "value" in header
    stderrs = tuple(f"{m}_stderr" for m in METRICS)
    known = (*ABOUT_ROW, *(LONG if long else (*METRICS, *stderrs)))
    shown = (*ABOUT_ROW, *(LONG if long else (*METRICS, "and each with _stderr")))
    for column in header:
        if column not in known:
            raise unknown(
                "unknown column in the table", column, known,
                seen=f"{column[:60]!r} in {source.path}", allowed=shown,
                hint="any metric fits the long form: model,kv,metric,value,stderr",
            )  # fmt: skip
    twice = {c for c in header if header.count(c) > 1}
    if twice:
        raise NybbleError("a column is there twice", seen=f"{sorted(twice)[0]} in {source.path}")
    needed = {"metric", "value"} if long else set()
    needed |= set() if given.model else {"model"}
    if "kv" not in header and ("k" in header or "v" in header):
        needed |= {"k", "v"}
    missing = sorted(needed - set(header))
    if missing:
        raise NybbleError("a column is missing", seen=f"{source.path}: {', '.join(header)[:200]}",
                          allowed=f"with {', '.join(missing)}")  # fmt: skip
    if not long and not set(header) & set(METRICS):
        raise NybbleError("the table has no metric", seen=source.path, allowed=tuple(METRICS))


def _row(row: dict[str, str], where: str, given: Given) -> list[External]:
    if row.get("k") or row.get("v"):
        kv = f"{row.get('k', '')}/{row.get('v', '')}"
    else:
        kv = row.get("kv", "")
    foreign = ""
    try:
        setting = given.setting or (given.read_setting(kv) if kv else "")
    except NybbleError as error:
        if not _FOREIGN.fullmatch(kv):
            raise NybbleError(error.what, seen=f"{error.seen or kv} in {where}",
                              allowed=error.allowed, hint=error.hint) from error  # fmt: skip
        setting, foreign = kv, "a KV type that nybble does not know"  # a fork's, or misspelt
    model = given.model or row["model"]
    if not model:
        raise NybbleError("a line without a model", seen=where, hint="--model NAME")
    note = "; ".join(filter(None, [row.get("note", ""), foreign]))
    numbers: list[tuple[str, str, str, bool | None]]
    if "metric" in row:
        up = row.get("higher_is_better", "").lower()
        if up not in _YES:
            raise NybbleError("higher_is_better is yes or no", seen=f"{up[:40]} in {where}",
                              allowed="true, false, or empty")  # fmt: skip
        numbers = [(row["metric"], row["value"], row.get("stderr", ""), _YES[up])]
    else:
        numbers = [(m, row[m], row.get(f"{m}_stderr", ""), METRICS[m]) for m in METRICS if m in row]
    found: list[External] = []
    for metric, value, stderr, better in numbers:
        if not value and not stderr:
            continue
        if not metric:
            raise NybbleError("a value without the name of its metric", seen=where)
        found.append(
            External(
                model=model, setting=setting, metric=metric,
                value=_number(value, metric, where),
                stderr=_number(stderr, f"{metric}'s standard error", where) if stderr else None,
                task=row.get("task", ""), context=given.context or _whole(row, "context", where),
                n=_whole(row, "n", where), higher_is_better=better, note=note,
            )
        )  # fmt: skip
    return found


def _number(text: str, what: str, where: str) -> float:
    value = number(text)
    if value is None:
        raise NybbleError(
            f"{what[:60]} is not a finite number", seen=f"{text[:40]!r} in {where}",
            allowed="a number with a point; no unit, no %, no commas",
        )  # fmt: skip
    return value


def _whole(row: dict[str, str], column: str, where: str) -> int | None:
    text = row.get(column, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) == 0:
        raise NybbleError(f"{column} is not a whole number", seen=f"{text[:40]!r} in {where}",
                          allowed="digits only, above 0")  # fmt: skip
    return int(text)
