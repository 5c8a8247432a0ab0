"""mlx-lm: `mlx_lm.server --kv-bits N`, Apple's, and on Linux with CUDA or on CPUs.

Read in mlx-lm 0.32.2 (wheel of PyPI): server.py, generate.py (maybe_quantize_kv_cache),
models/cache.py, models/base.py. The server has the flags since 0.32.0 (not in 0.31.3). Tried with
mlx 0.32.2 on a CPU under Linux (2026-11-28, tiny models): the server with 8 and 4 bits, and that
log-probabilities change from the first generated token on with --quantized-kv-start 0 and not at
all with its default; what becomes of Gemma 3's windows; that mx.quantize takes 2, 3, 4, 5, 6 and 8
bits in groups of 32, 64 and 128.
"""

from __future__ import annotations

from nybble.engines.known.base import Deployment, Engine, KVChoice, Launch, Trap
from nybble.errors import NybbleError

_SERVER = "mlx-lm 0.32.2, server.py"
_CACHE = "mlx-lm 0.32.2, models/cache.py"
_GENERATE = "mlx-lm 0.32.2, generate.py maybe_quantize_kv_cache"
_VENDORS = ("apple", "nvidia", "cpu")  # mlx, mlx[cuda12], mlx[cuda13], mlx[cpu]
GROUP = 64  # elements that share a scale and a bias; nybble's mlx_4 and mlx_8 have the same


def _bits(bits: int, kv: str | None = None) -> KVChoice:
    limits = "CUDA unverified" if kv else "nybble has no format of it"
    return KVChoice(str(bits), kv, f"{_SERVER}; {_GENERATE}", read="chunks", vendors=_VENDORS,
                    since="0.32.0", limits=limits)  # fmt: skip


