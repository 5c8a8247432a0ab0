"""This machine's own rates: measured with llama.cpp, kept in a small JSON file, read back.

Rates belong to a machine, so one calibration serves every model planned on it; what it was
measured on is one of its assumptions, and so in every plan that rests on it.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nybble.engines.llamacpp.model import UBATCH
from nybble.engines.llamacpp.speed import DepthSpeed, SpeedRun, measure_speed
from nybble.environment import hardware, usable_cpus
from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting, parse
from nybble.models.found import find
from nybble.models.geometry import Geometry
from nybble.planning.assumptions import Assumption
from nybble.planning.calibration import Calibration, Decoded, Prefilled, calibrate
from nybble.planning.interval import Interval
from nybble.planning.request import PlanRequest
from nybble.planning.roofline import Experts, experts_of, weights_of

SCHEMA_VERSION = 1
MEASURED_ON = "rates were measured on one model and are taken for every model of this machine"
_SPREAD = "how far steps of the calibration lay apart (half the distance of the quartiles)"
_KIND = "nybble calibration"
_MAX_BYTES = 1 << 20  # real ones are under 4 kB
_SHORT, _LONG = 512, 4096  # depths where no window says otherwise
_LEAST_PROMPT = 32  # tokens of a micro-batch from which on it counts as prefill
_SAME_MEMORY = 0.05  # share by which kernels of one machine report its memory differently
_AGAIN = "nybble plan --calibrate measures again"


def calibrate_here(
    path: Path,
    geometry: Geometry,
    setting: KVSetting,
    *,
    experts: Experts | None = None,
    threads: int | None = None,
    seconds: float = 60.0,
    progress: Callable[[str, float], None] | None = None,
) -> Calibration:
    """Run llama.cpp on this machine and turn its speeds into rates.

    Args:
        path: a GGUF.
        geometry: of the same file, weights included.
        setting: of the cache.
        experts: of a mixture.
        threads: CPU threads; None for all cores this process may use.
        seconds: bound on the measurement, loading not counted.
        progress: told what is going on, and the share of it that is done.

    Raises:
        EngineError: llama.cpp refused, died or hung.
        NybbleError: no weights, a number not above 0, or a setting that llama.cpp lacks.
    """
    weights_of(geometry)  # before minutes are spent
    run = measure_speed(
        path,
        setting,
        depths_for(geometry),
        threads=usable_cpus() if threads is None else threads,
        seconds=seconds,
        progress=progress,
    )
    return from_run(run, geometry, setting, experts=experts)


def calibrate_model(
    request: PlanRequest, tell: Callable[[str], None] | None = None, seconds: float = 60.0
) -> Calibration:
    """Calibrate with the model of a request and its first KV setting that llama.cpp has.

    Args:
        request: names a GGUF on this machine.
        tell: told what is going on, when that changes.
        seconds: bound on the measurement.

    Raises:
        EngineError: llama.cpp refused, died or hung.
        NybbleError: the model is no GGUF on this machine.
    """
    found = find(request.model, request.file)
    if found.path is None or found.kind != "gguf":
        raise NybbleError("a calibration runs llama.cpp on a GGUF of this machine",
                          seen=request.model, allowed="the path of a GGUF",
                          hint="nybble plan model.gguf --calibrate")  # fmt: skip
    setting = next((s for s in request.settings if s.llamacpp), parse("f16/f16"))
    last: list[str] = []

    def progress(text: str, _: float) -> None:
        if tell is not None and last != [text]:
            last[:] = [text]
            tell(text)

    return calibrate_here(
        found.path, found.geometry, setting, experts=experts_of(found.geometry), seconds=seconds,
        progress=progress,
    )  # fmt: skip


def depths_for(geometry: Geometry) -> tuple[int, int]:
    """Depths between which the cache that a step reads grows by the global layers alone.

    Sliding layers are to be full at both, with the micro-batch that llama.cpp adds to their
    window; where the window is too long for that, full at neither.
    """
    window = max((layer.window or 0 for layer in geometry.layers), default=0)
    if not window or window >= _LONG:
        return _SHORT, _LONG
    short = window + UBATCH
    return short, max(_LONG, 2 * short)


def from_run(
    run: SpeedRun, geometry: Geometry, setting: KVSetting, *, experts: Experts | None = None
) -> Calibration:
    """Rates from a run of the engine; weights' and cache's are widened by the spread of its steps.

    Raises:
        NybbleError: no weights.
    """
    threads = f"{run.threads} thread{'s' if run.threads > 1 else ''}"
    source = f"{run.engine} on this machine, {threads}, {datetime.date.today().isoformat()}"
    found = calibrate(
        geometry,
        setting,
        [Decoded(d.context, d.tokens_per_second) for d in run.depths],
        [p for d in run.depths for p in _prefilled(d)],
        source=source,
        experts=experts,
    )
    spread = max(d.spread for d in run.depths)
    weights = weights_of(geometry)
    bits = 8 * weights.n_bytes / max(weights.n_params, 1)
    depths = " and ".join(f"{d.context:,}" for d in run.depths)
    model = f"{geometry.name} ({bits:.2g} bits a weight), {run.setting}, {depths} tokens deep"
    rates, others = found.assumptions[:2], found.assumptions[2:]  # of weights and cache; the rest
    wide = [
        replace(one, value=_widened(one.value, spread)) if isinstance(one.value, Interval) else one
        for one in rates
    ]
    return replace(
        found,
        weights=_widened(found.weights, spread),
        cache=_widened(found.cache, spread),
        assumptions=(
            *wide,
            *others,
            Assumption(_SPREAD, spread, "", source),
            Assumption(MEASURED_ON, model, "", source),
        ),
    )


def _prefilled(depth: DepthSpeed) -> list[Prefilled]:
    """One run for each whole micro-batch: what lies between the first and the deepest is seen."""
    return [
        Prefilled(p.tokens, p.tokens / p.seconds, p.depth, micro_batch=p.tokens)
        for p in depth.full
        if p.tokens >= _LEAST_PROMPT
    ]


def _widened(value: Interval, share: float) -> Interval:
    return Interval(value.low / (1 + share), value.high * (1 + share))


def measured_on(calibration: Calibration) -> str | None:
    """The model and setting a calibration was measured on; None where it does not say."""
    found = [a.value for a in calibration.assumptions if a.name == MEASURED_ON]
    return str(found[0]) if found else None


def save(calibration: Calibration, path: Path) -> Path:
    """Keep a calibration for later plans on this machine; written whole or not at all.

    Returns:
        `path`.

    Raises:
        NybbleError: the file cannot be written.
    """
    c = calibration
    record = {
        "kind": _KIND,
        "schema_version": SCHEMA_VERSION,
        "machine": hardware(),
        "model": measured_on(c),
        "setting": c.setting,
        "source": c.source,
        "weights": _plain(c.weights),
        "cache": _plain(c.cache),
        "prefill": None if c.prefill is None else _plain(c.prefill),
        "assumptions": [
            {"name": a.name, "value": _plain(a.value), "unit": a.unit, "source": a.source}
            for a in c.assumptions
        ],
    }
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise NybbleError(
            "cannot write the calibration", seen=error, hint="a folder where you may write"
        ) from error
    return path


def load(path: Path) -> Calibration:
    """Read what `save` wrote on this machine.

    Raises:
        NybbleError: no such file, a damaged one, one of another schema, or of another machine.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise NybbleError("cannot read the calibration", seen=error, hint=_AGAIN) from error
    try:
        data = json.loads(raw) if len(raw) <= _MAX_BYTES else None
        if not isinstance(data, dict) or data.get("kind") != _KIND:
            raise ValueError("not a calibration")
        version = data["schema_version"]
        if version == SCHEMA_VERSION:
            found, machine = _calibration(data), dict(data["machine"])
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError, NybbleError) as error:
        raise NybbleError(
            "the calibration is damaged",
            seen=f"{path}: {type(error).__name__}: {str(error)[:80]}",
            allowed="a file that nybble wrote",
            hint=_AGAIN,
        ) from error
    if version != SCHEMA_VERSION:
        raise NybbleError(
            "the calibration was written by another version of nybble",
            seen=f"{path}: schema {str(version)[:40]}",
            allowed=f"schema {SCHEMA_VERSION}",
            hint=_AGAIN,
        )
    here = hardware()
    if not _same(machine, here):
        raise NybbleError(
            "the calibration is of another machine",
            seen=f"{path}: {_show(machine)}",
            allowed=_show(here),
            hint=_AGAIN,
        )
    return found


