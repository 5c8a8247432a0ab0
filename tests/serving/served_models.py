"""Servers of `nybble serve` while a block runs."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nybble.formats.setting import parse
from nybble.serving.deploy import DeployRequest
from nybble.serving.serve import Server, ServeRequest, serve


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(
    model: Path, kv: str = "q4_0/q4_0", *, users: int = 2, context: int = 1024,
    slots: Path | None = None, events: list[str] | None = None, **more: Any,
) -> Iterator[Server]:  # fmt: skip
    """A server that is kept alive while the block runs."""
    asked = DeployRequest(str(model), setting=parse(kv), users=users, context=context,
                          port=free_port(), **more)  # fmt: skip
    said = events if events is not None else []
    server = serve(ServeRequest(asked, slots=slots, key="k" if asked.keyed else None), said.append)
    with server:
        server.start()
        keeper = threading.Thread(target=server.keep, daemon=True)
        keeper.start()
        yield server
    keeper.join(30)


def exl3_folder(folder: Path) -> Path:
    """A tiny Llama whose config says EXL3; without weights, as none are read before it starts."""
    folder.mkdir()
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 256,
        "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1000,
        "max_position_embeddings": 4096, "torch_dtype": "float16",
        "quantization_config": {"quant_method": "exl3", "bits": 4.0},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
