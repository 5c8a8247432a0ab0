"""TensorRT-LLM: `trtllm-serve MODEL --config FILE`, with `kv_cache_config: {dtype: fp8}` in it.

The weakest source of all engines: no wheel of it could be had here. Read: tensorrt_llm/commands/
serve.py at 00209af and llmapi/llm_args.py (KvCacheConfig, BaseLlmArgs) of about 1.2, the pages
features/quantization.html of 1.0.0, 1.3.0rc27 and 1.4.0rc4, cpp/kernels/xqa/gen_cubins.py at
1d263f1. What is marked unverified was found in neither.
"""

from __future__ import annotations

from typing import Any

import yaml

from nybble.engines.known.base import ConfigFile, Deployment, Engine, KVChoice, Launch, Trap
from nybble.engines.known.weights import SINKS, hub_or_path, refuse_weights, sinks
from nybble.errors import NybbleError

_PAGE = "nvidia.github.io/TensorRT-LLM/1.3.0rc27/features/quantization.html"
_ARGS = "tensorrt_llm/llmapi/llm_args.py KvCacheConfig"
_SERVE = "tensorrt_llm/commands/serve.py at 00209af"
_XQA = 'cpp/kernels/xqa/gen_cubins.py at 1d263f1 ("only supported on sm89 and next")'
_NV = ("nvidia",)
_FREE = 0.9  # free_gpu_memory_fraction, the default of trtllm-serve
CONFIG = "trtllm.yaml"


class TensorRTLLM(Engine):
    """`trtllm-serve` with its PyTorch backend."""

    name = "tensorrt-llm"
    version = "1.3.0rc27"
    read_on = "2026-11-28"
    packages = ("tensorrt-llm",)
    repository = "NVIDIA/TensorRT-LLM"
    flags = "kv_cache_config: {dtype: TYPE} in the file of --config"
    choices = (
        KVChoice("auto", "f16/f16", _ARGS, vendors=_NV, limits="the model's dtype, or what the "
                 "checkpoint asks for (fp8, nvfp4)"),
        KVChoice("auto", "bf16/bf16", _ARGS, vendors=_NV, limits="with dtype: bfloat16 for the "
                 "model"),
        KVChoice("fp8", "fp8_e4m3/fp8_e4m3", f"{_PAGE}; {_XQA}", vendors=_NV,
                 sm=(89, 90, 100, 110, 120), limits="may be forced on any checkpoint; the page "
                 "names Hopper and Blackwell, the kernels SM89"),
        KVChoice("nvfp4", "nvfp4/nvfp4", _PAGE, vendors=_NV, sm=(100, 110, 120),
                 limits="a checkpoint quantized offline by ModelOpt with an nvfp4 cache; "
                 "Blackwell, on SM120 unverified; not on the page of 1.0.0"),
    )  # fmt: skip
    traps = (
        Trap("fallback", "\"auto\" follows the checkpoint: fp8 or nvfp4 where its quantization "
             "config says so", "nvidia.github.io/TensorRT-LLM/1.4.0rc4/features/quantization.html"),
        Trap("late refusal", "nvfp4 on a checkpoint that ModelOpt did not quantize for it", _PAGE),
        Trap("extra memory", "sliding layers keep all tokens unless max_attention_window is set "
             "(unverified for models that bring their window)", _ARGS),
        Trap("no effect", "the dtype is read by the PyTorch backend only", _ARGS),
        Trap("late refusal", "there is no API key: requests are not checked",
             "NVIDIA/TensorRT-LLM#9950"),
    )  # fmt: skip
    sliding = "one type for all layers; max_attention_window lists windows"
    limits = ("blocks of 32 tokens; nvfp4: blocks of 16 elements, not for MLA; one type for all "
              "layers (per-layer types: PR #13695, open)")  # fmt: skip
    tells = "echo"
    readback = ("no API tells it; the log repeats kv_cache_dtype of its configuration (a published "
                "1.1.0rc3 log; unverified for newer)")  # fmt: skip
    sources = (_PAGE, _ARGS, _SERVE, _XQA, "NVIDIA/TensorRT-LLM#9950")

    def refuse(self, asked: Deployment) -> None:
        """Refuse nvfp4 without a ModelOpt checkpoint, keys, and files without a loader.

        Raises:
            NybbleError: see above, and as Engine's.
        """
        refuse_weights(asked, "TensorRT-LLM", ("safetensors",))
        super().refuse(asked)
        plain = not (asked.quantization or "").startswith("modelopt")
        if asked.setting.k == "nvfp4" and plain:
            raise NybbleError(
                "TensorRT-LLM's nvfp4 cache needs a checkpoint that ModelOpt quantized for it",
                seen=f"{asked.model} ({asked.quantization or 'not quantized'})",
                allowed="quantization_config of modelopt", hint="--kv fp8_e4m3",
            )  # fmt: skip
        if asked.keyed:
            raise NybbleError(
                "trtllm-serve has no API key (NVIDIA/TensorRT-LLM#9950)",
                seen=f"{asked.host}:{asked.port} with a key", allowed="127.0.0.1 without one",
                hint="listen on 127.0.0.1 and put a proxy that checks the key before it",
            )  # fmt: skip

    def warnings(self, asked: Deployment) -> tuple[str, ...]:
        """What was not verified for this deployment."""
        found, setting = [], asked.setting
        if not setting.quantized and asked.quantization:
            found.append(f'"auto" follows the checkpoint: if this {asked.quantization} one names a '
                         "KV type, the cache is fp8 or nvfp4")  # fmt: skip
        if setting.k == "nvfp4" and asked.hardware.sm is not None and asked.hardware.sm // 10 != 10:
            found.append("nvfp4 outside SM100 is not verified")
        if setting.k == "fp8_e4m3" and asked.hardware.sm == 89:
            found.append("the documentation names fp8 caches for Hopper and Blackwell only; that "
                         "SM89 works is read from its kernels")  # fmt: skip
        if setting.quantized and sinks(asked):
            found.append(SINKS)
        return tuple(found)

    def launch(self, asked: Deployment) -> Launch:
        """`trtllm-serve`, its KV type in a YAML file beside it."""
        model = hub_or_path(asked.model)
        command = ["trtllm-serve", model, "--backend", "pytorch", "--config", CONFIG,
                   "--max_seq_len", str(asked.context),
                   "--max_batch_size", str(asked.sequences)]  # fmt: skip
        if asked.cards > 1:
            command += ["--tp_size", str(asked.cards)]
        command += ["--host", asked.host, "--port", str(asked.port)]
        if asked.name:
            command += ["--served_model_name", asked.name]
        notes = ["not run: older releases spell --config as --extra_llm_api_options and lack "
                 "--served_model_name"]  # fmt: skip
        if asked.quantization:
            notes.append(f"{asked.quantization} weights need no flag: the checkpoint's own "
                         "quantization is read")  # fmt: skip
        return Launch(
            tuple(command), files=(ConfigFile(CONFIG, self._config(asked)),),
            image=f"nvcr.io/nvidia/tensorrt-llm/release:{self.version}", notes=tuple(notes),
        )  # fmt: skip

    def _config(self, asked: Deployment) -> str:
        cache = {"dtype": self.choice(asked.setting)[0].name, "free_gpu_memory_fraction": _FREE}
        config: dict[str, Any] = {"kv_cache_config": cache}
        if asked.setting.k == "bf16":
            config["dtype"] = "bfloat16"
        return yaml.safe_dump(config, sort_keys=False)
