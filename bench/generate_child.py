"""One run of bench/generate in a process of its own: `python generate_child.py REQUEST.json`.

Memory is the process's own resident set, read from /proc (on a GPU: torch's allocator). The
baseline is taken with every library imported and before the weights are read; the peak is reset
behind loading, so it is that of prompt and answer with the weights in memory.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from nybble.engines.transformers.packages import transformers

transformers()  # shuts the network before anything else imports it

import torch  # noqa: E402
from transformers import DynamicCache, QuantizedCache  # noqa: E402

from nybble.engines.transformers.load import load  # noqa: E402
from nybble.environment import cache_dir  # noqa: E402
from nybble.models.checkpoint import resolve  # noqa: E402
from nybble.runtime.attention import attach  # noqa: E402
from nybble.runtime.cache import Cache  # noqa: E402

OLD = {
    "quanto 4": {"backend": "quanto", "nbits": 4},
    "hqq 4": {"backend": "hqq", "nbits": 4, "axis_key": 1, "axis_value": 1},
    "fp8": {"backend": "fp8"},
}


class Memory:
    """What this process holds on a device, in bytes."""

    def __init__(self, device: str) -> None:
        self._device = device

    def now(self) -> int:
        """Resident or allocated at this moment."""
        return torch.cuda.memory_allocated() if self._device == "cuda" else _status("VmRSS")

    def peak(self) -> int:
        """The most since `reset`."""
        return torch.cuda.max_memory_allocated() if self._device == "cuda" else _status("VmHWM")

    def reset(self) -> None:
        """Forget the peak so far."""
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, f"no {name} in /proc/self/status"
    return int(found[1]) * 1024


def tensor_bytes(tensors: Any) -> int:
    """Bytes of all storages, each once."""
    storages = [t.untyped_storage() for t in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def make_cache(name: str, model: Any) -> Any:
    """An empty cache of a kind; nybble's also change the model's attention."""
    if name == "dynamic":
        return DynamicCache(config=model.config)
    if name in OLD:
        return QuantizedCache(config=model.config, **OLD[name])
    attach(model)
    return Cache(model, name)


def stored(cache: Any) -> int | None:
    """Bytes of the keys and values in a cache; None where it does not tell."""
    if isinstance(cache, Cache):
        return cache.bytes_stored()
    if isinstance(cache, QuantizedCache):
        return None
    return tensor_bytes(t for layer in cache.layers for t in (layer.keys, layer.values))


def kernel(cache: Any) -> str | None:
    """What reads a packed cache, in a word."""
    return cache.kernel.split(" (")[0] if isinstance(cache, Cache) else None


@torch.inference_mode()
def run(request: dict[str, Any]) -> dict[str, Any]:
    """Prompt in chunks, then an answer token by token."""
    device, chunk = request["device"], request["chunk"]
    memory = Memory(device)
    torch.ones(512, 512, device=device) @ torch.ones(512, 512, device=device)  # threads, BLAS
    baseline = memory.now()
    dtype = getattr(torch, request["dtype"])
    model: Any = load(resolve(Path(request["model"])), cache_dir(), dtype, device, "sdpa")
    weights = tensor_bytes([*model.parameters(), *model.buffers()])
    loaded = memory.now() - baseline
    memory.reset()
    ids = torch.from_numpy(np.load(request["tokens"])).to(device)[None]
    cache = make_cache(request["cache"], model)
    last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}  # noqa: SLF001

    def forward(given: torch.Tensor) -> torch.Tensor:
        out = model(input_ids=given, past_key_values=cache, use_cache=True, **last)
        token: torch.Tensor = out.logits[:, -1].argmax(-1, keepdim=True)
        token.tolist()  # waits for a GPU
        return token

    begun = time.perf_counter()
    if isinstance(cache, Cache):
        cache.reserve(ids.shape[1])
    for start in range(0, ids.shape[1], chunk):
        token = forward(ids[:, start : start + chunk])
    read = time.perf_counter() - begun
    after_prompt = memory.peak() - baseline
    steps = []
    for _ in range(request["new"]):
        begun = time.perf_counter()
        token = forward(token)
        steps.append(time.perf_counter() - begun)
    low, middle, high = np.quantile(steps, [0.25, 0.5, 0.75])
    peak = memory.peak() - baseline
    held = stored(cache)
    return {
        "tokens": ids.shape[1], "new": len(steps), "chunk": chunk,
        "prefill_tokens_per_s": ids.shape[1] / read, "prefill_s": read,
        "decode_tokens_per_s": 1 / middle, "decode_quartiles": [1 / high, 1 / low],
        "baseline_bytes": baseline, "weights_bytes": weights, "loaded_bytes": loaded,
        "peak_bytes": peak, "peak_of_prompt_bytes": after_prompt, "bytes_stored": held,
        "over": None if held is None else peak / (weights + held) - 1,
        "kernel": kernel(cache),
    }  # fmt: skip


def main() -> None:
    """Answer one request on stdout."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(run(request)))


if __name__ == "__main__":
    main()
