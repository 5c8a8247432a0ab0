"""Embedding by a local model of sentence-transformers: a folder, or a name in the local hub cache.

Nothing is downloaded, no code of the model's is run, no pickle is read.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nybble.engines.transformers.packages import quiet, transformers
from nybble.errors import NybbleError
from nybble.rag.embed.base import Vectors, normalised
from nybble.rag.packages import need

_BATCH = 32


class SentenceModel:
    """A model in a folder.

    Args:
        name: as the user wrote it.
        folder: with modules.json and safetensors; found by the name where None.
        native: compute in bfloat16 where the processor does so natively.
    """

    model = ""

    def __init__(self, name: str, folder: Path | None = None, *, native: bool = False) -> None:
        self.name, self._native = name, native
        self._given, self._folder = folder, Path()
        self._loaded: Any = None
        self._fingerprint = ""
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        """Where the model lies.

        Raises:
            NybbleError: nowhere, or it holds what is not read.
        """
        if not self._folder.name:
            folder = self._given or _local(self.name)
            _check(self.name, folder)
            self._folder = folder
        return self._folder

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the weights and the tokenizer."""
        if not self._fingerprint:
            total = hashlib.sha256()
            for path in sorted([*self.folder.rglob("*.safetensors"),
                                self.folder / "tokenizer.json"]):  # fmt: skip
                with path.open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
            self._fingerprint = total.hexdigest()
        return self._fingerprint

    def tokenizer(self) -> Any:
        """The model's own."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    def passages(self, texts: Sequence[str]) -> Vectors:
        """Vectors of passages; sentence-transformers sorts them by length into batches."""
        return self._encode("encode_document", list(texts))

    def query(self, text: str) -> Vectors:
        """The vector of a question, with the model's prefix for questions if it has one."""
        found: Vectors = self._encode("encode_query", [text])[0]
        return found

    def _encode(self, method: str, texts: list[str]) -> Vectors:
        with self._lock:  # the fast tokenizers of one model cannot be borrowed twice at once
            model = self._load()
            found = getattr(model, method)(texts, batch_size=_BATCH, show_progress_bar=False,
                                           convert_to_tensor=True)  # fmt: skip
        return normalised(found.float().cpu().numpy().astype(np.float32))

    def _load(self) -> Any:
        if self._loaded is not None:
            return self._loaded
        need("torch", "sentence_transformers")
        transformers()
        with quiet():
            import torch
            from sentence_transformers import SentenceTransformer

            options: dict[str, Any] = {"use_safetensors": True}
            if self._native and _bfloat16(torch):
                options["dtype"] = torch.bfloat16
            try:
                self._loaded = SentenceTransformer(
                    str(self.folder), local_files_only=True, trust_remote_code=False,
                    model_kwargs=options)  # fmt: skip
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                raise NybbleError(f"cannot load the embedding model: {str(error)[:200]}",
                                  seen=self.name, hint="--embedding minilm") from error  # fmt: skip
        return self._loaded


def _bfloat16(torch: Any) -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    flags = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(flags())


def _local(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception as error:  # of many kinds, for names as for what is not there
        raise NybbleError(
            "there is no such embedding model here; nothing is downloaded", seen=name,
            allowed="minilm, a folder, a name in the local Hugging Face cache, or http(s)://.../v1",
            hint="--embedding minilm") from error  # fmt: skip


def _check(name: str, folder: Path) -> None:
    def refuse(what: str, seen: object) -> NybbleError:
        return NybbleError(what, seen=seen, allowed="weights as safetensors, a tokenizer.json, "
                           "and modules of sentence-transformers",
                           hint="--embedding minilm")  # fmt: skip

    for needed in ("modules.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise refuse(f"the embedding model {name} has no {needed}", folder)
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds = [(str(m["type"]), str(m["path"])) for m in modules]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise refuse("the embedding model's modules.json cannot be read", folder) from error
    for kind, path in kinds:
        if not kind.startswith("sentence_transformers."):
            raise refuse("the embedding model brings code of its own", kind)
        place = folder / path
        if ".." in Path(path).parts or Path(path).is_absolute():
            raise refuse("the embedding model points out of its folder", path)
        pickles = [p for s in ("*.bin", "*.pt", "*.pkl") for p in place.glob(s)]
        if pickles and not list(place.glob("*.safetensors")):
            raise refuse("the embedding model's weights are pickled, and pickle can run code",
                         pickles[0])  # fmt: skip
