"""`nybble harden`: fold a scale into a model so that a 4-bit cache hurts it less, and prove it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nybble.environment import VERSION, cache_dir
from nybble.errors import NybbleError
from nybble.formats import KVSetting, parse
from nybble.formats.energies import Energies
from nybble.hardening.families import Family
from nybble.hardening.folder_edit import check_folder, scale_folder
from nybble.hardening.gguf_edit import check_gguf, scale_gguf
from nybble.hardening.observe import observe_llamacpp, observe_transformers
from nybble.hardening.place import RECORD, check_target, hardened, partial
from nybble.hardening.scales import Planned, plan_scales
from nybble.hardening.sites import find_sites
from nybble.hardening.verify import verify
from nybble.models.checkpoint import Checkpoint, resolve
from nybble.results.hardened import Hardened, LayerGain
from nybble.scoring import prepare as prep
from nybble.scoring.calibration_text import short_texts
from nybble.scoring.choose import choose_backend
from nybble.scoring.request import DEVICES, WEIGHTS, MeasureRequest, Progress, Silent

DEFAULT_TOKENS = 2048
STATISTICS = ("auto", "llama.cpp", "transformers")
# Less than this cannot be told from noise by any measurement of a usual size.
LEAST_GAIN = 1.02
DEFAULT_SETTINGS = ("q4_0/q4_0", "q8_0/q8_0")


@dataclass(frozen=True)
class HardenRequest:
    """Everything that defines a hardened model.

    Attributes:
        out: the file (of a GGUF) or folder to make.
        model: a GGUF, a folder or a hub id; None for the demo model.
        text: the user's UTF-8 files to calibrate on; the built-in reserved text without.
        tokens: tokens to calibrate on.
        statistics: engine that shows keys and queries; "auto" is llama.cpp for a GGUF.
        settings: KV settings that must get better.
        weights: score on an "f16" or "f32" copy of quantized weights, or "as-shipped".
        documents: documents of each held-out category to verify on.
        categories: these categories of held-out text; None for all.
        by: "layer" to measure every layer before and after too; None for not.
        again: harden a model that already is.
        fresh: replace an output that is there.
        device: where torch runs.
        threads: CPU threads; None for all usable cores.
        timeout: seconds of silence after which an engine counts as hung.
        command: what a report says to type to get it again.
    """

    out: Path
    model: Path | None = None
    text: tuple[Path, ...] = ()
    tokens: int = DEFAULT_TOKENS
    statistics: str = "auto"
    settings: tuple[KVSetting, ...] = tuple(parse(s) for s in DEFAULT_SETTINGS)
    weights: str = "f16"
    documents: int = 1
    categories: tuple[str, ...] | None = None
    by: str | None = None
    again: bool = False
    fresh: bool = False
    device: str = "auto"
    threads: int | None = None
    timeout: float = 1800.0
    command: str = ""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            NybbleError: names the option, the value and the allowed values.
        """
        for name, value, allowed in (
            ("--statistics", self.statistics, STATISTICS),
            ("--weights", self.weights, WEIGHTS),
            ("--device", self.device, DEVICES),
        ):
            if value not in allowed:
                raise NybbleError(f"unknown value for {name}", seen=value, allowed=allowed)
        if not 256 <= self.tokens <= 65_536:
            raise NybbleError("--tokens is out of range", seen=self.tokens, allowed="256 to 65,536")
        if not any(s.quantized for s in self.settings):
            raise NybbleError(
                "nothing to harden for", seen=", ".join(map(str, self.settings)) or "no settings",
                allowed="at least one quantized KV setting", hint="--kv q4_0/q4_0",
            )  # fmt: skip

    def measurement(self, model: Path, against: Path | None = None) -> MeasureRequest:
        """The measurement that prepares, tokenizes for and verifies this."""
        return MeasureRequest(
            model=model, against=against, settings=self.settings, weights=self.weights,
            documents=self.documents, categories=self.categories, device=self.device,
            threads=self.threads, timeout=self.timeout, command=self.command,
            by=self.by if against else None,
        )  # fmt: skip


def harden(request: HardenRequest, progress: Progress | None = None) -> Hardened:
    """Calibrate, fold, write beside the target, verify, and only then give it its name.

    Raises:
        NybbleError: the family has no rule, the output cannot be written, the model is hardened
            already, or the result failed its verification; nothing is written then.
        EngineError: the engine cannot run the model.
    """
    progress = progress or Silent()
    checkpoint = source(request)
    family, sites = find_sites(checkpoint)
    texts, scored = _texts(checkpoint, request, progress)
    energies = _observe(checkpoint, scored, texts, request, progress)
    gguf = checkpoint.kind == "gguf"
    planned = plan_scales(
        energies, family, sites, interleaved=gguf and family.interleaved,
        offset=0.0 if gguf else family.offset,
    )  # fmt: skip
    layers = tuple(LayerGain(i, f.gain, f.bound) for i, f in sorted(planned.folds.items()))
    _promise(family, layers, progress)
    kept = record(checkpoint, "fold", energies, {})
    with partial(request.out, request.fresh) as path:
        _write(checkpoint, path, planned, kept, progress)
        verification = verify(request.measurement(checkpoint.path, path), progress)
    return Hardened(
        file=request.out.name, method="fold", family=family.name, statistics=energies.engine,
        tokens=energies.tokens, layers=layers, **vars(verification),
    )  # fmt: skip


