"""transformers: QuantizedCache in `model.generate`; `transformers serve` has no flag for it.

Read in transformers 5.23.0 (installed wheel): cache_utils.py (QuantizedLayer, Fp8QuantizedLayer,
QuantizedCache), generation/utils.py, cli/serve.py, cli/serving/utils.py
(_build_generation_config), cli/serving/server.py. Tried on a CPU (2026-11-28): `transformers serve`
takes cache_implementation and cache_config from the generation_config.json of the model's folder,
and from the generation_config of a request.
"""

from __future__ import annotations

from nybble.engines.known.base import Deployment, Engine, KVChoice, Launch, Trap
from nybble.errors import NybbleError

_CACHE = "transformers 5.23.0, cache_utils.py"
_SERVE = "transformers 5.23.0, cli/serve.py"
_REQUEST = "transformers 5.23.0, cli/serving/utils.py _build_generation_config"
_HQQ = ("nvidia", "amd")  # its layer calls Quantizer.cuda; others unverified
_ALL = ("nvidia", "amd", "intel", "apple", "cpu")


def _hqq(bits: int, kv: str | None = None) -> KVChoice:
    return KVChoice(f"hqq nbits={bits}", kv, f"{_CACHE} HQQQuantizedLayer", read="decode",
                    vendors=_HQQ, limits="needs hqq; calls .cuda")  # fmt: skip


def _quanto(bits: int, kv: str) -> KVChoice:
    return KVChoice(f"quanto nbits={bits}", kv, f"{_CACHE} QuantoQuantizedLayer", read="decode",
                    vendors=_ALL, limits="needs optimum-quanto 0.2.5 or newer")  # fmt: skip


class Transformers(Engine):
    """`generate(cache_implementation="quantized", cache_config={...})`."""

    name = "transformers"
    version = "5.23.0"
    read_on = "2026-11-28"
    packages = ("transformers",)
    repository = "huggingface/transformers"
    flags = 'cache_implementation="quantized", cache_config={"backend": ..., "nbits": ...}'
    choices = (
        KVChoice("dynamic", "f16/f16", _CACHE, limits="the model's own 16 bits"),
        _hqq(8, "hqq_8/hqq_8"),
        KVChoice("fp8", None, f"{_CACHE} Fp8QuantizedLayer", read="decode", vendors=_ALL,
                 since="5.21.0", limits="E4M3, one scale a tensor, frozen at the prompt's largest "
                 "value; takes no other option"),
        _hqq(4, "hqq_4/hqq_4"),
        _quanto(4, "quanto_4/quanto_4"),
        _hqq(3),
        _hqq(2),
        _quanto(2, "quanto_2/quanto_2"),
        _hqq(1),
    )  # fmt: skip
    traps = (
        Trap("no effect", "the first forward pass attends to raw K and V: a prompt scored in one "
             "pass shows no loss at all", f"{_CACHE} QuantizedLayer.update"),
        Trap("late refusal", "layers other than full attention: ValueError when the cache is made, "
             "at the first request (Gemma, hybrids)", f"{_CACHE} QuantizedCache"),
        Trap("no effect", "transformers serve --continuous-batching has a paged cache of its own "
             "and takes no cache_implementation", _REQUEST),
        Trap("no effect", "in transformers serve each request chooses the cache: its "
             "generation_config field replaces the model's generation_config.json", _REQUEST),
        Trap("slow path", "decoding dequantizes a layer's whole cache at every step, and quantizes "
             "it again every 128 tokens, old tokens included", f"{_CACHE} QuantizedLayer.update"),
    )  # fmt: skip
    sliding = "refused when quantized (ValueError)"
    limits = (
        "full attention in every layer; head sizes must be multiples of the group, 64; quanto has "
        "2 and 4 bits, hqq 1, 2, 3, 4 and 8; up to 127 of the last tokens stay raw"
    )
    tells = "no"
    readback = "in process: type(past_key_values); transformers serve tells nothing"
    sources = (_CACHE, _SERVE, _REQUEST, "transformers 5.23.0, generation/utils.py")

    def refuse(self, asked: Deployment) -> None:
        """Refuse quantized caches of models with other layers than full attention, and keys.

        Raises:
            NybbleError: see above, and as Engine's.
        """
        super().refuse(asked)
        kinds = {layer.kind for layer in asked.geometry.layers} - {"global", "none"}
        if asked.setting.quantized and kinds:
            raise NybbleError(
                "transformers quantizes the cache of models with full attention only",
                seen=f"{asked.geometry.architecture} with {', '.join(sorted(kinds))} layers",
                allowed="f16/f16", hint="--kv f16/f16, or --engine llama.cpp",
            )  # fmt: skip
        _servable(asked)

    def warnings(self, asked: Deployment) -> tuple[str, ...]:
        """When the quantized cache is read, and how requests are served."""
        found = []
        if asked.setting.quantized:
            found = ["nothing quantized is read in the first forward pass: only later tokens see "
                     "the loss",
                     "up to 127 of the last tokens stay raw, and every 128 tokens the whole cache "
                     "is quantized again"]  # fmt: skip
        if asked.sequences > 1:
            found.append("transformers serve answers one request at a time without "
                         "--continuous-batching")  # fmt: skip
        return tuple(found)

    def launch(self, asked: Deployment) -> Launch:
        """`transformers serve`, with a 16-bit cache only.

        Raises:
            NybbleError: a quantized cache, a key or a GGUF of this machine is asked for.
        """
        if asked.setting.quantized:
            raise NybbleError(
                "transformers serve has no option for the KV cache: each request would have to "
                "choose it, in a generation_config of its own",
                seen=str(asked.setting),
                allowed="f16/f16; or, by hand, cache_implementation and cache_config in the "
                "generation_config.json of the model's folder, which a request may override",
                hint=f"nybble measure {asked.model} --engine transformers scores it in process; "
                "--engine llama.cpp serves one",
            )
        _servable(asked)
        command = ["transformers", "serve", _served(asked), "--host", asked.host,
                   "--port", str(asked.port)]  # fmt: skip
        if asked.weights == "gguf":
            note = "transformers turns a GGUF's weights into 16 bits when it loads them"
            return Launch(tuple(command), notes=(note,))
        return Launch(tuple(command))


def _served(asked: Deployment) -> str:
    """A folder, a hub id, or `org/repo:file.gguf`."""
    if asked.weights != "gguf":
        return asked.model.removeprefix("hf:")
    org, repo, file = asked.model[3:].split("/", 2)
    return f"{org}/{repo}:{file}"


def _servable(asked: Deployment) -> None:
    if asked.keyed:
        raise NybbleError(
            "transformers serve has no API key", seen="a key was asked for",
            allowed="no key, on 127.0.0.1",
            hint="a proxy that checks keys in front of it, or --engine vllm",
        )  # fmt: skip
    gguf = asked.weights == "gguf"
    if asked.weights not in ("safetensors", "gguf") or (
        gguf and (not asked.model.startswith("hf:") or asked.model.count("/") < 2)
    ):
        raise NybbleError(
            "transformers serve loads safetensors, or a GGUF by its name in a repository",
            seen=f"{asked.model} ({asked.weights})",
            allowed="a folder, a hub id, hf:org/repo/file.gguf", hint="--engine llama.cpp",
        )  # fmt: skip
