"""llama.cpp: `llama-server -ctk TYPE -ctv TYPE`, or the same server in process from xllamacpp.

Read in b11549 (the sdist of xllamacpp 2026.10.11549): common/arg.cpp (kv_cache_types),
src/llama-context.cpp, src/llama-kv-cache.cpp, ggml/src/ggml-cuda/fattn.cu, tools/server.
"""

from __future__ import annotations

from nybble.engines.known.base import KEY, Deployment, Engine, KVChoice, Launch, Trap
from nybble.engines.known.weights import SINKS, sinks
from nybble.errors import NybbleError
from nybble.formats.registry import kv_type

_ARG = "b11549, common/arg.cpp kv_cache_types"
_FATTN = "b11549, ggml/src/ggml-cuda/fattn.cu"
_CUDA = ("nvidia", "amd", "what-if")  # AMD through HIP
# Pairs with a kernel for single tokens in a default CUDA build; GGML_CUDA_FA_QUANTS=all has more.
COMPILED = frozenset({"f16/f16", "bf16/bf16", "q8_0/q8_0", "q4_0/q4_0"})


def _choice(name: str, limits: str = "", since: str | None = None) -> KVChoice:
    return KVChoice(name, name, _ARG, limits=limits, since=since)


class LlamaCpp(Engine):
    """`llama-server`, or `nybble serve` with the wheel's own."""

    name = "llama.cpp"
    version = "b11549"
    read_on = "2026-11-24"
    packages = ("xllamacpp", "llama-cpp-python")
    repository = "ggml-org/llama.cpp"
    flags = "-ctk TYPE -ctv TYPE"
    sides = True
    choices = (
        _choice("f16"),
        _choice("bf16"),
        _choice("f32"),
        _choice("q8_0"),
        _choice("q5_1"),
        _choice("q5_0"),
        _choice("q4_1"),
        _choice("q4_0"),
        _choice("iq4_nl", "no flash attention in CUDA and Metal: the operation moves to the CPU"),
    )
    traps = (
        Trap("fallback", "CUDA builds without a kernel for a K/V pair move attention to the CPU "
             "without a message (prefill 8 to 45 times slower)",
             "ggml-org/llama.cpp#28455, #27109, #24485; PR #28079", until="b11000"),
        Trap("slow path", "K/V pairs without a compiled kernel are converted to f16 at every step; "
             "said once, in a warning (\"no FlashAttention vector kernel compiled\")", _FATTN,
             since="b11000"),
        Trap("extra memory", "heads of more than 256 (Gemma 4's global layers, 512) have no kernel "
             "for single tokens: K and V are converted to an f16 copy at every step", _FATTN),
        Trap("fallback", "Gemma 4's cache was not rotated before PR #21513, although Hadamard "
             "rotation was on for others", "ggml-org/llama.cpp#21394", until="b8700"),
        Trap("no effect", "--fit shrinks a context that was not given to what fits, and says so "
             "at verbosity 4 only", "b11549, tools/fit-params, common/arg.cpp"),
        Trap("extra memory", "prompts of past conversations are kept in the host's memory, up to 8 "
             "GiB (--cache-ram; nybble serve gives 1 GiB), and 32 checkpoints a slot of models "
             "with sliding or recurrent layers", "b11549, common/common.h cache_ram_mib"),
        Trap("late refusal", "a saved slot or session of another rotation is refused when it is "
             "restored", "b11434, src/llama-kv-cache.cpp"),
    )  # fmt: skip
    sliding = "same types in a shorter cache; states of recurrent layers stay f32"
    limits = ("blocks of 32 must divide every head size; a quantized V needs flash attention; "
              "latents (MLA) take one type for both")  # fmt: skip
    tells = "log"
    readback = ("no API tells it: log lines of the library (llama_kv_cache: size, n_rot), printed "
                "at -lv 4 only; /props gives the context and the build")  # fmt: skip
    sources = (_ARG, _FATTN, "b11549, src/llama-context.cpp, src/llama-kv-cache.cpp",
               "tools/server/README.md")  # fmt: skip

    def refuse(self, asked: Deployment) -> None:
        """Refuse what CUDA and Metal move to the CPU, and files that are no GGUF.

        Raises:
            NybbleError: see above, and as Engine's.
        """
        super().refuse(asked)
        setting, vendor = asked.setting, asked.hardware.vendor
        if asked.weights != "gguf":
            raise NybbleError("llama.cpp loads GGUF files", seen=f"{asked.model} "
                              f"({asked.weights})", allowed="a file ending in .gguf",
                              hint="name the GGUF of this model")  # fmt: skip
        if "iq4_nl" in setting.types and vendor in (*_CUDA, "apple"):
            raise NybbleError(
                "llama.cpp has no flash attention for iq4_nl on this card and would move attention "
                "to the CPU", seen=str(setting), allowed="q4_0, q4_1, q5_0, q5_1, q8_0",
                hint="--kv q4_0/q4_0",
            )  # fmt: skip
        if vendor == "apple" and setting.k != setting.v:
            raise NybbleError(
                "llama.cpp on Metal has flash attention for equal K and V types only",
                seen=str(setting), allowed=f"{setting.k}/{setting.k}, {setting.v}/{setting.v}",
                hint=f"--kv {setting.k}/{setting.k}",
            )  # fmt: skip

    def warnings(self, asked: Deployment) -> tuple[str, ...]:
        """The conversions to f16 that CUDA makes."""
        setting, found = asked.setting, []
        if asked.hardware.vendor in _CUDA and setting.quantized:
            pair = f"{setting.k}/{setting.v}"
            widest = max((x.k_dim for x in asked.geometry.of_kind("global", "sliding")), default=0)
            if widest > 256:
                found.append(
                    f"heads of {widest}: CUDA converts K and V to an f16 copy at every step (no "
                    "kernel for single tokens over 256), counted by nybble plan as scratch"
                )
            elif pair not in COMPILED:
                found.append(
                    f"{pair}: a default CUDA build converts K and V to f16 at every step; build "
                    "with -DGGML_CUDA_FA_QUANTS=all, or take q8_0/q8_0 or q4_0/q4_0"
                )
        if setting.quantized and sinks(asked):
            found.append(SINKS)
        return tuple(found)

    def launch(self, asked: Deployment) -> Launch:
        """`llama-server`; verbosity 4 makes the cache in effect readable from the log."""
        setting = asked.setting
        command = ["llama-server", *model_arguments(asked.model), *arguments(asked)]
        env = {} if setting.rotation else {"LLAMA_ATTN_ROT_DISABLE": "1"}
        if asked.keyed:
            env["LLAMA_API_KEY"] = f"${KEY}"  # on the command line, ps would show it
        image = {"nvidia": "server-cuda", "amd": "server-rocm", "intel": "server-intel"}
        tag = image.get(asked.hardware.vendor or "", "server")
        if asked.hardware.vendor in _CUDA:
            command += ["-ngl", "all"]
        if asked.cards > 1:
            command += ["--split-mode", "layer"]
        return Launch(
            tuple(command), env, image=f"ghcr.io/ggml-org/llama.cpp:{tag}",
            # The image's entry point is the server itself.
            image_command=tuple(command[1:]),
        )  # fmt: skip


def model_arguments(model: str) -> list[str]:
    """How llama-server is told a model: a path, hf:org/repo/file or a URL."""
    if model.startswith("hf:"):
        org, repo, *rest = model[3:].split("/")
        return ["--hf-repo", f"{org}/{repo}"] + (["--hf-file", "/".join(rest)] if rest else [])
    if model.startswith(("http://", "https://")):
        return ["--model-url", model]
    return ["--model", model]


def arguments(asked: Deployment) -> list[str]:
    """Arguments of llama-server that define cache and address; without the model."""
    setting = asked.setting
    found = ["--ctx-size", str(asked.context * asked.sequences),
             "--parallel", str(asked.sequences),
             "--cache-type-k", setting.k, "--cache-type-v", setting.v]  # fmt: skip
    if kv_type(setting.v).quantized:
        found += ["--flash-attn", "on"]  # "auto" would turn it on; "on" fails where it cannot
    found += ["--fit", "off", "--host", asked.host, "--port", str(asked.port),
              "--metrics", "--jinja", "--log-verbosity", "4"]  # fmt: skip
    if asked.name:
        found += ["--alias", asked.name]
    return found
