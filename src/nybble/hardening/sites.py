"""Where a model file keeps what the fold changes: tensors, heads and ties, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.errors import ModelFileError, NybbleError
from nybble.hardening import families
from nybble.hardening.families import Family
from nybble.hardening.fold import halves, interleaved
from nybble.models.checkpoint import Checkpoint
from nybble.models.file_kinds import show
from nybble.models.gguf_header import read_header
from nybble.models.gguf_keys import Keys
from nybble.models.gguf_types import GGUFHeader, TensorInfo
from nybble.models.safetensors_header import read_header as read_safetensors_header
from nybble.models.summary import summarise

_STILL = 1e9  # rope_freqs divides a frequency by 1e30 to switch it off (conversion/gemma.py)


@dataclass(frozen=True)
class Site:
    """One layer.

    Attributes:
        layer: its index.
        owner: index of the layer whose keys it reads; its own but for Gemma 4's shared layers.
        heads: query heads.
        kv_heads: KV heads.
        ties: channels with the same number share one e, [head_dim], in the file's order.
        queries: tensors multiplied by e.
        keys: tensors divided by e; none where the layer has no keys of its own.
        coarse: whether one of them is stored in fewer bits than F16, where only a power of two
            leaves every value as exact as it was.
    """

    layer: int
    owner: int
    heads: int
    kv_heads: int
    ties: npt.NDArray[np.intp]
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    coarse: bool = False


def find_sites(checkpoint: Checkpoint) -> tuple[Family, list[Site]]:
    """The family and all layers with attention.

    Raises:
        NybbleError: a family without a rule, or a model that is built or stored otherwise.
    """
    if checkpoint.kind == "gguf":
        return _gguf(checkpoint.path)
    return _folder(checkpoint)


def _gguf(path: Path) -> tuple[Family, list[Site]]:
    summary, header = summarise(path), read_header(path)
    arch = summary.architecture
    family = families.family(arch, families.GGUF)
    keys = Keys(path, header.metadata)
    tensors = {t.name: t for t in header.tensors}
    shared = keys.integer(f"{arch}.attention.shared_kv_layers") or 0
    first_shared = summary.n_layers - shared
    if shared and first_shared < 2:
        raise keys.wrong(f"{arch}.attention.shared_kv_layers", f"up to {summary.n_layers - 2}")
    sliding = keys.per_layer(f"{arch}.attention.sliding_window_pattern", summary.n_layers)
    slides = sliding or (0,) * summary.n_layers
    found = []
    for i in range(summary.n_layers):
        heads, kv_heads, dim = summary.n_heads[i], summary.n_kv_heads[i], summary.head_dim_k[i]
        if not heads or not kv_heads:
            continue
        own = i < first_shared
        queries = _names(tensors, f"blk.{i}.", "attn_q", family, path)
        _check_size(tensors[queries[0]], dim if family.form == "norms" else heads * dim, path)
        own_keys = _names(tensors, f"blk.{i}.", "attn_k", family, path) if own else ()
        site = Site(
            # Shared layers read the last cache of their kind (llama-model.cpp, `reuse`).
            i, i if own else first_shared - (2 if slides[i] else 1), heads, kv_heads,
            _gguf_ties(header, keys, family, arch, dim, bool(slides[i])), queries, own_keys,
            _coarse(tensors, (*queries, *own_keys)),
        )  # fmt: skip
        found.append(site)
    _check_types(tensors, found, family, path)
    return family, found


def _check_size(tensor: TensorInfo, rows: int, path: Path) -> None:
    # Whatever head size a header claims, that much memory is then taken for it.
    if not tensor.shape or tensor.shape[-1] != rows:
        raise ModelFileError(
            "a tensor does not fit the heads that the header states",
            seen=f"{path.name}: {tensor.name} is {list(tensor.shape)}", allowed=f"{rows:,} rows",
            hint="convert the model again with a current llama.cpp",
        )  # fmt: skip


def _gguf_ties(
    header: GGUFHeader, keys: Keys, family: Family, arch: str, dim: int, slides: bool
) -> npt.NDArray[np.intp]:
    key = f"{arch}.rope.dimension_count"
    if slides and f"{key}_swa" in keys.values:
        key += "_swa"
    rotated = keys.integer(key)
    if rotated is None:
        rotated = dim
    if rotated > dim or rotated % 2:
        raise keys.wrong(key, f"an even number up to {dim}")
    if family.interleaved:
        return interleaved(dim, rotated)
    turning = None
    factors = next((t for t in header.tensors if t.name == "rope_freqs.weight"), None)
    if factors is not None and arch == "gemma4" and not slides:
        _check_size(factors, rotated // 2, keys.path)
        with keys.path.open("rb") as file:
            file.seek(header.data_offset + factors.offset)
            values = np.frombuffer(file.read(factors.n_bytes), dtype="<f4")
        turning = int((values < _STILL).sum())
    return halves(dim, rotated, turning)


def _names(
    tensors: Mapping[str, TensorInfo], prefix: str, stem: str, family: Family, path: Path
) -> tuple[str, ...]:
    if family.form == "norms":
        wanted = [f"{prefix}{stem}_norm.weight"]
    else:
        wanted = [f"{prefix}{stem}.weight"]
        # Scaling a row without its bias would change the scores.
        wanted += [n for n in (f"{prefix}{stem}.bias",) if n in tensors]
        if f"{prefix}{stem}_norm.weight" in tensors:
            raise _unlike(path, f"{prefix}{stem}_norm.weight", family)
    missing = [n for n in wanted if n not in tensors]
    if missing:
        raise _unlike(path, f"no tensor {missing[0]}", family)
    return tuple(wanted)


def _coarse(tensors: Mapping[str, TensorInfo], names: Iterable[str]) -> bool:
    return any(
        len(tensors[n].shape) > 1 and tensors[n].type_name not in ("F32", "F16") for n in names
    )


def _unlike(path: Path, seen: str, family: Family) -> NybbleError:
    return NybbleError(
        f"this model is not built like {family.name}, so the fold does not hold for it",
        seen=f"{path.name}: {seen}",
        allowed=f"{family.form} without anything else between projection and RoPE"
        if family.form == "rows"
        else "a norm with a gain on queries and keys",
    )


def _check_types(
    tensors: Mapping[str, TensorInfo], sites: Sequence[Site], family: Family, path: Path
) -> None:
    if family.form == "rows":
        return
    for name in (n for s in sites for n in (*s.queries, *s.keys)):
        if tensors[name].type_name != "F32":
            raise ModelFileError(
                "the norms of this GGUF are not F32, so they cannot be edited in place",
                seen=f"{path.name}: {name} is {tensors[name].type_name}",
                allowed="F32, as llama.cpp's converter writes norms",
                hint="convert the model again with convert_hf_to_gguf.py",
            )


def _folder(checkpoint: Checkpoint) -> tuple[Family, list[Site]]:
    path, config = checkpoint.path, checkpoint.config
    text = _Config(path, config.get("text_config") or config)
    family = families.family(
        str(text.get("model_type") or checkpoint.architecture), families.FOLDER
    )
    tensors = {t.name: t for f in checkpoint.files for t in read_safetensors_header(f).tensors}
    n_layers = text.integer("num_hidden_layers")
    # Layers behind the last are those that predict further tokens.
    layers = {i: prefix for i, prefix in _by_layer(tensors).items() if i < n_layers}
    first_shared = n_layers - text.integer("num_kv_shared_layers", 0)
    kinds = _layer_types(text, n_layers, layers)
    found = []
    for i, prefix in layers.items():
        own = i < first_shared
        same = [j for j in layers if j < first_shared and kinds[j] == kinds[i]]
        if not own and not same:
            raise text.wrong("num_kv_shared_layers", "a layer of each kind with keys of its own")
        owner = i if own else same[-1]
        dim, heads, kv_heads = _shape(tensors, text, prefix, layers[owner])
        queries = _hf_names(tensors, prefix, "q", family, path)
        own_keys = _hf_names(tensors, prefix, "k", family, path) if own else ()
        site = Site(
            i, owner, heads, kv_heads, _config_ties(text, kinds[i], dim), queries, own_keys,
            _coarse(tensors, (*queries, *own_keys)),
        )  # fmt: skip
        found.append(site)
    if not found:
        raise _unlike(path, "no layer with self_attn.q_proj", family)
    return family, found


class _Config:
    """The part of a config.json that is about text; its values may be anything."""

    def __init__(self, path: Path, values: Any) -> None:
        self._path, self._values = path, values
        if not isinstance(values, Mapping):
            self._values = {"text_config": values}
            raise self.wrong("text_config", "an object")

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def wrong(self, key: str, allowed: str) -> ModelFileError:
        return ModelFileError(
            f"config.json: {key} has a wrong value", allowed=allowed,
            seen=f"{show(self.get(key))} in {self._path}",
            hint="take config.json from where the model came from",
        )  # fmt: skip

    def integer(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(key, f"a whole number from {least} on")
        return value


def _by_layer(tensors: Iterable[str]) -> dict[int, str]:
    """Prefix of every layer's attention, such as "model.layers.3.self_attn."."""
    pattern = re.compile(r"((?:.*\.)?layers\.(\d{1,6})\.self_attn\.)q_proj\.weight", re.ASCII)
    found = {}
    for name in tensors:
        match = pattern.fullmatch(name)
        if match and not re.search(r"vision|audio|image", name):
            found[int(match[2])] = match[1]
    return dict(sorted(found.items()))


