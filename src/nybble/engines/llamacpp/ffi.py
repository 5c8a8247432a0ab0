"""llama.cpp's C API out of the prebuilt xllamacpp wheel, through a short cffi declaration.

The declaration is our own, written from llama.h, ggml.h and gguf.h of the pinned version
(MIT). Struct layouts change between versions, so `library()` refuses any other version and
then compares the default parameters field by field before anything is loaded.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Any

from cffi import FFI

from nybble.errors import EngineError, MissingExtraError

PINNED = "2026.10.11549"
_INSTALL = f"pip install xllamacpp=={PINNED}"

CDEF = """
typedef struct llama_model llama_model; typedef struct llama_context llama_context;
typedef struct llama_vocab llama_vocab; typedef void *llama_memory_t;
typedef struct gguf_context gguf_context; typedef struct ggml_context ggml_context;
typedef struct ggml_tensor ggml_tensor;
typedef void (*ggml_log_callback)(int level, const char *text, void *user);
typedef bool (*ggml_eval_callback)(ggml_tensor *tensor, bool ask, void *user);

typedef struct { void *devices, *tensor_buft_overrides; int32_t n_gpu_layers; int split_mode,
  load_mode, lazy_mode; int32_t main_gpu; void *tensor_split, *progress_callback,
  *progress_callback_user_data, *kv_overrides; bool vocab_only, check_tensors, use_extra_bufts,
  no_host, no_alloc, load_mtp; } llama_model_params;

typedef struct { uint32_t n_ctx, n_batch, n_ubatch, n_seq_max, n_rs_seq, n_outputs_max,
  n_outputs_max_per_seq; int32_t n_threads, n_threads_batch; int ctx_type, rope_scaling_type,
  pooling_type, attention_type, flash_attn_type; float rope_freq_base, rope_freq_scale,
  yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow; uint32_t yarn_orig_ctx;
  float defrag_thold; ggml_eval_callback cb_eval; void *cb_eval_user_data; int type_k, type_v;
  size_t moe_cache_size; void *abort_callback, *abort_callback_data; bool embeddings,
  offload_kqv, no_perf, op_offload, swa_full, kv_unified; void *samplers; size_t n_samplers;
  void *ctx_other; } llama_context_params;

typedef struct { int32_t n_tokens; int32_t *token; float *embd; int32_t *pos; int32_t *n_seq_id;
  int32_t **seq_id; int8_t *logits; } llama_batch;

typedef struct { bool no_alloc; ggml_context **ctx; } gguf_init_params;
typedef struct { const char *type_name; int64_t blck_size, blck_size_interleave;
  size_t type_size; bool is_quantized; void (*to_float)(const void *x, float *y, int64_t k);
  void *from_float_ref; } ggml_type_traits;

struct ggml_tensor { int type; void *buffer; int64_t ne[4]; size_t nb[4]; int op;
  int32_t op_params[16], flags; ggml_tensor *src[10], *view_src; size_t view_offs; void *data;
  char name[64]; void *extra; char padding[8]; };
typedef struct { size_t mem_size; void *mem_buffer; bool no_alloc; } ggml_init_params;

void llama_backend_init(void);
const char *llama_version(void);
const char *llama_print_system_info(void);
void llama_log_set(ggml_log_callback callback, void *user);
llama_model_params llama_model_default_params(void);
llama_context_params llama_context_default_params(void);
llama_model *llama_model_load_from_file(const char *path, llama_model_params params);
void llama_model_free(llama_model *model);
llama_context *llama_init_from_model(llama_model *model, llama_context_params params);
void llama_free(llama_context *ctx);
const llama_vocab *llama_model_get_vocab(const llama_model *model);
int32_t llama_model_n_ctx_train(const llama_model *model);
int llama_model_rope_type(const llama_model *model);
int32_t llama_vocab_n_tokens(const llama_vocab *vocab);
int32_t llama_vocab_bos(const llama_vocab *vocab);
int32_t llama_vocab_eos(const llama_vocab *vocab);
bool llama_vocab_get_add_bos(const llama_vocab *vocab);
const char *llama_vocab_get_text(const llama_vocab *vocab, int32_t token);
bool llama_vocab_is_eog(const llama_vocab *vocab, int32_t token);
int32_t llama_token_to_piece(const llama_vocab *vocab, int32_t token, char *buf, int32_t length,
  int32_t lstrip, bool special);
