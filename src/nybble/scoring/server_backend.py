"""Running servers as the engine of a measurement: what is known before they are asked.

Weights, settings and builds are the servers'; nybble has the tokens and compares what they tell.
`server_run.py` does the asking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nybble.engines.child import EngineProcess
from nybble.engines.known.registry import engine
from nybble.engines.server.registry import SERVERS
from nybble.errors import NybbleError
from nybble.formats import KVSetting
from nybble.formats.registry import kv_type
from nybble.models.found import find
from nybble.models.geometry import Geometry, Layer
from nybble.results.records import ModelRecord
from nybble.scoring import prepare as prep
from nybble.scoring.backend import Backend, LlamaCpp
from nybble.scoring.cells import LaneSpec, Series
from nybble.scoring.prepare import PreparedModel, SettingSize, Sizes
from nybble.scoring.request import FLOOR, REFERENCE, MeasureRequest, Progress

TOPS = "tops"  # folder of the reference's top-k rows
_PROBE = (
    "The cache keeps what the model has read: keys, values, 1,024 tokens at a time. "
    "Does Über-naïve code (x[i] += 0.5) survive 4 bits? \n\tWe shall see; \u4e16\u754c.\n"
)
_PROBED = 48  # tokens that are compared


class Servers:
    """One server for each KV setting, or one after the other behind one address.

    Args:
        request: the measurement, with `urls`.
        path: the model, for its tokenizer, template and sizes.
    """

    simulated = False

    def __init__(self, request: MeasureRequest, path: Path) -> None:
        self.name = request.engine
        self.urls = dict(request.urls)
        self._inner: Backend
        if path.suffix == ".gguf":
            # The servers' weights are scored, so there is no float copy to make.
            self._inner = LlamaCpp(
                replace(request, engine="llama.cpp", urls=(), weights="as-shipped")
            )
        else:
            from nybble.scoring.torch_backend import Transformers  # needs an optional extra

            self._inner = Transformers(replace(request, engine="transformers", urls=()))
        self._path = path
        self.request = replace(request, via=self._via(request))
        self._probe: tuple[str, list[int]] | None = None
        self.reference = REFERENCE  # `series` says which it is
        self.protocol: dict[str, Any] = {
            "engine": self.name,
            "hot_cache": "scored through the servers' HTTP API; each row says how it read",
            "comparison": f"top-{request.top_k}, lower bound of the KLD",
            "reference": "the 16-bit server's own top-k, on the same token ids",
            "addresses": ", ".join(f"{s}={url}" for s, url in self.urls.items()),
        }
        self.seen: dict[str, str] = {}  # version, filled in by the run

    def _via(self, request: MeasureRequest) -> str:
        """How all settings are scored: by decoding where one's cache is not read by a prefill."""
        if request.via == "decode" or not SERVERS[self.name].one_pass:
            return "decode"
        reads = {self._read(s) for s in request.settings if s.quantized}
        return "prefill" if reads <= {"always"} else "decode"

    def _read(self, setting: KVSetting) -> str:
        return max(choice.read for choice in engine(self.name).choice(setting))

    @cached_property
    def geometry(self) -> Geometry:
        """Of the model, from its headers."""
        return find(str(self._path)).geometry

    def check(self, paths: Sequence[Path]) -> list[str]:
        """Refuse what the engine has no setting for, and contexts that are too long."""
        for setting in self.urls:
            if setting.quantized:
                engine(self.name).choice(setting)
        geometry = self.geometry
        prep.check_context(self.request.contexts, geometry.context_length, geometry.name)
        windows = [x.window for x in geometry.layers if x.window]
        return prep.window_warnings(self.request.contexts, max(windows, default=None))

    def prepare(self, label: str, path: Path, progress: Progress) -> PreparedModel:
        """Hash the weights that are here; those that are scored are the servers'."""
        model = self._inner.prepare(label, path, progress)
        weights = f"as served by {self.name}"
        return replace(model, record=replace(model.record, scored_weights=weights))

    def sizes(
        self, models: Sequence[PreparedModel], settings: Mapping[str, Sequence[KVSetting]],
        contexts: Sequence[int], progress: Progress,
    ) -> Sizes:  # fmt: skip
        """From the model's shapes and the types' own bytes, one window in sliding layers."""
        return {
            (m.label, s): _size(self.geometry, s, contexts) for m in models
            for s in settings[m.label]
        }  # fmt: skip

    def open(self, models: Sequence[PreparedModel], progress: Progress) -> EngineProcess:
        """There is no child: the servers run already."""
        raise NotImplementedError

    def identity(self, setting: KVSetting, label: str) -> Any:
        """The engine's name alone: a server that is not there cannot tell its version.

        Versions are kept beside the numbers and compared before these are.
        """
        return {"engine": self.name, "through": "http"}

    def tokenizer(self, model: PreparedModel) -> tuple[EngineProcess, dict[str, Any]]:
        """The model's own, as for every other engine."""
        return self._inner.tokenizer(model)

    def probe(self, model: PreparedModel) -> tuple[str, list[int]]:
        """A text, and the ids of its beginning by nybble's tokenizer (BOS left in)."""
        if self._probe is None:
            self._probe = _PROBE * 4, self._tokenized(model)
        return self._probe

    def _tokenized(self, model: PreparedModel) -> list[int]:
        child, extra = self.tokenizer(model)
        document = {"id": "probe", "category": "probe", "text": _PROBE * 4, "messages": (),
                    "tools": (), "source": "own", "licence": "MIT"}  # fmt: skip
        try:
            reply = child.request({**extra, "op": "chunks", "category": "probe",
                                   "documents": [document], "context": _PROBED, "wanted": 1,
                                   "template": None})  # fmt: skip
        finally:
            child.close()
        found: list[int] = np.frombuffer(reply.payload, dtype=np.int32).tolist()
        return found

    def record(self, model: PreparedModel) -> ModelRecord:
        """As its headers say."""
        return model.record

    def versions(self) -> dict[str, str]:
        """The servers' version, as they tell it."""
        return {**self.seen, "features": "of the machine that asked, not of the servers"}

    def series(self, folder: Path) -> list[Series]:
        """Candidates, the floor where both 16-bit servers are given, and the identity row.

        Raises:
            NybbleError: no 16-bit server is given and none was scored into this folder.
        """
        plain = [s for s in self.urls if not s.quantized]
        context = self.request.contexts[0]
        stored = [
            s for s in (REFERENCE, FLOOR)
            if any((folder / TOPS).glob(f"c{context}-{s.k}-{s.v}-*.parquet"))
        ]  # fmt: skip
        reference = next((s for s in (REFERENCE, FLOOR, *plain) if s in plain), None)
        reference = reference or next(iter(stored), None)
        if reference is None:
            raise NybbleError(
                "there is nothing to compare with: no 16-bit server is named, and none was scored "
                "into this folder before",
                seen=f"{', '.join(map(str, self.urls))}; {folder}",
                allowed="an f16/f16 or bf16/bf16 server, the same model without a KV type",
                hint="--url f16/f16=http://127.0.0.1:8000",
            )
        self.reference = reference
        found = [Series(LaneSpec("a", s), "a", "candidate") for s in self.urls if s.quantized]
        found += [Series(LaneSpec("a", s), "a", "floor") for s in plain if s != reference]
        return [*found, Series(LaneSpec("a", reference, 1), "a", "identity")]

    def close(self) -> None:
        """End what was started."""
        self._inner.close()


