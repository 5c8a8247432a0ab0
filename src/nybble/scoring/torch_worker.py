"""The child process that owns a transformers model: `python -m nybble.scoring.torch_worker`.

Same requests as scoring/worker.py. All settings of a chunk are rows of one batch, so the weights
are read once; what is kept of a pass are the last hidden states, and logits exist only for a
block of positions at a time.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from nybble.engines.transformers.packages import transformers

transformers()  # shuts the network before anything of it is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402

from nybble.engines.child import Frame  # noqa: E402
from nybble.engines.transformers.attention import NAME, Lanes  # noqa: E402
from nybble.engines.transformers.calibrate import MOST_TOKENS, calibrate  # noqa: E402
from nybble.engines.transformers.calibration_file import load as load_calibration  # noqa: E402
from nybble.engines.transformers.calibration_file import save as save_calibration  # noqa: E402
from nybble.engines.transformers.load import load  # noqa: E402
from nybble.engines.transformers.model import TorchModel  # noqa: E402
from nybble.engines.transformers.observe import observe  # noqa: E402
from nybble.engines.transformers.tokenizer import tokenizer  # noqa: E402
from nybble.engines.worker import BaseWorker, serve  # noqa: E402
from nybble.errors import EngineError  # noqa: E402
from nybble.formats import KVSetting, check_head_size, parse  # noqa: E402
from nybble.formats.calibration import Calibration  # noqa: E402
from nybble.formats.codec import SideStore, cache_bytes, layer_stores  # noqa: E402
from nybble.formats.energies import pack  # noqa: E402
from nybble.models.checkpoint import resolve  # noqa: E402
from nybble.scoring.compare import Rows  # noqa: E402
from nybble.scoring.compare_torch import TorchReference  # noqa: E402
from nybble.scoring.pieces import chunks  # noqa: E402

BATCH_TOKENS = {"cpu": 16_384, "cuda": 65_536}  # tokens of all lanes in one pass
LOGIT_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}  # of one block of positions, for one lane

Stores = list[tuple[SideStore, SideStore]]


@dataclass
class _Loaded:
    model: TorchModel
    fingerprint: str
    longest: int  # tokens it was trained for, 0 where nothing says so
    calibration: Calibration | None = None


class TorchWorker(BaseWorker):
    """State of the child: loaded models and the stores of every lane."""

    def __init__(self, out: IO[bytes]) -> None:
        super().__init__(out)
        self._loaded: list[_Loaded] = []
        self._lanes: list[tuple[int, Stores]] = []
        self._device = "cpu"

    def do_open(self, request: Frame) -> Frame:
        """Load one or two models."""
        h = request.header
        if h.get("threads"):
            torch.set_num_threads(h["threads"])
        self._device = pick_device(h["device"])
        dtype = torch.float32 if self._device == "cpu" else torch.bfloat16
        for name, fingerprint in zip(h["paths"], h["fingerprints"], strict=True):
            self.event(step="load", path=name)
            loaded = load(
                resolve(name), Path(h["cache"]), dtype, self._device, NAME,
                lambda **fields: self.event(**fields),
            )  # fmt: skip
            text = loaded.config.get_text_config()  # what the class itself fills in
            longest = int(getattr(text, "max_position_embeddings", None) or 0)
            self._loaded.append(_Loaded(TorchModel(loaded), fingerprint, longest))
        widths = {x.model.n_vocab for x in self._loaded}
        if len(widths) > 1:  # one tokenizer, but one of them padded
            raise EngineError(
                "the logits of the two models cannot be compared",
                seen=" and ".join(f"{x.model.n_vocab:,}" for x in self._loaded),
                allowed="two models with logits of one width",
            )
        models = [
            {
                "window": max(s.window or 0 for s in x.model.shapes) or None,
                "context": x.longest,
                "layers": [
                    {**asdict(s.layer), "window": s.window or 0}
                    for s in x.model.shapes if s.layer is not None
                ],
            }
            for x in self._loaded
        ]  # fmt: skip
        return Frame({"info": self._info(), "models": models})

    def _info(self) -> dict[str, str]:
        features = platform.machine()
        if self._device != "cpu":
            features = torch.cuda.get_device_name()
        return {
            "transformers": transformers().__version__,
            "torch": torch.__version__,
            "device": self._device,
            "weights": "f32" if self._device == "cpu" else "bf16",
            "features": features,
        }

    def do_sizes(self, request: Frame) -> Frame:
        """Cache bytes of each model's settings at every context."""
        h = request.header
        found = []
        for loaded, (label, settings) in zip(self._loaded, h["settings"], strict=True):
            model = loaded.model
            for text in settings:
                setting = parse(text)
                check_head_size(
                    setting, {y.k_dim for y in model.layers}, {y.v_dim for y in model.layers}
                )
                stores = [layer_stores(setting, y, sizing=True) for y in model.layers]
                found += [
                    {"label": label, "setting": text, "context": c, **_size(model, stores, c)}
                    for c in h["contexts"]
                ]
        return Frame({"sizes": found})

    def do_chunks(self, request: Frame) -> Frame:
        """Render, tokenize and cut one category with a folder's own tokenizer."""
        model = tokenizer(resolve(request.header["path"]))
        return chunks(model, request.header, self.event)

    def do_observe(self, request: Frame) -> Frame:
        """Energies of the first model's keys and queries over the payload's texts."""
        ids = np.frombuffer(request.payload, dtype="<i4")
        texts = np.split(ids, np.cumsum(request.header["lengths"])[:-1])
        self.event(step="observe")
        found = observe(
            self._loaded[0].model, texts, lambda tokens: self.event(step="read", done=tokens)
        )
        return Frame(*pack(found))

    def do_calibrate(self, request: Frame) -> Frame:
        """Take statistics of a model over the payload's texts and write them to a file."""
        h = request.header
        loaded = self._loaded[h["model"]]
        texts = np.frombuffer(request.payload, dtype=np.int32).reshape(-1, h["context"])
        found = calibrate(
            loaded.model, list(texts), loaded.fingerprint,
            lambda tokens: self.event(step="calibrate", done=tokens),
        )  # fmt: skip
        save_calibration(found, Path(h["target"]))
        return Frame({"tokens": found.tokens, "most": MOST_TOKENS})

    def do_calibration(self, request: Frame) -> Frame:
        """Read a model's calibration; `lanes` made after it use it."""
        loaded = self._loaded[request.header["model"]]
        loaded.calibration = load_calibration(
            Path(request.header["path"]), loaded.fingerprint, loaded.model.layers
        )
        return Frame({"tokens": loaded.calibration.tokens, "text": loaded.calibration.text})

    def do_errors(self, request: Frame) -> Frame:
        """Squared error of each type, relative to f16's content, by layer and side.

        One text is run as it is; keys and values of every layer go through every type.
        """
        h = request.header
        loaded = self._loaded[h["model"]]
        model = loaded.model
        settings = [parse(text) for text in h["settings"]]
        stores = [self._stores(loaded, s, False) for s in settings]
        place = {layer.index: i for i, layer in enumerate(model.layers)}
        found: list[list[list[float]]] = [
            [[0.0, 0.0] for _ in model.layers] for _ in settings
        ]  # [setting][layer][K, V]

        def watch(module: Any, _: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
            i = place[model.owner(module)]
            for s in range(len(settings)):
                for side, x in enumerate((key[0], value[0])):
                    error = (stores[s][i][side].roundtrip(x) - x.float()).square().mean()
                    found[s][i][side] = float(error)

        tokens = np.frombuffer(request.payload, dtype=np.int32)
        model.watch(tokens.tolist(), watch)
        return Frame({"errors": found})

    def do_lanes(self, request: Frame) -> Frame:
        """Build the codecs of every lane, replacing those there were."""
        h = request.header
        self._lanes, applied = [], []
        for i, (index, text) in enumerate(h["lanes"]):
            self.event(step="context", lane=i)
            loaded, setting = self._loaded[index], parse(text)
            self._lanes.append((index, self._stores(loaded, setting, h["via"] == "decode")))
            applied.append(_applied(self._lanes[-1][1], loaded.model))
        return Frame({"applied": applied})

    def _stores(self, loaded: _Loaded, setting: KVSetting, decode: bool) -> Stores:
        return [
            layer_stores(
                setting, layer, calibration=loaded.calibration, gguf=loaded.model.gguf_order,
                decode=decode, device=loaded.model.device,
            )
            for layer in loaded.model.layers
        ]  # fmt: skip

    def do_score(self, request: Frame) -> Frame:
        """Score one chunk in the lanes; the payload is ROW records, comparison by comparison."""
        h = request.header
        tokens = np.frombuffer(request.payload, dtype=np.int32)
        pairs = [tuple(pair) for pair in h["comparisons"]]
        used = sorted({i for pair in pairs for i in pair})
        clock = _Clock()
        with clock.decoding:
            hidden = self._passes(used, tokens, h["first"], h["one_by_one"])
        parts: list[list[Rows]] = [[] for _ in pairs]
        first, last = h["first"], len(tokens) - 1
        step = self._block(self._loaded[0].model.n_vocab)
        for begin in range(first, last, step):
            rows = slice(begin - first, min(begin + step, last) - first)
            following = tokens[begin + 1 : begin + 1 + rows.stop - rows.start]
            references: dict[int, TorchReference] = {}
            for lane in sorted({r for _, r in pairs}):
                self.event(step="compare", lane=lane)
                logits = self._logits(lane, hidden[lane][rows], clock)
                with clock.comparing:
                    references[lane] = TorchReference(logits, following, begin)
            for lane in sorted({a for a, _ in pairs}):
                self.event(step="compare", lane=lane)
                logits = self._logits(lane, hidden[lane][rows], clock)
                with clock.comparing:
                    for (a, reference), part in zip(pairs, parts, strict=True):
                        if a == lane:
                            part.append(references[reference].compare(logits))
            self.event(done=len(used) * (rows.stop - rows.start))
        merged = [np.concatenate(p) for p in parts]
        header = {
            "rows": [len(r) for r in merged], "decode": clock.decode, "compare": clock.compare,
        }  # fmt: skip
        return Frame(header, b"".join(r.tobytes() for r in merged))

    def _passes(
        self, used: Sequence[int], tokens: np.ndarray[Any, Any], first: int, one_by_one: bool
    ) -> dict[int, torch.Tensor]:
        """Last hidden states of the scored positions by lane."""
        most = 1 if one_by_one else max(1, BATCH_TOKENS[self._kind] // len(tokens))
        found: dict[int, torch.Tensor] = {}
        for index, loaded in enumerate(self._loaded):
            mine = [i for i in used if self._lanes[i][0] == index]
            for start in range(0, len(mine), most):
                batch = mine[start : start + most]
                self.event(step="decode", lane=batch[0])
                lanes = Lanes([self._lanes[i][1] for i in batch])
                out = loaded.model.hidden(tokens.tolist(), lanes)
                found.update({i: out[j, first:-1].clone() for j, i in enumerate(batch)})
                self.event(step="decode", lane=batch[0], done=len(batch) * first)
        return found

    @property
    def _kind(self) -> str:
        return self._device.split(":")[0]

    def _block(self, n_vocab: int) -> int:
        return max(8, min(1024, LOGIT_BYTES[self._kind] // (4 * n_vocab)))

    def _logits(self, lane: int, hidden: torch.Tensor, clock: _Clock) -> torch.Tensor:
        with clock.decoding:
            return self._loaded[self._lanes[lane][0]].model.logits(hidden)


def pick_device(wanted: str) -> str:
    """Device of torch; "auto" is a GPU when torch sees one.

    Raises:
        EngineError: a GPU is asked for that torch does not see.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise EngineError(
            "torch sees no GPU here",
            seen=f"--device {wanted}, torch {torch.__version__}",
            allowed="cpu",
            hint="--device cpu, or a torch build for your GPU",
        )
    return wanted


def _size(model: TorchModel, stores: Stores, context: int) -> dict[str, float]:
    cells = model.cells(context)
    total = cache_bytes(stores, model.layers, cells)
    elements = sum(
        n * y.heads * (y.k_dim + y.v_dim) for n, y in zip(cells, model.layers, strict=True)
    )
    # What one more token adds once all windows are full; over many, since some are stored in
    # groups.
    few, many = (cache_bytes(stores, model.layers, model.cells(n << 24)) for n in (1, 2))
    return {"total": total, "per_token": (many - few) / (1 << 24), "bits": total * 8 / elements}


def _applied(stores: Stores, model: TorchModel) -> dict[str, Any]:
    """What is in effect: widths of the rotations around K and V (built-in ones not counted)."""
    k = max((c.rotation for store, _ in stores for _, c in store.codecs), default=0)
    v = max((c.rotation for _, store in stores for _, c in store.codecs), default=0)
    return {"rotation_k": k, "rotation_v": v}


class _Clock:
    """Seconds spent decoding and comparing, GPU work included."""

    def __init__(self) -> None:
        self.decode = self.compare = 0.0
        self.decoding = _Span(self, "decode")
        self.comparing = _Span(self, "compare")


class _Span:
    def __init__(self, clock: _Clock, name: str) -> None:
        self._clock, self._name, self._start = clock, name, 0.0

    def __enter__(self) -> None:
        self._start = _now()

    def __exit__(self, *_: object) -> None:
        spent = _now() - self._start
        setattr(self._clock, self._name, getattr(self._clock, self._name) + spent)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    serve(TorchWorker)
