"""Whether the numbers and words of a measurement can be what they claim to be."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator

from nybble.results.records import Estimate, Measurement, Row
from nybble.results.validate.check import Check, verdict
from nybble.results.validate.guards import label

_SKEW = datetime.timedelta(days=1)  # clocks may be out of step, and zones mistaken
_SHARES = ("same_top", "flips", "tail_mass", "rms_dp")
_HOMES = re.compile(r"/home/[^/\s\"']+|/Users/[^/\s\"']+|/root/|[A-Za-z]:\\+Users\\+[^\\\s\"']+")
_HEX = re.compile(r"[0-9a-f]{64}")


def estimates(record: Measurement) -> Iterator[tuple[str, str, Estimate]]:
    """Every number with an interval: its row, its name, itself."""
    for row in record.rows:
        at = label(row)
        for name, value in row.metrics.items():
            yield at, name, value
        for part in (*row.by_category, *row.by_position):
            for name, value in part.metrics.items():
                yield f"{at}, {part.name[:40]}", name, value


def finite(record: Measurement) -> Check:
    """No NaN, no infinity."""
    wrong = [
        f"{at}: {name}" for at, name, e in estimates(record)
        if not all(x is None or math.isfinite(x) for x in (e.value, e.low, e.high))
    ]  # fmt: skip
    for row in record.rows:
        if not all(math.isfinite(x) for x in (row.bits, row.bytes_per_token)):
            wrong.append(f"{label(row)}: bits or bytes")
    return verdict("numbers are finite", wrong)


def intervals(record: Measurement) -> Check:
    """Both ends or none, and the value between them.

    A bootstrap interval of few documents need not hold the value of a skewed statistic to the
    last digit, hence the rounding.
    """
    wrong = []
    for at, name, e in estimates(record):
        if (e.low is None) != (e.high is None):
            wrong.append(f"{at}: {name} has one end only")
        elif e.low is not None and e.high is not None:
            slack = 1e-9 * max(abs(e.low), abs(e.high))
            if not e.low - slack <= e.value <= e.high + slack:
                wrong.append(f"{at}: {name} {e.value:.3g} outside {e.low:.3g} to {e.high:.3g}")
    return verdict("values lie in their intervals", wrong)


def ranges(record: Measurement) -> Check:
    """Shares from 0 to 1, KLD from 0, bits up to 32, contexts up to the model's."""
    wrong = []
    for at, name, e in estimates(record):
        if name in _SHARES and not 0 <= e.value <= 1:
            wrong.append(f"{at}: {name} {e.value:.3g}, from 0 to 1")
        elif (name.endswith("kld") or name.startswith("ppl")) and not e.value >= 0:
            wrong.append(f"{at}: {name} {e.value:.3g}, from 0")
    longest = {m.label: m.context_length for m in record.models}
    for row in record.rows:
        wrong += _row_ranges(row, longest)
    return verdict("plausible ranges", wrong)


def _row_ranges(row: Row, longest: dict[str, int]) -> Iterator[str]:
    if row.model not in longest or row.reference not in longest:
        yield f"{label(row)}: a model that the record does not have"
        return
    most = longest[row.model]
    if not 0 < row.context <= (most or row.context):
        yield f"{label(row)}: the model has {most:,} tokens"
    if row.status == "done" and not 0 < row.bits <= 32:
        yield f"{label(row)}: {row.bits:g} bits"
    if row.status == "done" and not (row.n_tokens > 0 and row.n_documents > 0):
        yield f"{label(row)}: {row.n_tokens} tokens of {row.n_documents} documents"
    if row.cache_bytes < 0 or row.bytes_per_token < 0 or row.n_nonfinite < 0:
        yield f"{label(row)}: a count below 0"


def created(record: Measurement, now: datetime.datetime) -> Check:
    """When it was made: a time, and not tomorrow's."""
    name = "made before now"
    if not record.created:
        return Check(name, "skipped", "no time: merged by a sweep")
    try:
        when = datetime.datetime.fromisoformat(record.created)
    except ValueError:
        return Check(name, "fail", f"not a time: {record.created[:40]}")
    when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
    if when > now + _SKEW:
        return Check(name, "warn", f"{record.created} is to come; is the clock right?")
    return Check(name, "pass", record.created)


def hashes(record: Measurement) -> Check:
    """Models and scored text are named by a SHA-256."""
    wrong = [f"model {m.label}: {m.sha256[:70]!r}" for m in record.models
             if not _HEX.fullmatch(m.sha256)]  # fmt: skip
    text = record.protocol.get("text_sha256", "")
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        wrong.append(f"scored text: {str(text)[:70]!r}")
    return verdict("hashes of model and text", wrong)


def command(record: Measurement) -> Check:
    """The command line that makes it again."""
    wrong = [] if record.command.strip() else ["no command"]
    return verdict("command to make it again", wrong, record.command[:80])


def privacy(text: str) -> Check:
    """No folder of somebody's home is told."""
    found = sorted(set(_HOMES.findall(text)))
    problems = [f"{home[:60]} is in the record" for home in found]
    return verdict("no home folders told", problems, bad="warn")
