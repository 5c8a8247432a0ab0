"""LMDeploy: no endpoint tells the KV type; its log does at level INFO, which is not the default.

Read in the wheel of 0.18.0 (2026-11-28): serve/openai/protocol.py (owned_by),
serve/openai/endpoints/distserve.py (/distserve/engine_info, a string of JSON with blocks; the
PyTorch engine's only, and without a key as it is not below /v1),
pytorch/engine/cache_engine/engine.py ("Using int4 KV cache.", none for 16 bits),
pytorch/engine/executor/base.py ("Building CacheEngine with config"), pytorch/config.py
CacheConfig, serve/core/async_engine.py ("updated backend_config", both engines), messages.py
QuantPolicy, cli/utils.py (--log-level WARNING). Not run here.

TurboMind, the C++ engine, tells its configuration alone, which is an echo.
"""

from __future__ import annotations

import json
import re
from typing import Any

from nybble.engines.readback.base import Http, Reader, Reading
from nybble.engines.readback.values import (
    MODELS,
    integer,
    mapping,
    owners,
    served,
    since,
    text,
    told_lines,
)

_ENGINE_INFO = "/distserve/engine_info"
_STARTS = ("input backend=", "Building CacheEngine with config")
_USING = re.compile(r"Using (\w{1,40}) KV cache\.")
# What the engine calls its caches there, by the names of --quant-policy.
_CALLED = {"fp8_e4m3": "fp8", "TurboQuant": "turbo_quant"}
_POLICIES = {0: "none", 4: "int4", 8: "int8", 16: "fp8", 17: "fp8_e5m2", 42: "turbo_quant"}
_POLICY = re.compile(r"\bquant_policy=(?:<QuantPolicy\.\w{1,40}: )?(\d{1,4})")
_FIELD = r"\b%s=(\d{1,18})"
_BLOCKS, _BLOCK, _BATCHES, _SESSION, _BATCH = (
    re.compile(_FIELD % name)
    for name in ("num_gpu_blocks", "block_size", "max_batches", "session_len", "max_batch_size")
)
_TOLD = (" KV cache.", "requires block_size=")


class LMDeployReader(Reader):
    """`lmdeploy serve api_server`."""

    engine = "lmdeploy"

    def recognise(self, http: Http) -> bool:
        """By the owner of its models, or /distserve/engine_info where those ask for a key."""
        return "lmdeploy" in owners(served(http)) or "num_gpu_blocks" in _engine_info(http)

    def read(self, http: Http, log: str | None) -> Reading:
        """Blocks from the endpoint, the type from the log."""
        models = served(http)
        info = _engine_info(http)
        last = since(log or "", *_STARTS)
        built = _line(last, "CacheConfig(")
        asked = _line(last, "updated backend_config=")
        kept, echo = _type(last, built, asked)
        blocks = integer(info.get("num_gpu_blocks")) or _first(_BLOCKS, built)
        size = integer(info.get("block_size")) or _first(_BLOCK, built)
        used = [MODELS] if models else []
        used += [_ENGINE_INFO] if info else []
        used += ["log"] if kept else []
        return Reading(
            engine=self.engine,
            k=kept,
            v=kept,
            echo=echo,
            tokens=blocks * size if blocks and size else None,
            context=_first(_SESSION, asked),
            sequences=_first(_BATCHES, built) or _first(_BATCH, asked),
            model=text(models[0].get("id")) if models else None,
            sources=tuple(used),
            notes=told_lines(last, _TOLD),
        )


def _type(log: str, built: str, asked: str) -> tuple[str | None, bool]:
    """The KV type, and whether it is only what was asked for."""
    using = _USING.findall(log)
    if using:
        return _CALLED.get(using[-1], using[-1]), False
    for line, echo in ((built, False), (asked, True)):
        policy = _first(_POLICY, line)
        if policy is not None:
            return _POLICIES.get(policy, str(policy)), echo
    return None, False


def _engine_info(http: Http) -> dict[str, Any]:
    told = http.json(_ENGINE_INFO)
    if isinstance(told, str):  # encoded twice
        try:
            told = json.loads(told)
        except (ValueError, RecursionError):
            return {}
    return mapping(told)


def _line(log: str, mark: str) -> str:
    """The last line with a mark, from the mark on."""
    at = log.rfind(mark)
    return log[at:].partition("\n")[0] if at >= 0 else ""


def _first(pattern: re.Pattern[str], line: str) -> int | None:
    found = pattern.search(line)
    return integer(found[1]) if found else None