class MlxLm(Engine):
    """`mlx_lm.server`; one request at a time once the cache is quantized."""

    name = "mlx-lm"
    version = "0.32.2"
    read_on = "2026-11-28"
    packages = ("mlx-lm",)
    repository = "ml-explore/mlx-lm"
    flags = "--kv-bits N --kv-group-size 64 --quantized-kv-start 0"
    choices = (
        KVChoice("none", "f16/f16", _SERVER, vendors=_VENDORS, limits="the model's own 16 bits"),
        _bits(8, "mlx_8/mlx_8"),
        _bits(6),
        _bits(5),
        _bits(4, "mlx_4/mlx_4"),
        _bits(3),
        _bits(2),
    )
    traps = (
        Trap("no effect", "nothing is quantized before --quantized-kv-start, 5000 tokens by "
             "default", _GENERATE),
        Trap("late refusal", "sliding-window caches are not quantized (NotImplementedError): the "
             "server starts and /health stays 200, but every request is cut off without an answer",
             f"ml-explore/mlx-lm#1573; {_CACHE}; tried"),
        Trap("late refusal", "attention sinks with a quantized cache: ValueError at the first "
             "token after the cache was converted", "mlx-lm 0.32.2, models/base.py"),
        Trap("no effect", "caches of other kinds have no to_quantized and stay as they are without "
             "a word: CacheList, ChunkedKVCache (Llama 4), recurrent states", _CACHE),
        Trap("slow path", "--kv-bits turns batching off: requests are served one after another",
             _SERVER + " _is_batchable"),
        Trap("extra memory", "attention over a quantized cache is not fused and holds the whole "
             "matrix of scores", "mlx-lm 0.32.2, models/base.py; ml-explore/mlx-lm#1611"),
        Trap("extra memory", "the server has no limit of context, and keeps 10 prompts' caches by "
             "default (--prompt-cache-size)", _SERVER),
    )  # fmt: skip
    sliding = "refused when quantized (RotatingKVCache.to_quantized is not implemented)"
    limits = ("head sizes must be multiples of the group, 64; no latents (MLA), no attention "
              "sinks when quantized; no API key")  # fmt: skip
    tells = "no"
    readback = (
        "no API tells it; memory, and log-probabilities against a server without --kv-bits; "
        "/v1/models is cut off where there is no Hugging Face cache folder"
    )
    sources = (_SERVER, _GENERATE, _CACHE, "mlx-lm 0.32.2, models/base.py",
               "mlx 0.32.2, mx.quantize")  # fmt: skip

    def refuse(self, asked: Deployment) -> None:
        """Refuse layers that fail at the first request, other weights, keys, several cards.

        Raises:
            NybbleError: see above, and as Engine's.
        """
        super().refuse(asked)
        layers = asked.geometry.layers
        if asked.setting.quantized:
            why = ""
            if asked.geometry.of_kind("sliding"):
                why = "sliding-window layers: RotatingKVCache.to_quantized is not implemented"
            elif any(layer.sinks for layer in layers):
                why = "attention sinks: its quantized attention has none"
            elif asked.geometry.of_kind("latent"):
                why = "latents (MLA): its models read them raw"
            if why:
                raise NybbleError(
                    f"mlx-lm quantizes no cache of this model: {why}",
                    seen=f"{asked.geometry.architecture} with {asked.setting}", allowed="f16/f16",
                    hint="--kv f16/f16, or --engine llama.cpp",
                )  # fmt: skip
        if asked.weights not in ("mlx", "safetensors"):
            raise NybbleError("mlx-lm loads MLX weights or plain safetensors",
                              seen=f"{asked.model} ({asked.weights})", allowed="a folder or hub id",
                              hint="mlx_lm.convert, or --engine llama.cpp")  # fmt: skip
        if asked.cards > 1:
            raise NybbleError("mlx-lm is planned for one machine's memory here",
                              seen=f"{asked.cards} cards", allowed="1",
                              hint="mlx.launch splits a model; start it by hand")  # fmt: skip
        _no_key(asked)

    def warnings(self, asked: Deployment) -> tuple[str, ...]:
        """Batching that is off, memory that is not bounded."""
        found = ["mlx_lm.server has no limit of context: nothing stops a request of more than "
                 f"{asked.context:,} tokens"]  # fmt: skip
        if asked.setting.quantized:
            found.append("attention over a quantized cache is not fused: its scores take memory "
                         "that grows with the context")  # fmt: skip
            if asked.sequences > 1:
                found.append(f"--kv-bits serves requests one after another: {asked.sequences} "
                             "users wait for each other")  # fmt: skip
            if asked.geometry.of_kind("recurrent"):
                found.append("recurrent layers keep their states as they are")
        return tuple(found)

    def launch(self, asked: Deployment) -> Launch:
        """`mlx_lm.server`, quantized from the first token on.

        Raises:
            NybbleError: keys are asked for.
        """
        _no_key(asked)
        chosen, _ = self.choice(asked.setting)
        model = asked.model.removeprefix("hf:")
        command = ["mlx_lm.server", "--model", model, "--host", asked.host, "--port",
                   str(asked.port), "--prompt-cache-size", str(asked.sequences)]  # fmt: skip
        if asked.setting.quantized:
            command += ["--kv-bits", chosen.name, "--kv-group-size", str(GROUP),
                        "--quantized-kv-start", "0"]  # fmt: skip
        else:
            command += ["--decode-concurrency", str(asked.sequences),
                        "--prompt-concurrency", str(asked.sequences)]  # fmt: skip
        note = (f"requests name the model default_model or {model}: any other name is loaded from "
                "the hub in its place")  # fmt: skip
        return Launch(tuple(command), notes=(note,))


def _no_key(asked: Deployment) -> None:
    if asked.keyed:
        raise NybbleError(
            "mlx_lm.server has no API key", seen="a key was asked for",
            allowed="no key, on 127.0.0.1",
            hint="a proxy that checks keys in front of it, or --engine llama.cpp",
        )  # fmt: skip
