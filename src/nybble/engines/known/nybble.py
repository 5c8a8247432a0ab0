"""nybble's own runtime: `nybble generate`, and `nybble.Cache` in transformers' own `generate`.

Read in src/nybble/runtime of this very version. What becomes of packed weights was read in
transformers 5.23.0: quantizers/quantizer_compressed_tensors.py, integrations/gguf.
"""

from __future__ import annotations

from nybble.engines.known.base import (
    KEY,
    Deployment,
    Engine,
    KVChoice,
    Launch,
    Trap,
    check_hardware,
)
from nybble.environment import VERSION
from nybble.errors import NybbleError
from nybble.formats.kvtype import KVType
from nybble.formats.registry import KV_TYPES, kv_type
from nybble.formats.setting import KVSetting

_SIDE = "src/nybble/runtime/side.py"
_UNPACKS = "transformers 5.23.0, quantizers/quantizer_compressed_tensors.py"
_PACKED = "bitsandbytes, GPTQ, AWQ, HQQ or torchao weights"
_TRITON = ("nvidia", "amd")


def stores(kind: KVType) -> bool:
    """Whether the runtime takes a type: one that stores every token by itself."""
    return kind.tokens == 1 and kind.reads.rule != "residual"


def _choice(name: str) -> KVChoice:
    needs = "a calibration of the model (nybble calibrate)" if KV_TYPES[name].calibrated else ""
    return KVChoice(name, name, _SIDE, limits=needs)


class Nybble(Engine):
    """`nybble generate MODEL --kv K/V`."""

    name = "nybble"
    version = VERSION
    read_on = "2026-11-28"
    flags = "--kv K/V [+firstN] [+recentN] [+skipN] [+latent] ..."
    sides = True
    choices = tuple(
        _choice(name) for name, kind in KV_TYPES.items() if stores(kind) and kind.sides == "KV"
    )
    traps = (
        Trap("extra memory", "transformers unpacks compressed-tensors weights (w4a16) to 16 bits "
             f"in the first forward pass, and a GGUF's when it is loaded; {_PACKED} stay packed",
             _UNPACKS),
        Trap("slow path", "a KV type or head size that no kernel has is read by plain torch; one "
             "warning names the reason", "src/nybble/runtime/attention.py"),
        Trap("slow path", "the kernels for GPUs (Triton) were checked in an interpreter and "
             "measured on no GPU yet", "docs/kernels-gpu.md"),
    )  # fmt: skip
    sliding = "same types; pages behind the window are given back"
    limits = (
        "full and sliding attention; types that store every token by itself; all heads of a layer "
        "alike; one stream at a time, on one device; +latent where K is a function of V (Gemma 4's "
        "global layers: 12B, 26B-A4B, 31B), which is checked for every token"
    )
    tells = "api"
    readback = (
        "GET /health: kv, kernel and context, of the runtime itself; in process Cache.setting and "
        "Cache.bytes_stored()"
    )
    sources = (_SIDE, "src/nybble/runtime/cache.py", _UNPACKS)

    def choice(self, setting: KVSetting) -> tuple[KVChoice, KVChoice]:
        """The values for K and V, types for one side included.

        Raises:
            NybbleError: a type that stores tokens together.
        """
        other = [name for name in setting.types if not stores(kv_type(name))]
        if other:
            raise NybbleError(
                f"{self.name} stores every token by itself, which {other[0]} does not",
                seen=str(setting), allowed=[c.name for c in self.choices],
                hint=f"nybble engines {self.name}",
            )  # fmt: skip
        return _choice(setting.k), _choice(setting.v)

    def refuse(self, asked: Deployment) -> None:
        """Refuse several cards, and weights that would not stay as small as planned.

        Raises:
            NybbleError: see above.
        """
        for chosen in dict.fromkeys(self.choice(asked.setting)):
            check_hardware(self.name, chosen, asked.hardware)
        if asked.cards > 1:
            raise NybbleError(f"{self.name} runs on one device", seen=f"{asked.cards} cards",
                              allowed="1", hint="--engine vllm, or --cards 1")  # fmt: skip
        if asked.weights not in ("safetensors", "gguf"):
            raise NybbleError(f"{self.name} loads safetensors or a GGUF",
                              seen=f"{asked.model} ({asked.weights})",
                              allowed="a folder, a hub id or a file.gguf",
                              hint="--engine llama.cpp")  # fmt: skip
        if asked.quantization == "compressed-tensors":
            raise NybbleError(
                "transformers unpacks these weights to 16 bits in the first forward pass: "
                f"{_sixteen(asked)}",
                seen=f"{asked.model}, quantized with {asked.quantization}",
                allowed=f"16-bit weights, {_PACKED}", hint="--engine vllm",
            )  # fmt: skip
        if asked.quantization is not None and asked.setting.calibrated:
            raise NybbleError(
                "statistics of a model are taken from unquantized weights",
                seen=f"{asked.setting} with {asked.quantization} weights",
                allowed="a KV setting without calibration", hint="--kv q4_0/q4_0",
            )  # fmt: skip

    def warnings(self, asked: Deployment) -> tuple[str, ...]:
        """Weights that are unpacked, requests that wait, kernels nobody measured."""
        found = []
        if asked.weights == "gguf":
            found.append(f"the GGUF's weights are unpacked when they are loaded: {_sixteen(asked)} "
                         "in 16 bits, not the file's size")  # fmt: skip
        if asked.hardware.vendor == "cpu":
            found.append("on a CPU weights are loaded as float32, twice what 16 bits take "
                         "(--dtype bfloat16 of nybble generate)")  # fmt: skip
        if asked.sequences > 1:
            found.append(f"requests are answered one after another: {asked.sequences} users wait "
                         "for each other")  # fmt: skip
        vendor = asked.hardware.vendor
        if vendor in _TRITON:
            found.append("its kernels for GPUs were measured on none yet")
        elif vendor in ("intel", "apple"):
            found.append("it has no kernel for this card: plain torch reads the cache")
        return tuple(found)

    def launch(self, asked: Deployment) -> Launch:
        """`nybble generate --serve`, one stream at a time."""
        command = ["nybble", "generate", asked.model.removeprefix("hf:"), "--kv",
                   str(asked.setting), "--context", str(asked.context), "--serve", "--host",
                   asked.host, "--port", str(asked.port)]  # fmt: skip
        return Launch(tuple(command), env={KEY: f"${KEY}"} if asked.keyed else {})


def _sixteen(asked: Deployment) -> str:
    weights = asked.geometry.weights
    return "" if weights is None else f"{2 * weights.n_params / 2**30:.1f} GiB"
