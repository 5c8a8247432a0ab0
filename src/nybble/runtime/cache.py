"""`nybble.Cache`: a KV cache for transformers whose layers hold packed bytes.

    cache = nybble.Cache(model.config, kv="q4_0/q4_0")
    model.generate(**inputs, past_key_values=cache)

Each token is quantized once, when it comes, and never again. With `nybble.attach(model)` attention
reads the packed bytes where they lie; without, it gets them unpacked, whole, at every step.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DummyLayer, get_layer_types_and_kwargs

from nybble.errors import NybbleError
from nybble.formats.calibration import Calibration
from nybble.formats.codec import GGUF_PERMUTED
from nybble.formats.setting import KVSetting, parse
from nybble.runtime.dispatch import kernel
from nybble.runtime.guard import Guard
from nybble.runtime.latent import find_latents
from nybble.runtime.layer import LayerPlan, PackedLayer

NAME = "nybble_packed"  # of the attention that reads packed layers
DEFAULT = "nyb4/nyb4"
_LAYERS = ("full_attention", "sliding_attention", "dummy")


class Cache(TransformersCache):
    """Packed keys and values of all layers.

    Args:
        model: a loaded model of transformers or its config. The model itself is needed for
            `latent`, and lets `save` tell fine-tunes of one config apart.
        kv: the KV setting, for example "q4_0/q4_0" or "q8_0/q4_0+first4+recent128". The default,
            nyb4, needs a calibration of the model.
        calibration: from `nybble.calibrate`; only for settings that need one.
        latent: store values alone in layers whose keys follow from them (Gemma 4's global
            layers); the K type then says how. Also written `+latent` in the setting.
        max_length: tokens a sequence may have; all pages are then allocated with the first token.
            None to grow page by page.

    Raises:
        NybbleError: an unknown setting or one that cannot be stored token by token, no
            calibration where one is needed, a model with other layers than full and sliding
            attention, or `latent` for a model without such layers.
    """

    layers: list[Any]

    def __init__(
        self,
        model: PreTrainedModel | PreTrainedConfig,
        kv: str | KVSetting = DEFAULT,
        *,
        calibration: Calibration | None = None,
        latent: bool = False,
        max_length: int | None = None,
    ) -> None:
        setting = parse(kv) if isinstance(kv, str) else kv
        latent = latent or setting.around.latent
        setting = setting.apart
        if setting.calibrated and calibration is None:
            raise NybbleError(
                "this KV setting needs a calibration of the model",
                seen=str(setting),
                allowed="calibration=nybble.calibrate(...).calibration, or a setting without",
                hint='nybble.Cache(model.config, kv="q4_0/q4_0")',
            )
        if max_length is not None and max_length < 1:
            raise NybbleError("max_length counts tokens", seen=max_length, allowed="1 or more")
        whole = model if isinstance(model, PreTrainedModel) else None
        config: Any = whole.config if whole is not None else model
        text = config.get_text_config(decoder=True)
        self.config = text
        self.model = whole
        self.setting = with_latent(setting, latent)
        kinds, windows = _kinds(text)
        latents = _latents(whole, text) if latent else {}
        guard = Guard()
        made: list[Any] = []
        for index, (kind, window) in enumerate(zip(kinds, windows, strict=True)):
            if kind == "dummy":
                made.append(DummyLayer())  # type: ignore[no-untyped-call]
                continue
            plan = LayerPlan(
                setting, index, len(kinds), window, calibration,
                text.model_type in GGUF_PERMUTED, latents.get(index), max_length,
            )  # fmt: skip
            made.append(PackedLayer(plan, self._packed, guard))
        super().__init__(layers=made)

    def _packed(self) -> bool:
        """Whether the model's attention reads packed layers."""
        return bool(self.config._attn_implementation == NAME)

    @property
    def packed(self) -> list[PackedLayer]:
        """The layers that own keys."""
        return [layer for layer in self.layers if isinstance(layer, PackedLayer)]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen; of any layer, since all see the same."""
        return max((layer.length for layer in self.packed), default=0)

    @property
    def kernel(self) -> str:
        """What reads the cache, and why it is that."""
        device = next((x.device for x in self.packed if x.is_initialized), None)
        if device is None:
            device = torch.device("cpu") if self.model is None else self.model.device
        if not self._packed():
            return "unpacked at every step (no nybble.attach)"
        return kernel(device, [s for layer in self.packed for s in layer.strands])

    def bytes_stored(self) -> int:
        """Bytes allocated for K and V, pages that are not full included; shared ones once."""
        return bytes_of([self])

    def bytes_per_token(self) -> int:
        """Bytes that one more token of one sequence takes, in layers that do not slide."""
        total = 0
        for layer in self.packed:
            if layer.is_initialized and layer.plan.window is None:
                total += sum(p.heads * p.layout.row_bytes for p in layer.body.pages)
        return total

    def reserve(self, tokens: int) -> None:
        """Allocate room for a prompt in one piece, before it is read.

        Without it pages are allocated as tokens come, between the temporaries of a prefill, and
        what these free can then not go back to the system.

        Args:
            tokens: that come next.
        """
        for layer in self.packed:
            layer.reserve(tokens)

    def fork(self, n: int = 1) -> list[Cache]:
        """Caches that continue from this one by themselves, sharing its pages.

        Args:
            n: how many.

        Returns:
            n caches; a page is copied only when one of them writes to it.
        """
        return [self._copy([_fork(layer) for layer in self.layers]) for _ in range(n)]

    def _copy(self, layers: list[Any]) -> Cache:
        other = Cache.__new__(Cache)
        TransformersCache.__init__(other, layers=layers)
        other.config, other.model, other.setting = self.config, self.model, self.setting
        for layer in other.packed:
            layer._packed = other._packed
        return other

    def save(self, path: str | Path, tokens: torch.Tensor | None = None) -> None:
        """Write all sequences to a safetensors file, packed as they are.

        Args:
            path: of the file; replaced at once when everything is written.
            tokens: ids int64 [B, tokens] they were made from, kept with them.
        """
        from nybble.runtime.prefix import save

        save(self, Path(path), tokens)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: PreTrainedModel | PreTrainedConfig,
        *,
        calibration: Calibration | None = None,
        max_length: int | None = None,
    ) -> Cache:
        """Read what `save` wrote.

        Args:
            path: of the file.
            model: the model it was made with.
            calibration: the one it was made with, where its setting needs one.
            max_length: see the class.

        Raises:
            NybbleError: not such a file, one of another version or of another model.
        """
        from nybble.runtime.prefix import load

        return load(Path(path), model, calibration, max_length)

    def __repr__(self) -> str:
        return f"nybble.Cache({self.setting}, {self.get_seq_length():,} tokens)"


def with_latent(setting: KVSetting, latent: bool) -> KVSetting:
    """The setting as it is written where latent layers are or are not in use."""
    return replace(setting, around=replace(setting.around, latent=latent))


def bytes_of(caches: list[Cache]) -> int:
    """Bytes that caches hold together; what forks share counts once."""
    found = dict(place for cache in caches for layer in cache.packed for place in layer.storages())
    return sum(found.values())


def _fork(layer: Any) -> Any:
    return layer.fork() if isinstance(layer, PackedLayer) else type(layer)()


def _kinds(config: Any) -> tuple[list[str], list[int | None]]:
    """Kind and window of every layer, as transformers' own caches take them from a config."""
    kinds, extra = get_layer_types_and_kwargs(config)
    unknown = sorted(set(kinds) - set(_LAYERS))
    if unknown:
        raise NybbleError(
            "nybble.Cache does not know these layers",
            seen=f"{config.model_type} with {', '.join(unknown)}",
            allowed="full_attention and sliding_attention",
            hint="transformers.DynamicCache(config=model.config)",
        )
    return kinds, [e.get("sliding_window") if k == "sliding_attention" else None
                   for k, e in zip(kinds, extra, strict=True)]  # fmt: skip


def _latents(
    model: PreTrainedModel | None, config: Any
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    if model is None:
        raise NybbleError(
            "latent layers need the weights of the key norm",
            seen="a config",
            allowed="the loaded model",
            hint="nybble.Cache(model, latent=True)",
        )
    found = find_latents(model)
    if not found:
        raise NybbleError(
            "this model has no layers whose keys follow from their values",
            seen=config.model_type,
            allowed="Gemma 4 with attention_k_eq_v (12B, 26B-A4B, 31B)",
            hint="leave out latent",
        )
    return found