def _calibration(data: dict[str, Any]) -> Calibration:
    prefill = data["prefill"]
    return Calibration(
        weights=_rate(data["weights"]),
        cache=_rate(data["cache"]),
        prefill=None if prefill is None else _rate(prefill),
        setting=str(parse(_text(data["setting"]))),
        source=_text(data["source"]),
        assumptions=tuple(
            Assumption(
                _text(a["name"]), _value(a["value"]), _text(a["unit"]), _text(a["source"])
            )
            for a in data["assumptions"]
        ),
    )  # fmt: skip


def _plain(value: float | str | Interval) -> float | str | list[float]:
    return [value.low, value.high] if isinstance(value, Interval) else value


def _value(data: object) -> float | str | Interval:
    if isinstance(data, str):
        return data
    return _interval(data) if isinstance(data, list) else _number(data)


def _interval(data: object) -> Interval:
    if not isinstance(data, list) or len(data) != 2:
        raise ValueError("an interval has two ends")
    return Interval(_number(data[0]), _number(data[1]))


def _rate(data: object) -> Interval:
    found = _interval(data)
    if found.low <= 0:
        raise ValueError("a rate is above 0")
    return found


def _number(data: object) -> float:
    if isinstance(data, bool) or not isinstance(data, (int, float)) or not math.isfinite(data):
        raise ValueError("not a finite number")
    return data


def _text(data: object) -> str:
    if not isinstance(data, str):
        raise ValueError("not a text")
    return data


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two descriptions are of one machine; its kernel may have changed."""
    if any(one.get(k) != other.get(k) for k in ("cpu", "machine", "cores")):
        return False
    a, b = one.get("memory_gib"), other.get("memory_gib")
    if not isinstance(a, (int, float)) or not isinstance(b, (int, float)):
        return a == b
    return abs(a - b) <= _SAME_MEMORY * max(a, b)


def _show(machine: dict[str, Any]) -> str:
    parts = (machine.get(k, "?") for k in ("cpu", "machine", "cores", "memory_gib"))
    cpu, kind, cores, memory = (str(p)[:60] for p in parts)
    return f"{cpu}, {kind}, {cores} cores, {memory} GiB"
