"""What llama.cpp would allocate for a model, a KV setting and a number of slots, to the byte.

The log has two decimals of a MiB. The library's own account of it, which `llama-fit-params` uses
(llama_get_memory_breakdown of `src/llama-ext.h`), has bytes; nothing is allocated and no weights
are read, so this takes a 31B model on a small machine.

Call it in a child process only: a failed assertion in llama.cpp aborts the whole process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cffi import FFI

from nybble.engines.llamacpp.ffi import _shared_object, library, take_log
from nybble.engines.llamacpp.ffi import ffi as engine
from nybble.engines.llamacpp.model import Model, _last_lines, _rotation
from nybble.errors import EngineError
from nybble.formats import KVSetting

_MIB = re.compile(r"\b(KV|RS|output|compute) buffer size =\s*([\d.]+) MiB")
_CELLS = re.compile(r"size =\s*[\d.]+ MiB \(\s*(\d+) cells,\s*(\d+) layers,\s*\d+/(\d+) seqs\)")

_ffi: Any = FFI()
# A C++ function that returns a std::map: the caller passes where to put it as a hidden first
# argument. A node of libstdc++'s map is its colour and three pointers, then key and value.
_ffi.cdef("""
typedef struct node { int color; struct node *parent, *left, *right; void *key;
  size_t model, context, compute; } node;
typedef struct { void *compare; node header; } tree;
void *_Z26llama_get_memory_breakdownPK13llama_context(tree *out, const void *ctx);
""")


@dataclass(frozen=True)
class DryRun:
    """What one context of one model takes, in bytes.

    Attributes:
        weights: tensors of the model.
        memory: KV cache and recurrent states together.
        compute: buffers of the graph.
        output: where logits come back to, as logged (two decimals of a MiB).
        subcaches: cells, layers and streams of each KV cache, in the order they are made.
        logged: MiB in the log by kind of buffer: KV, RS, output, compute; a dry run logs 0 for KV.
    """

    weights: int
    memory: int
    compute: int
    output: int
    subcaches: tuple[tuple[int, int, int], ...]
    logged: dict[str, float]


def dry_run(
    model: Model, setting: KVSetting, n_ctx: int, *, slots: int = 1, unified: bool = False,
    ubatch: int = 512,
) -> DryRun:  # fmt: skip
    """Ask for a context as `llama-server -np slots -c n_ctx` does, and for its account.

    Args:
        model: a Model opened with no_alloc=True (or not: then the memory really is taken).
        setting: K type, V type, rotation.
        n_ctx: tokens of all slots together.
        slots: sequences.
        unified: one pool of cells for all of them, rather than a stream each.
        ubatch: tokens of a micro-batch.

    Raises:
        EngineError: llama.cpp refused.
    """
    lib = library()
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_ubatch, params.n_seq_max = n_ctx, ubatch, slots
    params.n_batch = max(2048, ubatch)
    params.n_outputs_max, params.n_outputs_max_per_seq = slots, 1  # server_output_limits
    params.type_k, params.type_v = setting.k_type.ggml_id, setting.v_type.ggml_id
    params.flash_attn_type = 1
    params.swa_full = False
    params.kv_unified = unified
    take_log()
    with _rotation(setting.rotation):
        ptr = lib.llama_init_from_model(model._ptr, params)
    log = take_log()
    if ptr == engine.NULL:
        raise EngineError(
            f"llama.cpp refuses a context of {n_ctx:,} tokens with {setting}",
            seen=_last_lines(log),
            hint="nybble formats",
        )
    try:
        weights, memory, compute = _breakdown(ptr)
    finally:
        lib.llama_free(ptr)
    logged: dict[str, float] = {}
    for kind, mib in _MIB.findall(log):
        logged[kind] = logged.get(kind, 0.0) + float(mib)
    output = round(logged.get("output", 0.0) * 2**20)
    cells = tuple((int(a), int(b), int(c)) for a, b, c in _CELLS.findall(log))
    return DryRun(weights, memory, compute, output, cells, logged)


def open_dry(path: Path) -> Model:
    """Open a model's header in llama.cpp: no weights are read."""
    return Model(path, no_alloc=True)


def _breakdown(ctx: Any) -> tuple[int, int, int]:
    try:
        ask = _ffi.dlopen(str(_shared_object()))._Z26llama_get_memory_breakdownPK13llama_context
    except (AttributeError, OSError) as error:
        raise EngineError(
            "this llama.cpp does not export its account of memory", seen=error,
            hint="use the xllamacpp wheel for Linux",
        ) from error  # fmt: skip
    out = _ffi.new("tree *")
    ask(out, _ffi.cast("void *", int(engine.cast("intptr_t", ctx))))
    sums = [0, 0, 0]
    todo = [out.header.parent]
    while todo:  # its few nodes (one a buffer type) are never freed: 64 bytes each
        node = todo.pop()
        if node == _ffi.NULL:
            continue
        for i, n in enumerate((node.model, node.context, node.compute)):
            sums[i] += int(n)
        todo += [node.left, node.right]
    return sums[0], sums[1], sums[2]
