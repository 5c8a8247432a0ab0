"""What the outputs ask of a `Measurement`: groups of rows, thresholds, colours and notes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nybble.report import format as fmt
from nybble.results.records import Estimate, Measurement, Row, Slice

FEW_DOCUMENTS = 5  # below this many there is no interval; scoring decides, the report explains
MANY = 10  # with more settings than this, pictures name the Pareto front and dim the rest
VERDICTS = ("safe", "degraded", "broken", "unresolved")


@dataclass(frozen=True)
class Group:
    """The rows of one model at one context, each against that model's own 16-bit cache.

    Attributes:
        model: "a" or "b".
        context: tokens.
        title: what sets the group apart from the others; empty when it is the only one.
        candidates: done ones, most bits first, then least drift; failed ones last.
        references: noise floor, then identity.
    """

    model: str
    context: int
    title: str
    candidates: tuple[Row, ...]
    references: tuple[Row, ...]

    @property
    def done(self) -> tuple[Row, ...]:
        """Candidates with numbers."""
        return tuple(r for r in self.candidates if "mean_kld" in r.metrics)

    @property
    def floor(self) -> Estimate | None:
        """Mean KLD of the noise floor."""
        rows = (r for r in self.references if r.role == "floor")
        return next((r.metrics["mean_kld"] for r in rows if "mean_kld" in r.metrics), None)


@dataclass(frozen=True)
class Limits:
    """Thresholds of one metric: safe up to one value, broken from the other."""

    safe: float
    broken: float


def own(m: Measurement, model: str, context: int) -> list[Row]:
    """The rows of one model at one context that are compared with its own 16-bit cache."""
    return [r for r in m.rows if (r.model, r.reference, r.context) == (model, model, context)]


def groups(m: Measurement) -> list[Group]:
    """Rows by model and context, in the order of the models, then from short to long."""
    known = [r for r in m.rows if r.model == r.reference]
    labels = list(dict.fromkeys([x.label for x in m.models] + [r.model for r in known]))
    contexts = sorted({r.context for r in known})
    pairs = [(a, c) for a in labels for c in contexts]
    pairs = [p for p in pairs if any((r.model, r.context) == p for r in known)]
    found = []
    for label, context in pairs:
        rows = own(m, label, context)
        parts = [f"model {label}"] if len({p[0] for p in pairs}) > 1 else []
        parts += [f"context {fmt.count(context)}"] if len(contexts) > 1 else []
        found.append(
            Group(
                label,
                context,
                ", ".join(parts),
                tuple(sorted((r for r in rows if r.role == "candidate"), key=_order)),
                tuple(r for role in ("floor", "identity") for r in rows if r.role == role),
            )
        )
    return found


def colours(m: Measurement) -> dict[str, int]:
    """A number for each setting, the same in every picture; named ones come first."""
    rows = [r for g in groups(m) for r in g.done]
    first = {s for g in groups(m) for s in named(g)}
    rows.sort(key=lambda r: (r.setting not in first, *_order(r)))
    return {s: i for i, s in enumerate(dict.fromkeys(r.setting for r in rows))}


def limits(m: Measurement, metric: str) -> Limits | None:
    """The thresholds of a metric, when the protocol states both."""
    table = m.protocol.get("thresholds")
    found = table.get(metric) if isinstance(table, dict) else None
    if not isinstance(found, dict):
        return None
    safe, broken = found.get("safe"), found.get("broken")
    if isinstance(safe, (int, float)) and isinstance(broken, (int, float)):
        return Limits(float(safe), float(broken))
    return None


def names(m: Measurement, limit: int = 60) -> str:
    """Name of the model, or of both."""
    return " against ".join(fmt.clean(x.name, limit) for x in m.models) or "unnamed model"


def model_name(m: Measurement, label: str, limit: int = 60) -> str:
    """Name of the model with this label."""
    return next((fmt.clean(x.name, limit) for x in m.models if x.label == label), label)


def has_intervals(m: Measurement) -> bool:
    """Whether any row carries an interval."""
    found = (e for r in m.rows for e in r.metrics.values())
    return any(e.low is not None and e.high is not None for e in found)


def documents(m: Measurement) -> int:
    """Most documents that any row was scored on."""
    return max((r.n_documents for r in m.rows), default=0)


def middle(part: Slice) -> float | None:
    """Middle of a stretch of positions, from its name `from-to`."""
    first, _, last = part.name.partition("-")
    try:
        return (int(first) + int(last)) / 2
    except ValueError:
        return None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both numbers (less is better), by x."""
    best, front = float("inf"), []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < best:
            best = points[i][1]
            front.append(i)
    return front


