"""One loaded model and its contexts, each with a KV setting of its own.

Call these in a child process only (scoring/worker.py does): a failed assertion in llama.cpp
aborts the whole process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.engines.llamacpp.cachelog import AppliedCache, parse_cache_log
from nybble.engines.llamacpp.ffi import ffi, library, take_log
from nybble.engines.vocabulary import Vocabulary
from nybble.errors import EngineError
from nybble.formats import KVSetting

UBATCH = 512  # llama.cpp's default micro-batch; sliding caches are sized by it


class Model:
    """Weights loaded once; makes contexts.

    Args:
        path: a GGUF file.
        no_alloc: read the metadata only; contexts made of it report their sizes but cannot
            decode (llama.cpp's own dry run for memory fitting).

    Raises:
        EngineError: llama.cpp refused the file; carries its last log lines.
    """

    def __init__(self, path: Path, *, no_alloc: bool = False) -> None:
        self._lib = library()
        take_log()
        params = self._lib.llama_model_default_params()
        params.no_alloc = no_alloc
        if no_alloc:
            params.load_mode = 0  # nothing is mapped or read
        self._ptr = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        if self._ptr == ffi.NULL:
            raise EngineError(
                "llama.cpp cannot load this model",
                seen=f"{path}: {_last_lines(take_log())}",
                hint="download the file again, or try another quantization of the model",
            )
        self._vocab = self._lib.llama_model_get_vocab(self._ptr)
        bos, eos = self._lib.llama_vocab_bos(self._vocab), self._lib.llama_vocab_eos(self._vocab)
        # RoPE's pairs are adjacent channels under LLAMA_ROPE_TYPE_NORM, else D/2 apart.
        self.interleaved = self._lib.llama_model_rope_type(self._ptr) == 0
        self.context_length = int(self._lib.llama_model_n_ctx_train(self._ptr))
        self.vocabulary = Vocabulary(
            n_tokens=int(self._lib.llama_vocab_n_tokens(self._vocab)),
            bos=int(bos),
            eos=int(eos),
            add_bos=bool(self._lib.llama_vocab_get_add_bos(self._vocab)),
            bos_text=self._token_text(bos),
            eos_text=self._token_text(eos),
        )

    def _token_text(self, token: int) -> str:
        if token < 0:
            return ""
        text: bytes = ffi.string(self._lib.llama_vocab_get_text(self._vocab, token))
        return text.decode("utf-8", "replace")

    def tokenize(self, text: str, *, special: bool) -> npt.NDArray[np.int32]:
        """Token ids of `text`, without BOS.

        Args:
            text: any text.
            special: read control tokens written in the text (chat templates) as such.
        """
        data = text.encode("utf-8")
        size = len(data) + 8  # enough but where a vocabulary spells a space in several tokens
        for _ in range(2):
            out = np.empty(size, dtype=np.int32)
            into = ffi.from_buffer("int32_t[]", out)
            n = self._lib.llama_tokenize(self._vocab, data, len(data), into, size, False, special)
            if n >= 0:
                return out[:n].copy()
            size = min(-n, 4 * len(data) + 8)  # what it says it needs
        raise EngineError("llama.cpp cannot tokenize this text", seen=f"{len(data)} bytes")

    def pieces(self) -> list[bytes]:
        """What each token adds to a text, in UTF-8 or a part of it; control tokens add nothing."""
        size = 256  # a token longer than that is asked for once more
        out = ffi.new("char[]", size)
        found: list[bytes] = []
        for token in range(self.vocabulary.n_tokens):
            n = self._lib.llama_token_to_piece(self._vocab, token, out, size, 0, False)
            if n < 0:
                long = ffi.new("char[]", -n)
                n = self._lib.llama_token_to_piece(self._vocab, token, long, -n, 0, False)
                found.append(bytes(ffi.buffer(long, n)))
            else:
                found.append(bytes(ffi.buffer(out, n)))
        return found

    def ends(self) -> list[int]:
        """Ids that end an answer: of a text, a turn or a message."""
        every = range(self.vocabulary.n_tokens)
        return [t for t in every if self._lib.llama_vocab_is_eog(self._vocab, t)]

    def context(
        self, setting: KVSetting, n_ctx: int, *, rows: int, threads: int, swa_full: bool = False,
        on_node: Any = ffi.NULL, ubatch: int = UBATCH, sequences: int = 1,
    ) -> Context:  # fmt: skip
        """Make a context whose cache is stored as `setting` says.

        Args:
            setting: K type, V type, rotation.
            n_ctx: tokens the cache holds.
            rows: most logit rows asked for in one call; bounds the engine's buffers.
            threads: CPU threads.
            swa_full: give sliding layers full-length caches (servers do not).
            on_node: an eval callback (cffi), asked about every node of every graph.
            ubatch: most tokens of one micro-batch.
            sequences: that share the cache's cells, so that a copy of one takes no cells of its
                own (`branches.Branches`).

        Raises:
            EngineError: refused, or the engine's own log shows another cache than asked for.
        """
        params = self._lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = min(ubatch, n_ctx)
        # llama.cpp aborts where a batch could not hold one row of every sequence.
        params.n_outputs_max = params.n_outputs_max_per_seq = max(rows, sequences)
        params.n_seq_max, params.kv_unified = sequences, sequences > 1
        params.type_k, params.type_v = setting.k_type.ggml_id, setting.v_type.ggml_id
        params.flash_attn_type = 1  # quantized V needs it, so every lane uses it
        params.n_threads = params.n_threads_batch = threads
        params.swa_full = swa_full
        params.cb_eval = on_node
        take_log()
        with _rotation(setting.rotation):
            ptr = self._lib.llama_init_from_model(self._ptr, params)
        log = take_log()
        if ptr == ffi.NULL:
            raise EngineError(
                f"llama.cpp refuses a context of {n_ctx:,} tokens with {setting}",
                seen=_last_lines(log),
                hint="nybble formats",
            )
        applied = parse_cache_log(log)
        applied.verify(setting)
        return Context(self._lib, ptr, self.vocabulary.n_tokens, params.n_ubatch, applied)

    def close(self) -> None:
        """Free the weights; contexts must be closed before."""
        if self._ptr != ffi.NULL:
            self._lib.llama_model_free(self._ptr)
            self._ptr = ffi.NULL


class Context:
    """One KV cache over the loaded model."""

    def __init__(self, lib: Any, ptr: Any, n_vocab: int, ubatch: int, applied: AppliedCache):
        self._lib, self._ptr, self._n_vocab = lib, ptr, n_vocab
        self._batch = lib.llama_batch_init(ubatch, 0, 1)
        self.ubatch = ubatch
        self.applied = applied

    def clear(self) -> None:
        """Empty the cache."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._ptr), True)

    def prefill(self, tokens: Sequence[int], first: int) -> Iterator[int]:
        """Decode tokens at positions first.., without logits; yields tokens done per call."""
        for start in range(0, len(tokens), self.ubatch):
            part = tokens[start : start + self.ubatch]
            self._decode(part, first + start, logits=False)
            self._lib.llama_synchronize(self._ptr)
            yield len(part)

    def score(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
        """Decode tokens at positions first.. and return their logits.

        Returns:
            float32 [len(tokens), n_vocab]: a view of the engine's buffer, valid until the
            next call on this context.
        """
        self._decode(tokens, first, logits=True)
        size = len(tokens) * self._n_vocab
        buffer = ffi.buffer(self._lib.llama_get_logits(self._ptr), size * 4)
        return np.frombuffer(buffer, dtype=np.float32).reshape(len(tokens), self._n_vocab)

    def last(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
        """Decode tokens at positions first.. in one batch, as a server does with a prompt's end.

        Returns:
            float32 [n_vocab]: logits of the last one, a view as `score`'s.
        """
        self._decode(tokens, first, logits=False, last=True)
        buffer = ffi.buffer(self._lib.llama_get_logits(self._ptr), self._n_vocab * 4)
        return np.frombuffer(buffer, dtype=np.float32)

    def _decode(
        self, tokens: Sequence[int], first: int, *, logits: bool, last: bool = False
    ) -> None:
        end = len(tokens) - 1
        self.decode([(int(t), first + i, 0, logits or (last and i == end))
                     for i, t in enumerate(tokens)])  # fmt: skip

    def decode(self, batch: Sequence[tuple[int, int, int, bool]]) -> None:
        """Decode up to `ubatch` tokens, given as (id, position, sequence, whether logits).

        Raises:
            EngineError: llama.cpp cannot, for example because no cell is free.
        """
        into = self._batch
        into.n_tokens = len(batch)
        for i, (token, position, sequence, logits) in enumerate(batch):
            into.token[i], into.pos[i], into.n_seq_id[i] = token, position, 1
            into.seq_id[i][0], into.logits[i] = sequence, logits
        code = self._lib.llama_decode(self._ptr, into)
        if code != 0:
            raise EngineError(
                f"llama_decode failed at position {batch[0][1]:,}",
                seen=f"code {code}: {_last_lines(take_log())}",
            )

    def row(self, place: int) -> npt.NDArray[np.float32]:
        """Logits of the token at this place of the last batch, float32 [n_vocab], a view.

        Raises:
            EngineError: none were asked for there.
        """
        pointer = self._lib.llama_get_logits_ith(self._ptr, place)
        if pointer == ffi.NULL:
            raise EngineError("llama.cpp has no logits there", seen=f"token {place} of a batch")
        return np.frombuffer(ffi.buffer(pointer, self._n_vocab * 4), dtype=np.float32)

    def copy(self, source: int, target: int) -> None:
        """Let a sequence share all cells of another."""
        memory = self._lib.llama_get_memory(self._ptr)
        self._lib.llama_memory_seq_cp(memory, source, target, -1, -1)

    def forget(self, sequence: int) -> None:
        """Take all of a sequence out of the cache."""
        memory = self._lib.llama_get_memory(self._ptr)
        self._lib.llama_memory_seq_rm(memory, sequence, -1, -1)

    def close(self) -> None:
        """Free the cache."""
        if self._ptr != ffi.NULL:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._ptr)
            self._ptr = ffi.NULL


@contextmanager
def _rotation(on: bool) -> Iterator[None]:
    # llama.cpp reads this variable once, when a context is made, so contexts with and without
    # rotation live side by side. Set it either way: the user's own environment must not decide.
    name, before = "LLAMA_ATTN_ROT_DISABLE", os.environ.get("LLAMA_ATTN_ROT_DISABLE")
    os.environ[name] = "0" if on else "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _last_lines(log: str, n: int = 3) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip(" .")]
    lines = [line for line in lines if re.search(r"error|fail|invalid", line, re.I)] or lines
    return " | ".join(lines[-n:]) or "no message from the engine"
