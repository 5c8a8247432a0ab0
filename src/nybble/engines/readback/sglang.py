"""SGLang: /server_info has every argument as resolved, the log what was allocated.

Read in the wheel of 0.5.23 (2026-11-28): srt/entrypoints/http_server.py (/server_info;
/get_server_info is its older name), srt/server_args.py resolved_dict,
srt/managers/scheduler_components/internal_state.py and memory_usage.py,
srt/mem_cache/memory_pool.py _finalize_allocation_log (GB there are GiB; a pool of windows has a
label before "KV Cache", as has one of a draft), srt/mem_cache/kv_cache_dtype.py (dtype of each
flag), srt/entrypoints/openai/protocol.py (owned_by). Not run here.

The arguments are an echo: "auto" stays "auto", and fp8_e5m2 becomes another type on AMD. The
dtype in the log is that of the pool.
"""

from __future__ import annotations

import re
from typing import Any

from nybble.engines.readback.base import Http, Reader, Reading
from nybble.engines.readback.values import (
    MODELS,
    integer,
    mapping,
    mappings,
    number,
    per_token,
    served,
    since,
    text,
    told_lines,
)

_PATHS = ("/server_info", "/get_server_info")
_ALLOCATED = "KV Cache is allocated"
_POOL = re.compile(
    r"\. dtype: ([\w.]{1,40}), #tokens: (\d{1,18}), "
    r"(?:K size: ([\d.]{1,20}) GB, V size: ([\d.]{1,20}) GB|KV size: ([\d.]{1,20}) GB)"
)
# Flags that a pool's dtype may stand for, the likeliest first (kv_cache_dtype.py).
_FLAGS = {
    "torch.float8_e4m3fn": ("fp8_e4m3", "mxfp8"),
    "torch.float8_e4m3fnuz": ("fp8_e4m3",),
    "torch.float8_e5m2": ("fp8_e5m2",),
    "torch.bfloat16": ("bf16", "bfloat16"),
    "torch.float16": ("float16",),
    "torch.float32": ("float32",),
    "torch.float4_e2m1fn_x2": ("nvfp4", "fp4_mx_block16"),
}
_TOLD = (
    _ALLOCATED,
    "KV Cache VA upper bound",
    "KV Cache might lead to an accuracy drop",
    "KV cache scaling factors",
    "no scaling factors",
    "KV cache dtype",
    "hybrid attention backend",
    "torch native attention backend",
)


class SGLangReader(Reader):
    """`python -m sglang.launch_server`."""

    engine = "sglang"

    def recognise(self, http: Http) -> bool:
        """By /server_info with arguments that only SGLang has."""
        return bool(_info(http)[1])

    def read(self, http: Http, log: str | None) -> Reading:
        """Arguments and memory from /server_info, the pool's type from the log."""
        path, info = _info(http)
        states = mappings(info.get("internal_states"))
        state = states[0] if states else {}
        asked = text(state.get("kv_cache_dtype")) or text(info.get("kv_cache_dtype"))
        ranks = (integer(info.get("tp_size")) or 1) * (integer(info.get("pp_size")) or 1)
        memory = mapping(state.get("memory_usage"))
        last = since(log or "", "server_args=")
        pools = _pools(last)
        kept, notes = _type(asked, pools)
        if ranks > 1:
            notes.append(f"{ranks} ranks: the memory told is of one of them")

        tokens = integer(memory.get("token_capacity")) or integer(info.get("max_total_num_tokens"))
        if tokens is None and pools:
            tokens = pools[0][1]
        n_bytes, error = _bytes(memory, pools) if ranks == 1 else (None, 0.0)
        one_pool = not integer(memory.get("token_capacity_swa")) and len(pools) < 2
        models = served(http)
        used = [path] if info else []
        used += [MODELS] if models else []
        used += [f"log: {_ALLOCATED}"] if pools else []
        every = max(len(states), 1)  # data-parallel schedulers, each with a cache
        return Reading(
            engine=self.engine,
            version=text(info.get("version")),
            k=kept,
            v=kept,
            echo=kept is not None and not pools,
            tokens=None if tokens is None else tokens * every,
            n_bytes=None if n_bytes is None else n_bytes * every,
            bytes_per_token=per_token(n_bytes, tokens, error) if one_pool else None,
            context=integer(models[0].get("max_model_len")) if models else None,
            sequences=integer(state.get("effective_max_running_requests_per_dp"))
            or integer(info.get("max_running_requests")),
            model=text(info.get("served_model_name")) or text(info.get("model_path")),
            sources=tuple(used),
            notes=(*notes, *told_lines(last, _TOLD)),
        )


def _info(http: Http) -> tuple[str, dict[str, Any]]:
    for path in _PATHS:
        info = mapping(http.json(path))
        if "kv_cache_dtype" in info and "mem_fraction_static" in info:
            return path, info
    return "", {}


def _pools(log: str) -> list[tuple[str, int, float, float]]:
    """dtype, tokens, GiB and the rounding of GiB of every pool of the model itself."""
    found: dict[str, tuple[str, int, float, float]] = {}
    for line in log.split("\n"):
        before, marked, after = line.partition(_ALLOCATED)
        told = _POOL.match(after) if marked else None
        if told is None:
            continue
        given = (told[5],) if told[5] else (told[3], told[4])
        sizes = [size for size in map(number, given) if size is not None]
        if len(sizes) == len(given):
            # Each rank tells its own, alike; of one label the model's comes before a draft's.
            label = before.rpartition("] ")[2]
            found.setdefault(label, (told[1], int(told[2]), sum(sizes), 0.005 * len(sizes)))
    return list(found.values())


def _type(
    asked: str | None, pools: list[tuple[str, int, float, float]]
) -> tuple[str | None, list[str]]:
    """The type by SGLang's flag, and what does not fit together."""
    kinds = {dtype for dtype, *_ in pools}
    if not kinds:
        return asked, []
    if len(kinds) > 1:
        return asked, [f"pools of several dtypes: {', '.join(sorted(kinds))}"]
    dtype = kinds.pop()
    flags = _FLAGS.get(dtype, (text(dtype.removeprefix("torch.")),))
    if asked in flags:
        return asked, []
    said = [] if asked in (None, "auto") else [f"kv_cache_dtype is {asked}, the pool's is {dtype}"]
    return flags[0], said


def _bytes(
    memory: dict[str, Any], pools: list[tuple[str, int, float, float]]
) -> tuple[int | None, float]:
    """Bytes of one scheduler's cache, and what rounding may have added."""
    gib = number(memory.get("kvcache"))
    if gib:
        return round(gib * 2**30), 0.0005 * 2**30
    if not pools:
        return None, 0.0
    total, error = sum(pool[2] for pool in pools), sum(pool[3] for pool in pools)
    return round(total * 2**30), error * 2**30
