"""Proof that a hardened model is the same model, and better with a quantized cache."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nybble.errors import NybbleError
from nybble.formats import parse
from nybble.results.hardened import Gain
from nybble.results.records import Estimate, Measurement, Row
from nybble.scoring.measure import measure
from nybble.scoring.request import MeasureRequest, Progress

# 16-bit runs of the two files differ by rounding of scaled numbers alone, which is what the floor
# shows; both are means over few documents, so twice the floor still is the floor.
FLOORS = 2.0
# Below this a floor says nothing: an unquantized tiny model has none.
LEAST_FLOOR = 1e-6
# Most that a trained model's perplexity with a 16-bit cache may be above the original's.
MOST_TAX = 0.005
# What the keys of every layer alone are scored on: two lanes a layer, so one document has to do.
SPLIT_TEXT = "prose"


@dataclass(frozen=True)
class Verification:
    """What was measured; see `Hardened` for the fields."""

    drift: Estimate
    floor: Estimate
    ppl: tuple[float, float]
    gains: tuple[Gain, ...]
    measurement: Measurement
    split: Measurement | None = None


def verify(request: MeasureRequest, progress: Progress, *, trained: bool = False) -> Verification:
    """Measure the original (`model`) and the hardened model (`against`).

    Args:
        request: both models and the settings; with `by`, a passed verification is followed by
            the keys of every layer (or head) alone, in both models.
        progress: told how far it is.
        trained: the weights were trained, so the 16-bit output may move within `MOST_TAX`.

    Raises:
        NybbleError: the 16-bit output moved by more than that or the noise floor, or a setting
            did not improve.
    """
    out = Path(tempfile.mkdtemp(prefix="nybble-harden-"))
    try:
        whole = replace(request, by=None, out=out / "run")
        verification = summary(measure(whole, progress).measurement)
        _judge(verification, trained)
        if request.by is None:
            return verification
        split = _split(request, verification.gains, out / "split", progress, trained)
        return replace(verification, split=split)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _split(
    request: MeasureRequest, gains: Sequence[Gain], out: Path, progress: Progress, trained: bool
) -> Measurement | None:
    """The setting that hurt most; keys alone after a fold, which stores values as they were.

    It adds to a proof that stands, so where it cannot be had there is a note and no error.
    """
    worst = max(gains, key=lambda gain: gain.before.value).setting
    setting = parse(worst) if trained else parse(worst).halves()[0]
    apart = replace(
        request, settings=(setting,), categories=(SPLIT_TEXT,), documents=1, engine="transformers",
        weights="f16", out=out,
    )  # fmt: skip
    try:
        return measure(apart, progress).measurement
    except NybbleError as error:
        hint = f" ({error.hint})" if error.hint else ""
        progress.note(f"not compared layer by layer: {error.what}{hint}")
        return None


def summary(measurement: Measurement) -> Verification:
    """Before and after out of a measurement of two models.

    Raises:
        NybbleError: a row that is needed failed.
    """
    failed = [r for r in measurement.rows if r.status == "failed"]
    if failed:
        raise NybbleError(
            "the hardened model could not be measured, so it is not kept",
            seen=f"{failed[0].setting}: {failed[0].error}",
        )
    rows = {(r.setting, r.role, r.model, r.reference): r for r in measurement.rows}
    cross = rows["f16/f16", "cross", "b", "a"]
    floor = next(r for r in measurement.rows if r.role == "floor" and r.model == "a")
    gains = []
    for (setting, role, model, reference), row in rows.items():
        if role == "candidate" and (model, reference) == ("a", "a"):
            after = rows[setting, "candidate", "b", "a"]
            gains.append(_gain(setting, row, after))
    ppl = (cross.metrics["ppl_ref"].value, cross.metrics["ppl"].value)
    kld = "mean_kld"
    return Verification(cross.metrics[kld], floor.metrics[kld], ppl, tuple(gains), measurement)


def _gain(setting: str, before: Row, after: Row) -> Gain:
    return Gain(setting, before.metrics["mean_kld"], after.metrics["mean_kld"])


def _judge(found: Verification, trained: bool) -> None:
    if trained:
        _judge_tax(*found.ppl)
    else:
        _judge_drift(found)
    worse = [g for g in found.gains if g.factor <= 1.0]
    if worse:
        raise NybbleError(
            f"{'training' if trained else 'the fold'} does not help this model, so it is not kept",
            seen=", ".join(f"{g.setting}: {g.before.value:.3g} before, {g.after.value:.3g} after"
                           for g in worse),
            allowed="a lower mean KLD on held-out text with every setting",
            hint=f"{'--steps, ' if trained else 'nybble harden --train, or '}--kv with the "
            "settings you mean to use",
        )  # fmt: skip


def _judge_drift(found: Verification) -> None:
    allowed = max(FLOORS * max(found.floor.value, found.floor.high or 0.0), LEAST_FLOOR)
    if found.drift.value > allowed:
        raise NybbleError(
            "the hardened model is not the same model, so it is not kept",
            seen=f"mean KLD {found.drift.value:.2g} between the two with 16-bit caches",
            allowed=f"up to {allowed:.2g}, twice the noise floor",
            hint="report this model; nothing was written",
        )


def _judge_tax(before: float, after: float) -> None:
    if not after <= before * (1 + MOST_TAX):
        raise NybbleError(
            "training made the model itself worse, so it is not kept",
            seen=f"perplexity {before:.4f} before and {after:.4f} after, with 16-bit caches",
            allowed=f"up to {MOST_TAX:.1%} more",
            hint="--restart with a smaller --lr, or with f16 among --kv, so it is trained to stay",
        )
