"""SGLang: `python3 -m sglang.launch_server --kv-cache-dtype TYPE`, one type for both sides.

Read in 0.5.23 (wheel of PyPI), srt/arg_groups/fields/model.py (choices), kv_cache_hook.py
(handle_kv4_compatibility), model_override_base.py (get_default_attn_backend),
srt/mem_cache/kv_cache_dtype.py, srt/layers/attention/, srt/configs/model_config.py.
"""

from __future__ import annotations

from nybble.engines.known.base import KEY, Deployment, Engine, KVChoice, Launch, Trap
from nybble.engines.known.weights import SINKS, hub_or_path, refuse_weights, sinks
from nybble.errors import NybbleError

_FIELDS = "0.5.23, srt/arg_groups/fields/model.py"
_HOOK = "0.5.23, srt/arg_groups/kv_cache_hook.py"
_DTYPE = "0.5.23, srt/mem_cache/kv_cache_dtype.py"
_BACKEND = "0.5.23, srt/arg_groups/model_override_base.py get_default_attn_backend"
_VENDORS = ("nvidia", "amd", "intel", "cpu", "apple")
_PREFILL = ("new tokens of a prefill see raw K and V with triton and flashinfer, stored ones with "
            "fa3 (the default on Hopper)")  # fmt: skip


