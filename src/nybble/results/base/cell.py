"""One row of one measurement with what its run says of it: what queries, gates and pages read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nybble.results.records import Estimate, Measurement, Row

HARNESS = "nybble"


@dataclass(frozen=True)
class Cell:
    """A KV setting of a model at a context length, as one measurement found it.

    Attributes:
        run: its run folder, relative to the base ("." for the base itself).
        model: name of the model.
        file: its file name.
        sha256: of its weights as shipped.
        architecture: for example "gemma3".
        size_bytes: of the file.
        weights: type of most of its weights as shipped, for example "Q4_K_M".
        scored: what was scored: "f16 copy", "as shipped", ...
        reference: sha256 of the model whose 16-bit cache it is compared with; its own but for
            `--against`.
        engine: "llama.cpp", "transformers", or the server's.
        engine_version: version of that engine or of the package that carries it.
        via: "prefill" or "decode".
        setting: KV setting, for example "q8_0/q4_0".
        k_type: K type in effect.
        v_type: V type in effect.
        role: candidate, floor, identity, cross or part.
        context: tokens.
        bits: stored bits an element.
        bytes_per_token: bytes one more token adds once sliding windows are full.
        cache_bytes: of the cache at `context`.
        categories: categories of the text, with commas, in alphabetical order.
        text_sha256: of all tokens that the run scored.
        n_documents: documents scored.
        n_tokens: tokens scored.
        n_nonfinite: tokens left out.
        metrics: name -> estimate, names as in docs/method.md.
        verdict: label, empty where there is none.
        reason: what decided the verdict.
        status: "done" or "failed".
        error: why it failed, else empty.
        simulated: whether the cache's bytes were only simulated.
        top_k: tokens that a server's top-k comparison saw; 0 for the full vocabulary.
        cpu: processor it ran on.
        device: where torch ran, empty elsewhere.
        nybble: version that wrote it.
        created: when, as the run's clock said; empty where a sweep merged it.
        command: the command line that makes it again.
        metrics_version: version of the metrics' arithmetic.
    """

    run: str
    model: str
    file: str
    sha256: str
    architecture: str
    size_bytes: int
    weights: str
    scored: str
    reference: str
    engine: str
    engine_version: str
    via: str
    setting: str
    k_type: str
    v_type: str
    role: str
    context: int
    bits: float
    bytes_per_token: float
    cache_bytes: int
    categories: str
    text_sha256: str
    n_documents: int
    n_tokens: int
    n_nonfinite: int
    verdict: str
    reason: str
    status: str
    error: str
    simulated: bool
    top_k: int
    cpu: str
    device: str
    nybble: str
    created: str
    command: str
    metrics_version: int
    metrics: dict[str, Estimate] = field(default_factory=dict)

    @property
    def own(self) -> bool:
        """Whether it is compared with the 16-bit cache of its own weights."""
        return self.sha256 == self.reference


def cells_of(measurement: Measurement, run: str) -> Iterator[Cell]:
    """Every row of a measurement as a cell.

    Args:
        measurement: the record.
        run: its folder, relative to the base.

    Raises:
        KeyError: a row names a model that the record does not have.
        TypeError: a damaged record, in one of its fields.
    """
    models = {m.label: m for m in measurement.models}
    protocol, versions = measurement.protocol, measurement.versions
    categories = sorted({str(s["category"]) for s in protocol.get("text", [])})
    for row in measurement.rows:
        model = models[row.model]
        engine = row.served.engine if row.served else str(protocol.get("engine", "llama.cpp"))
        yield Cell(
            run=run, model=model.name, file=model.file, sha256=model.sha256,
            architecture=model.architecture, size_bytes=model.size_bytes,
            weights=model.shipped_weights, scored=model.scored_weights,
            reference=models[row.reference].sha256, engine=engine,
            engine_version=_engine_version(row, engine, versions),
            via=str(protocol.get("via", "")), setting=row.setting, k_type=row.k_type,
            v_type=row.v_type, role=row.role, context=row.context, bits=row.bits,
            bytes_per_token=row.bytes_per_token, cache_bytes=row.cache_bytes,
            categories=",".join(categories), text_sha256=str(protocol.get("text_sha256", "")),
            n_documents=row.n_documents, n_tokens=row.n_tokens, n_nonfinite=row.n_nonfinite,
            verdict=row.verdict.label if row.verdict else "",
            reason=row.verdict.reason if row.verdict else "",
            status=row.status, error=row.error or "", simulated=row.simulated,
            top_k=row.served.top_k if row.served else 0,
            cpu=str(measurement.hardware.get("cpu", "")), device=str(versions.get("device", "")),
            nybble=str(versions.get("nybble", "")), created=measurement.created,
            command=measurement.command, metrics_version=measurement.metrics_version,
            metrics=dict(row.metrics),
        )  # fmt: skip


def _engine_version(row: Row, engine: str, versions: dict[str, str]) -> str:
    if row.served:
        return row.served.version
    # llama.cpp's own number stands still between releases; the wheel's names the commit.
    names = {"llama.cpp": ("xllamacpp", "llama.cpp")}.get(engine, (engine,))
    return str(next((versions[n] for n in names if n in versions), ""))
