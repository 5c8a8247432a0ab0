"""LMDeploy: `lmdeploy serve api_server MODEL --backend pytorch --quant-policy N`.

Read in 0.18.0 (wheel of PyPI): cli/serve.py and cli/utils.py, messages.py (QuantPolicy and the
checks of both engines' configs), archs.py (autoget_backend), pytorch/config.py (weights),
pytorch/engine/cache_engine/schema.py, pytorch/backends/cuda/attention/.
"""

from __future__ import annotations

from nybble.engines.known.base import KEY, Deployment, Engine, KVChoice, Launch, Trap
from nybble.engines.known.weights import SINKS, hub_or_path, refuse_weights, sinks
from nybble.errors import NybbleError

_POLICY = "0.18.0, messages.py QuantPolicy"
_ENGINE = "0.18.0, pytorch/engine/cache_engine/schema.py"
_ARCHS = "0.18.0, archs.py autoget_backend"
# Numbers, which all versions take; names came later.
_NUMBERS = {"none": "0", "int8": "8", "fp8": "16", "fp8_e5m2": "17", "int4": "4"}
# What pytorch/config.py QuantizationConfig knows; others end in a TypeError.
_WEIGHTS = ("awq", "smooth_quant", "fp8", "compressed-tensors")


def _choice(name: str, kv: str | None, limits: str = "", since: str | None = None) -> KVChoice:
    return KVChoice(name, kv, _POLICY, vendors=("nvidia",), since=since, limits=limits)


class LMDeploy(Engine):
    """Its PyTorch engine; TurboMind stores int4 and int8 too, but is not planned."""

    name = "lmdeploy"
    version = "0.18.0"
    read_on = "2026-11-28"
    packages = ("lmdeploy",)
    repository = "InternLM/lmdeploy"
    flags = "--quant-policy N"
    choices = (
        _choice("none", "f16/f16", "the model's dtype"),
        _choice("none", "bf16/bf16", "--dtype bfloat16"),
        _choice("int8", "lmdeploy_int8/lmdeploy_int8", "even head sizes"),
        _choice("fp8", "fp8_e4m3/fp8_e4m3", "PyTorch engine only; one scale a tensor", "0.14.0"),
        _choice("fp8_e5m2", "fp8_e5m2/fp8_e5m2", "PyTorch engine only", "0.14.0"),
        _choice("int4", "lmdeploy_int4/lmdeploy_int4", "even head sizes"),
        _choice("turbo_quant", None, "4-bit keys, 2-bit values, which nybble has no format of; "
                "not for MLA", "0.13.0"),
    )  # fmt: skip
    traps = (
        Trap("fallback", "without --backend pytorch the engine is TurboMind where it knows the "
             "model, PyTorch where not; a log line says which", _ARCHS),
        Trap("late refusal", "TurboMind ends in an assertion for fp8 and fp8_e5m2; turbo_quant "
             "passes it (unverified what it stores then)",
             "0.18.0, messages.py TurbomindEngineConfig.__post_init__"),
        Trap("late refusal", "GPTQ and ModelOpt weights end in \"Unsupported quant method\" on the "
             "PyTorch engine", "0.18.0, pytorch/config.py"),
        Trap("extra memory", "sliding layers keep all tokens: blocks have one shape for all layers",
             _ENGINE),
        Trap("no effect", "--dtype is ignored for quantized weights", "0.18.0, cli/utils.py dtype"),
        Trap("fallback", "\"auto\" runs float32 models in float16, and so stores float16",
             "0.18.0, cli/utils.py dtype"),
    )  # fmt: skip
    sliding = "as global layers: all tokens are kept unless all layers have one window"
    limits = ("one head shape for all layers; MLA in 16 bits only; CUDA and Ascend cards; cards in "
              "powers of two")  # fmt: skip
    tells = "log"
    readback = "no API tells it; CacheConfig(... quant_policy=...) in the log at --log-level INFO"
    sources = (_POLICY, _ENGINE, _ARCHS, "0.18.0, cli/serve.py, cli/utils.py",
               "0.18.0, pytorch/config.py")  # fmt: skip

    def refuse(self, asked: Deployment) -> None:
        """Refuse weights the PyTorch engine has no reader for, and odd numbers of cards.

        Raises:
            NybbleError: see above, and as Engine's.
        """
        refuse_weights(asked, "LMDeploy", ("safetensors",))
        super().refuse(asked)
        if asked.quantization and asked.quantization not in _WEIGHTS:
            raise NybbleError("LMDeploy's PyTorch engine does not read these quantized weights",
                              seen=asked.quantization, allowed=_WEIGHTS,
                              hint="nybble config MODEL --engine vllm")  # fmt: skip
        if asked.cards & (asked.cards - 1):
            raise NybbleError("LMDeploy splits a model over 2, 4, 8 ... cards",
                              seen=f"{asked.cards} cards", allowed="powers of two")  # fmt: skip

    def warnings(self, asked: Deployment) -> tuple[str, ...]:
        """Scales, and sinks; that windows save nothing is a note of every plan."""
        found = []
        if asked.setting.k.startswith("fp8"):
            found.append("one scale a tensor, 1.0 unless the checkpoint has some (unverified)")
        if asked.setting.quantized and sinks(asked):
            found.append(SINKS)
        return tuple(found)

    def launch(self, asked: Deployment) -> Launch:
        """The API server on the PyTorch engine."""
        setting = asked.setting
        command = ["lmdeploy", "serve", "api_server", hub_or_path(asked.model), "--backend",
                   "pytorch", "--quant-policy", _NUMBERS[self.choice(setting)[0].name],
                   "--session-len", str(asked.context),
                   "--max-batch-size", str(asked.sequences)]  # fmt: skip
        if setting.k == "bf16":
            command += ["--dtype", "bfloat16"]
        if asked.cards > 1:
            command += ["--tp", str(asked.cards)]
        command += ["--server-name", asked.host, "--server-port", str(asked.port)]
        if asked.name:
            command += ["--model-name", asked.name]
        notes = []
        if asked.keyed:
            command += ["--api-keys", f"${KEY}"]
            notes.append("LMDeploy takes its key on the command line only, where ps shows it")
        if asked.quantization:
            notes.append(f"{asked.quantization} weights need no flag: LMDeploy reads the "
                         "checkpoint's quantization_config")  # fmt: skip
        return Launch(tuple(command), image="openmmlab/lmdeploy:latest", notes=tuple(notes))
