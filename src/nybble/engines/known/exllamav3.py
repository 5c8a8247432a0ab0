"""ExLlamaV3, served by TabbyAPI: `cache_mode: K,V`, any two of 2 to 8 bits.

Read in exllamav3 1.6.5 (wheel of PyPI): cache/quant.py, cache/mla.py, cache/cache.py,
modules/attention_fn/dispatch.py and triton_paged.py, util/backend.py, exllamav3_ext/arch.cuh and
rocm/. Turing kernels and the ROCm sources are in 1.6.0 and not in 1.5.3. For TabbyAPI, see
`tabbyapi.py`; that it takes Turing and AMD cards: common/hardware.py at 1548c13, docs/11.-ROCm.md
(wiki page of 2026-10-09). At e632af4 (2026-08-13) it still refused both.
"""

from __future__ import annotations

from nybble.engines.known import tabbyapi
from nybble.engines.known.base import Deployment, Engine, KVChoice, Launch, Trap
from nybble.engines.known.weights import SINKS, sinks
from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting

_CACHE = "exllamav3 1.6.5, cache/quant.py"
_DISPATCH = "exllamav3 1.6.5, modules/attention_fn/dispatch.py"
_LOAD = "theroyallab/tabbyAPI 004e837, backends/exllamav3/model.py create_cache"
_VENDORS = ("nvidia", "amd")
_SM = (75, 80, 90, 100, 110, 120)  # TabbyAPI asks for 7.5 or more; families
_CARDS = "Turing (SM75) and AMD's RDNA need exllamav3 1.6.0 and a TabbyAPI of October 2026"
WIDEST = 512  # elements of a head that attention reads packed


def _choice(name: str, kv: str, limits: str, since: str | None = None) -> KVChoice:
    return KVChoice(name, kv, _CACHE, vendors=_VENDORS, sm=_SM, limits=limits, since=since)


