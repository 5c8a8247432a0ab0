"""From finished cells to the rows of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from nybble.formats import KVSetting, parse
from nybble.results.records import Estimate, Row, Slice
from nybble.scoring.cells import Series, applies
from nybble.scoring.chunks import Chunk
from nybble.scoring.prepare import Sizes
from nybble.scoring.request import MeasureRequest
from nybble.scoring.run import Outcome, Runner
from nybble.scoring.statistics import Sample, ScoredChunk, metrics, open_metrics, slice_metrics
from nybble.scoring.verdict import Limit, judge, judge_between, order_warnings

POSITION_SLICES = 8


class Collector:
    """Builds rows from the cells in the store.

    Args:
        runner: reads cells.
        request: the measurement.
        sizes: bytes by model and setting.
        limits: thresholds of the verdict.
    """

    def __init__(
        self,
        runner: Runner,
        request: MeasureRequest,
        sizes: Sizes,
        limits: Mapping[str, Limit],
    ) -> None:
        self._runner, self._request = runner, request
        self._sizes, self._limits = sizes, limits
        self.warnings: list[str] = []

    def rows(self, series: Sequence[Series], chunks: Sequence[Chunk]) -> list[Row]:
        """One row per series at one context length, and warnings about their order."""
        found: list[Row] = []
        own: dict[KVSetting, Sample] = {}
        for s in series:
            row, sample = self._row(s, chunks)
            found.append(row)
            if sample is not None and s.role == "candidate" and s.lane.model == s.reference == "a":
                own[s.lane.setting] = sample
        self.warnings += order_warnings(own, len(chunks[0].tokens))
        self.warnings += _guard_warnings(found)
        return found

    def _row(self, series: Series, chunks: Sequence[Chunk]) -> tuple[Row, Sample | None]:
        context = len(chunks[0].tokens)
        outcome: Outcome = self._runner.outcome
        setting = series.lane.setting
        size = self._sizes[series.lane.model, setting]
        rotation_k, rotation_v = self._runner.rotation(series, chunks)
        base = Row(
            setting=str(setting), role=series.role, context=context,
            k_type=setting.k, v_type=setting.v,
            model=series.lane.model, reference=series.reference,
            rotation_k=rotation_k, rotation_v=rotation_v,
            bits=size.bits[context], bytes_per_token=size.per_token,
            cache_bytes=size.total[context],
            cache_bytes_at={str(c): b for c, b in sorted(size.total.items())},
            simulated=self._runner.simulated,
            part=series.part,
            served=self._runner.served(series, chunks),
        )  # fmt: skip
        scored = []
        for chunk in chunks:
            if not applies(series, chunk, chunks):
                continue
            rows = self._runner.rows(series, chunk)
            if rows is not None:
                scored.append(ScoredChunk(chunk.category, chunk.document, rows))
            elif (series, context) not in outcome.failed:
                self.warnings.append(
                    f"a finished cell of {setting} at context {context:,} is damaged and left "
                    "out; --fresh scores it again"
                )
        error = outcome.failed.get((series, context))
        if error or not scored:
            failure = error or "not one chunk was scored"
            return _replace(base, status="failed", error=failure), None
        sample = Sample(scored, self._request.seed)
        if not sample.n_tokens:
            failure = f"not one of {sample.n_nonfinite:,} tokens had finite logits"
            return _replace(base, status="failed", error=failure), None
        found = metrics(sample)
        judged = None
        own = series.role == "candidate" and series.lane.model == series.reference
        if base.served is not None:
            found, high = open_metrics(sample, found)
            judged = judge_between(found, high, self._limits) if own else None
        elif own:
            judged = judge(found, self._limits)
        row = _replace(
            base,
            n_documents=sample.n_documents,
            n_tokens=sample.n_tokens,
            n_nonfinite=sample.n_nonfinite,
            metrics=found,
            by_category=self._by_category(scored),
            by_position=self._by_position(scored),
            verdict=judged,
        )
        return row, sample

    def _by_category(self, scored: Sequence[ScoredChunk]) -> list[Slice]:
        names = list(dict.fromkeys(c.category for c in scored))
        slices = [self._slice(n, [c for c in scored if c.category == n]) for n in names]
        return [s for s in slices if s.n_tokens]

    def _by_position(self, scored: Sequence[ScoredChunk]) -> list[Slice]:
        positions = scored[0].rows["position"]
        low, high = int(positions.min()), int(positions.max()) + 1
        edges = np.linspace(low, high, min(POSITION_SLICES, high - low) + 1).round().astype(int)
        found = []
        for start, end in pairwise(edges.tolist()):
            part = [
                ScoredChunk(c.category, c.document, c.rows[
                    (c.rows["position"] >= start) & (c.rows["position"] < end)
                ])
                for c in scored
            ]  # fmt: skip
            found.append(self._slice(f"{start}-{end - 1}", part))
        return [s for s in found if s.n_tokens]

    def _slice(self, name: str, scored: Sequence[ScoredChunk]) -> Slice:
        sample = Sample(scored, self._request.seed)
        return Slice(name, sample.n_documents, sample.n_tokens, slice_metrics(sample))


def _replace(row: Row, **changes: object) -> Row:
    return Row(**{**vars(row), **changes})


def _guard_warnings(rows: Sequence[Row]) -> list[str]:
    """What the identity and floor rows say about how far the others can be trusted."""
    found: list[str] = []
    floors: dict[str, Estimate] = {
        r.model: r.metrics["mean_kld"] for r in rows if r.role == "floor" and r.metrics
    }
    for row in rows:
        if row.status == "failed":
            continue
        kld = row.metrics["mean_kld"].value
        if row.role == "identity" and row.metrics["max_kld"].value != 0:
            found.append(
                f"identity is not exact at context {row.context:,}: {row.setting.split('/')[0]} "
                f"against itself gives KLD up to {row.metrics['max_kld'].value:.2g}; "
                + ("the server is not deterministic, and this is the floor of all its rows"
                   if row.served else "this engine build is not deterministic")
            )  # fmt: skip
            if row.served:
                floors.setdefault(row.model, row.metrics["mean_kld"])
    for row in rows:
        if row.status == "failed":
            continue
        kld = row.metrics["mean_kld"].value
        floor = floors.get(row.model)
        quantized = row.role == "candidate" and parse(row.setting).quantized
        if quantized and floor is not None and kld < 2 * floor.value:
            found.append(
                f"{row.setting} at context {row.context:,} is within twice the noise floor "
                f"({kld:.2g} against {floor.value:.2g}): its own cost is not resolved"
            )
        if row.n_nonfinite:
            found.append(
                f"{row.setting} at context {row.context:,}: {row.n_nonfinite:,} tokens had "
                "non-finite logits and are left out"
            )
    return found
