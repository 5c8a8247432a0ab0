"""Runs with the transformers engine: tiny model folders, and a child that is no process.

Import this after pytest.importorskip("torch"). Starting a child that imports torch takes seconds;
`InProcess` answers the same frames with the same worker in this process. Tests of crashes and of
the command line start real ones.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

sys.path.append(str(Path(__file__).parent / "engines" / "transformers"))
from tiny_torch import config_of, randomize  # noqa: E402

from nybble.engines.child import Frame, error_header, read_frame  # noqa: E402
from nybble.errors import NybbleError  # noqa: E402
from nybble.scoring import torch_backend  # noqa: E402
from nybble.scoring.torch_worker import TorchWorker  # noqa: E402

TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
BYTES = 3  # id of byte 0; <unk>, <s> and </s> come before


def write_folder(path: Path, kind: str = "llama", *, seed: int = 0, template: str | None = None,
                 **changes: Any) -> Path:  # fmt: skip
    """A random model of tiny_torch with a vocabulary of bytes, as Hugging Face lays it out."""
    config = config_of(kind, **{"vocab_size": 260, "max_position_embeddings": 2048, **changes})
    model = randomize(hf.AutoModelForCausalLM.from_config(config), seed)
    model.save_pretrained(path)
    _write_tokenizer(path)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    signs = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({sign: i for i, sign in enumerate(signs)}, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.add_special_tokens([AddedToken(sign, special=True) for sign in signs[:BYTES]])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    made.save(str(folder / "tokenizer.json"))


class InProcess:
    """Speaks as EngineProcess does, and keeps what it was asked.

    Attributes:
        asked: headers of all requests to all of them since the list was last emptied.
        spoil: called before every request with its header; may raise.
    """

    asked: list[dict[str, Any]] = []  # noqa: RUF012
    spoil: Callable[[dict[str, Any]], None] | None = None

    def __init__(self, module: str, *, timeout: float = 1800.0) -> None:
        assert module == torch_backend.TORCH_WORKER
        self._worker = TorchWorker(io.BytesIO())
        self.alive, self.where = True, {}

    def request(
        self,
        header: dict[str, Any],
        payload: bytes = b"",
        on_event: Callable[[dict[str, Any]], None] | None = None,
        timeout: float | None = None,
    ) -> Frame:
        assert self.alive
        header = json.loads(json.dumps(header))
        self.asked.append(header)
        self.where = {"op": header["op"]}
        if "threads" in header:  # on small tensors, threads mostly wait for each other
            header["threads"] = 1
        out = self._worker._out = io.BytesIO()
        error = None
        try:
            if InProcess.spoil is not None:
                InProcess.spoil(header)
            reply = self._worker.answer(Frame(header, payload))
        except NybbleError as found:
            error = found
        out.seek(0)
        while (frame := read_frame(out)) is not None:
            self.where = {**self.where, **frame.header}
            if on_event:
                on_event(frame.header)
        if error is not None:
            told = json.loads(json.dumps(error_header(error)))
            raise type(error)(told["what"], **{k: told[k] for k in ("seen", "allowed", "hint")})
        return Frame(json.loads(json.dumps(reply.header)), reply.payload)

    def kill(self) -> None:
        self.alive = False

    def close(self) -> None:
        self.alive = False


@contextmanager
def in_process(cache: Path | None = None) -> Iterator[list[dict[str, Any]]]:
    """The transformers engine without a process of its own; yields what it is asked."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        if cache is not None:
            patch.setenv("NYBBLE_CACHE", str(cache))
        patch.setattr(torch_backend, "EngineProcess", InProcess)
        InProcess.asked.clear()
        InProcess.spoil = None
        yield InProcess.asked
    InProcess.spoil = None
    torch.set_num_threads(threads)


def scored(asked: list[dict[str, Any]]) -> int:
    """Chunks that were asked to be scored."""
    return sum(h["op"] == "score" for h in asked)
