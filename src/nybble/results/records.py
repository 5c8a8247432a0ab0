"""What a measurement leaves behind: plain, versioned records that anyone may read.

`SCHEMA_VERSION` changes when a field changes its meaning or goes; `METRICS_VERSION` when the
same rows would give another number. History of METRICS_VERSION: 1 first. A field that comes along
does not change it: what lacks the field is read with its default, and a reader that does not know
the field says so instead of dropping what it may mean.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

from nybble.errors import NybbleError

SCHEMA_VERSION = 1
METRICS_VERSION = 1


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval (None where there are too few documents for one)."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Slice:
    """A part of a row's tokens: a category, or a stretch of positions.

    Attributes:
        name: the category, or "from-to" in tokens of context.
        n_documents: documents in it.
        n_tokens: scored tokens in it.
        metrics: mean_kld, same_top and flips.
    """

    name: str
    n_documents: int
    n_tokens: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class Verdict:
    """safe, degraded, broken or unresolved; and which number decided."""

    label: str
    reason: str


@dataclass(frozen=True)
class Part:
    """What a row of role "part" quantizes alone, everything else in f16.

    Attributes:
        of: the setting it is a part of.
        layer: index of the layer.
        side: "K" or "V".
        head: KV head, or None for all of the layer.
    """

    of: str
    layer: int
    side: str
    head: int | None = None


@dataclass(frozen=True)
class Served:
    """How a row was scored through a server: from its top-k log-probabilities.

    KLD metrics of such a row are lower bounds of the full vocabulary's; the KV types are those
    asked for.

    Attributes:
        engine: for example "vllm".
        version: as the server tells it.
        top_k: most likely tokens compared at each position.
        read: how the cache was read, in words.
        reported: KV type that the server itself reports; empty where it reports none.
    """

    engine: str
    version: str
    top_k: int
    read: str
    reported: str = ""


@dataclass(frozen=True)
class Row:
    """One KV setting at one context length, compared with one reference.

    Attributes:
        setting: for example "q8_0/q4_0" or "q4_0/q4_0-norot".
        role: "candidate", "floor" (bf16 against f16), "identity" (f16 against itself),
            "cross" (16-bit cache of one model against 16-bit cache of the other) or "part" (one
            layer or head of a setting alone).
        model: which model's cache was read: "a", or "b" with --against.
        reference: whose 16-bit cache it is compared with: "a" or "b".
        context: tokens of context scored at.
        k_type: K type in effect, read back from the engine.
        v_type: V type in effect.
        rotation_k: width of the rotation of K in effect, 0 for none.
        rotation_v: the same for V.
        bits: stored bits an element, scales included.
        bytes_per_token: bytes one more token adds once sliding windows are full.
        cache_bytes: bytes of the cache at `context`, as the engine allocates it.
        cache_bytes_at: bytes at other contexts, by context.
        n_documents: documents scored (the sampling unit).
        n_tokens: tokens scored.
        n_nonfinite: tokens left out because logits were not finite.
        metrics: name -> Estimate; names and units in docs/method.md.
        by_category: slices by category.
        by_position: slices by position in the context.
        verdict: None for floor, identity and cross rows.
        status: "done" or "failed".
        error: why it failed.
        simulated: whether bytes were only simulated; False where they are really packed.
        part: which layer, side and head a row of role "part" is about.
        served: how it was scored through a server; None where logits of the full vocabulary were
            compared.
    """

    setting: str
    role: str
    context: int
    k_type: str
    v_type: str
    model: str = "a"
    reference: str = "a"
    rotation_k: int = 0
    rotation_v: int = 0
    bits: float = 0.0
    bytes_per_token: float = 0.0
    cache_bytes: int = 0
    cache_bytes_at: dict[str, int] = field(default_factory=dict)
    n_documents: int = 0
    n_tokens: int = 0
    n_nonfinite: int = 0
    metrics: dict[str, Estimate] = field(default_factory=dict)
    by_category: list[Slice] = field(default_factory=list)
    by_position: list[Slice] = field(default_factory=list)
    verdict: Verdict | None = None
    status: str = "done"
    error: str | None = None
    simulated: bool = False
    part: Part | None = None
    served: Served | None = None


@dataclass(frozen=True)
class ModelRecord:
    """The model that was measured.

    Attributes:
        label: "a", or "b" for the model given with --against.
        name: general.name of the file, or its file name.
        file: file name without folders.
        sha256: of the file as shipped.
        architecture: for example "gemma3".
        size_bytes: of the file as shipped.
        shipped_weights: type of most of its weights, for example "Q4_K".
        scored_weights: "f16 copy", "f32 copy" or "as shipped".
        context_length: longest context the model was trained for.
        sliding_window: tokens, or None.
        framing: "raw text" or "chat template", and why.
    """

    label: str
    name: str
    file: str
    sha256: str
    architecture: str
    size_bytes: int
    shipped_weights: str
    scored_weights: str
    context_length: int
    sliding_window: int | None
    framing: str


@dataclass(frozen=True)
class Measurement:
    """One command's result; `summary.json` is this record.

    Attributes:
        models: one model, or two with --against.
        rows: one per context, setting and reference.
        recommendation: one sentence.
        warnings: things a reader must know (unresolved intervals, order of types, ...).
        command: the command line that reproduces it.
        protocol: engine, via, score_from, contexts, documents, seed, draws, thresholds, text
            (categories with licences, or files) and the hash of the scored tokens.
        versions: nybble, xllamacpp, llama.cpp, NumPy, Python.
        hardware: cpu, cores, threads, memory and features.
        timing: seconds of decoding and comparing, and the share of the latter.
    """

    models: list[ModelRecord]
    rows: list[Row]
    recommendation: str
    warnings: list[str]
    command: str
    created: str
    protocol: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    timing: dict[str, float]
    schema_version: int = SCHEMA_VERSION
    metrics_version: int = METRICS_VERSION


def to_json(record: Measurement) -> str:
    """Canonical JSON: sorted keys, no NaN."""
    data = dataclasses.asdict(record)
    return json.dumps(data, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)


def from_json(text: str) -> Measurement:
    """Read a measurement back.

    Raises:
        NybbleError: not a measurement, or of a newer schema.
    """
    found = read_record(text, Measurement, SCHEMA_VERSION, "measurement")
    assert isinstance(found, Measurement)
    return found


def read_record(text: str, kind: type[Any], newest: int, name: str) -> Any:
    """Read a versioned record back.

    Args:
        text: JSON.
        kind: its dataclass.
        newest: schema version that this nybble writes.
        name: what it is called in errors.

    Raises:
        NybbleError: not such a record, of a newer schema, or with a field that came later.
    """
    try:
        data = json.loads(text)
        version = int(data["schema_version"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise NybbleError(f"not a nybble {name}", seen=str(error)) from error
    if version > newest:
        raise NybbleError(
            f"this {name} was written by a newer nybble",
            seen=f"schema {version}",
            allowed=f"schema {newest} or older",
            hint="pip install --upgrade nybble",
        )
    try:
        return _build(kind, data)
    except _UnknownFieldError as error:
        raise NybbleError(
            f"a nybble {name} with a field that this nybble does not know",
            seen=str(error),
            allowed="fields of this version; a newer one may have added it",
            hint="pip install --upgrade nybble",
        ) from error
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise NybbleError(f"a damaged nybble {name}", seen=str(error)) from error


class _UnknownFieldError(ValueError):
    """A field that a dataclass does not have."""


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """Types of a record's fields; asked for every row of every record."""
    return get_type_hints(kind)


def _build(kind: Any, data: Any) -> Any:
    """Rebuild nested dataclasses from plain JSON, by the fields' types."""
    if data is None:
        return None
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        hints = _hints(kind)
        unknown = sorted(data.keys() - hints.keys())
        if unknown:
            raise _UnknownFieldError(f"{unknown[0][:60]} in a {kind.__name__}")
        return kind(**{k: _build(hints[k], v) for k, v in data.items()})
    args = [a for a in get_args(kind) if a is not type(None)]
    if isinstance(data, list) and args:
        return [_build(args[0], v) for v in data]
    if isinstance(data, dict) and len(args) == 2:
        return {k: _build(args[1], v) for k, v in data.items()}
    if len(args) == 1:
        return _build(args[0], data)
    return data
