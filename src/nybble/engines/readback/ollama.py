"""Ollama: no endpoint tells the KV type; its log has llama-server's command line and log.

Read in ollama/ollama (2026-11-28): llm/llama_server.go at 00f6d62 (startLlamaServer: the line
"starting llama-server" with the whole command, --cache-type-k and -v only where
OLLAMA_KV_CACHE_TYPE is set, --log-verbosity 4, the child's output in Ollama's own),
server/routes.go (GET / says "Ollama is running", /api/version, /api/ps with name, size, digest,
details, expires_at, size_vram and, since 2025, context_length). Not run here.

Each model has its own llama-server, and their lines are mixed in one log: what is told is of the
one that was started last.
"""

from __future__ import annotations

import re
from dataclasses import replace

from nybble.engines.llamacpp.cachelog import parse_cache_log
from nybble.engines.readback.base import Http, Reader, Reading
from nybble.engines.readback.llamacpp import last_start, with_log
from nybble.engines.readback.values import (
    integer,
    mapping,
    mappings,
    printable,
    since,
    text,
    told_lines,
)

_ROOT, _VERSION, _RUNNING = "/", "/api/version", "/api/ps"
_START = 'msg="starting llama-server"'
_FLAG = r"(?:^|[\s\"'])%s[= ]([\w.-]{1,64})"
_K, _V = (re.compile(_FLAG % flag) for flag in ("--cache-type-k", "--cache-type-v"))
_CONTEXT, _PARALLEL = (re.compile(_FLAG % flag) for flag in ("-c", "-np"))
_WIDTH = re.compile(r"\bn_rot_[kv] = \d")
_SWITCH = re.compile(r"\battn_rot_[kv] = (\d)")
_TOLD = ("quantized V cache", "flash_attn ", "attn_rot_", "KV cache type")


class OllamaReader(Reader):
    """`ollama serve`."""

    engine = "ollama"

    def recognise(self, http: Http) -> bool:
        """By what it says at /; others answer at /api/version too."""
        if text(mapping(http.json(_VERSION)).get("version")) is None:
            return False
        return (http.text(_ROOT) or "").strip() == "Ollama is running"

    def read(self, http: Http, log: str | None) -> Reading:
        """Model and context from /api/ps, the types asked for and in effect from the log."""
        loaded = mappings(mapping(http.json(_RUNNING)).get("models"))
        only = loaded[0] if len(loaded) == 1 else {}
        last = since(log or "", _START)
        command = last.partition("\n")[0] if _START in last else ""
        asked_k, asked_v = _flag(_K, command), _flag(_V, command)
        parallel = integer(_flag(_PARALLEL, command))
        context = integer(only.get("context_length"))
        whole = integer(_flag(_CONTEXT, command))  # of all sequences
        if context is None and whole and parallel:
            context = whole // parallel
        notes = told_lines(last, _TOLD)
        if not loaded:
            notes = ("no model is loaded: Ollama makes a cache when it loads one", *notes)
        if len(loaded) > 1:
            notes = (f"{len(loaded)} models are loaded, the log's last one is told", *notes)
        reading = Reading(
            engine=self.engine,
            version=text(mapping(http.json(_VERSION)).get("version")),
            k=asked_k,
            v=asked_v,
            echo=asked_k is not None,
            context=context,
            sequences=parallel,
            model=text(only.get("model")) or text(only.get("name")),
            sources=(_VERSION, _RUNNING, *((f"log: {_START}",) if command else ())),
            notes=notes,
        )
        found = _in_effect(reading, last_start(last))
        if found is None:
            return reading
        asked = tuple(x for x in (asked_k, asked_v) if x)
        if found.k and asked and {found.k, found.v} != set(asked):
            notes = (f"asked for {'/'.join(asked)}", *notes)
        return replace(found, notes=tuple(dict.fromkeys((*notes, *found.notes))))


def _in_effect(reading: Reading, log: str) -> Reading | None:
    """With what llama.cpp's own lines tell; None where they tell nothing."""
    try:
        cache = parse_cache_log(log)
        if not cache.subcaches:
            return None
        found = with_log(reading, cache, log)
    except (ValueError, ArithmeticError):  # lines of several models, mixed within a line
        return None
    notes = tuple(printable(note) for note in found.notes)
    if not _WIDTH.search(log):
        # Older builds write whether they rotate, not by which width.
        switched = _SWITCH.findall(log)
        off = bool(switched) and set(switched) == {"0"}
        return replace(found, rotation=(0, 0) if off else None, notes=notes)
    return replace(found, notes=notes)


def _flag(pattern: re.Pattern[str], command: str) -> str | None:
    """The last value of a flag; Ollama appends what it decides itself."""
    found = pattern.findall(command)
    return text(found[-1]) if found else None