int32_t llama_tokenize(const llama_vocab *vocab, const char *text, int32_t n_text,
  int32_t *tokens, int32_t n_max, bool add_special, bool parse_special);
llama_memory_t llama_get_memory(const llama_context *ctx);
void llama_memory_clear(llama_memory_t memory, bool data);
void llama_memory_seq_cp(llama_memory_t memory, int32_t source, int32_t target, int32_t from,
  int32_t to);
bool llama_memory_seq_rm(llama_memory_t memory, int32_t sequence, int32_t from, int32_t to);
llama_batch llama_batch_init(int32_t n_tokens, int32_t embd, int32_t n_seq_max);
void llama_batch_free(llama_batch batch);
int32_t llama_decode(llama_context *ctx, llama_batch batch);
float *llama_get_logits(llama_context *ctx);
float *llama_get_logits_ith(llama_context *ctx, int32_t i);
void llama_synchronize(llama_context *ctx);

gguf_context *gguf_init_empty(void);
gguf_context *gguf_init_from_file(const char *path, gguf_init_params params);
void gguf_free(gguf_context *ctx);
void gguf_set_val_u32(gguf_context *ctx, const char *key, uint32_t value);
void gguf_set_val_str(gguf_context *ctx, const char *key, const char *value);
void gguf_set_tensor_type(gguf_context *ctx, const char *name, int type);
bool gguf_write_to_file(const gguf_context *ctx, const char *path, bool only_meta);
size_t gguf_get_alignment(const gguf_context *ctx);
size_t gguf_get_data_offset(const gguf_context *ctx);
int64_t gguf_find_tensor(const gguf_context *ctx, const char *name);
size_t gguf_get_tensor_offset(const gguf_context *ctx, int64_t i);
size_t gguf_get_tensor_size(const gguf_context *ctx, int64_t i);
int gguf_get_tensor_type(const gguf_context *ctx, int64_t i);
ggml_tensor *ggml_get_first_tensor(const ggml_context *ctx);
ggml_tensor *ggml_get_next_tensor(const ggml_context *ctx, ggml_tensor *tensor);
const char *ggml_get_name(const ggml_tensor *tensor);
int64_t ggml_nelements(const ggml_tensor *tensor);
size_t ggml_nbytes(const ggml_tensor *tensor);
const char *ggml_op_desc(const ggml_tensor *tensor);
void ggml_backend_tensor_get(const ggml_tensor *tensor, void *data, size_t offset, size_t size);
ggml_context *ggml_init(ggml_init_params params);
size_t ggml_tensor_overhead(void);
ggml_tensor *ggml_new_tensor_4d(ggml_context *ctx, int type, int64_t ne0, int64_t ne1,
  int64_t ne2, int64_t ne3);
ggml_tensor *ggml_view_1d(ggml_context *ctx, ggml_tensor *a, int64_t ne0, size_t offset);
ggml_tensor *ggml_permute(ggml_context *ctx, ggml_tensor *a, int axis0, int axis1, int axis2,
  int axis3);
ggml_tensor *ggml_set_name(ggml_tensor *tensor, const char *name);
void *ggml_get_data(const ggml_tensor *tensor);
void ggml_free(ggml_context *ctx);
const ggml_type_traits *ggml_get_type_traits(int type);
void ggml_fp32_to_fp16_row(const float *x, uint16_t *y, int64_t n);
"""

# Values of llama_context_default_params() in the pinned version; a shifted layout cannot match.
_CONTEXT_DEFAULTS: dict[str, object] = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1, "rope_scaling_type": -1, "pooling_type": -1,
    "flash_attn_type": -1, "yarn_ext_factor": -1.0, "yarn_orig_ctx": 0, "defrag_thold": -1.0,
    "type_k": 1, "type_v": 1, "moe_cache_size": 0, "embeddings": False, "offload_kqv": True,
    "no_perf": True, "op_offload": True, "swa_full": True, "kv_unified": False, "n_samplers": 0,
}  # fmt: skip
_MODEL_DEFAULTS: dict[str, object] = {
    "n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "main_gpu": 0,
    "vocab_only": False, "check_tensors": False, "use_extra_bufts": True, "no_host": False,
    "no_alloc": False, "load_mtp": False,
}  # fmt: skip

ffi: Any = FFI()
ffi.cdef(CDEF)

_DEBUG = 1  # GGML_LOG_LEVEL_DEBUG
_log: list[str] = []


def _keep_log(level: int, text: Any, user: Any) -> None:
    if level == _DEBUG:  # thousands of lines a context on deep models, none that we read
        return
    _log.append(ffi.string(text).decode("utf-8", "replace"))
    if len(_log) > 4000:  # a chatty model must not grow memory
        del _log[:2000]


_on_log = ffi.callback("void(int, const char *, void *)", _keep_log)


def take_log() -> str:
    """Return what the engine logged since the last call, and forget it."""
    text = "".join(_log)
    _log.clear()
    return text


def installed_version() -> str | None:
    """Version of the installed xllamacpp wheel, or None."""
    try:
        return importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        return None


def own_library() -> Path | None:
    """The user's own build of the pinned llama.cpp (NYBBLE_LLAMA_LIBRARY), or None."""
    chosen = os.environ.get("NYBBLE_LLAMA_LIBRARY")
    return Path(chosen) if chosen else None


