"""Ollama: llama.cpp's server with one flag for both sides of the cache.

Source: Ollama's repository at fb3076099 (21 August 2026, about v0.33.0), `llm/server.go` and
`llm/llama_server.go`: since v0.30.0 every GGUF runs in upstream's `llama-server`, started with
`-c num_ctx * parallel -np parallel --cache-type-k T --cache-type-v T`. It pins llama.cpp b10488;
the cells here are those of b11549, and nothing was run: what changed between the two builds is
not verified. Models for its MLX runner are not covered.
"""

from __future__ import annotations

from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load, Memory
from nybble.planning.memory.cards import symmetric
from nybble.planning.memory.llamacpp import LlamaCpp

TYPES = ("f16", "q8_0", "q4_0")  # OLLAMA_KV_CACHE_TYPE as documented; it is passed on unchecked
FLAG = "OLLAMA_KV_CACHE_TYPE"


class Ollama(LlamaCpp):
    """`ollama serve` with OLLAMA_NUM_PARALLEL=sequences and num_ctx=context."""

    engine = "ollama"
    version = "0.33.0 (llama.cpp b10488, planned as b11549)"
    source = "Ollama fb3076099 (2026-08-21), llm/server.go, llm/llama_server.go"
    settings = ("f16/f16", "q8_0/q8_0", "q4_0/q4_0")

    def check(self, geometry: Geometry, setting: KVSetting) -> None:
        """Refuse what has no flag, and what llama.cpp refuses.

        Raises:
            NybbleError: another type than the documented ones, two different ones, or a model and
                setting that llama.cpp does not run. Rotation may be off: the variable that
                switches it off reaches the server.
        """
        plain = KVSetting(setting.k, setting.v, True, setting.around)
        symmetric(plain, self.engine, TYPES, FLAG)
        super().check(geometry, setting)

    def memory(self, geometry: Geometry, setting: KVSetting, load: Load) -> Memory:
        """As llama.cpp with a stream for each of OLLAMA_NUM_PARALLEL sequences."""
        found = super().memory(geometry, setting, load)
        # Advice on llama-server's own flags does not help here.
        notes = [note for note in found.notes if "-np" not in note]
        if load.sequences > 1:
            notes.append(f"OLLAMA_NUM_PARALLEL={load.sequences}: Ollama reserves num_ctx of "
                         f"{load.context:,} tokens for each")  # fmt: skip
        notes.append("planned with the cells of llama.cpp b11549; Ollama pins an older build")
        return Memory(found.parts, tuple(notes))