def source(request: HardenRequest) -> Checkpoint:
    """The model to harden, when it and the output are as they must be.

    Raises:
        ModelFileError: it is not there, or damaged.
        NybbleError: it is hardened already, or the output cannot be written.
    """
    checkpoint = resolve(prep.locate(request.model))
    found = hardened(checkpoint.path)
    if found and not request.again:
        raise NybbleError(
            "this model is hardened already",
            seen=f"{checkpoint.name}: {found.get(RECORD, 'yes')}",
            allowed="an original model",
            hint="--again, with other --text: on the same there is nothing left to gain",
        )
    check_target(checkpoint.path, request.out, request.fresh, checkpoint.kind)
    return checkpoint


def record(
    checkpoint: Checkpoint, method: str, energies: Energies, more: Mapping[str, str]
) -> Mapping[str, str]:
    """What the model says of itself from now on, behind the records that it has."""
    earlier = [k for k in hardened(checkpoint.path) if k.endswith(".source")]
    name = f"{RECORD}.{len(earlier) + 1}" if earlier else RECORD
    fields = {
        "version": VERSION,
        "source": checkpoint.fingerprint(cache_dir()),
        "tokens": str(energies.tokens),
        "text": energies.text,
        "statistics": energies.engine,
        **more,
    }
    return {name: method, **{f"{name}.{k}": v for k, v in fields.items()}}


def _promise(family: Family, layers: Sequence[LayerGain], progress: Progress) -> None:
    """What the formula promises, before anything is written.

    Raises:
        NybbleError: there is nothing to gain.
    """
    gain, bound = (float(np.exp(np.mean(np.log([getattr(y, name) for y in layers]))))
                   for name in ("gain", "bound"))  # fmt: skip
    progress.note(
        f"{family.name}: the fold lowers the variance of scores' errors {gain:.2f} times, as the "
        f"formula has it, mean over layers (at most {bound:.2f} if RoPE's pairs shared no scale)"
    )
    if gain < LEAST_GAIN:
        raise NybbleError(
            "the fold has nothing to gain on this model, so nothing is written",
            seen=f"{gain:.3f} times less error variance, mean over layers",
            allowed=f"{LEAST_GAIN} or more",
            hint="nybble harden --train",
        )


def _texts(
    checkpoint: Checkpoint, request: HardenRequest, progress: Progress
) -> tuple[list[npt.NDArray[np.int32]], Path]:
    """Token ids to calibrate on, and the file that the engine loads for them."""
    measurement = request.measurement(checkpoint.path)
    backend = choose_backend(measurement, [checkpoint.path])
    try:
        backend.check([checkpoint.path])
        prepared = backend.prepare("a", checkpoint.path, progress)
        found = short_texts(backend, prepared, request.text, request.tokens)
    finally:
        backend.close()
    return found, prepared.scored_file


def _observe(
    checkpoint: Checkpoint,
    scored: Path,
    texts: Sequence[npt.NDArray[np.int32]],
    request: HardenRequest,
    progress: Progress,
) -> Energies:
    engine = request.statistics
    if engine == "auto":
        engine = "llama.cpp" if checkpoint.kind == "gguf" else "transformers"
    measurement = request.measurement(checkpoint.path)
    if engine == "llama.cpp":
        if checkpoint.kind != "gguf":
            raise NybbleError(
                "llama.cpp reads GGUF files only", seen=checkpoint.name,
                hint="--statistics transformers",
            )  # fmt: skip
        threads, timeout = measurement.cpu_threads, request.timeout
        return observe_llamacpp(scored, texts, threads, timeout, progress)
    return observe_transformers(measurement, checkpoint.path, texts, progress)


def _write(
    checkpoint: Checkpoint,
    path: Path,
    planned: Planned,
    kept: Mapping[str, str],
    progress: Progress,
) -> None:
    progress.begin("writing", 1.0)
    on_progress = advancing(progress)
    if checkpoint.kind == "gguf":
        scale_gguf(checkpoint.path, path, planned.scales, kept, on_progress)
        check_gguf(checkpoint.path, path, planned.scales, kept)
    else:
        scale_folder(checkpoint.path, path, planned.scales, kept, on_progress)
        check_folder(checkpoint.path, path, planned.scales, kept)


def advancing(progress: Progress) -> Callable[[float], None]:
    """Tell a progress of fractions done."""
    done = 0.0

    def on_progress(fraction: float) -> None:
        nonlocal done
        progress.advance(fraction - done)
        done = fraction

    return on_progress
