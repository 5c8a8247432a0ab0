"""TensorRT-LLM's `trtllm-serve`: no endpoint tells the KV type; its log tells what was asked for.

Read in NVIDIA/TensorRT-LLM (2026-11-28): tensorrt_llm/serve/openai_server.py at 0005772 (routes;
/server_info has disaggregated_params alone), tensorrt_llm/serve/openai_protocol.py (owned_by),
the PyTorch backend's validate_and_set_kv_cache_quant ("Validating KV Cache config against
kv_cache_dtype=..."), the C++ KV cache manager ("Allocated N GiB for max tokens in paged KV
cache"), and a published log of 1.1.0rc3. Not run here; logs of several ranks are unverified.

GET /metrics and POST /kv_cache_events hand out each entry once, to whoever asks first, so neither
is asked: a router may be waiting for them.
"""

from __future__ import annotations

import re

from nybble.engines.readback.base import Http, Reader, Reading
from nybble.engines.readback.values import (
    MODELS,
    integer,
    mapping,
    number,
    owners,
    served,
    since,
    text,
    told_lines,
)

_VERSION = "/version"
_OWNER = "tensorrt_llm"
_START = "Using LLM with "  # "PyTorch backend", once a start
_ASKED = re.compile(r'Validating KV Cache config against kv_cache_dtype="(\w{1,40})"')
_ALLOCATED = re.compile(
    r"Allocated ([\d.]{1,20}) GiB for max tokens in paged KV cache \((\d{1,18})\)"
)
_PER_TOKEN = re.compile(r"\bkv size is (\d{1,18})\b")
_LIMITS = re.compile(r"\bmax_seq_len=(\d{1,18}), max_num_requests=(\d{1,9})")
_NEAR = 0.02  # between the two sizes of a token that are told
_TOLD = (
    "KV cache quantization",
    "in paged KV cache",
    "Number of tokens per block",
    "Adjusted max_attention_window",
    "Adjusted max_seq_len",
)


class TensorRTReader(Reader):
    """`trtllm-serve`."""

    engine = "tensorrt-llm"

    def recognise(self, http: Http) -> bool:
        """By the owner of its models."""
        return _OWNER in owners(served(http))

    def read(self, http: Http, log: str | None) -> Reading:
        """Version and model from the server, what was asked for and allocated from the log."""
        models = served(http)
        last = since(log or "", _START)
        asked = _ASKED.findall(last)
        # The first allocation is one of a trial run, that memory is measured with.
        allocated = _ALLOCATED.findall(last)
        gib = number(allocated[-1][0]) if allocated else None
        tokens = integer(allocated[-1][1]) if allocated else None
        n_bytes = round(gib * 2**30) if gib else None
        limits = _LIMITS.findall(last)
        return Reading(
            engine=self.engine,
            version=text(mapping(http.json(_VERSION)).get("version")),
            k=asked[-1] if asked else None,
            v=asked[-1] if asked else None,
            echo=bool(asked),
            tokens=tokens,
            n_bytes=n_bytes,
            bytes_per_token=_per_token(last, n_bytes, tokens),
            context=integer(limits[-1][0]) if limits else None,
            sequences=integer(limits[-1][1]) if limits else None,
            model=text(models[0].get("id")) if models else None,
            sources=(_VERSION, MODELS, *(("log",) if asked or allocated else ())),
            notes=told_lines(last, _TOLD),
        )


def _per_token(log: str, n_bytes: int | None, tokens: int | None) -> float | None:
    """Bytes a token as told, where the allocation bears it out: with windows it does not."""
    found = _PER_TOKEN.findall(log)
    told = integer(found[-1]) if found else None
    if not told or not n_bytes or not tokens:
        return None
    return float(told) if abs(n_bytes / tokens - told) <= _NEAR * told else None
