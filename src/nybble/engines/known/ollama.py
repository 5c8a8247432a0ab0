"""Ollama: `OLLAMA_KV_CACHE_TYPE=TYPE ollama serve`, which starts llama.cpp's own server.

Read in ollama/ollama: llm/llama_server.go at 00f6d62 (startLlamaServer), llm/server.go and
fs/ggml/ggml.go at fb30760 (2026-08-21, about v0.33.0; its LLAMA_CPP_VERSION is b10488),
envconfig/config.go at 4bf0d41, parser/parser.go at 00dc3af, docs/faq.mdx at 00182b5,
docs/docker.mdx at 02725d3, Dockerfile at 000ce02. Nothing of it was run here: no registry that
this project reaches has the program.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePath

from nybble.engines.known.base import ConfigFile, Deployment, Engine, KVChoice, Launch, Trap
from nybble.engines.known.llamacpp import LlamaCpp
from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting

_SERVER = "ollama/ollama 00f6d62, llm/llama_server.go startLlamaServer"
_FAQ = "ollama/ollama 00182b5, docs/faq.mdx"
_IMAGES = {"amd": "ollama/ollama:rocm"}  # docs/docker.mdx; the other one has CUDA, CPU and Vulkan


def _choice(name: str, limits: str = "") -> KVChoice:
    return KVChoice(name, f"{name}/{name}", f"{_FAQ}; {_SERVER}", limits=limits)


class Ollama(Engine):
    """`ollama serve`; the model is made from a Modelfile once the server answers."""

    name = "ollama"
    version = "0.33.0"
    read_on = "2026-11-28"
    repository = "ollama/ollama"
    flags = "OLLAMA_KV_CACHE_TYPE=TYPE, for K and V of every model"
    choices = (
        _choice("f16"),
        _choice("q8_0", "needs flash attention"),
        _choice("q4_0", "needs flash attention"),
    )
    traps = (
        Trap("late refusal", "the type is passed to llama-server as it is: a wrong one fails when "
             "a model is loaded, not when Ollama starts", _SERVER, since="0.30.0"),
        Trap("fallback", "a type it did not know, or a quantized one without "
             "OLLAMA_FLASH_ATTENTION=1, became f16 with a line in the log",
             "ollama/ollama, llm/server.go of before v0.30.0", until="0.30.0"),
        Trap("late refusal", "OLLAMA_FLASH_ATTENTION=0 with a quantized type: the load fails, as a "
             "quantized V needs flash attention", "ollama/ollama#15043", since="0.30.0"),
        Trap("no effect", "models that its MLX runner loads ignore the type",
             "ollama/ollama fb30760, llm/server.go"),
        Trap("extra memory", "its own estimate takes q4_0 for 0.5 bytes an element and q8_0 for 1 "
             "(they are 0.5625 and 1.0625), every other type for 2, and places models by it",
             "ollama/ollama fb30760, fs/ggml/ggml.go"),
        Trap("no effect", "num_ctx of a request or of a Modelfile wins over OLLAMA_CONTEXT_LENGTH: "
             "the model is loaded again with that context", _FAQ),
    )  # fmt: skip
    sliding = "as llama.cpp: same types in a shorter cache"
    limits = (
        "one type for K and V and for all models (ollama/ollama#8332, #10794, #16245); GGUF only; "
        "blocks of 32 must divide every head size; no API key (#1053, #16254)"
    )
    tells = "log"
    readback = ('no API tells it; its log has the whole command line ("starting llama-server", '
                "--cache-type-k) and llama.cpp's own size lines, which --log-verbosity 4 "
                "prints")  # fmt: skip
    sources = (_SERVER, _FAQ, "ollama/ollama 4bf0d41, envconfig/config.go",
               "ollama/ollama 02725d3, docs/docker.mdx", "ollama/ollama 00dc3af, parser/parser.go",
               "huggingface/hub-docs 0037536, docs/hub/ollama.md")  # fmt: skip

    def choice(self, setting: KVSetting) -> tuple[KVChoice, KVChoice]:
        """The type; rotation is another variable's matter.

        Raises:
            NybbleError: as Engine's.
        """
        return super().choice(replace(setting, rotation=True))

    def refuse(self, asked: Deployment) -> None:
        """Refuse weights that are no GGUF, and API keys.

        Raises:
            NybbleError: see above, and as Engine's.
        """
        super().refuse(asked)
        if asked.weights != "gguf":
            raise NybbleError(
                "Ollama's KV cache type holds for GGUF files only",
                seen=f"{asked.model} ({asked.weights})", allowed="a file ending in .gguf",
                hint="name the GGUF of this model",
            )  # fmt: skip
        source(asked.model)
        _no_key(asked)

    def warnings(self, asked: Deployment) -> tuple[str, ...]:
        """What llama.cpp does to it, and what holds for all models of this Ollama."""
        found = list(LlamaCpp().warnings(asked))
        if asked.setting.quantized:
            short = {"q8_0": 6, "q4_0": 11}[asked.setting.k]  # 1 for 1.0625, 0.5 for 0.5625 bytes
            found.append(f"every model of this Ollama gets {asked.setting.k}, and its own estimate "
                         f"of the cache is {short} % too small")  # fmt: skip
        if not asked.setting.rotation:
            found.append("LLAMA_ATTN_ROT_DISABLE=1 holds for every model of this Ollama")
        return tuple(found)

    def launch(self, asked: Deployment) -> Launch:
        """`ollama serve`, and a Modelfile whose num_ctx no default can undercut.

        Raises:
            NybbleError: keys are asked for, or the model is no file and no repository.
        """
        _no_key(asked)
        setting, name = asked.setting, _name(asked)
        host = f"[{asked.host}]" if ":" in asked.host else asked.host
        env = {
            "OLLAMA_HOST": f"{host}:{asked.port}",
            "OLLAMA_KV_CACHE_TYPE": setting.k,
            "OLLAMA_CONTEXT_LENGTH": str(asked.context),
            "OLLAMA_NUM_PARALLEL": str(asked.sequences),
            "OLLAMA_KEEP_ALIVE": "-1",  # by default a model is unloaded after 5 minutes
        }
        if setting.quantized:
            env["OLLAMA_FLASH_ATTENTION"] = "1"  # "auto" leaves the type to llama-server's mercy
        if not setting.rotation:
            env["LLAMA_ATTN_ROT_DISABLE"] = "1"  # llama-server gets Ollama's whole environment
        if asked.cards > 1:
            env["OLLAMA_SCHED_SPREAD"] = "1"  # by default one card where the model fits on it
        if asked.hardware.vendor == "intel":
            env["OLLAMA_VULKAN"] = "1"
        text = f"FROM {source(asked.model)}\nPARAMETER num_ctx {asked.context}\n"
        notes = (
            f"once it answers: OLLAMA_HOST={asked.host}:{asked.port} ollama create {name} -f "
            "Modelfile",
            f"in a container: docker compose exec nybble ollama create {name} -f "
            "/config/Modelfile; it keeps models in /root/.ollama, which wants a volume",
            f"requests name the model {name}; one that sends num_ctx loads it again with another "
            "context",
        )
        return Launch(
            ("ollama", "serve"), env, files=(ConfigFile("Modelfile", text),),
            image=_IMAGES.get(asked.hardware.vendor or "", "ollama/ollama:latest"),
            store="/root/.ollama", image_command=("serve",),  # the entry point is ollama itself
            health="/api/version", after=(("ollama", "create", name, "-f", "Modelfile"),),
            notes=notes,
        )  # fmt: skip


def source(model: str) -> str:
    """What a Modelfile's FROM takes: a path, or hf.co/org/repo:file.gguf.

    Raises:
        NybbleError: a URL, or a file in a folder of a repository, which no tag can name.
    """
    if model.startswith(("http://", "https://")):
        raise NybbleError("Ollama loads no URL", seen=model,
                          allowed="a path, hf:org/repo/file.gguf",
                          hint="download the file and name its path")  # fmt: skip
    if not model.startswith("hf:"):
        return model
    org, repo, *file = model[3:].split("/")
    if len(file) > 1 or "@" in repo:
        raise NybbleError(
            "Ollama takes files from the top of a repository's main branch only", seen=model,
            allowed="hf:org/repo/file.gguf", hint="download the file and name its path",
        )  # fmt: skip
    return f"hf.co/{org}/{repo}" + (f":{file[0]}" if file else "")


def _name(asked: Deployment) -> str:
    """A model name that Ollama accepts: no path, no space."""
    given = asked.name or PurePath(asked.model).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", given).strip("-.") or "model"


def _no_key(asked: Deployment) -> None:
    if asked.keyed:
        raise NybbleError(
            "Ollama has no API key", seen="a key was asked for", allowed="no key, on 127.0.0.1",
            hint="a proxy that checks keys in front of it, or --engine llama.cpp",
        )  # fmt: skip