def named(group: Group, x: Callable[[Row], float] = lambda row: row.bits) -> set[str]:
    """The settings that pictures name: all of a few, the Pareto front of many.

    Args:
        group: settings of one model at one context.
        x: what a setting takes; its mean KLD is the other number.
    """
    if len(group.done) <= MANY:
        return {r.setting for r in group.done}
    front = pareto([(x(r), r.metrics["mean_kld"].value) for r in group.done])
    return {group.done[i].setting for i in front}


def simulated(m: Measurement) -> bool:
    """Whether every number comes from caches that no engine packed."""
    return bool(m.protocol.get("simulated"))


def notes(m: Measurement) -> list[str]:
    """What a reader of the table must know: intervals, simulated bytes, dropped tokens."""
    found = []
    n = documents(m)
    if has_intervals(m):
        floor = max((r.n_documents for r in m.rows if r.role == "floor"), default=n)
        less = f" ({floor} for the noise floor)" if floor != n else ""
        found.append(
            f"[low, high]: 95 % bootstrap interval over {fmt.plural(n, 'document')}{less}."
        )
    elif n < FEW_DOCUMENTS:
        found.append(f"No intervals: fewer than {FEW_DOCUMENTS} documents ({n}).")
    else:
        found.append("No intervals were computed.")
    if any(r.simulated for r in m.rows):
        found.append(_simulated_note(m))
    found += _served_notes(m)
    for row in m.rows:
        if row.n_nonfinite:
            found.append(
                f"{fmt.setting(row.setting)} at {fmt.count(row.context)}: "
                f"{fmt.plural(row.n_nonfinite, 'token')} left out, logits not finite."
            )
    return found


def failures(m: Measurement, limit: int = 90) -> list[tuple[Row, str]]:
    """Failed rows with their error in short; failed parts are told where the others are."""
    return [(r, short_error(r, limit)) for r in m.rows if r.status == "failed" and r.role != "part"]


def short_error(row: Row, limit: int = 90) -> str:
    """First line of a row's error."""
    lines = (row.error or "").strip().splitlines()
    return fmt.clean(lines[0], limit) if lines else "no reason recorded"


def _simulated_note(m: Measurement) -> str:
    if m.protocol.get("engine") != "transformers":
        return "* bytes are simulated: the engine did not store packed values."
    window = m.protocol.get("sliding_cache") == "one window"
    sizes = ", sliding layers with one window each" if window else ""
    return (
        "* simulated: K and V went through the type's real bytes and back inside the model; no "
        f"engine's packed cache was used. Cache sizes are what the type's bytes come to{sizes}."
    )


def _served_notes(m: Measurement) -> list[str]:
    """That KLDs are lower bounds, how the cache was read, and what is left open."""
    served = dict.fromkeys(r.served for r in m.rows if r.served and r.metrics)
    found = [
        f"† top-k, lower bound: the top {s.top_k:,} tokens as {fmt.clean(s.engine, 40)} "
        f"{fmt.clean(s.version, 40)} tells them over HTTP; read by {fmt.clean(s.read, 120)}."
        for s in served
    ]
    for row in m.rows:
        high, tail = row.metrics.get("mean_kld_high"), row.metrics.get("tail_mass")
        if row.role == "candidate" and high is not None and tail is not None:
            found.append(
                f"{fmt.setting(row.setting)} at {fmt.count(row.context)}: mean KLD from "
                f"{fmt.kld(row.metrics['mean_kld'].value)} to {fmt.kld(high.value)} if no other "
                f"token lost more than the worst compared one; {fmt.percent(tail.value)} of the "
                "reference's probability was compared as a lump."
            )
    return found


def _order(row: Row) -> tuple[bool, float, float, str]:
    found = row.metrics.get("mean_kld")
    return (found is None, -row.bits, found.value if found else 0.0, row.setting)
