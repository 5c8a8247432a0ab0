"""ExLlamaV2, served by the TabbyAPI of before 14 July 2026: `cache_mode: FP16 | Q8 | Q6 | Q4`.

Read in exllamav2 0.3.2 (wheel of PyPI, the last release, July 2025): cache.py, attn.py
(forward_paged), generator/dynamic.py. TabbyAPI removed this backend in c8b9a8f (2026-07-14), so
the commit before it is what serves it; its config.yml is the one of `tabbyapi.py`, and what it
does on older cards is read in backends/exllamav2/model.py at 02a8d68.
"""

from __future__ import annotations

from nybble.engines.known import tabbyapi
from nybble.engines.known.base import Deployment, Engine, KVChoice, Launch, Read, Trap
from nybble.errors import NybbleError

_CACHE = "exllamav2 0.3.2, cache.py"
_ATTN = "exllamav2 0.3.2, attn.py forward_paged"
_LOAD = "theroyallab/tabbyAPI 02a8d68, backends/exllamav2/model.py"
REMOVED = "c8b9a8f"  # of 2026-07-14; its parent still has the backend
_VENDORS = ("nvidia", "amd")


def _choice(name: str, kv: str | None, limits: str = "") -> KVChoice:
    # A chunk's own K and V are in the f16 copy while attention reads it; they are stored after.
    read: Read = "always" if name == "FP16" else "chunks"
    return KVChoice(name, kv, f"{_CACHE}; {_ATTN}", read=read, vendors=_VENDORS, limits=limits)


class ExLlamaV2(Engine):
    """`ExLlamaV2Cache` and its Q8, Q6 and Q4 forms behind an old TabbyAPI."""

    name = "exllamav2"
    version = "0.3.2"
    read_on = "2026-11-28"
    packages = ("exllamav2",)
    repository = "turboderp-org/exllamav2"
    flags = "cache_mode in the config.yml of a TabbyAPI before c8b9a8f"
    choices = (
        _choice("FP16", "f16/f16"),
        _choice("Q8", "exl2_q8/exl2_q8"),
        _choice("Q6", "exl2_q8/exl2_q4", "8-bit keys and 4-bit values"),
        _choice("Q4", "exl2_q4/exl2_q4"),
        _choice("8bit", None, "ExLlamaV2Cache_8bit, f16 cut to E5M2; the generator that servers "
                "use refuses it, and cache_mode has no name for it"),
    )  # fmt: skip
    traps = (
        Trap("fallback", "TabbyAPI takes every cache_mode that does not begin with Q as FP16, "
             "ExLlamaV3's pairs among them; it says so in a warning", _LOAD),
        Trap("extra memory", "an f16 copy of one whole layer of the cache on each card", _CACHE),
        Trap("slow path", "before Ampere, on AMD cards and without flash-attn 2.5.7: no paging, "
             "one request at a time, cache_size ignored; said in a warning", _LOAD),
        Trap("extra memory", "sliding layers keep every token", _CACHE),
    )  # fmt: skip
    sliding = "as global ones: all tokens, and the types of the setting"
    limits = ("head sizes must be multiples of 32; K and V of one size in all layers (no MLA, no "
              "recurrent and no shared layers); no CPU; no release since July 2025")  # fmt: skip
    tells = "echo"
    readback = "TabbyAPI's /v1/model: parameters.cache_mode, after the fallback to FP16"
    sources = (_CACHE, _ATTN, "exllamav2 0.3.2, generator/dynamic.py", _LOAD, tabbyapi.SOURCE)

    def refuse(self, asked: Deployment) -> None:
        """Refuse other hardware than NVIDIA's and AMD's, and other weights.

        Raises:
            NybbleError: see above, and as Engine's.
        """
        super().refuse(asked)
        if asked.weights not in ("exl2", "safetensors") or asked.quantization not in (
            None, "exl2", "gptq",
        ):  # fmt: skip
            raise NybbleError(
                "exllamav2 loads EXL2 and GPTQ weights, or unquantized ones",
                seen=f"{asked.model} ({asked.quantization or asked.weights})",
                allowed='quantization_config.quant_method "exl2" or "gptq"',
                hint="convert it with exllamav2's convert.py, or --engine vllm",
            )  # fmt: skip
        if asked.sequences > 1 and _unpaged(asked):
            raise NybbleError(
                "exllamav2 serves one request at a time on this card (no flash attention 2)",
                seen=f"{asked.sequences} sequences on {asked.hardware.name or 'it'}",
                allowed="1; several from Ampere (SM80) on", hint="--users 1",
            )  # fmt: skip

    def warnings(self, asked: Deployment) -> tuple[str, ...]:
        """That this server is an old one, and what it does on old cards."""
        found = [f"TabbyAPI dropped ExLlamaV2 on 2026-07-14 ({REMOVED}): this needs an older "
                 "checkout, which gets no fixes"]  # fmt: skip
        if _unpaged(asked):
            found.append("no flash attention 2 on this card: one request at a time")
        return tuple(found)

    def launch(self, asked: Deployment) -> Launch:
        """TabbyAPI of before c8b9a8f; its image is built from main and has no such backend."""
        mode, _ = self.choice(asked.setting)
        note = f"git checkout {REMOVED}~1 in TabbyAPI: later ones have no ExLlamaV2"
        return tabbyapi.launch(asked, mode.name, backend="exllamav2", notes=(note,))


def _unpaged(asked: Deployment) -> bool:
    hardware = asked.hardware
    old = hardware.vendor == "nvidia" and hardware.sm is not None and hardware.sm < 80
    return old or hardware.vendor == "amd"