class SGLang(Engine):
    """`python3 -m sglang.launch_server`."""

    name = "sglang"
    version = "0.5.23"
    read_on = "2026-11-28"
    packages = ("sglang",)
    repository = "sgl-project/sglang"
    flags = "--kv-cache-dtype TYPE"
    # `choice` takes the last of those with the same setting.
    choices = (
        KVChoice("auto", "f16/f16", _FIELDS, vendors=_VENDORS, limits="the model's dtype, fp8 "
                 "where a ModelOpt checkpoint says so, fp8_e4m3 for DeepSeek V4 and, from SM100 "
                 "on, sparse DeepSeek"),
        KVChoice("bf16", "bf16/bf16", _FIELDS, vendors=_VENDORS),
        KVChoice("bfloat16", "bf16/bf16", _FIELDS, vendors=_VENDORS),
        KVChoice("fp8_e4m3", "fp8_e4m3/fp8_e4m3", _FIELDS, read="chunks",
                 vendors=("nvidia", "amd", "intel", "cpu"), limits=f"{_PREFILL}; scale 1.0 unless "
                 "--quantization-param-path or the checkpoint has some; Intel unverified"),
        KVChoice("mxfp8", None, f"{_HOOK} handle_mxfp8_kv_cache_compatibility", read="chunks",
                 vendors=("nvidia",), sm=(100, 120), limits="FA4 backend; nybble has no such type"),
        KVChoice("fp8_e5m2", "fp8_e5m2/fp8_e5m2", _DTYPE, read="chunks",
                 vendors=("nvidia", "intel"), limits="not on a CPU; AMD stores e4m3 instead; on "
                 "Hopper the backend becomes triton; Intel unverified"),
        KVChoice("nvfp4", "nvfp4/nvfp4", _HOOK, read="chunks", vendors=("nvidia",),
                 sm=(100, 120), limits="PyTorch 2.8, CUDA 12.8; decodes with trtllm_mha, prefill "
                 "in nvfp4 on SM100 and through an fp8 workspace on SM120; there by 0.5.16"),
        KVChoice("fp4_mx_block16", "fp4_mx_block16/fp4_mx_block16", _HOOK, read="chunks",
                 vendors=("nvidia",), limits="PyTorch 2.8, CUDA 12.8; triton, torch_native or "
                 "flex_attention, for MLA flashinfer; there by 0.5.16"),
        KVChoice("fp4_e2m1", None, "wheels 0.5.5 to 0.5.21", read="chunks", vendors=("nvidia",),
                 since="0.5.5", until="0.5.21", limits="the older name of the FP4 types"),
    )  # fmt: skip
    traps = (
        Trap("fallback", "on AMD --kv-cache-dtype fp8_e5m2 stores e4m3 without a message",
             f"{_DTYPE} configure_kv_cache_dtype"),
        Trap("slow path", "on Hopper fp8_e5m2 moves attention from FA3 to triton",
             "0.5.23, srt/arg_groups/overrides.py _attention_backend_fa3_fp8_fallback"),
        Trap("no effect", f"log-probabilities of a prompt are not those of decoding: {_PREFILL}",
             "0.5.23, srt/layers/attention/triton_backend.py, flashinfer_backend.py; "
             "sgl-project/sglang#25790"),
        Trap("extra memory", "nvfp4 outside SM100 keeps an fp8 copy for prefill "
             "(--prefill-kv-cache-dequant-dtype fp8_e4m3)", _HOOK),
        Trap("late refusal", "fp4_mx_block16 ends in an assertion with the default attention "
             "backend; it needs --attention-backend triton", f"{_HOOK} handle_kv4_compatibility"),
        Trap("late refusal", "nvfp4 on SM100 refuses disaggregated prefill, hierarchical cache and "
             "unified memory", _HOOK),
        Trap("fallback", "\"auto\" is fp8_e4m3 for DeepSeek V4, Muse Spark and, from SM100 on, "
             "sparse DeepSeek", "0.5.23, srt/arg_groups/overrides.py"),
        Trap("no effect", "echo with logprobs of the OpenAI API leaves the prompt's out and warns "
             "in the log only; /generate with logprob_start_len 0 gives them",
             "0.5.23, srt/entrypoints/openai/serving_completions.py"),
    )  # fmt: skip
    sliding = ("a pool of their own for some families (Gemma 4, gpt-oss, Llama 4 ...), without "
               "FP4; other models keep all tokens in every layer")  # fmt: skip
    limits = "FP4: blocks of 16, K and V heads alike, no sliding pool; nvfp4 not for MLA"
    tells = "log"
    readback = ("/server_info: resolved arguments; log: \"KV Cache is allocated. dtype: ..., "
                "#tokens: N, K size: ... GB, V size: ... GB\"")  # fmt: skip
    sources = (_FIELDS, _HOOK, _DTYPE, _BACKEND, "0.5.23, srt/configs/model_config.py",
               "0.5.23, srt/utils/hf_transformers/common.py",
               "docs/get-started/install.mdx (images)")  # fmt: skip

    def refuse(self, asked: Deployment) -> None:
        """Refuse what stores another type than asked for, and files without a loader.

        Raises:
            NybbleError: see above, and as Engine's.
        """
        refuse_weights(asked, "SGLang", ("safetensors", "gguf"))
        if asked.setting.k == "fp8_e5m2" and asked.hardware.vendor == "amd":
            raise NybbleError("SGLang on AMD stores e4m3 where fp8_e5m2 is asked for",
                              seen=str(asked.setting), allowed="fp8_e4m3/fp8_e4m3",
                              hint="--kv fp8_e4m3")  # fmt: skip
        super().refuse(asked)

    def warnings(self, asked: Deployment) -> tuple[str, ...]:
        """Raw prefill, the workspace of nvfp4, scales of 1.0, and what "auto" follows."""
        setting, found, sm = asked.setting, [], asked.hardware.sm
        if setting.quantized:
            # FA3 writes K and V first and reads them back (flashattention_backend.py).
            if sm is None or sm // 10 != 9:
                found.append("new tokens of a prefill see raw K and V, so prompt log-probabilities "
                             "show less damage than answers have (score by decode)")  # fmt: skip
            if sinks(asked):
                found.append(SINKS)
        if setting.k.startswith("fp8"):
            found.append("scales are 1.0 unless the checkpoint or --quantization-param-path has "
                         "some")  # fmt: skip
        if setting.k == "fp8_e5m2" and sm is not None and sm // 10 == 9:
            found.append("attention runs in triton, as FA3 knows fp8_e4m3 only")
        if setting.k == "nvfp4" and (sm is None or sm // 10 != 10):
            found.append("prefill reads an fp8 copy of the cache: extra memory, counted by nybble "
                         "plan as scratch")  # fmt: skip
        if not setting.quantized and (asked.quantization or "").startswith("modelopt"):
            found.append("\"auto\" follows a ModelOpt checkpoint to fp8; --kv bf16 asks for 16 "
                         "bits")  # fmt: skip
        return tuple(found)

    def launch(self, asked: Deployment) -> Launch:
        """The server, which serves /metrics and /server_info."""
        setting = asked.setting
        command = ["python3", "-m", "sglang.launch_server", "--model-path",
                   hub_or_path(asked.model), "--kv-cache-dtype", self.choice(setting)[0].name,
                   "--context-length", str(asked.context),
                   "--max-running-requests", str(asked.sequences)]  # fmt: skip
        if setting.k == "fp4_mx_block16":
            latent = asked.geometry.of_kind("latent")
            command += ["--attention-backend", "flashinfer" if latent else "triton"]
        if asked.cards > 1:
            command += ["--tensor-parallel-size", str(asked.cards)]
        if asked.hardware.vendor == "cpu":
            command += ["--device", "cpu"]
        command += ["--host", asked.host, "--port", str(asked.port), "--enable-metrics"]
        if asked.name:
            command += ["--served-model-name", asked.name]
        notes = []
        if asked.keyed:
            command += ["--api-key", f"${KEY}"]
            notes.append("SGLang takes its key on the command line only, where ps shows it")
        if asked.weights == "gguf":
            notes.append("GGUF needs pip install gguf; SGLang sees the file itself and sets "
                         "--load-format and --quantization")  # fmt: skip
        elif asked.quantization:
            notes.append(f"{asked.quantization} weights need no flag: SGLang reads the "
                         "checkpoint's own quantization")  # fmt: skip
        image = "" if asked.hardware.vendor in ("amd", "intel", "cpu", "apple") else (
            f"lmsysorg/sglang:v{self.version}")  # fmt: skip
        return Launch(tuple(command), image=image, notes=tuple(notes))
