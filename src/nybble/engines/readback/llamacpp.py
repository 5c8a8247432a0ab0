"""llama.cpp's server: no endpoint tells the KV type, the library's log does.

Source: b11549, tools/server (GET /props), src/llama-kv-cache.cpp (the log's lines, printed at
verbosity 4), ggml/src/ggml-cuda/fattn.cu (the warning of conversions).
"""

from __future__ import annotations

import re
from dataclasses import replace

from nybble.engines.llamacpp.cachelog import AppliedCache, parse_cache_log
from nybble.engines.readback.base import Http, Reader, Reading
from nybble.engines.readback.values import integer, mapping, text, told_lines

_PROPS = "/props"
_STREAMS = re.compile(r"(\d{1,6})/(\d{1,6}) seqs")
# Lines worth a user's eye: conversions at every step, operations on another device.
_WARNINGS = (
    "no FlashAttention vector kernel compiled",
    "rotation disabled",
    "Flash Attention was auto, set to disabled",
    "fused Gated Delta Net",
    "context size reduced",
)


class LlamaCppReader(Reader):
    """`llama-server`, and `nybble serve`."""

    engine = "llama.cpp"

    def recognise(self, http: Http) -> bool:
        """By /props, which has the build and the slots."""
        props = http.json(_PROPS)
        return isinstance(props, dict) and "build_info" in props and "total_slots" in props

    def read(self, http: Http, log: str | None) -> Reading:
        """Context, slots and build from /props; types, rotation and bytes from the log."""
        props = mapping(http.json(_PROPS))
        settings = mapping(props.get("default_generation_settings"))
        reading = Reading(
            engine=self.engine,
            version=text(props.get("build_info")),
            context=integer(settings.get("n_ctx")),
            sequences=integer(props.get("total_slots")),
            model=text(props.get("model_alias")) or text(props.get("model_path")),
            sources=(_PROPS,),
        )
        last = last_start(log or "")
        cache = parse_cache_log(last)
        if not cache.subcaches:
            return reading
        return with_log(reading, cache, last)


def last_start(log: str) -> str:
    """The part of a log that the newest start wrote; all of it where no start shows."""
    begins = [m.start() for m in re.finditer(r"^.*llama_kv_cache(_iswa)?: creating\s+non-SWA.*$",
                                             log, re.M)]  # fmt: skip
    if not begins:
        begins = [m.start() for m in re.finditer(r"^.*llama_context: constructing.*$", log, re.M)]
    return log[begins[-1]:] if begins else log  # fmt: skip


def with_log(reading: Reading, cache: AppliedCache, log: str) -> Reading:
    """A reading with what the log's lines tell of the cache.

    Args:
        reading: what is known without a log.
        cache: parsed from it.
        log: of one start.
    """
    types = {(sub.k_type, sub.v_type) for sub in cache.subcaches}
    k, v = types.pop() if len(types) == 1 else (None, None)
    streams = max((int(m[1]) for m in _STREAMS.finditer(log)), default=1)
    grows = [sub for sub in cache.subcaches if sub.kind == "global" and sub.cells and streams]
    # The size is of all streams; a stream has `cells` of them for one sequence.
    per_token = sum((s.k_mib + s.v_mib) * 2**20 / (s.cells * streams) for s in grows)
    return replace(
        reading, k=k, v=v, echo=False, rotation=(cache.rotation_k, cache.rotation_v),
        tokens=max(s.cells for s in cache.subcaches) * streams or None,
        n_bytes=cache.n_bytes, bytes_per_token=per_token or None,
        sources=(*reading.sources, "log: llama_kv_cache"), notes=told_lines(log, _WARNINGS),
    )  # fmt: skip
