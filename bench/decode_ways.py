"""What bench/decode holds this runtime against: the best 16-bit kernel and transformers' caches.

A kernel that is not installed or refuses a shape is left out, and the result says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from decode_measure import Bench, Way, refused
from decode_packed import Data

_PROBES = 3  # runs by which the fastest kernel is chosen
_PAGE = 64  # tokens of a page for FlashInfer

Tensors = tuple[torch.Tensor, torch.Tensor]


def plain_way(data: Data, bench: Bench, name: str, dtype: torch.dtype, refusals: dict[str, str]
              ) -> tuple[Way, Tensors]:  # fmt: skip
    """The fastest attention over plain tensors of a dtype.

    Args:
        data: the case.
        bench: the clock.
        name: of the way.
        dtype: of queries, keys and values.
        refusals: gets what could not be run, and why.

    Returns:
        The way, and the keys and values it reads.
    """
    k, v = data.tensors(dtype)
    q = data.q.to(dtype)
    found = []
    for candidate in (*_sdpa(data, q, k, v), *_others(data, q, k, v, refusals)):
        try:
            with warnings.catch_warnings(), candidate.context():
                warnings.simplefilter("ignore")
                candidate.call()
            seconds = min(bench.run(candidate) for _ in range(_PROBES))
        except (RuntimeError, ValueError, TypeError, ImportError, AttributeError) as error:
            refusals[f"{name} {candidate.name}"] = refused(error)
            continue
        found.append((seconds, candidate))
    seconds, best = min(found, key=lambda pair: pair[0])
    probes = {candidate.name: seconds for seconds, candidate in found}
    moved = 2 * k.numel() * k.element_size()
    about = {"kernel": best.name, "probed_s": probes}
    return Way(name, best.call, moved, best.context, about=about), (k, v)


def _sdpa(data: Data, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Iterator[Way]:
    """Every backend; a group's queries as so many query positions, or as heads of their own."""
    batch, heads, _, dim = q.shape
    folded = q.view(batch, k.shape[1], heads // k.shape[1], dim)
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    if q.is_cuda:
        backends += [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    for backend in backends:
        context = partial(sdpa_kernel, backend)
        label = f"sdpa {backend.name.lower().removesuffix('_attention')}"
        for given, how in ((folded, "folded"), (q, "by head")):
            grouped = given.shape[1] != k.shape[1]
            if how == "by head" and not grouped:
                continue  # one query a KV head: folding changed nothing
            call = partial(F.scaled_dot_product_attention, given, k, v, scale=data.scaling,
                           enable_gqa=grouped)  # fmt: skip
            yield Way(f"{label}, {how}", _shaped(call, batch, heads, dim), context=context)


def _shaped(
    call: Callable[[], torch.Tensor], batch: int, heads: int, dim: int
) -> Callable[[], torch.Tensor]:
    """The output as models take it, [B, 1, heads, D]."""
    return lambda: call().view(batch, 1, heads, dim)


def _others(data: Data, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
            refusals: dict[str, str]) -> Iterator[Way]:  # fmt: skip
    """FlashAttention and FlashInfer, where they are installed."""
    if not q.is_cuda or q.dtype == torch.float32:
        return
    makers = (("flash_attn_interface", _flash_attention), ("flash_attn", _flash_attention),
              ("flashinfer", _flashinfer))  # fmt: skip
    for module, maker in makers:
        if find_spec(module) is None:
            refusals[module] = "not installed"
            continue
        try:
            yield maker(module, data, q, k, v)
        except Exception as error:  # a library of its own: whatever it raises, it is left out
            refusals[module] = refused(error)


def _flash_attention(
    module: str, data: Data, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> Way:
    """FlashAttention 3 (flash_attn_interface) or 2: split along the context by its own rule."""
    from importlib import import_module

    attend = import_module(module).flash_attn_with_kvcache
    # [B, tokens, heads, D], and contiguous so: its own layout, not ours seen through strides.
    queries, keys, values = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    call = partial(attend, queries, keys, values, softmax_scale=data.scaling)
    return Way(module, call)


def _flashinfer(module: str, data: Data, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Way:
    """FlashInfer's batch decode over pages, on tensor cores."""
    import flashinfer

    batch, kv_heads, context, dim = k.shape
    page = min(_PAGE, context)
    pages = batch * context // page
    table = torch.arange(pages, dtype=torch.int32, device=q.device)
    starts = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * (context // page)
    last = torch.full((batch,), page, dtype=torch.int32, device=q.device)
    space = torch.empty(256 << 20, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(space, "NHD", use_tensor_cores=True)
    wrapper.plan(
        starts, table, last, q.shape[1], kv_heads, dim, page, q_data_type=q.dtype,
        kv_data_type=k.dtype, sm_scale=data.scaling,
    )  # fmt: skip
    paged = tuple(
        x.transpose(1, 2).reshape(pages, page, kv_heads, dim).contiguous() for x in (k, v)
    )
    queries = q[:, :, 0].contiguous()
    return Way(module, lambda: wrapper.run(queries, paged).unsqueeze(1))


def old_ways(data: Data, plain: Way, tensors: Tensors, refusals: dict[str, str]) -> Iterator[Way]:
    """A whole step with transformers' caches: one token stored, then attention over what it gives.

    QuantizedCache dequantizes all that it holds at every step; that every 128th one it also
    quantizes all of it anew is left out. DynamicCache copies all keys and values to add one.
    """
    from transformers import cache_utils

    makers = {
        "dynamic step": cache_utils.DynamicLayer,
        "quanto 4 step": partial(cache_utils.QuantoQuantizedLayer, nbits=4),
        "hqq 4 step": partial(cache_utils.HQQQuantizedLayer, nbits=4, axis_key=1, axis_value=1),
        "fp8 step": cache_utils.Fp8QuantizedLayer,
    }
    for name, maker in makers.items():
        try:
            layer = maker()
            layer.update(*tensors)
            yield _old(name, layer, data, plain)
        except (ImportError, RuntimeError, ValueError, OSError, NotImplementedError) as error:
            refusals[name] = refused(error)


def _old(name: str, layer: Any, data: Data, plain: Way) -> Way:
    state = dict(vars(layer))
    new = tuple(x[:, :, :1].expand(data.batch, -1, -1, -1).contiguous() for x in (data.k, data.v))
    batch, heads, _, dim = data.q.shape
    grouped = "by head" in plain.about["kernel"]
    q = data.q if grouped else data.q.view(batch, data.shape.kv_heads, -1, dim)

    def step() -> torch.Tensor:
        k, v = layer.update(*new)
        out = F.scaled_dot_product_attention(q, k, v, scale=data.scaling, enable_gqa=grouped)
        return out.view(batch, 1, heads, dim)

    sdpa = plain.about["kernel"].startswith("sdpa")
    return Way(
        name, step, context=plain.context if sdpa else torch.no_grad,
        after=lambda: vars(layer).update(state),
    )  # fmt: skip