def _size(geometry: Geometry, setting: KVSetting, contexts: Sequence[int]) -> SettingSize:
    layers = [(i, x) for i, x in enumerate(geometry.layers) if x.k_width or x.v_width]
    n = len(geometry.layers)
    kinds = {i: setting.at_layer(i, n)[-1][1:] for i, _ in layers}

    def stored(tokens: int) -> int:
        return sum(_bytes(x, *kinds[i], min(tokens, x.window or tokens)) for i, x in layers)

    def elements(tokens: int) -> int:
        return sum((x.k_width + x.v_width) * min(tokens, x.window or tokens) for _, x in layers)

    grown = [(i, x) for i, x in layers if x.window is None]
    return SettingSize(
        {c: stored(c) * 8 / elements(c) if layers else 0.0 for c in contexts},
        # Over 1,024 tokens, so that types which store several tokens together come out even.
        sum(_bytes(x, *kinds[i], 1024) for i, x in grown) / 1024,
        {c: stored(c) for c in contexts},
    )


def _bytes(layer: Layer, k: str, v: str, tokens: int) -> int:
    sides = ((k, "K", layer.k_dim), (v, "V", layer.v_dim))
    return sum(
        layer.kv_heads * kv_type(name).of_side(side).bytes_stored(tokens, dim)
        for name, side, dim in sides if dim
    )  # fmt: skip