def engine_identity() -> str:
    """What a result must name: the wheel's version, or the hash of the user's own library.

    Raises:
        EngineError: NYBBLE_LLAMA_LIBRARY names no readable file.
    """
    own = own_library()
    if own is None:
        return f"xllamacpp {PINNED}"
    try:
        with own.open("rb") as file:
            return f"own build {hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
    except OSError as error:
        raise EngineError(
            "cannot read the engine library that NYBBLE_LLAMA_LIBRARY names",
            seen=f"{own}: {error}",
            allowed="a libllama built from the llama.cpp tree in xllamacpp's source package",
            hint="unset NYBBLE_LLAMA_LIBRARY",
        ) from error


def _shared_object() -> Path:
    own = own_library()
    if own is not None:
        engine_identity()  # refuses what cannot be read
        return own
    version = installed_version()
    spec = importlib.util.find_spec("xllamacpp")
    if version is None or spec is None or spec.origin is None:
        raise MissingExtraError("the llama.cpp engine is not installed", hint=_INSTALL)
    if version != PINNED:
        raise EngineError(
            "this xllamacpp has another struct layout than the one nybble declares",
            seen=f"xllamacpp {version}",
            allowed=f"xllamacpp {PINNED}",
            hint=_INSTALL,
        )
    found = sorted(Path(spec.origin).parent.glob("xllamacpp*.so")) + sorted(
        Path(spec.origin).parent.glob("xllamacpp*.pyd")
    )
    if not found:
        raise EngineError(
            "the xllamacpp wheel holds no engine library",
            seen=str(Path(spec.origin).parent),
            hint=f"pip install --force-reinstall xllamacpp=={PINNED}",
        )
    return found[0]


def _check(name: str, seen: Any, expected: dict[str, object]) -> None:
    for field, value in expected.items():
        got = getattr(seen, field)
        if got != value:
            raise EngineError(
                f"{name} has an unexpected layout: field {field}",
                seen=str(got),
                allowed=str(value),
                hint=_INSTALL,
            )


@functools.cache
def library() -> Any:
    """Load the engine once, check version and struct layouts, silence its log.

    Raises:
        MissingExtraError: xllamacpp is not installed.
        EngineError: another version, or a layout that does not match the declaration.
    """
    path = _shared_object()
    try:
        lib = ffi.dlopen(str(path))
    except OSError as error:
        raise EngineError(
            "the engine library cannot be loaded here", seen=str(error), hint="nybble doctor"
        ) from error
    try:
        lib.llama_log_set(_on_log, ffi.NULL)
        lib.llama_backend_init()
        lib.gguf_init_empty  # noqa: B018  a function of ggml, which a libllama must bring along
    except AttributeError as error:
        raise EngineError(
            "the engine library lacks functions nybble needs", seen=str(error), hint=_INSTALL
        ) from error
    _check("llama_context_params", lib.llama_context_default_params(), _CONTEXT_DEFAULTS)
    _check("llama_model_params", lib.llama_model_default_params(), _MODEL_DEFAULTS)
    return lib


def engine_info() -> dict[str, str]:
    """llama.cpp's version and the CPU features its build uses."""
    lib = library()
    features: bytes = ffi.string(lib.llama_print_system_info())
    version: bytes = ffi.string(lib.llama_version())
    return {
        "llama.cpp": f"{version.decode()} ({engine_identity()})",
        "features": features.decode().strip(),
    }