def _layer_types(text: _Config, n_layers: int, layers: Iterable[int]) -> dict[int, str]:
    listed = text.get("layer_types")
    if listed is None:
        return dict.fromkeys(layers, "full_attention")
    if not isinstance(listed, list) or len(listed) != n_layers:
        raise text.wrong("layer_types", f"a kind for each of {n_layers} layers")
    return {i: str(listed[i]) for i in layers}


def _shape(
    tensors: Mapping[str, TensorInfo], text: _Config, prefix: str, owner: str
) -> tuple[int, int, int]:
    """Head size, heads and KV heads, from the tensors where they tell."""
    names = (f"{prefix}q_proj.weight", f"{owner}k_proj.weight")
    rows_q, rows_k = (
        tensors[n].shape[0] if n in tensors and tensors[n].shape else 0 for n in names
    )
    norm = tensors.get(f"{prefix}q_norm.weight")
    if norm is not None and norm.shape:
        dim = norm.shape[0]
    elif text.get("head_dim") is not None:
        dim = text.integer("head_dim")
    else:
        dim = text.integer("hidden_size") // text.integer("num_attention_heads", least=1)
    if not dim or dim % 2 or not rows_q or not rows_k or rows_q % dim or rows_k % dim:
        raise ModelFileError(
            "the projections of queries and keys do not consist of heads",
            seen=f"{names[0]} with {rows_q:,} rows, {names[1]} with {rows_k:,}",
            allowed=f"multiples of the head size, which is {dim:,}",
        )
    return dim, rows_q // dim, rows_k // dim


def _config_ties(text: _Config, kind: str, dim: int) -> npt.NDArray[np.intp]:
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    rope = rope.get(kind, rope) if isinstance(rope, dict) else {}
    if not isinstance(rope, dict):
        rope = {}
    share = rope.get("partial_rotary_factor") or text.get("partial_rotary_factor") or 1.0
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise text.wrong("partial_rotary_factor", "more than 0, up to 1")
    if rope.get("rope_type") == "proportional":
        # Pairs lie D/2 apart whatever the share; those beyond it have frequency zero
        # (_compute_proportional_rope_parameters of transformers).
        return halves(dim, dim, int(share * dim // 2))
    return halves(dim, int(dim * share))


def _hf_names(
    tensors: Mapping[str, TensorInfo], prefix: str, side: str, family: Family, path: Path
) -> tuple[str, ...]:
    norm = f"{prefix}{side}_norm.weight"
    if family.form == "norms":
        if norm not in tensors:
            raise _unlike(path, f"no tensor {norm}", family)
        return (norm,)
    if norm in tensors:
        raise _unlike(path, norm, family)
    wanted = (f"{prefix}{side}_proj.weight", f"{prefix}{side}_proj.bias")
    return tuple(n for n in wanted if n in tensors)