class ExLlamaV3(Engine):
    """`Cache(layer_type=CacheLayer_quant, k_bits, v_bits)` behind TabbyAPI."""

    name = "exllamav3"
    version = "1.6.5"
    read_on = "2026-11-28"
    packages = ("exllamav3",)
    repository = "turboderp-org/exllamav3"
    flags = "cache_mode: K,V in TabbyAPI's config.yml (-cq K,V in its own scripts)"
    sides = True
    choices = (
        _choice("FP16", "f16", _CARDS),
        *(_choice(str(bits), f"exl3_{bits}",
                  f"{_CARDS}; both sides or none; packing changed in 1.0.0", "0.0.1")
          for bits in range(8, 1, -1)),
    )  # fmt: skip
    traps = (
        Trap("no effect", "sliding layers are f16 rings, never quantized, unless the model is "
             "loaded with -swa_full, which TabbyAPI does not do",
             "exllamav3 1.6.5, cache/cache.py, model_init.py"),
        Trap("no effect", "latents (MLA) take the K bits; the V bits are ignored and the RoPE part "
             "stays f16", "exllamav3 1.6.5, cache/mla.py"),
        Trap("fallback", "TabbyAPI's POST /v1/model/load takes any string as cache_mode: one that "
             "is no K,V pair and none of Q4, Q6, Q8 means FP16, and /v1/model repeats the string",
             _LOAD),
        Trap("fallback", "a config.yml that does not parse is logged and left out: TabbyAPI starts "
             "with its defaults and without a model",
             "theroyallab/tabbyAPI 082d538, common/tabby_config.py _from_file"),
        Trap("extra memory", "prefill reads an f16 copy of up to 65,536 tokens of a quantized "
             "cache; EXL3_QC_STAGING=0 does without and is 6 to 26 % slower there",
             "exllamav3 1.6.5, modules/attention_fn/triton_paged.py"),
        Trap("slow path", "heads of more than 512 or no multiple of 32, and the compander (-cca): "
             "whole layers are dequantized at every step", _DISPATCH),
        Trap("no effect", "eval/ppl.py scores without a cache; eval/model_diff.py -cq simulates "
             "one", "turboderp-org/exllamav3 4f8ad01, eval/ppl.py, eval/model_diff.py"),
    )  # fmt: skip
    sliding = "f16 rings of the window and two pages, whatever the setting"
    limits = (
        "head sizes must be multiples of 32; f16 on one side only is not to be had; AMD: RDNA by "
        "TabbyAPI's wheels, CDNA built from source; no CPU, Metal or Intel"
    )
    tells = "echo"
    readback = ("TabbyAPI's /v1/model gives parameters.cache_mode, cache_size and max_seq_len, but "
                "cache_mode is the string that was asked for; what is allocated shows in memory "
                "only")  # fmt: skip
    sources = (_CACHE, _DISPATCH, "exllamav3 1.6.5, exllamav3_ext/arch.cuh, util/backend.py",
               tabbyapi.SOURCE, _LOAD, "theroyallab/tabbyAPI 1548c13, common/hardware.py",
               "theroyallab/tabbyAPI aa58f94, docs/11.-ROCm.md")  # fmt: skip

    def choice(self, setting: KVSetting) -> tuple[KVChoice, KVChoice]:
        """Bits of K and V; a cache is quantized on both sides or on none.

        Raises:
            NybbleError: see above, and as Engine's.
        """
        k, v = super().choice(setting)
        if (k.name == "FP16") != (v.name == "FP16"):
            raise NybbleError(
                "exllamav3 quantizes both sides of its cache or none", seen=str(setting),
                allowed="f16/f16, exl3_K/exl3_V with 2 to 8 bits each", hint="--kv exl3_8/exl3_4",
            )  # fmt: skip
        return k, v

    def refuse(self, asked: Deployment) -> None:
        """Refuse other hardware than NVIDIA's from Turing on and AMD's, and other weights.

        Raises:
            NybbleError: see above, and as Engine's.
        """
        super().refuse(asked)
        if asked.weights not in ("exl3", "safetensors") or asked.quantization not in (None, "exl3"):
            raise NybbleError(
                "exllamav3 loads EXL3 weights, or unquantized ones",
                seen=f"{asked.model} ({asked.quantization or asked.weights})",
                allowed='quantization_config.quant_method "exl3"',
                hint="convert it with exllamav3's convert.py, or --engine vllm",
            )  # fmt: skip

    def warnings(self, asked: Deployment) -> tuple[str, ...]:
        """Layers that stay f16, bits that are ignored, cards that were little tried."""
        setting, layers, found = asked.setting, asked.geometry.layers, []
        if setting.quantized:
            sliding = len(asked.geometry.of_kind("sliding"))
            if sliding:
                found.append(f"{sliding} of {len(layers)} layers are sliding and keep f16 rings: "
                             f"{setting} holds for the others")  # fmt: skip
            if asked.geometry.of_kind("latent") and setting.k != setting.v:
                found.append(f"latents take the K bits: {setting.v} is ignored")
            widest = max((x.k_dim for x in asked.geometry.of_kind("global")), default=0)
            if widest > WIDEST:
                found.append(f"heads of {widest}: whole layers are dequantized at every step")
            if sinks(asked):
                found.append(SINKS)
        if asked.hardware.vendor == "amd":
            found.append("AMD: TabbyAPI's ROCm wheels are for RDNA and were run on RDNA3 only; "
                         "Instinct cards need exllamav3 built from source")  # fmt: skip
        return tuple(found)

    def launch(self, asked: Deployment) -> Launch:
        """TabbyAPI with a config.yml; the CUDA image is the one that is published."""
        mode = cache_mode(*self.choice(asked.setting))
        amd = asked.hardware.vendor == "amd"
        notes = (
            ("no image is published for ROCm: docker/Dockerfile.rocm builds one",) if amd else ()
        )
        return tabbyapi.launch(asked, mode, image="" if amd else tabbyapi.IMAGE, notes=notes)


def cache_mode(k: KVChoice, v: KVChoice) -> str:
    """`FP16`, or `K,V`; Q4, Q6 and Q8 would mean the same as 4,4 and 6,6 and 8,8."""
    return "FP16" if k.name == "FP16" else f"{k.name},{v.name}"
